// SPDX-License-Identifier: MIT
// The difference of two operators, never formed: what fine-tuning has done to a weight.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/views.hpp>
#include <lora/linalg/linear_operator.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <type_traits>

namespace lora {

/// M = left - right, two operators of one shape. Refers to both: they must outlive it.
template <LinearOperator Left, LinearOperator Right>
class DifferenceOperator {
  static_assert(std::is_same_v<typename Left::Scalar, typename Right::Scalar>,
                "lora: the scalar type differs (float and double are never mixed or converted)");

 public:
  using Scalar = typename Left::Scalar;

  /// \throws ShapeError  other shapes.
  DifferenceOperator(const Left& left, const Right& right) : left_(&left), right_(&right) {
    detail::require_shape(right, left.rows(), left.cols(), "DifferenceOperator: the operator that is subtracted");
  }
  DifferenceOperator(Left&&, const Right&) = delete;
  DifferenceOperator(const Left&, Right&&) = delete;
  DifferenceOperator(Left&&, Right&&) = delete;

  Index rows() const { return left_->rows(); }
  Index cols() const { return left_->cols(); }

  /// out = in left - in right; allocates scratch of out's size.
  void multiply(const ConstRows<Scalar>& in, Rows<Scalar> out) const {
    detail::require_multiply(rows(), cols(), in, out, "DifferenceOperator::multiply");
    RowMatrix<Scalar> other(out.rows(), out.cols());
    left_->multiply(in, out);
    right_->multiply(in, other);
    out -= other;
  }
  void multiply_transposed(const ConstRows<Scalar>& in, Rows<Scalar> out) const {
    detail::require_multiply(cols(), rows(), in, out, "DifferenceOperator::multiply_transposed");
    RowMatrix<Scalar> other(out.rows(), out.cols());
    left_->multiply_transposed(in, out);
    right_->multiply_transposed(in, other);
    out -= other;
  }

  /// Rows first, first + 1, ... of M: from the operators' own rows where they have them (`weight()`, `copy_rows`),
  /// otherwise by products with unit rows.
  void copy_rows(Index first, Rows<Scalar> out) const {
    RowMatrix<Scalar> other(out.rows(), out.cols());
    rows_of(*left_, first, out);
    rows_of(*right_, first, other);
    out -= other;
  }
  /// ||M||_F^2, summed in double, 64 rows at a time.
  double squared_norm() const {
    constexpr Index most = 64;
    RowMatrix<Scalar> block;
    double sum = 0;
    for (Index first = 0; first < rows(); first += most) {
      block.resize(std::min(most, rows() - first), cols());
      copy_rows(first, block);
      sum += block.template cast<double>().squaredNorm();
    }
    return sum;
  }

 private:
  template <class Operator>
  static void rows_of(const Operator& op, Index first, Rows<Scalar> out) {
    if constexpr (requires { op.weight(); }) {
      out = op.weight().middleRows(first, out.rows());
    } else if constexpr (requires { op.copy_rows(first, out); }) {
      op.copy_rows(first, out);
    } else {
      RowMatrix<Scalar> unit = RowMatrix<Scalar>::Zero(out.rows(), op.rows());
      unit.middleCols(first, out.rows()).setIdentity();
      op.multiply(unit, out);
    }
  }

  const Left* left_;
  const Right* right_;
};

}  // namespace lora
