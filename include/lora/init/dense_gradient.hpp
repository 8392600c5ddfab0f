// SPDX-License-Identifier: MIT
// A weight's gradient, summed over batches as the dense matrix that it is.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/finite.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/views.hpp>
#include <lora/linalg/linear_operator.hpp>
#include <lora/linalg/product.hpp>

#include <Eigen/Core>

#include <utility>

namespace lora {

/// G (n x m) = the mean over batches, fed as (X, dY) or as gradients that the trainer has formed. Exact; n m scalars.
///
/// A linear operator: hand it to `GradientSvd`. Count batches, not calls of a hook: one `add` a batch and weight.
template <Real RealScalar>
class DenseGradient {
 public:
  using Scalar = RealScalar;

  /// \throws ShapeError  n or m below 1.
  DenseGradient(Index n, Index m) {
    detail::require<ShapeError>(n >= 1 && m >= 1, "DenseGradient: n and m must be at least 1, got ",
                                detail::Shape{n, m});
    sum_ = ColMatrix<Scalar>::Zero(n, m);
  }

  Index rows() const { return sum_.rows(); }
  Index cols() const { return sum_.cols(); }
  Index batches() const { return batches_; }

  /// Adds X^T dY, 2 b n m flops. \throws ShapeError  X not b x n, dY not b x m. \throws NumericalError  not finite.
  void add(const ConstRows<Scalar>& X, const ConstRows<Scalar>& dY) {
    detail::require_batch(rows(), cols(), X, dY, "DenseGradient::add");
    add_product(sum_, 1, X.transpose(), dY);
    ++batches_;
  }
  /// Adds a gradient dL/dW (n x m) in memory of either storage order. \throws ShapeError, NumericalError.
  template <class Gradient>
  void add(const Gradient& G) {
    const View<const Scalar, detail::order_of<Gradient>> view(G);
    detail::require_gradient(rows(), cols(), view, "DenseGradient::add");
    sum_ += view;
    ++batches_;
  }

  /// The mean over the batches so far. \throws StateError  no batch yet.
  ColMatrix<Scalar> mean() const { return sum_ * static_cast<Scalar>(1 / count()); }
  /// sign(G) in the place of G: the first step of an Adam-type optimizer is lr sign(G), so LoRA-GA may align to that.
  /// \throws StateError  no batch yet.
  DenseGradient sign() const {
    DenseGradient signs(rows(), cols());
    signs.batches_ = count() > 0 ? 1 : 0;
    signs.sum_ = sum_.cwiseSign();
    return signs;
  }

  /// out (b x m) = in G. \throws StateError  no batch yet.
  void multiply(const ConstRows<Scalar>& in, Rows<Scalar> out) const {
    detail::require_multiply(rows(), cols(), in, out, "DenseGradient::multiply");
    set_product(out, 1 / count(), in, sum_);
  }
  void multiply_transposed(const ConstRows<Scalar>& in, Rows<Scalar> out) const {
    detail::require_multiply(cols(), rows(), in, out, "DenseGradient::multiply_transposed");
    set_product(out, 1 / count(), in, sum_.transpose());
  }

 private:
  double count() const {
    detail::require<StateError>(batches_ > 0, "DenseGradient: needs at least one batch, got none");
    return static_cast<double>(batches_);
  }

  ColMatrix<Scalar> sum_;
  Index batches_ = 0;
};

static_assert(LinearOperator<DenseGradient<float>>);

}  // namespace lora
