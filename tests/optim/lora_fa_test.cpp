// SPDX-License-Identifier: MIT
#include "optim/dense_reference.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/optim/adamw.hpp>
#include <lora/optim/lora_fa.hpp>
#include <lora/optim/optimizer.hpp>
#include <lora/optim/sgd.hpp>

#include <limits>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 13, m = 9, r = 3;
constexpr double s = 1.7;

}  // namespace

TEMPLATE_TEST_CASE("with Sgd the product steps by P_A G and A keeps its bits", "[optim]", float, double) {
  Random random{1};
  for (const bool dependent : {false, true}) {
    auto f = random_factors<TestType>(n, m, r, random);
    if (dependent) f.A.col(2) = f.A.col(0);
    const auto start = f;
    const auto G = random_columns<TestType>(n, m, random);
    Optimizer<LoraFa<Sgd>, TestType> optimizer(LoraFa{Sgd{.learning_rate = 0.5}}, n, m, r);
    const auto raw = factor_gradient<TestType>(f, G, s);
    optimizer.step(f, raw, s, 0.5);
    CHECK(same_bits(f.A, start.A));
    const Dense Q = orthonormal_basis(start.A.template cast<double>());
    const Dense step = s * start.A.template cast<double>() * (f.B - start.B).template cast<double>();
    const double error = relative_error(step, -0.25 * Q * (Q.transpose() * G.template cast<double>()));
    INFO((dependent ? "dependent columns: " : "") << error);
    CHECK(error < (sizeof(TestType) == 4 ? float_direction_bound : closed_form_bound));
  }
}

TEST_CASE("any rule steps B along (1/s^2) (A^T A)^-1 G_B", "[optim]") {
  Random random{2};
  const AdamW rule{.learning_rate = 0.02, .weight_decay = 0.1};
  auto f = random_factors<double>(n, m, r, random);
  const auto start = f;
  RowMatrix<double> expected = f.B;
  Optimizer<LoraFa<>, double> optimizer(LoraFa{rule}, n, m, r);
  auto state = rule.init<double>(m, r);
  const Dense metric = inverse(f.A.transpose() * f.A) / (s * s);
  for (int step = 0; step < 10; ++step) {
    const auto gradient = random_factors<double>(n, m, r, random);
    optimizer.step(f, gradient, s, 0.5);
    const RowMatrix<double> direction = metric * gradient.B;
    rule.step(state, transposed(Rows<double>(expected)), transposed(ConstRows<double>(direction)), 0.5);
  }
  CHECK(relative_error(f.B, expected) < pair_run<double>);
  CHECK(same_bits(f.A, start.A));
}

TEMPLATE_TEST_CASE("a gradient without an A, as a layer hands it over, takes the same steps", "[optim]", float,
                   double) {
  Random random{3};
  LoraLinear layer{random_columns<TestType>(n, m, random), {.rank = r, .alpha = 5}};
  layer.set_factors(random_factors<TestType>(n, m, r, random));
  auto other = layer;
  Optimizer alone{LoraFa<>{}, layer}, both{LoraFa<>{}, other};
  const ColMatrix<TestType> no_A(0, r);
  for (int step = 0; step < 5; ++step) {
    auto X = random_rows<TestType>(7, n, random);
    const auto dY = random_rows<TestType>(7, m, random);
    RowMatrix<TestType> Y(7, m);
    SavedState<TestType> saved;
    auto whole = other.zero_gradient();
    other.forward(X, Y, saved);
    other.backward(dY, saved, whole);
    both.step(other, whole);

    RowMatrix<TestType> B = RowMatrix<TestType>::Zero(r, m);
    layer.forward(X, Y, saved);
    X.setConstant(std::numeric_limits<TestType>::quiet_NaN());  // not read again
    ColMatrix<TestType> none = no_A;
    const FactorsView<TestType> gradient{none, B};
    layer.backward(dY, saved, gradient);
    alone.step(layer, ConstFactorsView<TestType>(gradient));
  }
  CHECK(same_bits(std::as_const(layer).factors(), std::as_const(other).factors()));
  CHECK(alone == both);
}

TEST_CASE("LoRA-FA's states compare by the rule's and by their shape", "[optim]") {
  const LoraFa<> method;
  const auto start = method.init<double>(n, m, r);
  auto other = start;
  CHECK(other == start);
  other.B.mean(0, 0) = 1;
  CHECK_FALSE(other == start);
  CHECK_FALSE(method.init<double>(n + 1, m, r) == start);  // of which the rule knows nothing
}

TEST_CASE("LoRA-FA says what is wrong with a step, and changes nothing", "[optim]") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Random random{4};
  const LoraFa<> method;
  auto factors = random_factors<double>(n, m, r, random);
  const auto gradient = random_factors<double>(n, m, r, random);
  const auto refused = [&](auto error, const LoraFa<>& by, const Factors<double>& g, double scale, double rate) {
    auto state = method.init<double>(n, m, r);
    const auto before = factors;
    auto message = message_of<decltype(error)>([&] { by.step(state, factors, g, scale, rate); });
    CHECK(same_bits(factors, before));
    CHECK(state == method.init<double>(n, m, r));
    return message;
  };
  auto bad = gradient;
  bad.B(0, 0) = nan;
  CHECK(refused(NumericalError(""), method, bad, s, 1) ==
        "LoraFa::step: gradient B must be finite, got NaN or infinity");
  CHECK(refused(ShapeError(""), method, Factors<double>::zero(n, m, 2), s, 1) ==
        "LoraFa::step: gradient B must be 3 x 9, got 2 x 9");
  CHECK(refused(ConfigError(""), method, gradient, 0, 1) == "LoraFa::step: scale must be finite and not zero, got 0");
  CHECK(refused(ConfigError(""), method, gradient, s, -1) ==
        "LoraFa::step: rate must be finite and not negative, got -1");
  CHECK(refused(ConfigError(""), {AdamW{.beta1 = 1}}, gradient, s, 1) == "AdamW: beta1 must lie in [0, 1), got 1");
  factors.A(0, 0) = nan;
  CHECK(refused(NumericalError(""), method, gradient, s, 1) ==
        "LoraFa::step: factors A must be finite, got NaN or infinity");
  CHECK(message_of<ShapeError>([&] { method.init<double>(n, m, 0); }) ==
        "LoraFa::init: n, m and r must be at least 1, got 13, 9, 0");
  CHECK(message_of<ConfigError>([] { LoraFa{Sgd{.learning_rate = -1}}.init<double>(n, m, r); }) ==
        "Sgd: learning_rate must be finite and not negative, got -1");
  auto other = method.init<double>(n + 1, m, r);
  CHECK(message_of<ShapeError>([&] { method.step(other, factors, gradient, s, 1); }) ==
        "LoraFa::step: factors A must be 14 x 3, got 13 x 3");
  factors.A(0, 0) = 1;
  auto spoiled = method.init<double>(n, m, r);
  spoiled.B.square.setZero(2, 2);
  CHECK(message_of<ShapeError>([&] { method.step(spoiled, factors, gradient, s, 1); }) ==
        "AdamW: square of the state must be 9 x 3, got 2 x 2");
}

TEST_CASE("an adjusted gradient that overflows leaves B and the state as they were", "[optim][errors]") {
  auto factors = Factors<float>::zero(n, m, r);
  factors.A.setIdentity();
  factors.A *= 1e-18F;
  auto gradient = factors;
  gradient.B.setConstant(1e10F);
  const LoraFa method;
  auto state = method.init<float>(n, m, r);
  const auto start = state;
  const auto before = factors;
  CHECK(message_of<NumericalError>([&] { method.step(state, factors, gradient, s, 1); }) ==
        "LoraFa::step: adjusted gradient B must be finite, got NaN or infinity");
  CHECK(same_bits(factors, before));
  CHECK(state == start);
}
