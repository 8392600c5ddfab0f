// SPDX-License-Identifier: MIT
// Which base a layer makes of a plain Eigen matrix: a view of one that lasts, the owner of a temporary one.
#pragma once

#include <lora/base/owned_base.hpp>
#include <lora/base/view_base.hpp>
#include <lora/core/matrix.hpp>

#include <Eigen/Core>

namespace lora::detail {

/// For the deduction guides of layers, with the Weight of a `Weight&&`; nothing else than a matrix is given a base.
template <class Weight>
struct BaseOf {};
template <Real Scalar, int Order>
struct BaseOf<Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Order>> {
  using Type = OwnedBase<Scalar, Order>;
};
template <Real Scalar, int Order>
struct BaseOf<Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Order>&> {
  using Type = ViewBase<Scalar, Order>;
};
template <Real Scalar, int Order>
struct BaseOf<const Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Order>&> {
  using Type = ViewBase<Scalar, Order>;
};

}  // namespace lora::detail
