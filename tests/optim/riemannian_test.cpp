// SPDX-License-Identifier: MIT
#include "optim/dense_reference.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/optim/adamw.hpp>
#include <lora/optim/optimizer.hpp>
#include <lora/optim/per_factor.hpp>
#include <lora/optim/riemannian.hpp>
#include <lora/optim/sgd.hpp>

#include <limits>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 13, m = 9, r = 3;
constexpr double s = 1.7;

/// G_A (B B^T + rho I)^-1 and (A^T A + rho I)^-1 G_B.
Factors<double> preconditioned(const Factors<double>& f, const Factors<double>& gradient, double rho) {
  const Dense ridge = rho * Dense::Identity(r, r);
  return {gradient.A * inverse(f.B * f.B.transpose() + ridge), inverse(f.A.transpose() * f.A + ridge) * gradient.B};
}

/// How far ten steps lead from those of the rule along the preconditioned gradients, relative in norm.
template <Real Scalar, class Rule>
double distance(const Rule& rule, double rho, bool from_zero) {
  Random random{1};
  const Dense target = random_columns<double>(n, m, random);
  auto expected = random_factors<double>(n, m, r, random);
  if (from_zero) expected.B.setZero();
  Factors<Scalar> f{expected.A.template cast<Scalar>(), expected.B.template cast<Scalar>()};
  Optimizer<Riemannian<Rule>, Scalar> optimizer(Riemannian{rule, rho}, n, m, r);
  Optimizer<PerFactor<Rule>, double> reference(PerFactor{rule}, n, m, r);
  for (int step = 0; step < 10; ++step) {
    const double rate = 1 - 0.05 * step;
    const ColMatrix<Scalar> G = static_cast<Scalar>(s) * f.A * f.B - target.template cast<Scalar>();
    const auto raw = factor_gradient<Scalar>(f, G, s);
    optimizer.step(f, raw, s, rate);
    const Dense expected_G = s * expected.A * expected.B - target;
    const auto direction = preconditioned(expected, factor_gradient(expected, expected_G, s), rho);
    reference.step(expected, direction, s, rate);
  }
  return std::max(relative_error(f.A.template cast<double>(), expected.A),
                  relative_error(f.B.template cast<double>(), expected.B));
}

}  // namespace

TEMPLATE_TEST_CASE("Riemannian feeds the preconditioned gradients to its rule", "[optim]", float, double) {
  for (const double rho : {1e-2, 1.0}) {
    for (const bool from_zero : {false, true}) {
      const double sgd = distance<TestType>(Sgd{.learning_rate = 0.1, .momentum = 0.5}, rho, from_zero);
      const double adamw = distance<TestType>(AdamW{.learning_rate = 0.02, .weight_decay = 0.1}, rho, from_zero);
      INFO("rho " << rho << ": distance with Sgd " << sgd << ", with AdamW " << adamw);
      CHECK(sgd < pair_run<TestType>);
      CHECK(adamw < pair_run<TestType>);
    }
  }
}

TEST_CASE("with Sgd and rho near 0 the step of the product does not depend on how it is split", "[optim]") {
  constexpr double lr = 0x1p-20;
  Random random{2};
  const auto pair = random_factors<double>(n, m, r, random);
  const Dense G = random_columns<double>(n, m, random), T = random_columns<double>(r, r, random);
  const auto step_of_product = [&](const auto& method, Factors<double> f) {
    const Dense before = f.A * f.B;
    Optimizer<std::remove_cvref_t<decltype(method)>, double> optimizer(method, n, m, r);
    const auto raw = factor_gradient(f, G, s);
    optimizer.step(f, raw, s, 1);
    return Dense((f.A * f.B - before) / lr);
  };
  const Factors<double> other{pair.A * T, inverse(T) * pair.B};
  const Riemannian method{Sgd{.learning_rate = lr}, 1e-12};
  const double found = relative_error(step_of_product(method, other), step_of_product(method, pair));
  const PerFactor plain{Sgd{.learning_rate = lr}};
  const double without = relative_error(step_of_product(plain, other), step_of_product(plain, pair));
  INFO("the splittings differ by " << found << ", without the metric by " << without);
  CHECK(found < first_order(lr));
  CHECK(without > 0.1);
}

TEST_CASE("Riemannian's states compare by the rule's", "[optim]") {
  const Riemannian<> method;
  const auto start = method.init<double>(n, m, r);
  auto other = start;
  CHECK(other == start);
  other.pair.B.mean(0, 0) = 1;
  CHECK_FALSE(other == start);
  CHECK(method == Riemannian{AdamW{}, 1e-2});
  CHECK_FALSE(method == Riemannian{AdamW{}, 1e-3});
}

TEST_CASE("Riemannian says what is wrong with it or with a step, and changes nothing", "[optim]") {
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  Random random{3};
  auto factors = random_factors<double>(n, m, r, random);
  const auto start = factors, gradient = random_factors<double>(n, m, r, random);
  const auto with_rho = [&](double rho) {
    const Riemannian method{AdamW{}, rho};
    auto state = Riemannian<>{}.init<double>(n, m, r);
    auto message = message_of<ConfigError>([&] { method.init<double>(n, m, r); });
    CHECK(message == message_of<ConfigError>([&] { method.step(state, factors, gradient, s, 1); }));
    return message;
  };
  CHECK(with_rho(0) == "Riemannian: rho must be positive and finite, got 0");
  CHECK(with_rho(-1) == "Riemannian: rho must be positive and finite, got -1");
  CHECK(with_rho(nan) == "Riemannian: rho must be positive and finite, got nan");
  CHECK(with_rho(infinity) == "Riemannian: rho must be positive and finite, got inf");
  CHECK(message_of<ShapeError>([] { Riemannian<>{}.init<double>(n, 0, r); }) ==
        "Riemannian::init: n, m and r must be at least 1, got 13, 0, 3");
  CHECK(message_of<ConfigError>([] { Riemannian{Sgd{.learning_rate = -1}}.init<double>(n, m, r); }) ==
        "Sgd: learning_rate must be finite and not negative, got -1");

  const Riemannian<> method;
  const auto refused = [&](auto error, const Riemannian<>& by, const Factors<double>& g, double rate) {
    auto state = Riemannian<>{}.init<double>(n, m, r);
    const auto state_before = state;
    const auto before = factors;
    auto message = message_of<decltype(error)>([&] { by.step(state, factors, g, s, rate); });
    CHECK(same_bits(factors, before));
    CHECK(state == state_before);
    return message;
  };
  CHECK(refused(ShapeError(""), method, Factors<double>::zero(n, m, 2), 1) ==
        "Riemannian::step: gradient A must be 13 x 3, got 13 x 2");
  CHECK(refused(ConfigError(""), method, gradient, -1) ==
        "Riemannian::step: rate must be finite and not negative, got -1");
  CHECK(refused(ConfigError(""), {AdamW{.beta1 = 1}}, gradient, 1) == "AdamW: beta1 must lie in [0, 1), got 1");
  factors.B(0, 0) = nan;
  CHECK(refused(NumericalError(""), method, gradient, 1) ==
        "Riemannian::step: factors B must be finite, got NaN or infinity");
  factors = start;
  auto narrow = method.init<double>(n, m, 2);
  CHECK(message_of<ShapeError>([&] { method.step(narrow, factors, gradient, s, 1); }) ==
        "Riemannian::step: factors A must be 13 x 2, got 13 x 3");
  auto spoiled = method.init<double>(n, m, r);
  spoiled.pair.A.mean.setZero(2, 2);
  CHECK(message_of<ShapeError>([&] { method.step(spoiled, factors, gradient, s, 1); }) ==
        "AdamW: mean of the state must be 13 x 3, got 2 x 2");
  CHECK(same_bits(factors, start));
}

TEST_CASE("a weak direction of B keeps its gradient: rho is all that holds it back", "[optim]") {
  Random random{9};
  auto f = random_factors<float>(n, m, r, random);
  f.B.setIdentity();
  f.B.row(1) *= 2e-3F;
  const auto G = random_columns<float>(n, m, random);
  const Factors<float> gradient{G * f.B.transpose(), f.A.transpose() * G};
  const auto before = f;
  Optimizer<Riemannian<Sgd>, float> optimizer(Riemannian{Sgd{.learning_rate = 1}, 1e-2}, n, m, r);
  optimizer.step(f, gradient, 1, 1);
  const Factors<double> wide{before.A.cast<double>(), before.B.cast<double>()};
  const auto expected = preconditioned(wide, {gradient.A.cast<double>(), gradient.B.cast<double>()}, 1e-2);
  const Eigen::VectorXd moved = (before.A.col(1) - f.A.col(1)).cast<double>();
  CHECK(relative_error(moved, expected.A.col(1)) <= float_direction_bound);
}
