// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/base/view_base.hpp>
#include <lora/linalg/batch_gradient.hpp>
#include <lora/linalg/qr.hpp>
#include <lora/linalg/truncated_svd.hpp>

#include <Eigen/SVD>

using namespace lora;
using namespace lora::test;

namespace {

/// A matrix with the given singular values and random singular vectors.
template <Real Scalar>
ColMatrix<Scalar> with_spectrum(Index n, Index m, const Eigen::VectorXd& values, Random& random) {
  const auto U = thin_qr(random_columns<double>(n, values.size(), random)).Q;
  const auto V = thin_qr(random_columns<double>(m, values.size(), random)).Q;
  return (U * values.asDiagonal() * V.transpose()).template cast<Scalar>();
}

template <Real Scalar>
ColMatrix<Scalar> rebuilt(const TruncatedSvd<Scalar>& svd) {
  return svd.U * svd.S.asDiagonal() * svd.Vt;
}

template <class Matrix>
double orthonormality(const Matrix& Q) {
  return static_cast<double>((Q.transpose() * Q - Matrix::Identity(Q.cols(), Q.cols())).norm());
}

}  // namespace

TEMPLATE_TEST_CASE("thin QR: orthonormal columns at any rank, upper triangle, the product is the matrix", "[linalg]",
                   float, double) {
  Random random{1};
  for (const Index rank : {5, 2, 0}) {
    ColMatrix<TestType> M = random_columns<TestType>(40, 5, random);
    for (Index j = rank; j < 5; ++j)
      M.col(j) = rank > 0 ? ColMatrix<TestType>(M.col(j - rank)) : ColMatrix<TestType>::Zero(40, 1);
    const auto [Q, R] = thin_qr(M);
    const double tolerance = 40 * unit_roundoff<TestType>;
    CHECK(orthonormality(Q) < tolerance);
    CHECK((Q * R - M).norm() <= static_cast<TestType>(tolerance) * (1 + M.norm()));
    CHECK(R.isUpperTriangular(0));
  }
}

TEMPLATE_TEST_CASE("the truncated SVD is exact where the sketch is as wide as the matrix", "[linalg]", float, double) {
  Random random{2};
  for (const auto& [n, m] : {std::pair<Index, Index>{30, 17}, {17, 30}, {9, 9}}) {
    const auto M = random_columns<TestType>(n, m, random);
    const auto svd = truncated_svd(ViewBase<TestType>(M), 4, random, {.oversampling = 30});
    const Eigen::JacobiSVD<ColMatrix<TestType>> exact(M, Eigen::ComputeThinU | Eigen::ComputeThinV);
    const ColMatrix<TestType> best = exact.matrixU().leftCols(4) * exact.singularValues().head(4).asDiagonal() *
                                     exact.matrixV().leftCols(4).transpose();
    const double tolerance = 500 * unit_roundoff<TestType>;
    CAPTURE(n, m, relative_error(svd.S, exact.singularValues().head(4)), relative_error(rebuilt(svd), best));
    CHECK(relative_error(svd.S, exact.singularValues().head(4)) < tolerance);
    CHECK(relative_error(rebuilt(svd), best) < tolerance * 10);
    CHECK(orthonormality(svd.U) < tolerance);
    CHECK(orthonormality(ColMatrix<TestType>(svd.Vt.transpose())) < tolerance);
  }
}

TEST_CASE("two power iterations capture nearly all that rank 32 can hold of a slow spectrum", "[linalg]") {
  Random random{3};
  const Index size = 256;
  for (const auto& [power, least] : {std::pair{1.0, 0.9995}, {0.5, 0.997}}) {
    const Eigen::VectorXd values = Eigen::VectorXd::LinSpaced(size, 1, size).array().pow(-power);
    const auto M = with_spectrum<float>(size, size, values, random);
    const auto svd = truncated_svd(ViewBase<float>(M), 32, random, {.oversampling = 32, .power_iterations = 2});
    const double captured = static_cast<double>((svd.U.transpose() * M).squaredNorm()) / values.head(32).squaredNorm();
    CAPTURE(power, captured);
    CHECK(captured >= least);
    CHECK(captured <= 1 + 1e-5);
  }
}

TEST_CASE("a gradient that is never formed has the SVD of the one that is", "[linalg]") {
  Random random{4};
  const Index n = 31, m = 23;
  const auto X1 = random_rows<double>(8, n, random), X2 = random_rows<double>(5, n, random);
  const auto dY1 = random_rows<double>(8, m, random), dY2 = random_rows<double>(5, m, random);
  BatchGradient<double> gradient(X1, dY1);
  gradient.add(X2, dY2);
  CHECK(gradient.batches() == 2);
  const ColMatrix<double> G = (X1.transpose() * dY1 + X2.transpose() * dY2) / 2;

  const auto in = random_rows<double>(3, n, random), out = random_rows<double>(3, m, random);
  RowMatrix<double> product(3, m), transposed_product(3, n);
  gradient.multiply(in, product);
  gradient.multiply_transposed(out, transposed_product);
  CHECK(relative_error(product, in * G) < 1e-14);
  CHECK(relative_error(transposed_product, out * G.transpose()) < 1e-14);

  Random first{5}, second{5}, third{5};
  const auto implicit = truncated_svd(gradient, 6, first);
  const auto dense = truncated_svd(ViewBase<double>(G), 6, second);
  CHECK(relative_error(rebuilt(implicit), rebuilt(dense)) < 1e-10);
  CHECK(same_bits(truncated_svd(gradient, 6, third).U, implicit.U));  // same seed, same bits
}

TEST_CASE("bad input to the SVD and to a batch gradient is named", "[linalg]") {
  Random random{6};
  const auto M = random_columns<double>(6, 4, random);
  const ViewBase<double> op(M);
  CHECK(message_of<ConfigError>([&] { truncated_svd(op, 0, random); }) ==
        "truncated_svd: rank must lie in [1, min(n, m)] = [1, 4], got 0");
  CHECK(message_of<ConfigError>([&] { truncated_svd(op, 5, random); }) ==
        "truncated_svd: rank must lie in [1, min(n, m)] = [1, 4], got 5");
  CHECK(message_of<ConfigError>([&] { truncated_svd(op, 2, random, {.oversampling = -1}); }) ==
        "truncated_svd: oversampling must not be negative, got -1");
  CHECK(message_of<ConfigError>([&] { truncated_svd(op, 2, random, {.power_iterations = -2}); }) ==
        "truncated_svd: power_iterations must not be negative, got -2");

  BatchGradient<double> gradient(6, 4);
  RowMatrix<double> in = RowMatrix<double>::Ones(2, 6), out(2, 4);
  CHECK(message_of<StateError>([&] { gradient.multiply(in, out); }) ==
        "BatchGradient: needs at least one batch, got none");
  const RowMatrix<double> X = RowMatrix<double>::Ones(3, 5), dY = RowMatrix<double>::Ones(3, 4),
                          right = RowMatrix<double>::Ones(2, 6);
  CHECK(message_of<ShapeError>([&] { gradient.add(X, dY); }) == "BatchGradient::add: X must be b x 6, got 3 x 5");
  CHECK(message_of<ShapeError>([&] { gradient.add(right, dY); }) == "BatchGradient::add: dY must be 2 x 4, got 3 x 4");
  CHECK(message_of<ShapeError>([&] { BatchGradient<double>(0, 4); }) ==
        "BatchGradient: n and m must be at least 1, got 0 x 4");
}
