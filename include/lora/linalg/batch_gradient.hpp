// SPDX-License-Identifier: MIT
// The gradient of a weight as the operator that it is: X^T dY of the batches, never formed.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/views.hpp>
#include <lora/linalg/linear_operator.hpp>
#include <lora/linalg/product.hpp>

#include <vector>

namespace lora {

/// G (n x m) = the mean over batches of X^T dY, known by its products alone.
///
/// Only the addresses of X (b x n) and dY (b x m) are kept: they must outlive the operator. A product with k rows costs
/// 2 b k (n + m) flops, b tokens in all, against 2 n m k for a formed G, which itself costs 2 b n m: it pays where b is
/// below about n m / (n + m), n / 2 for a square weight.
template <Real RealScalar>
class BatchGradient {
 public:
  using Scalar = RealScalar;

  /// \throws ShapeError  n or m below 1.
  BatchGradient(Index n, Index m) : rows_(n), cols_(m) {
    detail::require<ShapeError>(n >= 1 && m >= 1, "BatchGradient: n and m must be at least 1, got ",
                                detail::Shape{n, m});
  }
  /// One batch.
  BatchGradient(const ConstRows<Scalar>& X, const ConstRows<Scalar>& dY) : BatchGradient(X.cols(), dY.cols()) {
    add(X, dY);
  }

  /// One more batch; G is then the mean over the batches added (not over tokens, nor over calls of a hook).
  /// \throws ShapeError  X not b x n, dY not b x m. \throws NumericalError  not finite.
  void add(const ConstRows<Scalar>& X, const ConstRows<Scalar>& dY) {
    detail::require_batch(rows_, cols_, X, dY, "BatchGradient::add");
    batches_.push_back({X.data(), dY.data(), X.rows(), X.outerStride(), dY.outerStride()});
  }

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Index batches() const { return static_cast<Index>(batches_.size()); }

  /// out (k x m) = in (k x n) G; allocates k x b scratch. \throws StateError  no batch yet.
  void multiply(const ConstRows<Scalar>& in, Rows<Scalar> out) const {
    detail::require_multiply(rows_, cols_, in, out, "BatchGradient::multiply");
    start(out);
    for (const auto& batch : batches_) accumulate(in, batch.X(rows_), batch.dY(cols_), out);
  }
  /// out (k x n) = in (k x m) G^T.
  void multiply_transposed(const ConstRows<Scalar>& in, Rows<Scalar> out) const {
    detail::require_multiply(cols_, rows_, in, out, "BatchGradient::multiply_transposed");
    start(out);
    for (const auto& batch : batches_) accumulate(in, batch.dY(cols_), batch.X(rows_), out);
  }
  /// ||G||_F^2 = sum over tokens of (X X^T) o (dY dY^T), from Gram matrices of the tokens: 2 b^2 (n + m) flops and
  /// memory b_i b_j for two batches. \throws StateError  no batch yet.
  double squared_norm() const {
    require_a_batch();
    double sum = 0;
    RowMatrix<Scalar> inputs, outputs;
    for (const auto& left : batches_) {
      for (const auto& right : batches_) {
        inputs.resize(left.tokens, right.tokens);
        outputs.resize(left.tokens, right.tokens);
        set_product(inputs, 1, left.X(rows_), right.X(rows_).transpose());
        set_product(outputs, 1, left.dY(cols_), right.dY(cols_).transpose());
        sum += inputs.template cast<double>().cwiseProduct(outputs.template cast<double>()).sum();
      }
    }
    return sum / static_cast<double>(batches_.size() * batches_.size());
  }

 private:
  struct Batch {
    const Scalar *x, *dy;
    Index tokens, x_stride, dy_stride;
    ConstRows<Scalar> X(Index n) const { return {x, tokens, n, x_stride}; }
    ConstRows<Scalar> dY(Index m) const { return {dy, tokens, m, dy_stride}; }
  };

  void start(Rows<Scalar>& out) const {
    require_a_batch();
    out.setZero();
  }
  void require_a_batch() const {
    detail::require<StateError>(!batches_.empty(), "BatchGradient: needs at least one batch, got none");
  }
  /// out += (in left^T) right / batches
  void accumulate(const ConstRows<Scalar>& in, const ConstRows<Scalar>& left, const ConstRows<Scalar>& right,
                  Rows<Scalar>& out) const {
    RowMatrix<Scalar> inner(in.rows(), left.rows());
    set_product(inner, 1 / static_cast<double>(batches_.size()), in, left.transpose());
    add_product(out, 1, inner, right);
  }

  Index rows_, cols_;
  std::vector<Batch> batches_;
};

static_assert(LinearOperator<BatchGradient<float>>);

}  // namespace lora
