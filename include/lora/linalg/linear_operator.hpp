// SPDX-License-Identifier: MIT
// `LinearOperator`, the one contract under bases, gradients, adapters and differences of weights.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/finite.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/views.hpp>

#include <concepts>
#include <string_view>

namespace lora {

/// A matrix M (rows x cols) known only by its products with activation rows.
///
/// - `multiply(in, out)`: out (b x cols) = in (b x rows) M
/// - `multiply_transposed(in, out)`: out (b x rows) = in (b x cols) M^T
///
/// Both overwrite `out`, accept b = 0, and may run at the same time from several threads. `in` and `out` do not
/// overlap.
template <class Operator>
concept LinearOperator = Real<typename Operator::Scalar> &&
    requires(const Operator& op, ConstRows<typename Operator::Scalar> in, Rows<typename Operator::Scalar> out) {
  { op.rows() } -> std::convertible_to<Index>;
  { op.cols() } -> std::convertible_to<Index>;
  { op.multiply(in, out) } -> std::same_as<void>;
  { op.multiply_transposed(in, out) } -> std::same_as<void>;
};

namespace detail {

/// Checks the shapes of one `multiply` (M as it stands) of an operator of rows x cols.
template <Real Scalar>
void require_multiply(Index rows, Index cols, const ConstRows<Scalar>& in, const Rows<Scalar>& out,
                      std::string_view name) {
  require<ShapeError>(in.cols() == rows, name, ": input must have ", rows, " columns, got ", shape(in));
  require<ShapeError>(out.rows() == in.rows() && out.cols() == cols, name, ": output must be ", in.rows(), " x ", cols,
                      ", got ", shape(out));
}

/// Checks one batch for the gradient X^T dY of a weight of rows x cols.
template <Real Scalar>
void require_batch(Index rows, Index cols, const ConstRows<Scalar>& X, const ConstRows<Scalar>& dY,
                   std::string_view name) {
  require<ShapeError>(X.cols() == rows, name, ": X must be b x ", rows, ", got ", shape(X));
  require_shape(dY, X.rows(), cols, name, ": dY");
  require<NumericalError>(all_finite(X), name, ": X must be finite, got NaN or infinity");
  require<NumericalError>(all_finite(dY), name, ": dY must be finite, got NaN or infinity");
}

/// Checks a formed gradient of a weight of rows x cols.
template <class Element, int Order>
void require_gradient(Index rows, Index cols, const View<Element, Order>& G, std::string_view name) {
  require_shape(G, rows, cols, name, ": gradient");
  require<NumericalError>(all_finite(G), name, ": gradient must be finite, got NaN or infinity");
}

}  // namespace detail
}  // namespace lora
