// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"

#include <lora/linalg/gram.hpp>

using namespace lora;
using namespace lora::test;

namespace {

/// A symmetric positive matrix of size r and the given rank, with eigenvalues over two decades.
Eigen::MatrixXd positive(Index r, Index rank, Random& random) {
  const Eigen::MatrixXd L = random_matrix<Eigen::MatrixXd>(r, rank, random);
  return L * L.transpose();
}

}  // namespace

TEST_CASE("the pseudo-inverse satisfies Penrose's conditions at every rank", "[linalg]") {
  Random random{1};
  for (const Index rank : {0, 1, 3, 7}) {
    const Eigen::MatrixXd K = positive(7, rank, random);
    Gram gram;
    gram.compute(K, 1e-10);
    CHECK(gram.rank() == rank);
    const Eigen::MatrixXd& P = gram.pseudo_inverse();
    const double scale = 1 + P.norm() * K.norm();
    const double worst = std::max({(K * P * K - K).norm() / (1 + K.norm()), (P * K * P - P).norm() / (1 + P.norm()),
                                   (K * P - (K * P).transpose()).norm(), (P - P.transpose()).norm() / (1 + P.norm())});
    CAPTURE(rank, worst, scale);
    CHECK(worst < 1e-13 * scale);
  }
}

TEST_CASE("damping shifts the directions that survive by a share of the mean eigenvalue", "[linalg]") {
  Eigen::MatrixXd K = Eigen::Vector3d(4, 2, 0).asDiagonal();
  Gram gram;
  gram.compute(K, 1e-12, 0.5);
  const Eigen::MatrixXd expected = Eigen::Vector3d(1 / 5.0, 1 / 3.0, 0).asDiagonal();
  CHECK((gram.pseudo_inverse() - expected).norm() < 1e-15);
}

TEST_CASE("the Sylvester solution solves the equation, and is zero where nothing determines it", "[linalg]") {
  Random random{2};
  Gram left, right;
  Eigen::MatrixXd work, C;
  for (const Index rank : {6, 4}) {
    const Eigen::MatrixXd M = positive(6, rank, random), L = positive(6, 6, random);
    left.compute(M, 1e-10);
    right.compute(L, 1e-10);
    const Eigen::MatrixXd rhs = random_matrix<Eigen::MatrixXd>(6, 6, random);
    solve_sylvester(left, right, rhs, work, C);
    const double residual = (M * C + C * L - rhs).norm() / rhs.norm();
    CAPTURE(rank, residual);
    CHECK(residual < 1e-12 * (1 + C.norm()));
    const Eigen::MatrixXd separate = C;
    C = rhs;
    solve_sylvester(left, right, C, work, C);
    CHECK(same_bits(C, separate));  // in place
  }
  const Eigen::MatrixXd zero = Eigen::MatrixXd::Zero(6, 6);
  left.compute(zero, 1e-10);
  right.compute(zero, 1e-10);
  solve_sylvester(left, right, Eigen::MatrixXd::Ones(6, 6), work, C);
  CHECK(C.isZero(0));
}
