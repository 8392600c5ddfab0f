// SPDX-License-Identifier: MIT
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"

#include <lora/optim/lora_pro.hpp>
#include <lora/optim/optimizer.hpp>

#include <Eigen/LU>

#include <limits>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 13, m = 9, r = 3;
constexpr double s = 1.7;
using Mode = LoraPro::Mode;
constexpr Mode all_modes[] = {Mode::Sgd, Mode::Efficient, Mode::Full, Mode::Factored};

template <Real Scalar>
Factors<Scalar> factor_gradient(const Factors<Scalar>& factors, const ColMatrix<Scalar>& G, double scale = s) {
  return {static_cast<Scalar>(scale) * G * factors.B.transpose(),
          static_cast<Scalar>(scale) * factors.A.transpose() * G};
}

/// The formulas as they stand in the paper and in the class comment, on dense n x m matrices, in double.
struct Reference {
  double lr, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;
  ColMatrix<double> mean = ColMatrix<double>::Zero(n, m), square = ColMatrix<double>::Zero(n, m);
  Eigen::VectorXd rows = Eigen::VectorXd::Zero(n), columns = Eigen::VectorXd::Zero(m);
  int t = 0;

  static Factors<double> nearest(const Factors<double>& f, const ColMatrix<double>& G, Freedom freedom) {
    EquivalentGradient<double> equivalent;
    Factors<double> H;
    equivalent.at(f);
    equivalent.direction(f, factor_gradient(f, G), s, freedom, H);
    return H;
  }
  static ColMatrix<double> effect(const Factors<double>& f, const Factors<double>& H) {
    return s * H.A * f.B + s * f.A * H.B;
  }

  void full(Factors<double>& f, const ColMatrix<double>& G) {
    ++t;
    const auto Gt = effect(f, nearest(f, G, Freedom::Zero));
    mean = beta1 * mean + (1 - beta1) * Gt;
    square = beta2 * square + (1 - beta2) * Gt.cwiseProduct(Gt);
    const ColMatrix<double> g =
        (mean / (1 - std::pow(beta1, t))).array() / ((square / (1 - std::pow(beta2, t))).array().sqrt() + epsilon);
    descend(f, nearest(f, g, Freedom::Sylvester));
  }
  void factored(Factors<double>& f, const ColMatrix<double>& G) {
    ++t;
    const auto Gt = effect(f, nearest(f, G, Freedom::Zero));
    mean = beta1 * effect(f, nearest(f, mean, Freedom::Zero)) + (1 - beta1) * Gt;  // carried to the tangent space here
    rows = beta2 * rows + (1 - beta2) * Gt.rowwise().squaredNorm();
    columns = beta2 * columns + (1 - beta2) * Gt.colwise().squaredNorm().transpose();
    const double c2 = 1 - std::pow(beta2, t), total = rows.sum() / c2;
    ColMatrix<double> g = mean / (1 - std::pow(beta1, t));
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < m; ++j)
        g(i, j) /=
            std::sqrt((rows(i) / c2 / std::sqrt(total) + epsilon) * (columns(j) / c2 / std::sqrt(total) + epsilon));
    descend(f, nearest(f, g, Freedom::Sylvester));
  }

 private:
  void descend(Factors<double>& f, const Factors<double>& H) const {
    f.A -= lr * H.A;
    f.B -= lr * H.B;
  }
};

}  // namespace

TEST_CASE("Full and Factored follow their formulas on dense matrices for fifty steps", "[optim]") {
  for (const auto mode : {Mode::Full, Mode::Factored}) {
    Random random{1};
    auto factors = random_factors<double>(n, m, r, random);
    factors.B.setZero();  // the usual start
    auto expected = factors;
    const auto target = random_columns<double>(n, m, random);
    Optimizer<LoraPro, double> optimizer(LoraPro{.learning_rate = 0.02, .mode = mode}, n, m, r);
    Reference reference{0.02};
    double worst = 0;
    for (int step = 0; step < 50; ++step) {
      const ColMatrix<double> G = s * factors.A * factors.B - target;
      optimizer.step(factors, factor_gradient(factors, G), s);
      const ColMatrix<double> reference_G = s * expected.A * expected.B - target;
      mode == Mode::Full ? reference.full(expected, reference_G) : reference.factored(expected, reference_G);
      worst = std::max({worst, relative_error(factors.A, expected.A), relative_error(factors.B, expected.B)});
    }
    CAPTURE(static_cast<int>(mode), worst);
    CHECK(worst < 1e-9);
  }
}

TEST_CASE("Sgd descends along H, Efficient feeds H to AdamW", "[optim]") {
  Random random{2};
  const auto start = random_factors<double>(n, m, r, random);
  const auto G = random_columns<double>(n, m, random);
  EquivalentGradient<double> nearest;
  Factors<double> H;
  nearest.at(start);
  nearest.direction(start, factor_gradient(start, G), s, Freedom::Sylvester, H);

  auto factors = start;
  Optimizer<LoraPro, double>(LoraPro{.learning_rate = 0.1, .mode = Mode::Sgd}, n, m, r)
      .step(factors, factor_gradient(start, G), s, 0.5);
  CHECK(relative_error(factors.A, start.A - 0.05 * H.A) < 1e-15);
  CHECK(relative_error(factors.B, start.B - 0.05 * H.B) < 1e-15);

  factors = start;
  auto expected = start;
  Optimizer<LoraPro, double>(LoraPro{.learning_rate = 0.1, .mode = Mode::Efficient, .weight_decay = 0.3}, n, m, r)
      .step(factors, factor_gradient(start, G), s);
  Optimizer<PerFactor<>, double>(PerFactor{AdamW{.learning_rate = 0.1, .weight_decay = 0.3}}, n, m, r)
      .step(expected, H, s);
  CHECK(same_bits(factors, expected));
}

TEST_CASE("the trust region shortens a step that would replace A", "[optim]") {
  Random random{3};
  const auto start = random_factors<double>(n, m, r, random);
  const auto gradient = factor_gradient(start, ColMatrix<double>(1e3 * random_columns<double>(n, m, random)));
  auto factors = start;
  Optimizer<LoraPro, double>(LoraPro{.learning_rate = 1, .mode = Mode::Sgd, .trust = 0.1}, n, m, r)
      .step(factors, gradient, s);
  CHECK((factors.A - start.A).norm() / start.A.norm() == Catch::Approx(0.1));
}

TEST_CASE("weight decay shrinks both factors by the rate times the decay", "[optim]") {
  Random random{4};
  for (const auto mode : {Mode::Sgd, Mode::Full, Mode::Factored}) {
    auto factors = random_factors<double>(n, m, r, random);
    const auto start = factors;
    Optimizer<LoraPro, double>(LoraPro{.learning_rate = 0.1, .mode = mode, .weight_decay = 0.5}, n, m, r)
        .step(factors, Factors<double>::zero(n, m, r), s, 0.2);
    CHECK(relative_error(factors.A, 0.99 * start.A) < 1e-15);
    CHECK(relative_error(factors.B, 0.99 * start.B) < 1e-15);
  }
}

TEMPLATE_TEST_CASE("every mode learns a low-rank target, from B = 0 and from rank-deficient factors", "[optim]", float,
                   double) {
  Random random{5};
  const auto target_pair = random_factors<TestType>(n, m, 2, random);
  const ColMatrix<TestType> target = target_pair.A * target_pair.B;
  for (const auto mode : all_modes) {
    for (const bool deficient : {false, true}) {
      auto factors = random_factors<TestType>(n, m, r, random);
      factors.B.setZero();
      if (deficient) factors.A.col(1) = factors.A.col(0);
      Optimizer<LoraPro, TestType> optimizer(LoraPro{.learning_rate = 0.03, .mode = mode}, n, m, r);
      for (int step = 0; step < 400; ++step) {
        const ColMatrix<TestType> G = static_cast<TestType>(s) * factors.A * factors.B - target;
        optimizer.step(factors, factor_gradient(factors, G), s, 1 - step / 400.0);
      }
      const double left = relative_error(static_cast<TestType>(s) * factors.A * factors.B, target);
      CAPTURE(static_cast<int>(mode), deficient, left);
      CHECK(left < (deficient ? 0.9 : 0.05));
    }
  }
}

TEST_CASE("no step allocates after the first; only Full keeps n x m arrays", "[optim]") {
  if (!allocations_are_counted) WARN(not_counted);
  Random random{6};
  const Index rows = 300, cols = 200, rank = 8;
  auto factors = random_factors<float>(rows, cols, rank, random);
  const auto gradient = random_factors<float>(rows, cols, rank, random);
  for (const auto mode : all_modes) {
    Optimizer<LoraPro, float> optimizer(LoraPro{.learning_rate = 1e-3, .mode = mode}, rows, cols, rank);
    optimizer.step(factors, gradient, 2);
    CAPTURE(static_cast<int>(mode));
    CHECK(allocations_in([&] { optimizer.step(factors, gradient, 2); }) == 0);
    CHECK((optimizer.state().mean.size() == rows * cols) == (mode == Mode::Full));
  }
}

TEST_CASE("a resumed LoRA-Pro run has the bits of an uninterrupted one", "[optim]") {
  for (const auto mode : all_modes) {
    Random random{7};
    auto factors = random_factors<float>(n, m, r, random);
    Optimizer<LoraPro, float> optimizer(LoraPro{.learning_rate = 0.01, .mode = mode}, n, m, r);
    for (int step = 0; step < 5; ++step) optimizer.step(factors, random_factors<float>(n, m, r, random), s);
    auto resumed_factors = factors;
    Optimizer<LoraPro, float> resumed(optimizer.method(), optimizer.state());
    for (int step = 0; step < 5; ++step) {
      const auto gradient = random_factors<float>(n, m, r, random);
      optimizer.step(factors, gradient, s);
      resumed.step(resumed_factors, gradient, s);
    }
    CHECK(same_bits(factors, resumed_factors));
    CHECK(optimizer.state() == resumed.state());
  }
}

TEST_CASE("bad input to LoRA-Pro is named and changes nothing", "[optim]") {
  Random random{8};
  const auto make = [](LoraPro method) { return Optimizer<LoraPro, double>(method, n, m, r); };
  CHECK(message_of<ConfigError>([&] { make({.damping = -1}); }) ==
        "LoraPro: damping must be finite and not negative, got -1");
  CHECK(message_of<ConfigError>([&] { make({.trust = 0}); }) == "LoraPro: trust must be positive, got 0");
  CHECK(message_of<ConfigError>([&] { make({.beta1 = 1}); }) == "LoraPro: beta1 must lie in [0, 1), got 1");
  CHECK(message_of<ConfigError>([&] { make({.learning_rate = -1}); }) ==
        "LoraPro: learning_rate must be finite and not negative, got -1");
  CHECK(message_of<ShapeError>([&] { Optimizer<LoraPro, double>(LoraPro{}, n, m, 0); }) ==
        "LoraPro::init: n, m and r must be at least 1, got 13, 9, 0");

  for (const auto mode : all_modes) {
    auto optimizer = make({.mode = mode});
    auto factors = random_factors<double>(n, m, r, random);
    auto gradient = random_factors<double>(n, m, r, random);
    optimizer.step(factors, gradient, s);
    const auto before = factors;
    const auto state = optimizer.state();
    gradient.B(0, 0) = std::numeric_limits<double>::quiet_NaN();
    CHECK(message_of<NumericalError>([&] { optimizer.step(factors, gradient, s); }) ==
          "LoraPro::step: gradient B must be finite, got NaN or infinity");
    gradient.B(0, 0) = 0;
    CHECK(message_of<ConfigError>([&] { optimizer.step(factors, gradient, 0); }) ==
          "LoraPro::step: scale must be finite and not zero, got 0");
    CHECK(message_of<ShapeError>([&] { optimizer.step(factors, Factors<double>::zero(n, m, 2), s); }) ==
          "LoraPro::step: gradient A must be 13 x 3, got 13 x 2");
    CHECK(same_bits(factors, before));
    CHECK(optimizer.state() == state);
    optimizer.method().mode = mode == Mode::Sgd ? Mode::Full : Mode::Sgd;
    CHECK(message_of<StateError>([&] { optimizer.step(factors, gradient, s); }) ==
          "LoraPro::step: the state belongs to another mode; make one by init");
  }
}
