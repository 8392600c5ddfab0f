// SPDX-License-Identifier: MIT
// LoRA seen as an optimizer: beside a layer that has the same adapter inside, in all sorts of memory, and refused.
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/starts.hpp"
#include "support/tolerances.hpp"

#include <lora/lora.hpp>

#include <limits>
#include <string>
#include <type_traits>
#include <utility>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 13, m = 9, r = 3, tokens = 24;
constexpr double s = 1.7;
constexpr int short_run = 50;
using Mode = LoraPro::Mode;

/// Least squares: the loss 1/2 ||X W - T||^2 / tokens, from W0.
template <Real Scalar>
struct Regression {
  Random random{1};
  RowMatrix<Scalar> X = random_rows<Scalar>(tokens, n, random), T = random_rows<Scalar>(tokens, m, random);
  ColMatrix<Scalar> W0 = random_columns<Scalar>(n, m, random);
  Factors<Scalar> start = random_factors<Scalar>(n, m, r, random);

  RowMatrix<Scalar> output_gradient(const RowMatrix<Scalar>& Y) const { return (Y - T) / static_cast<Scalar>(tokens); }
  template <class Weight>
  RowMatrix<Scalar> gradient(const Weight& W) const {
    return X.transpose() * output_gradient(X * W);
  }
};

/// Runs `steps` steps in W's own memory, with a gradient in the memory of `Gradient`.
template <class Gradient, class Method, class Weight>
auto trained(const Method& method, Weight&& W, int steps) {
  using Scalar = typename std::remove_cvref_t<Weight>::Scalar;
  const Regression<Scalar> problem;
  WeightSpace space(method, problem.start, s);
  for (int step = 0; step < steps; ++step) {
    const Gradient G(problem.gradient(W));
    if constexpr (requires { G.view(); }) {
      space.step(W, G.view(), 1 - 0.005 * step);
    } else {
      space.step(W, G, 1 - 0.005 * step);
    }
  }
  return space;
}

/// How far the optimizer view ends from a layer with the adapter inside, relative in norm, after 100 steps.
template <Real Scalar, class Method>
double distance(const Method& method, bool from_zero) {
  Regression<Scalar> problem;
  if (from_zero) problem.start.B.setZero();
  Random random{2};
  LoraLinear layer{problem.W0, {.rank = r, .alpha = r * s}};
  const auto offset = from_zero ? Offset::None : Offset::SubtractInitial;
  layer.initialize(Given<Scalar>{problem.start, offset}, random);
  Optimizer optimizer{method, layer};
  RowMatrix<Scalar> Y(tokens, m);
  SavedState<Scalar> saved;
  ColMatrix<Scalar> W = problem.W0;
  WeightSpace space(method, problem.start, layer.scale());
  for (int step = 0; step < 100; ++step) {
    const double rate = 1 - 0.005 * step;
    auto gradient = layer.zero_gradient();
    layer.forward(problem.X, Y, saved);
    const auto dY = problem.output_gradient(Y);
    layer.backward(dY, saved, gradient);
    optimizer.step(layer, gradient, rate);
    space.step(W, problem.gradient(W), rate);
  }
  return relative_error(W, layer.merged_weight());
}

template <class Visit>
void for_each_method(const Visit& visit) {
  visit(PerFactor{AdamW{.learning_rate = 0.01, .weight_decay = 0.1}}, "LoRA");
  visit(LoraPlus{Sgd{.learning_rate = 0.005, .momentum = 0.9}, 2}, "LoRA+");
  visit(LoraPro{.learning_rate = 0.1, .mode = Mode::Sgd}, "LoRA-Pro Sgd");
  visit(LoraPro{.learning_rate = 0.01, .mode = Mode::Efficient}, "LoRA-Pro Efficient");
  visit(LoraPro{.learning_rate = 0.01, .mode = Mode::Full}, "LoRA-Pro Full");
  visit(LoraPro{.learning_rate = 0.01, .mode = Mode::Factored}, "LoRA-Pro Factored");
  visit(Riemannian{AdamW{.learning_rate = 0.01}}, "Riemannian");
  visit(LoraFa{AdamW{.learning_rate = 0.01}}, "LoRA-FA");
}

}  // namespace

TEMPLATE_TEST_CASE("the optimizer view follows a layer with the same adapter inside for 100 steps", "[optim]", float,
                   double) {
  for_each_method([](const auto& method, const char* name) {
    for (const bool from_zero : {true, false}) {
      const double found = distance<TestType>(method, from_zero);
      INFO(name << (from_zero ? " from B = 0: " : " after an offset start: ") << found);
      CHECK(found < weight_space_run<TestType>);
    }
  });
}

TEMPLATE_TEST_CASE("W and its gradient may lie in either storage order, with gaps or without", "[optim]", float,
                   double) {
  using Columns = ColMatrix<TestType>;
  using Rows = RowMatrix<TestType>;
  const Regression<TestType> problem;
  const LoraPro method{.learning_rate = 0.01, .mode = Mode::Factored};
  Columns expected = problem.W0;
  trained<Columns>(method, expected, 20);
  const auto check = [&](const auto& W) { CHECK(relative_error(Columns(W), expected) < weight_space_run<TestType>); };
  Columns columns = problem.W0;
  trained<Rows>(method, columns, 20);
  check(columns);
  Rows rows = problem.W0;
  trained<Columns>(method, rows, 20);
  check(rows);
  Rows both_rows = problem.W0;
  trained<Rows>(method, both_rows, 20);
  check(both_rows);

  Strided<TestType, Eigen::ColMajor> wide_columns(problem.W0);
  trained<Strided<TestType, Eigen::RowMajor>>(method, wide_columns.view(), 20);
  CHECK(same_bits(wide_columns.view(), columns));
  CHECK(wide_columns.border_untouched());
  Strided<TestType, Eigen::RowMajor> wide_rows(problem.W0);
  trained<Strided<TestType, Eigen::ColMajor>>(method, wide_rows.view(), 20);
  CHECK(same_bits(wide_rows.view(), rows));
  CHECK(wide_rows.border_untouched());
}

TEMPLATE_TEST_CASE("delta is what training added to W, and can be subtracted again", "[optim]", float, double) {
  for_each_method([](const auto& method, const char* name) {
    const Regression<TestType> problem;
    ColMatrix<TestType> W = problem.W0;
    const auto space = trained<ColMatrix<TestType>>(method, W, short_run);
    const auto change = space.delta();
    CHECK(change.rank() == 2 * r);
    const Wide added = wide(W) - wide(problem.W0);
    const Wide claimed = static_cast<long double>(space.scale()) * product(wide(change.A), wide(change.B));
    const double size = static_cast<double>(W.norm()) + static_cast<double>(problem.W0.norm());
    const double bound = rounding_bound<TestType>(step_roundings(short_run)) * size;
    INFO(name);
    CHECK(added.norm() > 0.01 * size);
    CHECK(static_cast<double>((added - claimed).norm()) < bound);
    space.subtract_from(W);
    CHECK(static_cast<double>((W - problem.W0).norm()) < bound);
  });
}

TEST_CASE("delta keeps rank r where the start's product was zero", "[optim]") {
  Regression<double> problem;
  problem.start.B.setZero();
  WeightSpace space(PerFactor<>{}, problem.start, s);
  RowMatrix<double> W = problem.W0;
  space.step(W, problem.gradient(W));
  CHECK(space.delta() == space.factors());
  CHECK(space.initial_factors() == problem.start);
  CHECK(relative_error(W, problem.W0 + s * space.factors().A * space.factors().B) <
        rounding_bound<double>(step_roundings(1)));
}

TEST_CASE("a copy of a WeightSpace goes on with the bits of the original", "[optim]") {
  for_each_method([](const auto& method, const char* name) {
    const Regression<float> problem;
    ColMatrix<float> W = problem.W0;
    auto space = trained<ColMatrix<float>>(method, W, 10);
    auto copy = space;
    ColMatrix<float> other = W;
    for (int step = 0; step < 10; ++step) {
      const auto G = problem.gradient(W);
      space.step(W, G);
      copy.step(other, G);
    }
    INFO(name);
    CHECK(same_bits(W, other));
    CHECK(same_bits(space.factors(), copy.factors()));
    CHECK(space.state() == copy.state());
  });
}

TEMPLATE_TEST_CASE("a step of the optimizer view allocates nothing once warm", "[optim]", float, double) {
  if (!allocations_are_counted) WARN(not_counted);
  const Regression<TestType> problem;
  for_each_method([&](const auto& method, const char* name) {
    WeightSpace space(method, problem.start, s);
    RowMatrix<TestType> W = problem.W0;
    const RowMatrix<TestType> G = problem.gradient(W);
    space.step(W, G);
    INFO(name);
    CHECK(allocations_in([&] {
            space.step(W, G);
            space.step(W, G, 0.5);
          }) == 0);
  });
}

TEST_CASE("slices of one buffer serve as W and gradient where they lie apart, and are refused where they overlap",
          "[optim]") {
  const Regression<double> problem;
  const auto G = problem.gradient(problem.W0);
  const PerFactor<> method;
  ColMatrix<double> expected = problem.W0;
  WeightSpace reference(method, problem.start, s);
  reference.step(expected, G);
  const auto check = [&](auto buffer) {
    buffer.resize(n, 2 * m + 1);
    buffer.leftCols(m) = problem.W0;
    buffer.rightCols(m) = G;
    const auto before = buffer;
    WeightSpace space(method, problem.start, s);
    const auto refused = [&](auto&& W, const auto& gradient) {
      auto message = message_of<ShapeError>([&] { space.step(W, gradient); });
      CHECK(same_bits(buffer, before));
      CHECK(space.factors() == problem.start);
      return message;
    };
    const std::string overlapping = "WeightSpace::step: W and gradient must lie apart, got overlapping memory";
    CHECK(refused(buffer.leftCols(m), buffer.leftCols(m)) == overlapping);
    CHECK(refused(buffer.leftCols(m), buffer.middleCols(m - 1, m)) == overlapping);  // one column in common
    CHECK(refused(buffer.middleCols(m, m), buffer.rightCols(m)) == overlapping);
    space.step(buffer.leftCols(m), buffer.rightCols(m));
    CHECK(relative_error(buffer.leftCols(m), expected) < rounding_bound<double>(step_roundings(1)));
    CHECK(same_bits(buffer.rightCols(m), G));
  };
  check(ColMatrix<double>());
  check(RowMatrix<double>());  // row by row, W and gradient in turn

  ColMatrix<double> W = problem.W0;
  const ConstRows<double> as_rows(W.data(), n, m);
  CHECK(message_of<ShapeError>([&] { reference.step(W, as_rows); }) ==
        "WeightSpace::step: W and gradient must lie apart, got overlapping memory");
  CHECK(same_bits(W, problem.W0));
}

TEMPLATE_TEST_CASE("a gradient that is not finite leaves W, factors and state as they were", "[optim]", float, double) {
  using Limits = std::numeric_limits<TestType>;
  const TestType value = GENERATE(Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity());
  for_each_method([&](const auto& method, const char* name) {
    const Regression<TestType> problem;
    ColMatrix<TestType> W = problem.W0;
    auto space = trained<ColMatrix<TestType>>(method, W, 3);
    auto G = problem.gradient(W);
    G(n - 1, m - 1) = value;
    const auto before = W;
    const auto factors = space.factors();
    const auto state = space.state();
    INFO(name);
    CHECK(message_of<NumericalError>([&] { space.step(W, G); }) ==
          "WeightSpace::step: gradient must be finite, got NaN or infinity");
    CHECK(same_bits(W, before));
    CHECK(same_bits(space.factors(), factors));
    CHECK(space.state() == state);
  });
}

TEST_CASE("WeightSpace says what is wrong with it or with a step", "[optim]") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Regression<double> problem;
  const auto make = [](const Factors<double>& start, double scale) { WeightSpace(PerFactor<>{}, start, scale); };
  CHECK(message_of<ConfigError>([&] { make(problem.start, 0); }) ==
        "WeightSpace: scale must be finite and not zero, got 0");
  CHECK(message_of<ConfigError>([&] { make(problem.start, nan); }) ==
        "WeightSpace: scale must be finite and not zero, got nan");
  CHECK(message_of<ShapeError>([&] { make({}, s); }) == "PerFactor::init: n, m and r must be at least 1, got 0, 0, 0");
  CHECK(message_of<ShapeError>([&] {
          make({problem.start.A, RowMatrix<double>(2, m)}, s);
        }) == "FactorsView: A (n x r) and B (r x m) must share the rank, got A 13 x 3 and B 2 x 9");
  auto bad = problem.start;
  bad.B(0, 0) = nan;
  CHECK(message_of<NumericalError>([&] { make(bad, s); }) ==
        "WeightSpace: start B must be finite, got NaN or infinity");
  CHECK(message_of<ConfigError>([&] { WeightSpace(LoraPro{.damping = -1}, problem.start, s); }) ==
        "LoraPro: damping must be finite and not negative, got -1");

  WeightSpace space(PerFactor<>{}, problem.start, s);
  ColMatrix<double> W = problem.W0, transposed = problem.W0.transpose();
  const auto G = problem.gradient(W);
  const auto start = space.state();
  CHECK(message_of<ShapeError>([&] { space.step(transposed, G); }) ==
        "WeightSpace::step: W must be 13 x 9, got 9 x 13");
  CHECK(message_of<ShapeError>([&] { space.step(W, transposed); }) ==
        "WeightSpace::step: gradient must be 13 x 9, got 9 x 13");
  CHECK(message_of<ConfigError>([&] { space.step(W, G, -1); }) ==
        "PerFactor::step: rate must be finite and not negative, got -1");
  CHECK(message_of<ShapeError>([&] { space.subtract_from(transposed); }) ==
        "WeightSpace::subtract_from: W must be 13 x 9, got 9 x 13");
  space.method().rule.beta1 = 2;
  CHECK(message_of<ConfigError>([&] { space.step(W, G); }) == "AdamW: beta1 must lie in [0, 1), got 2");
  CHECK(std::as_const(space).method().rule.beta1 == 2);
  CHECK(same_bits(W, problem.W0));
  CHECK(space.factors() == problem.start);
  CHECK(space.state() == start);
}
