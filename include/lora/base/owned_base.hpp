// SPDX-License-Identifier: MIT
// A base that owns its weight: the one that an adapter can be merged into.
#pragma once

#include <lora/base/frozen_base.hpp>
#include <lora/core/factors.hpp>
#include <lora/linalg/product.hpp>

#include <Eigen/Core>

#include <string>
#include <utility>

namespace lora {

/// W0 (n x m) as an owned dense matrix of either storage order.
///
/// While an adapter is merged the original stays beside it (a second n x m array), so that `unmerge` is exact.
template <Real RealScalar, int Order = Eigen::ColMajor>
class OwnedBase {
 public:
  using Scalar = RealScalar;
  using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Order>;

  OwnedBase(Matrix weight) : weight_(std::move(weight)) {}

  Index rows() const { return weight_.rows(); }
  Index cols() const { return weight_.cols(); }
  const Matrix& weight() const { return weight_; }

  void multiply(const ConstRows<Scalar>& X, Rows<Scalar> Y) const {
    detail::require_multiply(rows(), cols(), X, Y, "OwnedBase::multiply");
    set_product(Y, 1, X, weight_);
  }
  void multiply_transposed(const ConstRows<Scalar>& dY, Rows<Scalar> dX) const {
    detail::require_multiply(cols(), rows(), dY, dX, "OwnedBase::multiply_transposed");
    set_product(dX, 1, dY, weight_.transpose());
  }

  /// W0 <- W0 + scale A B; 2 n m r flops, and a copy of W0.
  /// \throws StateError  an adapter is merged already. \throws ShapeError  factors of another weight.
  void merge(const ConstFactorsView<Scalar>& factors, double scale) {
    detail::require<StateError>(!merged(),
                                "OwnedBase::merge: unmerge first, got a base with an adapter merged already");
    detail::require_factors(factors, rows(), cols(), factors.rank(), "OwnedBase::merge:");
    Matrix merged_weight = weight_;
    add_product(merged_weight, scale, factors.A, factors.B);
    original_ = std::exchange(weight_, std::move(merged_weight));
    merged_ = true;
  }
  /// W0 as it was before `merge`, bit for bit.
  /// \throws StateError  nothing is merged.
  void unmerge() {
    detail::require<StateError>(merged(), "OwnedBase::unmerge: needs a merged adapter, got a base without one");
    weight_ = std::exchange(original_, Matrix());
    merged_ = false;
  }
  bool merged() const { return merged_; }

  /// W0 <- W0 + scale A B for good: what `LoraLinear::bake` does with an offset. 2 n m r flops.
  /// \throws StateError  an adapter is merged. \throws ShapeError  factors of another weight.
  void bake(const ConstFactorsView<Scalar>& factors, double scale) {
    detail::require<StateError>(!merged(), "OwnedBase::bake: unmerge first, got a base with an adapter merged");
    detail::require_factors(factors, rows(), cols(), factors.rank(), "OwnedBase::bake:");
    add_product(weight_, scale, factors.A, factors.B);
  }

  std::string describe() const {
    return detail::describe_base<Scalar>("owned", rows(), cols(), detail::storage_name(Order));
  }
  friend bool operator==(const OwnedBase& left, const OwnedBase& right) {
    return left.merged_ == right.merged_ && detail::same_values(left.weight_, right.weight_) &&
           detail::same_values(left.original_, right.original_);
  }

 private:
  Matrix weight_, original_;
  bool merged_ = false;
};

}  // namespace lora
