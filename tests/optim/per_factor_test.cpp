// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"

#include <lora/optim/adamw.hpp>
#include <lora/optim/per_factor.hpp>
#include <lora/optim/sgd.hpp>

#include <limits>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 19, m = 23, r = 3;

/// Factors after some steps of a method.
template <Real Scalar, class Method>
Factors<Scalar> trained(const Method& method, double scale = 2) {
  Random random{7};
  auto factors = random_factors<Scalar>(n, m, r, random);
  auto state = method.template init<Scalar>(n, m, r);
  for (int step = 0; step < 10; ++step) {
    const auto gradient = random_factors<Scalar>(n, m, r, random);
    method.step(state, factors, gradient, scale, 1 - 0.05 * step);
  }
  return factors;
}

/// The same steps with one rule and one state for each factor.
template <Real Scalar, class Rule>
Factors<Scalar> trained_apart(const Rule& rule_A, const Rule& rule_B) {
  Random random{7};
  auto factors = random_factors<Scalar>(n, m, r, random);
  auto state_A = rule_A.template init<Scalar>(n, r);
  auto state_B = rule_B.template init<Scalar>(m, r);
  for (int step = 0; step < 10; ++step) {
    const auto gradient = random_factors<Scalar>(n, m, r, random);
    const double rate = 1 - 0.05 * step;
    rule_A.step(state_A, factors.A, gradient.A, rate);
    rule_B.step(state_B, transposed(Rows<Scalar>(factors.B)), transposed(ConstRows<Scalar>(gradient.B)), rate);
  }
  return factors;
}

}  // namespace

TEMPLATE_TEST_CASE("PerFactor steps both factors by the rule", "[optim]", float, double) {
  const AdamW adamw{.learning_rate = 0.01, .weight_decay = 0.5};
  CHECK(same_bits(trained<TestType>(PerFactor{adamw}), trained_apart<TestType>(adamw, adamw)));
  const Sgd sgd{.learning_rate = 0.01, .momentum = 0.9};
  CHECK(same_bits(trained<TestType>(PerFactor{sgd}), trained_apart<TestType>(sgd, sgd)));
}

TEMPLATE_TEST_CASE("LoRA+ lets B learn, and decay, `ratio` times as fast as A", "[optim]", float, double) {
  const AdamW adamw{.learning_rate = 0.0078125, .weight_decay = 0.5}, fast{.learning_rate = 0.125, .weight_decay = 0.5};
  CHECK(same_bits(trained<TestType>(LoraPlus{adamw}), trained_apart<TestType>(adamw, fast)));  // 16 by default
  CHECK(same_bits(trained<TestType>(LoraPlus{adamw, 16}), trained_apart<TestType>(adamw, fast)));
  const Sgd sgd{.learning_rate = 0.0078125, .momentum = 0.9}, half{.learning_rate = 0.00390625, .momentum = 0.9};
  CHECK(same_bits(trained<TestType>(LoraPlus{sgd, 0.5}), trained_apart<TestType>(sgd, half)));
}

TEMPLATE_TEST_CASE("LoRA+ at ratio 1 is plain LoRA, bit for bit", "[optim]", float, double) {
  const AdamW rule{.learning_rate = 0.01, .weight_decay = 0.1};
  CHECK(same_bits(trained<TestType>(LoraPlus{rule, 1}), trained<TestType>(PerFactor{rule})));
}

TEMPLATE_TEST_CASE("decoupled decay alone shrinks A by 1 - rate lr decay and B by 1 - ratio rate lr decay", "[optim]",
                   float, double) {
  const LoraPlus method{AdamW{.learning_rate = 0.25, .weight_decay = 0.125}, 4};
  Factors<TestType> factors{ColMatrix<TestType>::Constant(n, r, 64), RowMatrix<TestType>::Constant(r, m, 64)};
  const auto zero = Factors<TestType>::zero(n, m, r);
  auto state = method.template init<TestType>(n, m, r);
  method.step(state, factors, zero, 1, 0.5);
  CHECK((factors.A.array() == 63).all());
  CHECK((factors.B.array() == 60).all());
}

TEST_CASE("neither method looks at the scale", "[optim]") {
  CHECK(same_bits(trained<float>(PerFactor{AdamW{}}, 1), trained<float>(PerFactor{AdamW{}}, 8)));
  CHECK(same_bits(trained<float>(LoraPlus{AdamW{}}, 1), trained<float>(LoraPlus{AdamW{}}, 8)));
}

TEST_CASE("PerFactor and LoRA+ say what is wrong with a step", "[optim]") {
  auto factors = Factors<double>::zero(4, 3, 2);
  const auto gradient = Factors<double>::zero(4, 3, 2);
  const auto check = [&](const auto& method, const std::string& name) {
    const auto wrong = [&](const Factors<double>& bad) {
      auto state = method.template init<double>(4, 3, 2);
      return message_of<ShapeError>([&] { method.step(state, factors, bad, 1, 1); });
    };
    CHECK(wrong(Factors<double>::zero(5, 3, 2)) == name + "::step: gradient A must be 4 x 2, got 5 x 2");
    CHECK(wrong(Factors<double>::zero(4, 6, 2)) == name + "::step: gradient B must be 2 x 3, got 2 x 6");
    CHECK(wrong(Factors<double>::zero(4, 3, 1)) == name + "::step: gradient A must be 4 x 2, got 4 x 1");

    const auto of_other = [&](Index rows, Index cols, Index rank) {
      auto state = method.template init<double>(rows, cols, rank);
      return message_of<ShapeError>([&] { method.step(state, factors, gradient, 1, 1); });
    };
    CHECK(of_other(7, 3, 2) == name + "::step: factors A must be 7 x 2, got 4 x 2");
    CHECK(of_other(4, 9, 2) == name + "::step: factors B must be 2 x 9, got 2 x 3");
    CHECK(of_other(4, 3, 1) == name + "::step: factors A must be 4 x 1, got 4 x 2");

    const auto at_rate = [&](double rate) {
      auto state = method.template init<double>(4, 3, 2);
      return message_of<ConfigError>([&] { method.step(state, factors, gradient, 1, rate); });
    };
    const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
    CHECK(at_rate(-1) == name + "::step: rate must be finite and not negative, got -1");
    CHECK(at_rate(nan) == name + "::step: rate must be finite and not negative, got nan");
    CHECK(at_rate(infinity) == name + "::step: rate must be finite and not negative, got inf");
    CHECK(at_rate(0) == "[no error]");

    const auto init = [&](Index rows, Index cols, Index rank) {
      return message_of<ShapeError>([&] { method.template init<double>(rows, cols, rank); });
    };
    CHECK(init(0, 3, 1) == name + "::init: n, m and r must be at least 1, got 0, 3, 1");
    CHECK(init(4, -3, 1) == name + "::init: n, m and r must be at least 1, got 4, -3, 1");
    CHECK(init(4, 3, 0) == name + "::init: n, m and r must be at least 1, got 4, 3, 0");
  };
  check(PerFactor{AdamW{}}, "PerFactor");
  check(LoraPlus{Sgd{}, 4}, "LoraPlus");
}

TEST_CASE("hyper-parameters are checked at init and, since they may change, at every step", "[optim]") {
  auto factors = Factors<float>::zero(4, 3, 2);
  const auto refused = [&](auto method, auto spoil) {
    auto state = method.template init<float>(4, 3, 2);
    spoil(method);
    const auto at_init = message_of<ConfigError>([&] { method.template init<float>(4, 3, 2); });
    CHECK(at_init == message_of<ConfigError>([&] { method.step(state, factors, factors, 1, 1); }));
    return at_init;
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto set_ratio = [](double ratio) { return [ratio](LoraPlus<>& method) { method.ratio = ratio; }; };
  CHECK(refused(LoraPlus{AdamW{}}, set_ratio(0)) == "LoraPlus: ratio must be positive and finite, got 0");
  CHECK(refused(LoraPlus{AdamW{}}, set_ratio(-2)) == "LoraPlus: ratio must be positive and finite, got -2");
  CHECK(refused(LoraPlus{AdamW{}}, set_ratio(nan)) == "LoraPlus: ratio must be positive and finite, got nan");
  CHECK(refused(LoraPlus{AdamW{}}, [](auto& method) { method.rule.beta1 = 1; }) ==
        "AdamW: beta1 must lie in [0, 1), got 1");
  CHECK(refused(PerFactor{Sgd{}}, [](auto& method) { method.rule.learning_rate = -1; }) ==
        "Sgd: learning_rate must be finite and not negative, got -1");
}
