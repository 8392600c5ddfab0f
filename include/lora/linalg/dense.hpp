// SPDX-License-Identifier: MIT
// The elements behind an operator: the dense matrix, and what can be said of it without holding it.
#pragma once

#include <lora/core/matrix.hpp>
#include <lora/linalg/linear_operator.hpp>

#include <algorithm>

namespace lora {

namespace detail {

/// Calls `visit(first_row, block)` for all rows of M, at most 64 at a time (count x cols): those of `weight()` where
/// the operator has it in memory, otherwise its products with unit rows (rows^2 cols multiply-adds, exact: every sum
/// has one term that is not zero).
template <LinearOperator Operator, class Visit>
void for_each_row_block(const Operator& op, const Visit& visit) {
  using Scalar = typename Operator::Scalar;
  constexpr Index most = 64;
  RowMatrix<Scalar> unit, image;
  for (Index first = 0; first < op.rows(); first += most) {
    const Index count = std::min(most, op.rows() - first);
    if constexpr (requires { op.weight(); }) {
      visit(first, op.weight().middleRows(first, count));
    } else {
      unit.setZero(count, op.rows());
      unit.middleCols(first, count).setIdentity();
      image.resize(count, op.cols());
      op.multiply(unit, image);
      visit(first, image);
    }
  }
}

}  // namespace detail

/// M (rows x cols) written out, for tests, merged weights and small matrices.
template <LinearOperator Operator>
ColMatrix<typename Operator::Scalar> to_dense(const Operator& op) {
  ColMatrix<typename Operator::Scalar> dense(op.rows(), op.cols());
  detail::for_each_row_block(op,
                             [&](Index first, const auto& block) { dense.middleRows(first, block.rows()) = block; });
  return dense;
}

/// ||M||_F^2, summed in double: by the operator's own `squared_norm()` where it has one, otherwise row by row, never
/// holding M.
template <LinearOperator Operator>
double squared_norm(const Operator& op) {
  if constexpr (requires { op.squared_norm(); }) {
    return op.squared_norm();
  } else {
    double sum = 0;
    detail::for_each_row_block(
        op, [&](Index /*first*/, const auto& block) { sum += block.template cast<double>().squaredNorm(); });
    return sum;
  }
}

/// max |M_ij|, never holding M.
template <LinearOperator Operator>
double largest_element(const Operator& op) {
  double largest = 0;
  detail::for_each_row_block(op, [&](Index /*first*/, const auto& block) {
    largest = std::max(largest, static_cast<double>(block.cwiseAbs().maxCoeff()));
  });
  return largest;
}

}  // namespace lora
