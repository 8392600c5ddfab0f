// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/tolerances.hpp"

#include <lora/linalg/thin_qr.hpp>

using namespace lora;
using namespace lora::test;

namespace {

/// rows x cols of the given rank: small integers, so that the rank is exact.
template <Real Scalar>
ColMatrix<Scalar> of_rank(Index rank, Index rows, Index cols, Random& random) {
  const auto integers = [&](Index height, Index width) {
    ColMatrix<Scalar> matrix(height, width);
    for (Scalar& x : matrix.reshaped()) x = static_cast<Scalar>(random.below(7) - 3);
    return matrix;
  };
  ColMatrix<Scalar> matrix = ColMatrix<Scalar>::Zero(rows, cols);
  const auto left = integers(rows, rank), right = integers(rank, cols);
  for (Index k = 0; k < rank; ++k) matrix += left.col(k) * right.row(k);
  return matrix;
}

}  // namespace

TEMPLATE_TEST_CASE("thin QR rebuilds the matrix from orthonormal columns and a triangle, whatever the rank",
                   "[linalg][qr]", float, double) {
  struct Case {
    Index rows, cols, rank;
  };
  Random random{1};
  for (const auto& [rows, cols, rank] :
       {Case{40, 5, 5}, {40, 5, 2}, {40, 5, 0}, {5, 40, 5}, {5, 40, 3}, {7, 7, 4}, {1, 1, 1}, {1, 6, 1}, {6, 1, 0}}) {
    const auto M = of_rank<TestType>(rank, rows, cols, random);
    const auto [Q, R] = thin_qr(M);
    const Index k = std::min(rows, cols);
    CAPTURE(rows, cols, rank);
    REQUIRE(Q.rows() == rows);
    REQUIRE(Q.cols() == k);
    REQUIRE(R.rows() == k);
    REQUIRE(R.cols() == cols);
    const double bound = qr_bound<TestType>(rows, k);
    const auto residual = static_cast<double>((Q * R - M).norm()), size = static_cast<double>(M.norm());
    INFO("off from orthonormal by " << off_orthonormal(Q) << ", residual " << residual << " of " << size);
    CHECK(off_orthonormal(Q) <= bound);
    CHECK(residual <= bound * size);
    CHECK(R.isUpperTriangular(0));
  }
}

TEST_CASE("equal matrices have the same bits in their QR", "[linalg][qr]") {
  Random random{2};
  const auto M = random_columns<float>(70, 9, random);
  CHECK(same_bits(thin_qr(M).Q, thin_qr(M).Q));
  CHECK(same_bits(thin_qr(M).R, thin_qr(M).R));
}

TEST_CASE("columns far below or above 1 in float keep their directions", "[linalg][qr]") {
  Random random{5};
  const auto M = random_columns<float>(12, 4, random);
  const auto reference = thin_qr<float>(M);
  for (const float size : {0x1p-100F, 0x1p100F}) {
    const auto scaled = thin_qr<float>(size * M);
    CHECK(same_bits(scaled.Q, reference.Q));
    CHECK(same_bits(scaled.R, ColMatrix<float>(size * reference.R)));
  }
}
