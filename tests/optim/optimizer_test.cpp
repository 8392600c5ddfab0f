// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"

#include <lora/lora.hpp>

#include <utility>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 13, m = 11, r = 4;

/// A layer that nobody but an optimizer would take for one.
struct BarePair {
  using Scalar = double;
  Factors<double> pair = Factors<double>::zero(n, m, r);
  FactorsView<double> factors() { return pair; }
  ConstFactorsView<double> factors() const { return pair; }
  double scale() const { return 1; }
};

template <Real Scalar>
LoraLinear<OwnedBase<Scalar>> random_layer(Random& random) {
  LoraLinear layer{random_columns<Scalar>(n, m, random), {.rank = r}};
  layer.set_factors(random_factors<Scalar>(n, m, r, random));
  return layer;
}

/// Steps layer and optimizer along gradients drawn from `random`.
template <class Layer, class Optimizer>
void train(Layer& layer, Optimizer& optimizer, Random& random, int first, int last) {
  const Schedule schedule{.warmup_steps = 5, .total_steps = 40, .tail = Schedule::Tail::Cosine};
  for (int step = first; step < last; ++step) {
    const auto gradient = random_factors<typename Layer::Scalar>(n, m, r, random);
    optimizer.step(layer, gradient, schedule(step));
  }
}

}  // namespace

TEMPLATE_TEST_CASE("stepping a layer is stepping its factors at its scale", "[optim]", float, double) {
  Random random{11};
  auto layer = random_layer<TestType>(random);
  Factors<TestType> factors = std::as_const(layer).factors();
  const auto gradient = random_factors<TestType>(n, m, r, random);

  Optimizer by_layer{LoraPlus{AdamW{}}, layer};
  Optimizer<LoraPlus<>, TestType> by_view(LoraPlus{AdamW{}}, n, m, r);
  CHECK(by_layer.state() == by_view.state());
  for (int step = 0; step < 3; ++step) {
    by_layer.step(layer, gradient, 0.5);
    by_view.step(factors, gradient, layer.scale(), 0.5);
  }
  CHECK(same_bits(std::as_const(layer).factors(), factors));
  CHECK(by_layer.state() == by_view.state());
}

TEST_CASE("any type with factors and a scale can be stepped", "[optim]") {
  Random random{12};
  BarePair pair;
  Optimizer optimizer{PerFactor{Sgd{.learning_rate = 1}}, pair};
  const auto gradient = random_factors<double>(n, m, r, random);
  optimizer.step(pair, gradient);
  CHECK((pair.pair.A.array() == -gradient.A.array()).all());
  CHECK((pair.pair.B.array() == -gradient.B.array()).all());
}

TEMPLATE_TEST_CASE("a copy of an optimizer is a snapshot", "[optim]", float, double) {
  Random random{13};
  auto layer = random_layer<TestType>(random);
  Optimizer optimizer{PerFactor{AdamW{}}, layer};
  train(layer, optimizer, random, 0, 3);
  const auto snapshot = optimizer;
  CHECK(snapshot.state() == optimizer.state());
  train(layer, optimizer, random, 3, 4);
  CHECK_FALSE(snapshot.state() == optimizer.state());
  CHECK(snapshot.state().A.steps == 3);
}

TEMPLATE_TEST_CASE("a run resumed from copies ends with the bits of an uninterrupted one", "[optim]", float, double) {
  const auto check = [](const auto& method) {
    Random random{14};
    auto layer = random_layer<TestType>(random);
    Optimizer optimizer{method, layer};
    train(layer, optimizer, random, 0, 17);

    auto resumed_layer = layer;
    Optimizer<std::remove_cvref_t<decltype(method)>, TestType> resumed_optimizer{method, optimizer.state()};
    CHECK(resumed_optimizer == optimizer);
    Random resumed_random(random.state());
    train(layer, optimizer, random, 17, 50);
    train(resumed_layer, resumed_optimizer, resumed_random, 17, 50);
    CHECK(same_bits(std::as_const(resumed_layer).factors(), std::as_const(layer).factors()));
    CHECK(resumed_optimizer == optimizer);
  };
  check(PerFactor{AdamW{.learning_rate = 0.01, .weight_decay = 0.1}});
  check(LoraPlus{AdamW{.learning_rate = 0.01}});
  check(LoraPro{.learning_rate = 0.01, .mode = LoraPro::Mode::Full});
  check(LoraPro{.learning_rate = 0.01, .mode = LoraPro::Mode::Factored});
  check(Riemannian<>{});
  check(LoraFa<>{});
  check(PerFactor{Sgd{.momentum = 0.9, .kind = Sgd::Momentum::Nesterov}});
}

TEST_CASE("states differ by every part of them", "[optim]") {
  const PerFactor<> method;
  const auto start = method.init<double>(n, m, r);
  auto other = start;
  CHECK(other == start);
  other.A.mean(0, 0) = 1;
  CHECK_FALSE(other == start);
  other = start;
  other.B.square(0, 0) = 1;
  CHECK_FALSE(other == start);
  other = start;
  other.B.steps = 1;
  CHECK_FALSE(other == start);
  CHECK_FALSE(method.init<double>(n + 1, m, r) == start);

  const PerFactor momentum{Sgd{.momentum = 0.5}};
  const auto still = momentum.init<double>(n, m, r);
  auto moving = still;
  CHECK(moving == still);
  moving.B.velocity(0, 0) = 1;
  CHECK_FALSE(moving == still);
}

TEST_CASE("the method of an optimizer may be changed between steps", "[optim]") {
  Random random{15};
  auto factors = random_factors<double>(n, m, r, random);
  const auto start = factors;
  const auto gradient = random_factors<double>(n, m, r, random);
  Optimizer<PerFactor<Sgd>, double> optimizer(PerFactor{Sgd{.learning_rate = 1}}, n, m, r);
  optimizer.method().rule.learning_rate = 0;
  optimizer.step(factors, gradient, 1, 1);
  CHECK(same_bits(factors, start));
  CHECK(std::as_const(optimizer).method().rule.learning_rate == 0);
}

TEST_CASE("a momentum that is switched on after the state was made is refused, not read beyond the state", "[optim]") {
  auto factors = Factors<double>::zero(n, m, r);
  const auto gradient = Factors<double>::zero(n, m, r);
  Optimizer<PerFactor<Sgd>, double> optimizer(PerFactor{Sgd{}}, n, m, r);
  optimizer.method().rule.momentum = 0.9;
  CHECK(message_of<ConfigError>([&] { optimizer.step(factors, gradient, 1, 1); }) ==
        "Sgd: momentum must stay 0 with a state that was made without it, got 0.9");
  CHECK(optimizer.state().A.steps == 0);
}

TEST_CASE("a state of other shapes is refused before either factor moves", "[optim]") {
  Random random{16};
  auto factors = random_factors<double>(n, m, r, random);
  const auto start = factors, gradient = random_factors<double>(n, m, r, random);
  const auto refused = [&](const auto& method, auto state) {
    Optimizer<std::remove_cvref_t<decltype(method)>, double> optimizer(method, state);
    const auto message = message_of<ShapeError>([&] { optimizer.step(factors, gradient, 1, 1); });
    CHECK(same_bits(factors, start));
    CHECK(optimizer.state() == state);
    return message;
  };
  const PerFactor<> adamw;
  auto moments = adamw.init<double>(n, m, r);
  moments.B.square.resize(m, r + 1);
  moments.B.square.setZero();
  CHECK(refused(adamw, moments) == "AdamW: square of the state must be 11 x 4, got 11 x 5");
  CHECK(refused(adamw, adamw.init<double>(n + 1, m, r)) == "PerFactor::step: factors A must be 14 x 4, got 13 x 4");
  const PerFactor momentum{Sgd{.momentum = 0.9}};
  auto velocity = momentum.init<double>(n, m, r);
  velocity.B.velocity.resize(2, 2);
  velocity.B.velocity.setZero();
  CHECK(refused(momentum, velocity) == "Sgd: velocity of the state must be 11 x 4, got 2 x 2");
}

TEST_CASE("an optimizer passes on what its method refuses", "[optim]") {
  Random random{16};
  auto layer = random_layer<double>(random);
  Optimizer optimizer{PerFactor{AdamW{}}, layer};
  const auto gradient = Factors<double>::zero(n + 1, m, r);
  CHECK(message_of<ShapeError>([&] { optimizer.step(layer, gradient); }) ==
        "PerFactor::step: gradient A must be 13 x 4, got 14 x 4");
  CHECK(message_of<ConfigError>([&] {
          Optimizer{PerFactor{AdamW{.beta2 = 2}}, layer};
        }) == "AdamW: beta2 must lie in [0, 1), got 2");
  CHECK(message_of<ShapeError>([&] { Optimizer<PerFactor<>, float>(PerFactor<>{}, 3, 0, 1); }) ==
        "PerFactor::init: n, m and r must be at least 1, got 3, 0, 1");
  layer.merge();
  const auto fitting = Factors<double>::zero(n, m, r);
  CHECK(message_of<StateError>([&] { optimizer.step(layer, fitting); }) ==
        "LoraLinear::factors: unmerge first, got a merged layer");
}
