// SPDX-License-Identifier: MIT
// A base in foreign memory, read-only: a trainer's weight, a mapped file. Either storage order.
#pragma once

#include <lora/base/frozen_base.hpp>
#include <lora/core/views.hpp>
#include <lora/linalg/product.hpp>

#include <Eigen/Core>

#include <string>

namespace lora {

/// W0 (n x m) where it lies. Never written, never copied; the memory must outlive the base.
///
/// ColMajor is PyTorch's `nn.Linear.weight` [m, n] byte for byte, RowMajor is GPT-2's Conv1D weight [n, m].
/// From raw memory: `ViewBase<float>{pointer, n, m}`, or with a stride between columns (rows).
template <Real RealScalar, int Order = Eigen::ColMajor>
class ViewBase {
 public:
  using Scalar = RealScalar;

  /// \throws ShapeError  see `View`.
  ViewBase(const Scalar* weight, Index n, Index m) : ViewBase(View<const Scalar, Order>(weight, n, m)) {}
  ViewBase(const Scalar* weight, Index n, Index m, Index stride)
      : ViewBase(View<const Scalar, Order>(weight, n, m, stride)) {}
  ViewBase(const View<const Scalar, Order>& weight)
      : data_(weight.data()), rows_(weight.rows()), cols_(weight.cols()), stride_(weight.outerStride()) {}
  ViewBase(const Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Order>& weight)
      : ViewBase(View<const Scalar, Order>(weight)) {}
  ViewBase(Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Order>&&) = delete;  // it would dangle: use OwnedBase

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  View<const Scalar, Order> weight() const { return {data_, rows_, cols_, stride_}; }

  void multiply(const ConstRows<Scalar>& X, Rows<Scalar> Y) const {
    detail::require_multiply(rows_, cols_, X, Y, "ViewBase::multiply");
    set_product(Y, 1, X, weight());
  }
  void multiply_transposed(const ConstRows<Scalar>& dY, Rows<Scalar> dX) const {
    detail::require_multiply(cols_, rows_, dY, dX, "ViewBase::multiply_transposed");
    set_product(dX, 1, dY, weight().transpose());
  }

  std::string describe() const {
    return detail::describe_base<Scalar>("view of", rows_, cols_, detail::storage_name(Order));
  }
  /// The same memory, not equal memory.
  bool operator==(const ViewBase&) const = default;

 private:
  const Scalar* data_;
  Index rows_, cols_, stride_;
};

}  // namespace lora
