// SPDX-License-Identifier: MIT
// A pair of factors as the operator that it stands for.
#pragma once

#include <lora/core/factors.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/views.hpp>
#include <lora/linalg/linear_operator.hpp>
#include <lora/linalg/product.hpp>

namespace lora {

/// s A B (n x m), known by its products alone: 2 b r (n + m) flops for b rows. A view: the factors must stay in place.
template <Real RealScalar>
class LowRankProduct {
 public:
  using Scalar = RealScalar;

  LowRankProduct(const ConstFactorsView<Scalar>& factors, double scale) : factors_(factors), scale_(scale) {}
  LowRankProduct(Factors<Scalar>&&, double) = delete;  // they would be gone before they are used: give them a name

  Index rows() const { return factors_.in_features(); }
  Index cols() const { return factors_.out_features(); }

  /// out (b x m) = in (b x n) s A B; allocates b x r scratch.
  void multiply(const ConstRows<Scalar>& in, Rows<Scalar> out) const {
    detail::require_multiply(rows(), cols(), in, out, "LowRankProduct::multiply");
    RowMatrix<Scalar> inner(in.rows(), factors_.rank());
    set_product(inner, scale_, in, factors_.A);
    set_product(out, 1, inner, factors_.B);
  }
  /// out (b x n) = in (b x m) s B^T A^T.
  void multiply_transposed(const ConstRows<Scalar>& in, Rows<Scalar> out) const {
    detail::require_multiply(cols(), rows(), in, out, "LowRankProduct::multiply_transposed");
    RowMatrix<Scalar> inner(in.rows(), factors_.rank());
    set_product(inner, scale_, in, factors_.B.transpose());
    set_product(out, 1, inner, factors_.A.transpose());
  }

 private:
  ConstFactorsView<Scalar> factors_;
  double scale_;
};

template <Real Scalar>
LowRankProduct(const Factors<Scalar>&, double) -> LowRankProduct<Scalar>;

static_assert(LinearOperator<LowRankProduct<float>>);

}  // namespace lora
