// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"

#include <lora/optim/equivalent_gradient.hpp>

#include <Eigen/LU>
#include <Eigen/QR>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 13, m = 9, r = 3;
constexpr double s = 1.7;
constexpr Freedom all_choices[] = {Freedom::Sylvester, Freedom::Symmetric, Freedom::Zero};

struct Case {
  Factors<double> factors;
  ColMatrix<double> G;
  Factors<double> gradient() const { return {s * G * factors.B.transpose(), s * factors.A.transpose() * G}; }
};

Case random_case(Random& random) {
  return {random_factors<double>(n, m, r, random), random_columns<double>(n, m, random)};
}

Factors<double> direction(const Case& example, Freedom freedom) {
  EquivalentGradient<double> nearest;
  Factors<double> H;
  nearest.at(example.factors);
  nearest.direction(example.factors, example.gradient(), s, freedom, H);
  return H;
}

ColMatrix<double> effect(const Case& example, const Factors<double>& H) {
  return s * H.A * example.factors.B + s * example.factors.A * H.B;
}

double squared_distance(const Factors<double>& left, const Factors<double>& right) {
  return (left.A - right.A).squaredNorm() + (left.B - right.B).squaredNorm();
}

}  // namespace

TEST_CASE("every choice of C moves W by an explicit least-squares minimiser", "[optim]") {
  Random random{1};
  for (int trial = 0; trial < 5; ++trial) {
    const auto example = random_case(random);
    const auto& [A, B] = example.factors;
    // The linear map (H_A, H_B) -> vec(s H_A B + s A H_B), column by column of its n m x r (n + m) matrix.
    ColMatrix<double> map(n * m, r * (n + m));
    for (Index column = 0; column < map.cols(); ++column) {
      auto H = Factors<double>::zero(n, m, r);
      (column < n * r ? H.A.data()[column] : H.B.data()[column - n * r]) = 1;
      map.col(column) = effect(example, H).reshaped();
    }
    const Eigen::VectorXd solution = map.completeOrthogonalDecomposition().solve(Eigen::VectorXd(example.G.reshaped()));
    const ColMatrix<double> minimiser = (map * solution).reshaped(n, m);
    const ColMatrix<double> P_B = B.transpose() * (B * B.transpose()).inverse() * B;
    const ColMatrix<double> P_A = A * (A.transpose() * A).inverse() * A.transpose();
    const ColMatrix<double> closed = example.G * P_B + P_A * example.G * (ColMatrix<double>::Identity(m, m) - P_B);
    for (const auto freedom : all_choices) {
      const auto Gt = effect(example, direction(example, freedom));
      CAPTURE(trial, static_cast<int>(freedom), relative_error(Gt, minimiser), relative_error(Gt, closed));
      CHECK(relative_error(Gt, minimiser) < 1e-10);
      CHECK(relative_error(Gt, closed) < 1e-12);
    }
  }
}

TEST_CASE("Sylvester's C is nearest to the raw gradients among all", "[optim]") {
  Random random{2};
  const auto example = random_case(random);
  const auto H = direction(example, Freedom::Sylvester);
  const double best = squared_distance(H, example.gradient());
  for (int trial = 0; trial < 100; ++trial) {
    const ColMatrix<double> C = 0.1 * random_columns<double>(r, r, random);
    const Factors<double> other{H.A + example.factors.A * C, H.B - C * example.factors.B};
    CHECK(squared_distance(other, example.gradient()) > best);
  }
  CHECK(squared_distance(direction(example, Freedom::Symmetric), example.gradient()) >= best);
  CHECK(squared_distance(direction(example, Freedom::Zero), example.gradient()) >= best);
}

TEST_CASE("the loss never rises to first order, whatever the factors' rank", "[optim]") {
  Random random{3};
  double worst = 0;
  for (int trial = 0; trial < 1000; ++trial) {
    auto example = random_case(random);
    if (trial % 4 == 1) example.factors.A.col(2) = example.factors.A.col(0);
    if (trial % 4 == 2) example.factors.B.row(1) = 2 * example.factors.B.row(0);
    if (trial % 4 == 3) example.factors.B.setZero();
    const auto gradient = example.gradient();
    for (const auto freedom : all_choices) {
      const auto H = direction(example, freedom);
      const double fall = gradient.A.cwiseProduct(H.A).sum() + gradient.B.cwiseProduct(H.B).sum();
      worst = std::max(worst, -fall / example.G.squaredNorm());
    }
  }
  CAPTURE(worst);
  CHECK(worst <= 1e-13);
}

TEST_CASE("with B = 0 only B moves, by the least-squares step of its own", "[optim]") {
  Random random{4};
  auto example = random_case(random);
  example.factors.B.setZero();
  const auto& A = example.factors.A;
  for (const auto freedom : all_choices) {
    const auto H = direction(example, freedom);
    CHECK(H.A.isZero(0));
    const ColMatrix<double> expected = (A.transpose() * A).inverse() * example.gradient().B / (s * s);
    CHECK(relative_error(H.B, expected) < 1e-13);
  }
}

TEST_CASE("the step in W does not depend on the size of s or on how the pair shares its product", "[optim]") {
  Random random{5};
  auto example = random_case(random);
  const auto Gt = effect(example, direction(example, Freedom::Sylvester));
  example.factors.A *= 100;
  example.factors.B /= 100;
  CHECK(relative_error(effect(example, direction(example, Freedom::Sylvester)), Gt) < 1e-10);
}
