// SPDX-License-Identifier: MIT
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/linalg/gram.hpp>

#include <algorithm>
#include <limits>

using namespace lora;
using namespace lora::test;

namespace {

/// V diag(eigenvalues) V^T for a reflection V.
Eigen::MatrixXd with_eigenvalues(const Eigen::VectorXd& eigenvalues, Random& random) {
  const Eigen::VectorXd v = random_matrix<Eigen::VectorXd>(eigenvalues.size(), 1, random).normalized();
  const Eigen::MatrixXd V = Eigen::MatrixXd::Identity(v.size(), v.size()) - 2 * v * v.transpose();
  const Eigen::MatrixXd K = V * eigenvalues.asDiagonal() * V.transpose();
  return (K + K.transpose()) / 2;
}
/// Size r, the given rank, eigenvalues from 100 down to 1.
Eigen::MatrixXd of_rank(Index rank, Index r, Random& random) {
  Eigen::VectorXd values = Eigen::VectorXd::Zero(r);
  for (Index i = 0; i < rank; ++i) values(i) = std::pow(10.0, 2.0 * static_cast<double>(i) / static_cast<double>(r));
  return with_eigenvalues(values, random);
}
constexpr double condition = 100;

/// As far as the inverse needs it.
template <Real Scalar = double>
Gram<Scalar> inverted(const ColMatrix<Scalar>& K, const Regularisation<Scalar>& regularisation = {}) {
  Gram<Scalar> gram;
  gram.compute(K, regularisation);
  return gram;
}
template <Real Scalar = double>
Gram<Scalar> gram_of(const ColMatrix<Scalar>& K, const Regularisation<Scalar>& regularisation = {}) {
  auto gram = inverted<Scalar>(K, regularisation);
  gram.decompose();
  return gram;
}

}  // namespace

TEST_CASE("the pseudo-inverse satisfies Penrose's four conditions at every rank", "[linalg][gram]") {
  constexpr Index r = 7;
  Random random{1};
  for (const Index rank : {0, 1, 3, 7}) {
    const Eigen::MatrixXd K = of_rank(rank, r, random);
    const auto gram = gram_of(K);
    CAPTURE(rank);
    CHECK(gram.rank() == rank);
    const Eigen::MatrixXd& P = gram.pseudo_inverse();
    // Each relative to its own size; an inverse in floating point loses the condition number once.
    const auto share = [](const Eigen::MatrixXd& left, const Eigen::MatrixXd& right) {
      return (left - right).norm() / std::max(right.norm(), std::numeric_limits<double>::min());
    };
    const Eigen::MatrixXd KP = K * P, PK = P * K;
    INFO("K P K " << share(KP * K, K) << ", P K P " << share(PK * P, P) << ", symmetry " << share(KP.transpose(), KP)
                  << ", " << share(PK.transpose(), PK));
    const double bound = condition * eigen_bound(r);
    CHECK(share(KP * K, K) <= bound);
    CHECK(share(PK * P, P) <= bound);
    CHECK(share(KP.transpose(), KP) <= bound);
    CHECK(share(PK.transpose(), PK) <= bound);
    CHECK(KP.trace() == Catch::Approx(static_cast<double>(rank)).margin(bound));  // a projector on `rank` directions
  }
}

TEST_CASE("one relative cut decides for the inverse and for every projector", "[linalg][gram]") {
  Random random{2};
  for (const double size : {1e-12, 1.0, 1e12}) {  // relative: the size of the matrix does not matter
    const Eigen::MatrixXd K = with_eigenvalues(size * Eigen::Vector4d(1, 1e-2, 1e-5, 0), random);
    CAPTURE(size);
    CHECK(gram_of(K, {.cut = 1e-1}).rank() == 1);
    CHECK(gram_of(K, {.cut = 1e-3}).rank() == 2);
    CHECK(gram_of(K, {.cut = 1e-8}).rank() == 3);
    const auto gram = gram_of(K, {.cut = 1e-3});
    const Eigen::MatrixXd projector = K * gram.pseudo_inverse();
    CHECK(projector.trace() == Catch::Approx(2).margin(condition * eigen_bound(4)));
    CHECK((gram.values().array() > 0).count() == 2);
    CHECK(gram.values().head(2) == Eigen::Vector2d::Zero());  // in ascending order
  }
}

TEST_CASE("the default cut is what a Gram matrix rounded to the scalar resolves", "[linalg][gram]") {
  // Two equal columns in float: the eigenvalue that should be zero is one of rounding.
  Random random{3};
  ColMatrix<float> A = random_columns<float>(50, 3, random);
  A.col(2) = A.col(1);
  const ColMatrix<float> K = A.transpose() * A;
  CHECK(gram_of<float>(K).rank() == 2);
  const ColMatrix<float> small = Eigen::Vector2f(1, 1e-5F).asDiagonal(), tiny = Eigen::Vector2f(1, 1e-6F).asDiagonal();
  CHECK(gram_of<float>(small).rank() == 2);
  CHECK(gram_of<float>(tiny).rank() == 1);
}

TEST_CASE("damping and shift are added, before the inverse, to the eigenvalues that survive the cut alone",
          "[linalg][gram]") {
  const ColMatrix<double> K = Eigen::Vector3d(4, 2, 0).asDiagonal();  // the mean eigenvalue is 2
  const auto check = [&](const Regularisation<double>& regularisation, const Eigen::Vector3d& expected) {
    const auto gram = gram_of(K, regularisation);
    CHECK((gram.pseudo_inverse() - Eigen::MatrixXd(expected.asDiagonal())).norm() <= eigen_bound(3));
    CHECK(gram.rank() == 2);
    // The Sylvester equation has one lambda on each side, so a shift stays out of `values`.
    CHECK((gram.values() - Eigen::Vector3d(0, 2 + 2 * regularisation.damping, 4 + 2 * regularisation.damping)).norm() <=
          eigen_bound(3) * 4);
  };
  check({}, {1 / 4.0, 1 / 2.0, 0});
  check({.damping = 0.5}, {1 / 5.0, 1 / 3.0, 0});
  check({.shift = 3}, {1 / 7.0, 1 / 5.0, 0});
  check({.damping = 0.5, .shift = 3}, {1 / 8.0, 1 / 6.0, 0});
}

TEST_CASE("where nothing is cut, the inverse needs no eigenvalues", "[linalg][gram]") {
  Random random{5};
  for (const Index r : {1, 2, 7, 60}) {
    for (const double size : {1e-12, 1.0, 1e12}) {
      const Eigen::MatrixXd K = size * of_rank(r, r, random);
      const auto gram = inverted(K, {.damping = 0.1, .shift = size});
      CAPTURE(r, size);
      CHECK_FALSE(gram.decomposed());
      CHECK(gram.rank() == r);
      const auto known = gram_of(K, {.damping = 0.1, .shift = size});
      const Eigen::VectorXd inverses = (known.values().array() + size).inverse();
      const Eigen::MatrixXd expected = known.vectors() * inverses.asDiagonal() * known.vectors().transpose();
      CHECK((gram.pseudo_inverse() - expected).norm() <= condition * eigen_bound(r) * expected.norm());
    }
  }
}

TEST_CASE("eigenvalues decide as soon as one of them may be cut", "[linalg][gram]") {
  constexpr double cut = 1e-3;
  Random random{6};
  for (const double least : {0.0, 0.999 * cut, 1.001 * cut, 10 * cut}) {
    const Eigen::MatrixXd K = with_eigenvalues(Eigen::Vector4d(1, 0.5, 0.1, least), random);
    const auto gram = inverted(K, {.cut = cut});
    CAPTURE(least);
    CHECK(gram.rank() == (least > cut ? 4 : 3));
    CHECK(gram.decomposed() == (least < 10 * cut));
    CHECK(gram.rank() == gram_of(K, {.cut = cut}).rank());
  }
}

TEMPLATE_TEST_CASE("a matrix of another rank allocates nothing once the size is known", "[linalg][gram]", float,
                   double) {
  if (!allocations_are_counted) WARN(not_counted);
  Random random{7};
  for (const Index r : {5, 60}) {
    const ColMatrix<TestType> regular = of_rank(r, r, random).template cast<TestType>();
    const ColMatrix<TestType> singular = of_rank(r / 2, r, random).template cast<TestType>();
    Gram<TestType> gram;
    gram.compute(regular, {});
    CHECK(allocations_in([&] {
            gram.compute(singular, {});
            gram.compute(regular, {});
            gram.decompose();
          }) == 0);
  }
}

TEST_CASE("the zero matrix has rank zero and the inverse zero, with or without damping", "[linalg][gram]") {
  const ColMatrix<double> zero = ColMatrix<double>::Zero(4, 4);
  for (const auto& regularisation : {Regularisation<double>{}, Regularisation<double>{.damping = 1},
                                     Regularisation<double>{.damping = 1, .shift = 1}}) {
    const auto gram = gram_of(zero, regularisation);
    CHECK(gram.rank() == 0);
    CHECK(gram.pseudo_inverse() == zero);
  }
}

TEST_CASE("the Sylvester solution solves the equation wherever it can be solved", "[linalg][gram]") {
  constexpr Index r = 6;
  struct Ranks {
    Index left, right;
  };
  Random random{4};
  for (const auto& [left_rank, right_rank] : {Ranks{6, 6}, {4, 6}, {6, 1}, {0, 6}, {6, 0}, {4, 3}, {1, 0}}) {
    const Eigen::MatrixXd L = of_rank(left_rank, r, random), R = of_rank(right_rank, r, random);
    const auto right = gram_of(R);
    // Singular on both sides: only a right-hand side of the range has a solution, so make one.
    const Eigen::MatrixXd known = random_matrix<Eigen::MatrixXd>(r, r, random), rhs = L * known + known * R;
    for (const auto& left : {gram_of(L), inverted(L)}) {
      Eigen::MatrixXd work, C;
      solve_sylvester(left, right, rhs, work, C);
      const double residual = (L * C + C * R - rhs).norm(), size = (L.norm() + R.norm()) * known.norm();
      INFO("ranks " << left_rank << ", " << right_rank << (left.decomposed() ? "" : ", left tridiagonal")
                    << ": residual " << residual << " of " << size);
      CHECK(residual <= condition * eigen_bound(r) * size);
      CHECK(C.norm() <= (1 + condition * eigen_bound(r)) * known.norm());  // the solution of least norm

      Eigen::MatrixXd in_place = rhs;
      solve_sylvester(left, right, in_place, work, in_place);
      CHECK(same_bits(in_place, C));
    }
  }
}

TEST_CASE("the Sylvester solution is zero where nothing determines it", "[linalg][gram]") {
  const auto zero = gram_of(ColMatrix<double>::Zero(3, 3).eval());
  const auto half = gram_of(ColMatrix<double>(Eigen::Vector3d(2, 0, 0).asDiagonal()));
  Eigen::MatrixXd work, C;
  solve_sylvester(zero, zero, Eigen::MatrixXd::Ones(3, 3), work, C);
  CHECK(C == Eigen::MatrixXd::Zero(3, 3));
  solve_sylvester(half, half, Eigen::MatrixXd::Ones(3, 3), work, C);
  const Eigen::Matrix3d expected{{0.25, 0.5, 0.5}, {0.5, 0, 0}, {0.5, 0, 0}};
  CHECK((C - expected).norm() <= eigen_bound(3));
}

TEST_CASE("products of factors that overflow are named", "[linalg][gram][errors]") {
  const ColMatrix<float> overflow = ColMatrix<float>::Constant(1, 1, std::numeric_limits<float>::infinity());
  Gram<float> gram;
  CHECK(message_of<NumericalError>([&] { gram.compute(overflow, {}); }) ==
        "Gram: products of the factors must be finite, got NaN or infinity");
}
