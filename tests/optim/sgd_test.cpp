// SPDX-License-Identifier: MIT
#include "optim/reference.hpp"
#include "support/catch.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/optim/sgd.hpp>

#include <limits>
#include <string>

using namespace lora;
using namespace lora::test;

namespace {

/// Word for word as the doc comment has it.
struct Formula {
  long double p, u = 0;
  int t = 0;

  void step(const Sgd& rule, long double g, long double rate) {
    const long double lr = rule.learning_rate, mu = rule.momentum, decay = rule.weight_decay;
    const long double d = g + decay * p;
    u = t++ == 0 ? d : mu * u + d;
    p = p - rate * lr * (rule.kind == Sgd::Momentum::Nesterov ? d + mu * u : u);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("Sgd follows its formula over many steps", "[optim]", float, double) {
  constexpr auto nesterov = Sgd::Momentum::Nesterov;
  const Sgd rule = GENERATE(
      Sgd{}, Sgd{.learning_rate = 0.1, .momentum = 0.9}, Sgd{.learning_rate = 0.05, .momentum = 0.8, .kind = nesterov},
      Sgd{.learning_rate = 0.1, .weight_decay = 0.02}, Sgd{.learning_rate = 0.1, .momentum = 0.9, .weight_decay = 0.02},
      Sgd{.learning_rate = 0.1, .momentum = 0.5, .kind = nesterov, .weight_decay = 0.02});
  const Index size = GENERATE(1, 15, 16, 17, 1025);
  CAPTURE(rule.momentum, rule.kind == nesterov, rule.weight_decay, size);
  CHECK(distance_from_formula<Formula, TestType>(rule, size, 100) < rounding_bound<TestType>(step_roundings(100)));
}

TEST_CASE("Sgd keeps as many scalars as the parameter with momentum and none without", "[optim]") {
  CHECK(Sgd{}.init<float>(5, 3).velocity.size() == 0);
  CHECK(Sgd{.momentum = 0.9}.init<float>(5, 3).velocity.size() == 15);
}

TEST_CASE("Sgd names the hyper-parameter out of range", "[optim]") {
  const auto refused = [](const Sgd& rule) { return message_of<ConfigError>([&] { rule.check(); }); };
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  CHECK(refused({.learning_rate = -1}) == "Sgd: learning_rate must be finite and not negative, got -1");
  CHECK(refused({.learning_rate = nan}) == "Sgd: learning_rate must be finite and not negative, got nan");
  CHECK(refused({.learning_rate = infinity}) == "Sgd: learning_rate must be finite and not negative, got inf");
  CHECK(refused({.momentum = 1}) == "Sgd: momentum must lie in [0, 1), got 1");
  CHECK(refused({.momentum = -0.1}) == "Sgd: momentum must lie in [0, 1), got -0.1");
  CHECK(refused({.momentum = nan}) == "Sgd: momentum must lie in [0, 1), got nan");
  CHECK(refused({.kind = Sgd::Momentum::Nesterov}) == "Sgd: Nesterov needs a momentum above 0, got 0");
  CHECK(refused({.weight_decay = -1}) == "Sgd: weight_decay must be finite and not negative, got -1");
  CHECK(refused({.weight_decay = infinity}) == "Sgd: weight_decay must be finite and not negative, got inf");
}
