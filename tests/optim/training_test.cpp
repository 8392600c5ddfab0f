// SPDX-License-Identifier: MIT
// Steps, schedules and gradients at work with a layer: accumulation over micro-batches, and no memory from the heap.
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/tolerances.hpp"

#include <lora/lora.hpp>

#include <array>

using namespace lora;
using namespace lora::test;

TEMPLATE_TEST_CASE("the mean of two half batches' gradients is the gradient of the whole batch", "[optim]", float,
                   double) {
  constexpr Index n = 12, m = 10, r = 3, b = 16;
  Random random{51};
  LoraLinear layer{random_columns<TestType>(n, m, random), {.rank = r, .alpha = 5}};
  layer.set_factors(random_factors<TestType>(n, m, r, random));
  const auto X = random_rows<TestType>(b, n, random), T = random_rows<TestType>(b, m, random);

  // The gradient of 1/2 |Y - T|^2, mean over the tokens of the batch.
  const auto accumulate = [&](const RowMatrix<TestType>& x, const RowMatrix<TestType>& t, Factors<TestType>& gradient) {
    SavedState<TestType> saved;
    RowMatrix<TestType> Y(x.rows(), m);
    layer.forward(x, Y, saved);
    const RowMatrix<TestType> dY = (Y - t) / static_cast<TestType>(x.rows());
    layer.backward(dY, saved, gradient);
  };
  auto whole = layer.zero_gradient(), halves = layer.zero_gradient();
  accumulate(X, T, whole);
  accumulate(X.topRows(b / 2), T.topRows(b / 2), halves);
  accumulate(X.bottomRows(b / 2), T.bottomRows(b / 2), halves);
  halves *= 0.5;
  const double bound = rounding_bound<TestType>(layer_roundings(n, r) + product_roundings(m) + product_roundings(b));
  CHECK(relative_error(halves.A, whole.A) < bound);
  CHECK(relative_error(halves.B, whole.B) < bound);
  halves.set_zero();
  CHECK(halves == layer.zero_gradient());
}

TEMPLATE_TEST_CASE("optimizer steps and clipping allocate nothing", "[optim]", float, double) {
  const Index n = GENERATE(3, 700), m = GENERATE(5, 900), r = GENERATE(1, 3, 16);
  if (!allocations_are_counted) WARN(not_counted);
  Random random{52};
  auto factors = random_factors<TestType>(n, m, r, random);
  std::array<Factors<TestType>, 2> gradients{random_factors<TestType>(n, m, r, random),
                                             random_factors<TestType>(n, m, r, random)};
  CHECK(allocations_in([&] { clip_global_norm(gradients, 1); }) == 0);

  const auto check = [&](const auto& method, int warm_up) {
    Optimizer<std::decay_t<decltype(method)>, TestType> optimizer(method, n, m, r);
    for (int step = 0; step < warm_up; ++step) optimizer.step(factors, gradients[0], 2, 1);
    CHECK(allocations_in([&] {
            optimizer.step(factors, gradients[0], 2, 1);
            optimizer.step(factors, gradients[1], 2, 1);
          }) == 0);
  };
  check(PerFactor{AdamW{}}, 0);
  check(LoraPlus{AdamW{.weight_decay = 0.1}}, 0);
  check(PerFactor{Sgd{}}, 0);
  check(LoraPlus{Sgd{.momentum = 0.9, .kind = Sgd::Momentum::Nesterov}}, 0);
  // Optimizers of the pair have scratch, which the first step makes.
  using Mode = LoraPro::Mode;
  for (const auto mode : {Mode::Sgd, Mode::Efficient, Mode::Full, Mode::Factored}) check(LoraPro{.mode = mode}, 1);
  check(Riemannian<>{}, 1);
  check(LoraFa<>{}, 1);

  auto weight = random_rows<TestType>(n, m, random);
  const auto gradient = random_rows<TestType>(n, m, random);
  const FullFineTuning method{AdamW{}};
  auto state = method.init(weight);
  CHECK(allocations_in([&] { method.step(state, weight, gradient); }) == 0);
}

TEST_CASE("the counter of allocations counts", "[optim]") {
  if (!allocations_are_counted) WARN(not_counted);
  ColMatrix<float> matrix;
  CHECK(allocations_in([&] { matrix.resize(9, 9); }) == (allocations_are_counted ? 1 : 0));
}
