// SPDX-License-Identifier: MIT
// The dense matrix behind an operator, for tests, merged weights and small matrices.
#pragma once

#include <lora/core/matrix.hpp>
#include <lora/linalg/linear_operator.hpp>

#include <algorithm>

namespace lora {

/// M (rows x cols) written out: `weight()` where the operator has it in memory, otherwise its products with unit rows,
/// a block of them at a time (rows^2 cols multiply-adds, exact: every sum has one term that is not zero).
template <LinearOperator Operator>
ColMatrix<typename Operator::Scalar> to_dense(const Operator& op) {
  using Scalar = typename Operator::Scalar;
  if constexpr (requires { op.weight(); }) {
    return op.weight();
  } else {
    constexpr Index block = 64;
    ColMatrix<Scalar> dense(op.rows(), op.cols());
    for (Index first = 0; first < op.rows(); first += block) {
      const Index count = std::min(block, op.rows() - first);
      RowMatrix<Scalar> unit = RowMatrix<Scalar>::Zero(count, op.rows()), image(count, op.cols());
      unit.middleCols(first, count).setIdentity();
      op.multiply(unit, image);
      dense.middleRows(first, count) = image;
    }
    return dense;
  }
}

}  // namespace lora
