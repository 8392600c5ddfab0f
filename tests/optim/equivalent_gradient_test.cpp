// SPDX-License-Identifier: MIT
// The direction of LoRA-Pro against least squares, against its closed form, and against other directions.
#include "optim/dense_reference.hpp"
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/tolerances.hpp"

#include <lora/optim/equivalent_gradient.hpp>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 13, m = 9, r = 3;
constexpr Freedom every_freedom[] = {Freedom::Sylvester, Freedom::Symmetric, Freedom::Zero, Freedom::ReleasedSymmetric};

enum class Defect { None, DependentA, DependentB, BothDependent, ZeroB, ZeroA, BothZero };
constexpr Defect every_defect[] = {Defect::None,  Defect::DependentA, Defect::DependentB, Defect::BothDependent,
                                   Defect::ZeroB, Defect::ZeroA,      Defect::BothZero};

struct Case {
  Factors<double> factors;
  Dense G;
  double s = 1.7;

  Case(Defect defect, Random& random) : factors(random_factors<double>(n, m, r, random)) {
    auto& [A, B] = factors;
    if (defect == Defect::DependentA || defect == Defect::BothDependent) A.col(2) = 0.5 * A.col(0) - A.col(1);
    if (defect == Defect::DependentB || defect == Defect::BothDependent) B.row(1) = -2 * B.row(0);
    if (defect == Defect::ZeroB || defect == Defect::BothZero) B.setZero();
    if (defect == Defect::ZeroA || defect == Defect::BothZero) A.setZero();
    G = random_columns<double>(n, m, random);
  }
  Factors<double> gradient() const { return factor_gradient(factors, G, s); }
  Factors<double> direction(Freedom freedom) const {
    EquivalentGradient<double> nearest;
    Factors<double> H;
    const auto raw = gradient();
    nearest.at(factors);
    nearest.direction(factors, raw, s, freedom, H);
    return H;
  }
  Dense step(Freedom freedom) const { return effect(factors, direction(freedom), s); }

  /// The point nearest to G of all s H_A B + s A H_B: each element of H is a column of that linear map.
  Dense least_squares() const {
    Dense map(n * m, r * (n + m));
    for (Index column = 0; column < map.cols(); ++column) {
      auto unit = Factors<double>::zero(n, m, r);
      (column < n * r ? unit.A.data()[column] : unit.B.data()[column - n * r]) = 1;
      map.col(column) = effect(factors, unit, s).reshaped();
    }
    const Dense Q = orthonormal_basis(map);
    const Eigen::VectorXd target = G.reshaped();
    return Dense(Q * (Q.transpose() * target)).reshaped(n, m);
  }
  Dense closed_form() const {
    const Dense left = orthonormal_basis(factors.A), right = orthonormal_basis(factors.B.transpose());
    const Dense P_A = left * left.transpose(), P_B = right * right.transpose();
    return G * P_B + P_A * G * (Dense::Identity(m, m) - P_B);
  }
};

double squared_distance(const Factors<double>& left, const Factors<double>& right) {
  return (left.A - right.A).squaredNorm() + (left.B - right.B).squaredNorm();
}

}  // namespace

TEST_CASE("every choice of C moves W by the least-squares minimiser, G P_B + P_A G (I - P_B)", "[optim]") {
  Random random{1};
  double worst_minimiser = 0, worst_closed = 0;
  for (const auto defect : every_defect) {
    for (int trial = 0; trial < 3; ++trial) {
      const Case example(defect, random);
      const Dense minimiser = example.least_squares(), closed = example.closed_form();
      for (const auto freedom : every_freedom) {
        const Dense step = example.step(freedom);
        worst_minimiser = std::max(worst_minimiser, (step - minimiser).norm() / example.G.norm());
        worst_closed = std::max(worst_closed, (step - closed).norm() / example.G.norm());
      }
    }
  }
  INFO("farthest from the minimiser " << worst_minimiser << ", from the closed form " << worst_closed);
  CHECK(worst_minimiser < minimiser_bound);
  CHECK(worst_closed < closed_form_bound);
}

TEST_CASE("every choice of C is the H of its formula", "[optim]") {
  Random random{2};
  const DenseLoraPro reference{LoraPro{}};
  for (const auto defect : {Defect::None, Defect::ZeroB}) {
    const Case example(defect, random);
    for (const auto freedom : every_freedom) {
      const auto H = example.direction(freedom);
      const auto expected = reference.direction(example.factors, example.G, example.s, freedom);
      CAPTURE(static_cast<int>(defect), static_cast<int>(freedom));
      CHECK((H.A - expected.A).norm() <= closed_form_bound * expected.A.norm());
      CHECK((H.B - expected.B).norm() <= closed_form_bound * expected.B.norm());
    }
  }
}

TEST_CASE("Sylvester's C is nearest to the raw gradients among all", "[optim]") {
  Random random{3};
  for (const double s : {0.3, 1.7}) {
    Case example(Defect::None, random);
    example.s = s;
    const auto H = example.direction(Freedom::Sylvester), raw = example.gradient();
    const double best = squared_distance(H, raw);
    for (int trial = 0; trial < 100; ++trial) {
      const double size = std::pow(10, -trial % 4);
      const Dense C = size * random_columns<double>(r, r, random);
      CHECK(squared_distance({H.A + example.factors.A * C, H.B - C * example.factors.B}, raw) > best);
    }
    for (const auto freedom : {Freedom::Symmetric, Freedom::Zero}) {
      CHECK(squared_distance(example.direction(freedom), raw) > best);
    }
  }
}

TEST_CASE("the loss never rises to first order, whatever the factors' rank", "[optim]") {
  Random random{4};
  double least = std::numeric_limits<double>::infinity(), worst_share = 0;
  for (int trial = 0; trial < 1000; ++trial) {
    Case example(every_defect[trial % static_cast<int>(std::size(every_defect))], random);
    example.s = 0.1 + 3 * random.uniform();
    const auto raw = example.gradient();
    for (const auto freedom : every_freedom) {
      const double fall = inner_product(raw, example.direction(freedom));
      least = std::min(least, fall);
      worst_share =
          std::max(worst_share, std::abs(fall - example.step(freedom).squaredNorm()) / example.G.squaredNorm());
    }
  }
  INFO("least fall " << least << ", farthest from ||Gt||^2 " << worst_share);
  CHECK(least >= 0);
  CHECK(worst_share < closed_form_bound);  // <G_A, H_A> + <G_B, H_B> = ||Gt||^2
}

TEST_CASE("with B = 0 only B moves, with A = 0 only A, with both neither", "[optim]") {
  Random random{5};
  for (const auto freedom : every_freedom) {
    const auto without_B = Case(Defect::ZeroB, random).direction(freedom);
    CHECK(without_B.A.isZero(0));
    CHECK(without_B.B.norm() > 0);
    const auto without_A = Case(Defect::ZeroA, random).direction(freedom);
    CHECK(without_A.A.norm() > 0);
    CHECK(without_A.B.isZero(0));
    const auto without_both = Case(Defect::BothZero, random).direction(freedom);
    CHECK(without_both.A.isZero(0));
    CHECK(without_both.B.isZero(0));
  }
}

TEST_CASE("the step of W does not depend on s or on how the pair shares its product", "[optim]") {
  Random random{6};
  Case example(Defect::None, random);
  const Dense expected = example.step(Freedom::Sylvester);
  const auto farthest = [&] {
    double worst = 0;
    for (const auto freedom : {Freedom::Sylvester, Freedom::Symmetric, Freedom::Zero}) {
      worst = std::max(worst, relative_error(example.step(freedom), expected));
    }
    return worst;
  };
  for (const double s : {1e-3, 0.5, 64.0, -2.0}) {
    example.s = s;
    CHECK(farthest() < closed_form_bound);
  }
  example.factors.A *= 100;
  example.factors.B /= 100;
  CHECK(farthest() < minimiser_bound);
  const Dense T = random_columns<double>(r, r, random);
  example.factors = {example.factors.A * T, inverse(T) * example.factors.B};
  CHECK(farthest() < minimiser_bound);
}

TEST_CASE("damping adds a share of the mean eigenvalue, a shift a number", "[optim]") {
  Random random{7};
  const Case example(Defect::None, random);
  const auto raw = example.gradient();
  const auto check = [&](const Regularisation<double>& regularisation, const LoraPro& method) {
    EquivalentGradient<double> nearest;
    Factors<double> H;
    nearest.at(example.factors, regularisation);
    for (const auto freedom : every_freedom) {
      nearest.direction(example.factors, raw, example.s, freedom, H);
      const auto expected = DenseLoraPro(method).direction(example.factors, example.G, example.s, freedom);
      CHECK(relative_error(H.A, expected.A) < closed_form_bound);
      CHECK(relative_error(H.B, expected.B) < closed_form_bound);
    }
  };
  check({.damping = 0.2}, {.damping = 0.2});
  check({.cut = 0, .shift = 1e-8}, {.compat = LoraPro::Compat::Peta});
}

TEST_CASE("in float the direction is the one in double up to rounding", "[optim]") {
  Random random{8};
  for (const auto defect : every_defect) {
    const Case example(defect, random);
    const Factors<float> factors{example.factors.A.cast<float>(), example.factors.B.cast<float>()};
    const auto raw = factor_gradient<float>(factors, example.G.cast<float>(), example.s);
    EquivalentGradient<float> nearest;
    Factors<float> H;
    nearest.at(factors);
    for (const auto freedom : every_freedom) {
      nearest.direction(factors, raw, example.s, freedom, H);
      const Factors<double> as_double{H.A.cast<double>(), H.B.cast<double>()};
      const double error =
          (effect(example.factors, as_double, example.s) - example.closed_form()).norm() / example.G.norm();
      CAPTURE(static_cast<int>(defect), static_cast<int>(freedom), error);
      CHECK(error < float_direction_bound);
    }
  }
}

TEMPLATE_TEST_CASE("a direction allocates nothing once warm", "[optim]", float, double) {
  if (!allocations_are_counted) WARN(not_counted);
  const Index rows = GENERATE(7, 300), cols = GENERATE(5, 200), rank = GENERATE(1, 4);
  Random random{9};
  const auto factors = random_factors<TestType>(rows, cols, rank, random);
  const auto gradient = random_factors<TestType>(rows, cols, rank, random);
  EquivalentGradient<TestType> nearest;
  Factors<TestType> H;
  const auto all = [&] {
    nearest.at(factors);
    for (const auto freedom : every_freedom) nearest.direction(factors, gradient, 2, freedom, H);
  };
  all();
  CHECK(allocations_in(all) == 0);
}
