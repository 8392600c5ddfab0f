// SPDX-License-Identifier: MIT
// The scalars we compute in and the two storage orders that every room uses.
#pragma once

#include <Eigen/Core>

#include <concepts>

namespace lora {

static_assert(EIGEN_VERSION_AT_LEAST(3, 4, 0), "lora: needs Eigen 3.4 or newer");

using Index = Eigen::Index;

/// A scalar to compute in. Factors, gradients and moments are never narrower than float.
template <class Scalar>
concept Real = std::same_as<Scalar, float> || std::same_as<Scalar, double>;

/// Column-major, the order of `A` (n x r) and of PyTorch's `weight` seen as `W0` (n x m).
template <Real Scalar>
using ColMatrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor>;

/// Row-major, the order of activations (b x n) and of `B` (r x m).
template <Real Scalar>
using RowMatrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

namespace detail {

/// Same shape and same values; Eigen's own == may only be asked of equal shapes.
template <class Matrix>
bool same_values(const Matrix& left, const Matrix& right) {
  return left.rows() == right.rows() && left.cols() == right.cols() && (left.array() == right.array()).all();
}

}  // namespace detail
}  // namespace lora
