// SPDX-License-Identifier: MIT
// A base laid out once in the order in which its products read it.
#pragma once

#include <lora/base/frozen_base.hpp>
#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/views.hpp>
#include <lora/kernel/product.hpp>
#include <lora/linalg/product.hpp>

#include <Eigen/Core>

#include <string>
#include <utility>

namespace lora {

/// Which products of a `PackedBase` have a pack of their own. A pack takes n m scalars.
enum class Packs {
  Both,     ///< one for X W0 and one for dY W0^T: both run at full speed
  Forward,  ///< one for X W0; dY W0^T is made of plain products with its panels, slower: see docs/performance.md
};

/// W0 (n x m) in packed form, copied from a matrix that may be freed afterwards: the fast base for training.
///
/// A product is one pass over the pack, without any packing of W0 at run time: from some tens of rows on near the rate
/// of multiply-adds, below at that of memory (docs/performance.md). Any n, m, b. Runs on `threads()` threads. Allocates
/// nothing once the threads have seen the largest batch; each keeps up to 192 max(n, m) scalars for rows of X.
///
/// Results differ from plain Eigen's in the order of sums alone: |Y - X W0| <= gamma_n |X| |W0| elementwise.
template <Real RealScalar>
class PackedBase {
 public:
  using Scalar = RealScalar;

  /// From a matrix, map or block in either storage order; of `Scalar`, or of `Eigen::bfloat16` to be widened.
  template <class Derived>
  explicit PackedBase(const Eigen::MatrixBase<Derived>& weight, Packs packs = Packs::Both)
      : forward_(weight.derived()), backward_(both(packs, weight.derived())) {
    static_assert(
        std::is_same_v<typename Derived::Scalar, Scalar> || std::is_same_v<typename Derived::Scalar, Eigen::bfloat16>,
        "lora: the scalar type differs (float and double are never mixed or converted)");
  }

  Index rows() const { return forward_.rows(); }
  Index cols() const { return forward_.cols(); }
  Packs packs() const { return backward_.count() > 0 ? Packs::Both : Packs::Forward; }

  void multiply(const ConstRows<Scalar>& X, Rows<Scalar> Y) const {
    detail::require_multiply(rows(), cols(), X, Y, "PackedBase::multiply");
    kernel::multiply<Kernel>(X, forward_, Y);
  }
  void multiply_transposed(const ConstRows<Scalar>& dY, Rows<Scalar> dX) const {
    detail::require_multiply(cols(), rows(), dY, dX, "PackedBase::multiply_transposed");
    if (packs() == Packs::Both) {
      kernel::multiply<Kernel>(dY, backward_, dX);
    } else {
      dX.setZero();  // a panel is a row-major matrix of 32 columns or fewer
      for (Index p = 0; p < forward_.count(); ++p) {
        add_product(dX, 1, dY.middleCols(p * Panels::width, forward_.cols_of(p)), panel(p).transpose());
      }
    }
  }

  /// W0 <- W0 + scale A B in the packs; 2 n m r flops for each, and a copy of each.
  /// \throws StateError  an adapter is merged already. \throws ShapeError  factors of another weight.
  void merge(const ConstFactorsView<Scalar>& factors, double scale) {
    detail::require<StateError>(!merged(),
                                "PackedBase::merge: unmerge first, got a base with an adapter merged already");
    detail::require_factors(factors, rows(), cols(), factors.rank(), "PackedBase::merge:");
    Panels forward = forward_, backward = backward_;
    add(forward, scale, factors.A, factors.B);
    add(backward, scale, factors.B.transpose(), factors.A.transpose());
    original_forward_ = std::exchange(forward_, std::move(forward));
    original_backward_ = std::exchange(backward_, std::move(backward));
    merged_ = true;
  }
  /// W0 as it was before `merge`, bit for bit.
  /// \throws StateError  nothing is merged.
  void unmerge() {
    detail::require<StateError>(merged(), "PackedBase::unmerge: needs a merged adapter, got a base without one");
    forward_ = std::exchange(original_forward_, Panels());
    backward_ = std::exchange(original_backward_, Panels());
    merged_ = false;
  }
  bool merged() const { return merged_; }

  std::string describe() const {
    return detail::describe_base<Scalar>("packed", rows(), cols(), packs() == Packs::Both ? " twice" : " once");
  }
  bool operator==(const PackedBase&) const = default;

 private:
  using Kernel = kernel::TileKernel<kernel::DenseWeights<Scalar>>;
  using Panels = typename Kernel::Panels;

  template <class Matrix>
  static Panels both(Packs packs, const Matrix& weight) {
    return packs == Packs::Both ? Panels(weight.transpose()) : Panels();
  }
  ConstRows<Scalar> panel(Index p) const {
    return {forward_.panel(p), forward_.rows(), forward_.cols_of(p), Panels::width};
  }
  template <class Left, class Right>
  static void add(Panels& panels, double scale, const Left& L, const Right& R) {
    for (Index p = 0; p < panels.count(); ++p) {
      const Rows<Scalar> panel(panels.panel(p), panels.rows(), panels.cols_of(p), Panels::width);
      add_product(panel, scale, L, R.middleCols(p * Panels::width, panels.cols_of(p)));
    }
  }

  Panels forward_, backward_, original_forward_, original_backward_;
  bool merged_ = false;
};

template <class Derived>
explicit PackedBase(const Eigen::MatrixBase<Derived>&) -> PackedBase<typename Derived::Scalar>;
template <class Derived>
explicit PackedBase(const Eigen::MatrixBase<Derived>&, Packs) -> PackedBase<typename Derived::Scalar>;

}  // namespace lora
