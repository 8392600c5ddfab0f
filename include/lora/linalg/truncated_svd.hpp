// SPDX-License-Identifier: MIT
// The leading singular triplets of any linear operator by products alone (Halko, Martinsson, Tropp, arXiv:0909.4061).
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/finite.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/random.hpp>
#include <lora/linalg/linear_operator.hpp>
#include <lora/linalg/product.hpp>
#include <lora/linalg/thin_qr.hpp>

#include <Eigen/Core>
#include <Eigen/SVD>

#include <algorithm>
#include <limits>

namespace lora {

/// U diag(S) Vt: U (rows x k) and Vt (k x cols) orthonormal, S descending. Itself a linear operator of rank k.
template <Real RealScalar>
struct TruncatedSvd {
  using Scalar = RealScalar;

  ColMatrix<Scalar> U;
  Eigen::VectorX<Scalar> S;
  RowMatrix<Scalar> Vt;

  Index rows() const { return U.rows(); }
  Index cols() const { return Vt.cols(); }
  /// How many triplets there are.
  Index rank() const { return S.size(); }
  /// The first `rank` of them. \throws ConfigError  rank outside [1, rank()].
  TruncatedSvd leading(Index rank) const {
    detail::require<ConfigError>(rank >= 1 && rank <= S.size(), "TruncatedSvd::leading: rank must lie in [1, ",
                                 S.size(), "], got ", rank);
    return {U.leftCols(rank), S.head(rank), Vt.topRows(rank)};
  }

  /// out (b x cols) = in U diag(S) Vt; allocates b x k scratch.
  void multiply(const ConstRows<Scalar>& in, Rows<Scalar> out) const {
    detail::require_multiply(rows(), cols(), in, out, "TruncatedSvd::multiply");
    out.setZero();
    add_multiply(in, out);
  }
  /// out (b x rows) = in Vt^T diag(S) U^T.
  void multiply_transposed(const ConstRows<Scalar>& in, Rows<Scalar> out) const {
    detail::require_multiply(cols(), rows(), in, out, "TruncatedSvd::multiply_transposed");
    out.setZero();
    add_multiply_transposed(in, out);
  }
  /// out += in U diag(S) Vt, for sums of operators.
  void add_multiply(const ConstRows<Scalar>& in, Rows<Scalar> out) const {
    RowMatrix<Scalar> inner(in.rows(), rank());
    set_product(inner, 1, in, U);
    inner *= S.asDiagonal();
    add_product(out, 1, inner, Vt);
  }
  void add_multiply_transposed(const ConstRows<Scalar>& in, Rows<Scalar> out) const {
    RowMatrix<Scalar> inner(in.rows(), rank());
    set_product(inner, 1, in, Vt.transpose());
    inner *= S.asDiagonal();
    add_product(out, 1, inner, U.transpose());
  }
};

/// How hard the randomised method tries.
struct SvdEffort {
  Index oversampling = 16;   ///< >= 0; the sketch is k = min(rank + oversampling, rows, cols) wide
  int power_iterations = 2;  ///< >= 0; each costs two products and raises sigma_j / sigma_k to two powers more

  /// The sketch as wide as the matrix: exact up to rounding, at O(rows cols min(rows, cols)) flops, and the small SVD
  /// is by Jacobi rotations (minutes from about 2,000 on).
  static constexpr SvdEffort exact() {
    return {.oversampling = std::numeric_limits<Index>::max(), .power_iterations = 0};
  }
  bool operator==(const SvdEffort&) const = default;
};

namespace detail {

/// Exact SVD of M (k x cols, k <= cols) by QR of M^T and Jacobi rotations of the k x k triangle, these in double.
template <Real Scalar>
TruncatedSvd<Scalar> wide_svd(const RowMatrix<Scalar>& M) {
  const auto qr = thin_qr<Scalar>(M.transpose());  // M = R^T Q^T
  const Eigen::MatrixXd triangle = qr.R.transpose().template cast<double>();
  const Eigen::JacobiSVD<Eigen::MatrixXd, Eigen::NoQRPreconditioner> small(triangle,
                                                                           Eigen::ComputeFullU | Eigen::ComputeFullV);
  const ColMatrix<Scalar> V = small.matrixV().template cast<Scalar>();
  TruncatedSvd<Scalar> result{small.matrixU().template cast<Scalar>(), small.singularValues().template cast<Scalar>(),
                              RowMatrix<Scalar>(M.rows(), M.cols())};
  set_product(result.Vt, 1, V.transpose(), qr.Q.transpose());
  return result;
}

}  // namespace detail

/// The `rank` leading triplets of `op`, randomised, with power iterations and re-orthonormalisation between products.
///
/// One algorithm for a gradient (LoRA-GA), a base (PiSSA), a difference of weights, a sum of products. Cost
/// 2 (power_iterations + 1) products of k = rank + oversampling rows and as many thin QRs; memory up to
/// 4 k (rows + cols). The same seed gives the same triplets. In exact arithmetic, with q power iterations, the sketch Q
/// keeps E ||M - Q Q^T M||_2 <= (1 + c sqrt(min(rows, cols)))^(1 / (2q + 1)) sigma_{k+1}, the paper's corollary 10.10;
/// the cut to `rank` triplets adds sigma_{rank+1}.
/// \throws ConfigError  rank outside [1, min(rows, cols)]; negative oversampling or power_iterations.
/// \throws NumericalError  a product with NaN or infinity.
template <LinearOperator Operator>
TruncatedSvd<typename Operator::Scalar> truncated_svd(const Operator& op, Index rank, Random& random,
                                                      const SvdEffort& effort = {}) {
  using Scalar = typename Operator::Scalar;
  const Index most = std::min(Index{op.rows()}, Index{op.cols()});
  detail::require<ConfigError>(rank >= 1 && rank <= most, "truncated_svd: rank must lie in [1, min(n, m)] = [1, ", most,
                               "], got ", rank);
  detail::require<ConfigError>(effort.oversampling >= 0, "truncated_svd: oversampling must not be negative, got ",
                               effort.oversampling);
  detail::require<ConfigError>(effort.power_iterations >= 0,
                               "truncated_svd: power_iterations must not be negative, got ", effort.power_iterations);
  const Index k = rank + std::min(effort.oversampling, most - rank);
  const auto orthonormalise_rows = [](RowMatrix<Scalar>& M) { M = thin_qr<Scalar>(M.transpose()).Q.transpose(); };

  RowMatrix<Scalar> P(k, op.cols()), Q(k, op.rows());
  if (k == op.cols()) {
    P.setIdentity();  // spans all rows; a square random matrix would cost its condition, now and then several digits
  } else {
    for (Scalar& p : P.template reshaped<Eigen::RowMajor>()) p = static_cast<Scalar>(random.normal());
  }
  const auto require_finite = [](const RowMatrix<Scalar>& product) {
    detail::require<NumericalError>(all_finite(ConstRows<Scalar>(product)),
                                    "truncated_svd: the operator's products must be finite, got NaN or infinity");
  };
  for (int iteration = 0; iteration <= effort.power_iterations; ++iteration) {
    op.multiply_transposed(P, Q);
    require_finite(Q);
    orthonormalise_rows(Q);  // its rows span the leading left singular vectors
    op.multiply(Q, P);
    require_finite(P);
    if (iteration < effort.power_iterations) orthonormalise_rows(P);
  }
  const auto small = detail::wide_svd(P);  // P = Q M
  TruncatedSvd<Scalar> result{ColMatrix<Scalar>(op.rows(), rank), small.S.head(rank), small.Vt.topRows(rank)};
  set_product(result.U, 1, Q.transpose(), small.U.leftCols(rank));
  return result;
}

static_assert(LinearOperator<TruncatedSvd<float>>);

}  // namespace lora
