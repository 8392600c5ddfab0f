// SPDX-License-Identifier: MIT
// `Factors`, the pair (A, B) at which everything meets, and views of a pair in foreign memory.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/fields.hpp>
#include <lora/core/finite.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/views.hpp>

#include <type_traits>

namespace lora {

/// The low-rank pair of a weight W (n x m): parameters, their gradients, their moments, their initial values.
///
/// Component k is column k of `A` times row k of `B`; both are contiguous.
template <Real Scalar>
struct Factors {
  ColMatrix<Scalar> A;  ///< n x r, input side; byte for byte PEFT's `lora_A.weight` [r, n]
  RowMatrix<Scalar> B;  ///< r x m, output side; the transpose of PEFT's `lora_B.weight` [m, r]

  /// Zeros for a weight of n x m at rank r.
  static Factors zero(Index n, Index m, Index r) {
    return {ColMatrix<Scalar>::Zero(n, r), RowMatrix<Scalar>::Zero(r, m)};
  }

  Index in_features() const { return A.rows(); }
  Index out_features() const { return B.cols(); }
  Index rank() const { return A.cols(); }
  /// r (n + m): how many numbers an optimizer trains.
  Index parameters() const { return A.size() + B.size(); }

  /// Clears a gradient; keeps the memory.
  void set_zero() {
    A.setZero();
    B.setZero();
  }
  /// Adds the gradient of another thread or micro-batch. \throws ShapeError  other shapes.
  Factors& operator+=(const Factors& other) {
    detail::require_shape(other.A, A.rows(), A.cols(), "Factors: the A that is added");
    detail::require_shape(other.B, B.rows(), B.cols(), "Factors: the B that is added");
    A += other.A;
    B += other.B;
    return *this;
  }
  /// Turns a sum over micro-batches into their mean: `gradient *= 1.0 / count`.
  Factors& operator*=(double factor) {
    A *= static_cast<Scalar>(factor);
    B *= static_cast<Scalar>(factor);
    return *this;
  }
  friend bool operator==(const Factors& left, const Factors& right) {
    return detail::same_values(left.A, right.A) && detail::same_values(left.B, right.B);
  }
  static void fields(auto& self, const auto& visit) {
    visit("A", self.A);
    visit("B", self.B);
  }
};

/// A pair in foreign memory, so that a trainer's own buffers can be initialised, stepped and saved.
///
/// Without Eigen types: `FactorsView<float>{{a, n, r}, {b, r, m}}`, `a` column by column, `b` row by row.
/// \throws ShapeError  where A and B disagree about the rank.
template <class Element>
struct BasicFactorsView {
  using Scalar = std::remove_const_t<Element>;

  View<Element, Eigen::ColMajor> A;
  View<Element, Eigen::RowMajor> B;

  BasicFactorsView(View<Element, Eigen::ColMajor> a, View<Element, Eigen::RowMajor> b) : A(a), B(b) {
    detail::require<ShapeError>(A.cols() == B.rows(),
                                "FactorsView: A (n x r) and B (r x m) must share the rank, got A ", detail::shape(A),
                                " and B ", detail::shape(B));
  }
  BasicFactorsView(std::conditional_t<std::is_const_v<Element>, const Factors<Scalar>, Factors<Scalar>>& factors)
      : BasicFactorsView(View<Element, Eigen::ColMajor>(factors.A), View<Element, Eigen::RowMajor>(factors.B)) {}
  BasicFactorsView(const BasicFactorsView<Scalar>& writable) requires std::is_const_v<Element> : A(writable.A),
                                                                                                 B(writable.B) {}
  BasicFactorsView(const BasicFactorsView&) = default;
  BasicFactorsView& operator=(const BasicFactorsView&) = delete;  // to rebind or to write through? say which

  Index in_features() const { return A.rows(); }
  Index out_features() const { return B.cols(); }
  Index rank() const { return A.cols(); }
  Index parameters() const { return A.size() + B.size(); }
  /// Clears a gradient in foreign memory.
  void set_zero() requires(!std::is_const_v<Element>) {
    A.setZero();
    B.setZero();
  }
};

template <Real Scalar>
using FactorsView = BasicFactorsView<Scalar>;
template <Real Scalar>
using ConstFactorsView = BasicFactorsView<const Scalar>;

/// A B - A0 B0 as one pair of rank 2r: ([A A0], [B; -B0]), without a rounding.
/// \throws ShapeError  pairs of different weights.
template <Real Scalar>
Factors<Scalar> difference(const Factors<Scalar>& factors, const Factors<Scalar>& initial) {
  detail::require<ShapeError>(
      factors.in_features() == initial.in_features() && factors.out_features() == initial.out_features(),
      "difference: both products must be of one shape, got ",
      detail::Shape{factors.in_features(), factors.out_features()}, " and ",
      detail::Shape{initial.in_features(), initial.out_features()});
  auto both = Factors<Scalar>::zero(factors.in_features(), factors.out_features(), factors.rank() + initial.rank());
  both.A << factors.A, initial.A;
  both.B << factors.B, -initial.B;
  return both;
}

namespace detail {

/// Throws NumericalError where a factor holds NaN or infinity; `name` as in "LoraPlus::step: gradient".
template <Real Scalar, class... Name>
void require_finite(const ConstFactorsView<Scalar>& factors, const Name&... name) {
  require<NumericalError>(all_finite(factors.A), name..., " A must be finite, got NaN or infinity");
  require<NumericalError>(all_finite(factors.B), name..., " B must be finite, got NaN or infinity");
}

/// Throws ShapeError unless the pair is n x r and r x m.
template <Real Scalar, class... Name>
void require_factors(const ConstFactorsView<Scalar>& factors, Index n, Index m, Index r, const Name&... name) {
  require_shape(factors.A, n, r, name..., " A");
  require_shape(factors.B, r, m, name..., " B");
}

}  // namespace detail
}  // namespace lora
