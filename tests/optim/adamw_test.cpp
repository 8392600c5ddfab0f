// SPDX-License-Identifier: MIT
#include "optim/reference.hpp"
#include "support/catch.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/optim/adamw.hpp>

#include <cmath>
#include <limits>
#include <string>

using namespace lora;
using namespace lora::test;

namespace {

/// Word for word as the doc comment has it.
struct Formula {
  long double p, m = 0, v = 0;
  int t = 0;

  void step(const AdamW& rule, long double g, long double rate) {
    const long double lr = rule.learning_rate, b1 = rule.beta1, b2 = rule.beta2;
    const long double epsilon = rule.epsilon, decay = rule.weight_decay;
    ++t;
    m = b1 * m + (1 - b1) * g;
    v = b2 * v + (1 - b2) * g * g;
    p = (1 - rate * lr * decay) * p -
        rate * lr / (1 - std::pow(b1, t)) * m / (std::sqrt(v) / std::sqrt(1 - std::pow(b2, t)) + epsilon);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("AdamW follows its formula over many steps", "[optim]", float, double) {
  const AdamW rule = GENERATE(AdamW{}, AdamW{.learning_rate = 0.02, .weight_decay = 0.1},
                              AdamW{.learning_rate = 0.01, .beta1 = 0.5, .beta2 = 0.9, .epsilon = 1e-3},
                              AdamW{.learning_rate = 0.01, .beta1 = 0, .beta2 = 0});
  const Index size = GENERATE(1, 1023, 1024, 1025, 3000);
  CAPTURE(rule.beta1, rule.beta2, rule.weight_decay, size);
  CHECK(distance_from_formula<Formula, TestType>(rule, size, 100) < rounding_bound<TestType>(step_roundings(100)));
}

TEMPLATE_TEST_CASE("the first step of AdamW is one learning rate against the sign of the gradient", "[optim]", float,
                   double) {
  const AdamW rule{.learning_rate = 0.25, .epsilon = 1e-30};
  ColMatrix<TestType> p = ColMatrix<TestType>::Zero(4, 1), g(4, 1);
  g << 1000, 1, TestType(-1e-3), TestType(-1e6);
  auto state = rule.init<TestType>(4, 1);
  rule.step(state, p, g, 1);
  const Eigen::Vector4d expected(-0.25, -0.25, 0.25, 0.25);
  CHECK(relative_error(p.template cast<double>(), expected) < rounding_bound<TestType>(step_roundings(1)));
}

TEMPLATE_TEST_CASE("AdamW's decay shrinks the parameter by the learning rate and stays out of the moments", "[optim]",
                   float, double) {
  const AdamW rule{.learning_rate = 0.5, .weight_decay = 0.25};
  ColMatrix<TestType> p = ColMatrix<TestType>::Constant(5, 1, 64);
  const ColMatrix<TestType> zero = ColMatrix<TestType>::Zero(5, 1);
  auto state = rule.init<TestType>(5, 1);
  rule.step(state, p, zero, 0.5);  // 1 - 0.5 * 0.5 * 0.25 = 15/16
  CHECK((p.array() == 60).all());
  CHECK((state.mean.array() == 0).all());
  CHECK((state.square.array() == 0).all());
}

TEMPLATE_TEST_CASE("AdamW makes no NaN of a finite gradient, however large or small", "[optim]", float, double) {
  using Limits = std::numeric_limits<TestType>;
  const auto value = GENERATE(Limits::max(), Limits::min(), Limits::denorm_min(), TestType{0});
  const Index size = GENERATE(1, 40);
  ColMatrix<TestType> p = ColMatrix<TestType>::Ones(size, 1);
  const ColMatrix<TestType> g = ColMatrix<TestType>::Constant(size, 1, value);
  const AdamW rule;
  auto state = rule.init<TestType>(size, 1);
  for (int t = 0; t < 3; ++t) rule.step(state, p, g, 1);
  CHECK(p.allFinite());
}

TEST_CASE("AdamW names the hyper-parameter out of range", "[optim]") {
  const auto refused = [](const AdamW& rule) { return message_of<ConfigError>([&] { rule.check(); }); };
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  CHECK(refused({.learning_rate = -1e-3}) == "AdamW: learning_rate must be finite and not negative, got -0.001");
  CHECK(refused({.learning_rate = nan}) == "AdamW: learning_rate must be finite and not negative, got nan");
  CHECK(refused({.learning_rate = infinity}) == "AdamW: learning_rate must be finite and not negative, got inf");
  CHECK(refused({.beta1 = 1}) == "AdamW: beta1 must lie in [0, 1), got 1");
  CHECK(refused({.beta1 = -0.5}) == "AdamW: beta1 must lie in [0, 1), got -0.5");
  CHECK(refused({.beta2 = 1}) == "AdamW: beta2 must lie in [0, 1), got 1");
  CHECK(refused({.beta2 = nan}) == "AdamW: beta2 must lie in [0, 1), got nan");
  CHECK(refused({.epsilon = 0}) == "AdamW: epsilon must be positive, in float too, and finite, got 0");
  CHECK(refused({.epsilon = 1e-50}) == "AdamW: epsilon must be positive, in float too, and finite, got 1e-50");
  CHECK(refused({.epsilon = infinity}) == "AdamW: epsilon must be positive, in float too, and finite, got inf");
  CHECK(refused({.weight_decay = -0.1}) == "AdamW: weight_decay must be finite and not negative, got -0.1");
  CHECK(refused({.weight_decay = nan}) == "AdamW: weight_decay must be finite and not negative, got nan");
}
