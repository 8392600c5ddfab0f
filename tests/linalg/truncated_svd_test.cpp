// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/base/view_base.hpp>
#include <lora/linalg/batch_gradient.hpp>
#include <lora/linalg/dense.hpp>
#include <lora/linalg/truncated_svd.hpp>

#include <Eigen/SVD>

#include <algorithm>
#include <limits>

using namespace lora;
using namespace lora::test;

namespace {

using Dense = ColMatrix<double>;

Dense rebuilt(const TruncatedSvd<double>& svd) { return svd.U * svd.S.asDiagonal() * svd.Vt; }

/// The exact effort and the default one (here as wide as the matrix, too) against Eigen's JacobiSVD of `dense`.
template <LinearOperator Operator>
void check_against_jacobi(const Operator& op, const Dense& dense, Random& random) {
  constexpr Index rank = 4;
  const Eigen::JacobiSVD<Dense> jacobi(dense, Eigen::ComputeThinU | Eigen::ComputeThinV);
  const Dense best = jacobi.matrixU().leftCols(rank) * jacobi.singularValues().head(rank).asDiagonal() *
                     jacobi.matrixV().leftCols(rank).transpose();
  for (const auto& effort : {SvdEffort::exact(), SvdEffort{}}) {
    const auto svd = truncated_svd(op, rank, random, effort);
    CHECK(svd.rows() == dense.rows());
    CHECK(svd.cols() == dense.cols());
    REQUIRE(svd.rank() == rank);
    const double values = relative_error(svd.S, jacobi.singularValues().head(rank));
    const double product = relative_error(rebuilt(svd), best);
    INFO(dense.rows() << " x " << dense.cols() << ": singular values off by " << values << ", product by " << product);
    CHECK(values <= decomposition<double>);
    CHECK(product <= decomposition<double>);
    CHECK(off_orthonormal(svd.U) <= 2 * qr_bound<double>(dense.rows(), dense.cols()));
    CHECK(off_orthonormal(Dense(svd.Vt.transpose())) <= 2 * qr_bound<double>(dense.rows(), dense.cols()));
  }
}

}  // namespace

TEST_CASE("the truncated SVD of any operator is Eigen's JacobiSVD where the sketch is as wide as the matrix",
          "[linalg][svd]") {
  Random random{1};
  struct Sizes {
    Index n, m;
  };
  for (const auto& [n, m] : {Sizes{30, 17}, {17, 30}, {9, 9}}) {
    const auto M = random_columns<double>(n, m, random);
    const RowMatrix<double> by_rows = M;
    check_against_jacobi(ViewBase<double>(M), M, random);
    check_against_jacobi(ViewBase<double, Eigen::RowMajor>(by_rows), M, random);

    const auto X = random_rows<double>(21, n, random), dY = random_rows<double>(21, m, random);
    check_against_jacobi(BatchGradient<double>(X, dY), X.transpose() * dY, random);

    const auto whole = truncated_svd(ViewBase<double>(M), 6, random);
    check_against_jacobi(whole, rebuilt(whole), random);

    LoraLinear layer{M, {.rank = 2, .alpha = 3}};  // s = 1.5
    const auto factors = random_factors<double>(n, m, 2, random);
    layer.set_factors(factors);
    check_against_jacobi(layer, M + 1.5 * factors.A * factors.B, random);
  }
}

TEST_CASE("in float the truncated SVD rebuilds what it does in double", "[linalg][svd]") {
  Random random{2};
  const auto M = random_columns<float>(30, 17, random);
  const Dense doubled = M.cast<double>();
  const auto narrow = truncated_svd(ViewBase<float>(M), 4, random);
  const auto exact = truncated_svd(ViewBase<double>(doubled), 4, random, SvdEffort::exact());
  const Dense product = (narrow.U * narrow.S.asDiagonal() * narrow.Vt).cast<double>();
  INFO("product off by " << relative_error(product, rebuilt(exact)));
  CHECK(relative_error(product, rebuilt(exact)) <= decomposition<float>);
  CHECK(off_orthonormal(narrow.U) <= 2 * qr_bound<float>(30, 17));
}

TEST_CASE("a matrix of lower rank, or zero, still has orthonormal triplets, with singular values of zero",
          "[linalg][svd]") {
  Random random{3};
  const auto pair = random_factors<double>(12, 10, 2, random);
  for (const Dense& M : {Dense(pair.A * pair.B), Dense(Dense::Zero(12, 10))}) {
    const auto svd = truncated_svd(ViewBase<double>(M), 5, random);
    CHECK(svd.S.tail(3).maxCoeff() <= decomposition<double> * M.norm());
    CHECK(off_orthonormal(svd.U) <= 2 * qr_bound<double>(12, 10));
    CHECK(off_orthonormal(Dense(svd.Vt.transpose())) <= 2 * qr_bound<double>(12, 10));
    CHECK((rebuilt(svd) - M).norm() <= decomposition<double> * M.norm());
  }
  const Dense row = random_columns<double>(1, 6, random);
  CHECK(truncated_svd(ViewBase<double>(row), 1, random).S(0) == Catch::Approx(row.norm()));
}

TEST_CASE("same seed, same bits; a gradient that is never formed has the triplets of the one that is",
          "[linalg][svd]") {
  Random random{4};
  const auto X = random_rows<double>(40, 50, random), dY = random_rows<double>(40, 60, random);
  const BatchGradient<double> gradient(X, dY);
  const Dense G = X.transpose() * dY;
  Random one{5}, two{5}, three{5};
  const auto first = truncated_svd(gradient, 3, one), second = truncated_svd(gradient, 3, two);
  CHECK(same_bits(first.U, second.U));
  CHECK(same_bits(first.S, second.S));
  CHECK(same_bits(first.Vt, second.Vt));
  CHECK(one == two);
  // The same sketch, so the products agree although it is narrower than the matrix.
  CHECK(relative_error(rebuilt(first), rebuilt(truncated_svd(ViewBase<double>(G), 3, three))) <= decomposition<double>);
}

TEST_CASE("power iterations come closer to the best approximation than a sketch alone", "[linalg][svd]") {
  constexpr Index rank = 4;
  Random random{6};
  // sigma_i = 1 / i between random orthonormal vectors
  const auto U = thin_qr(random_columns<double>(90, 60, random)).Q,
             V = thin_qr(random_columns<double>(70, 60, random)).Q;
  const Eigen::VectorXd sigma = Eigen::VectorXd::LinSpaced(60, 1, 60).cwiseInverse();
  const Dense M = U * sigma.asDiagonal() * V.transpose();
  double last = std::numeric_limits<double>::infinity();
  for (const int iterations : {0, 1, 2, 4}) {
    Random same{7};
    const auto svd =
        truncated_svd(ViewBase<double>(M), rank, same, {.oversampling = 4, .power_iterations = iterations});
    const double excess = (M - rebuilt(svd)).norm() / sigma.tail(60 - rank).norm() - 1;
    INFO(iterations << " power iterations leave " << excess << " more than the best approximation of rank 4 does");
    CHECK(excess >= -decomposition<double>);
    CHECK(excess < last);
    last = excess;
  }
}

TEST_CASE("a truncated SVD is an operator, and its leading part is that of lower rank", "[linalg][svd]") {
  constexpr Index n = 13, m = 11, b = 4;
  Random random{7};
  const auto M = random_columns<double>(n, m, random);
  const auto svd = truncated_svd(ViewBase<double>(M), 5, random);
  const auto in = random_rows<double>(b, n, random), out = random_rows<double>(b, m, random);
  RowMatrix<double> product(b, m), transposed_product(b, n);
  svd.multiply(in, product);
  svd.multiply_transposed(out, transposed_product);
  CHECK(relative_error(product, in * rebuilt(svd)) <= decomposition<double>);
  CHECK(relative_error(transposed_product, out * rebuilt(svd).transpose()) <= decomposition<double>);
  CHECK(relative_error(to_dense(svd), rebuilt(svd)) <= decomposition<double>);

  const auto leading = svd.leading(2);
  CHECK(leading.rank() == 2);
  CHECK(same_bits(leading.U, Dense(svd.U.leftCols(2))));
  CHECK(same_bits(leading.S, Eigen::VectorXd(svd.S.head(2))));
  CHECK(same_bits(leading.Vt, RowMatrix<double>(svd.Vt.topRows(2))));
  CHECK(message_of<ConfigError>([&] { svd.leading(0); }) == "TruncatedSvd::leading: rank must lie in [1, 5], got 0");
  CHECK(message_of<ConfigError>([&] { svd.leading(6); }) == "TruncatedSvd::leading: rank must lie in [1, 5], got 6");
  CHECK(message_of<ShapeError>([&] { svd.multiply(out, product); }) ==
        "TruncatedSvd::multiply: input must have 13 columns, got 4 x 11");
  CHECK(message_of<ShapeError>([&] { svd.multiply_transposed(out, product); }) ==
        "TruncatedSvd::multiply_transposed: output must be 4 x 13, got 4 x 11");
}

TEST_CASE("bad input to the truncated SVD is named", "[linalg][svd][errors]") {
  Random random{8};
  auto M = random_columns<double>(6, 4, random);
  const ViewBase<double> op(M);
  CHECK(message_of<ConfigError>([&] { truncated_svd(op, 0, random); }) ==
        "truncated_svd: rank must lie in [1, min(n, m)] = [1, 4], got 0");
  CHECK(message_of<ConfigError>([&] { truncated_svd(op, 5, random); }) ==
        "truncated_svd: rank must lie in [1, min(n, m)] = [1, 4], got 5");
  CHECK(message_of<ConfigError>([&] { truncated_svd(op, 2, random, {.oversampling = -1}); }) ==
        "truncated_svd: oversampling must not be negative, got -1");
  CHECK(message_of<ConfigError>([&] { truncated_svd(op, 2, random, {.power_iterations = -2}); }) ==
        "truncated_svd: power_iterations must not be negative, got -2");
  for (const double broken : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    M(3, 2) = broken;
    CHECK(message_of<NumericalError>([&] { truncated_svd(op, 2, random); }) ==
          "truncated_svd: the operator's products must be finite, got NaN or infinity");
  }
}
