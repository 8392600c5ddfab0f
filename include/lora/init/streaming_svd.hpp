// SPDX-License-Identifier: MIT
// A weight's gradient, summed over batches in O((n + m) k) memory: a truncated SVD that every batch renews.
#pragma once

#include <lora/base/view_base.hpp>
#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/random.hpp>
#include <lora/core/views.hpp>
#include <lora/linalg/batch_gradient.hpp>
#include <lora/linalg/linear_operator.hpp>
#include <lora/linalg/product.hpp>
#include <lora/linalg/truncated_svd.hpp>

#include <algorithm>

namespace lora {

/// One pass over the batches, none of which is kept, and G (n x m), their mean, is never formed: S <- the k leading
/// triplets of S + X^T dY, by `truncated_svd` with one power iteration.
///
/// Memory (n + m) k scalars between batches, up to 5 (n + m) k + b k within `add`, which costs 8 (b + k)(n + m) k flops
/// and four thin QRs of k columns. Exact up to rounding while the sum's rank is at most k; beyond, what falls below the
/// k leading triplets is forgotten: the order of the batches has some influence, and few large batches are better than
/// many small ones. Of sigma_i = 1/i and 1/sqrt(i), n = m = 2048, k = 64, 8 batches of mixed tokens, 32 triplets
/// rebuild 0.9999 and 0.975 of the best energy. Where X and dY can be kept, `truncated_svd` of a `BatchGradient` as
/// wide rebuilds 0.999999 and 0.9985; where sums of several threads are to be added, see `GradientSketch`.
template <Real RealScalar>
class StreamingSvd {
 public:
  using Scalar = RealScalar;

  /// `width` k: twice the number of triplets wanted, so 4r for LoRA-GA at rank r. Takes one draw of `random` as the
  /// seed of a generator of its own. \throws ConfigError  width outside [1, min(n, m)].
  StreamingSvd(Index n, Index m, Index width, Random& random) : width_(checked_width(n, m, width)), random_(random()) {
    sum_.U.resize(n, 0);
    sum_.Vt.resize(0, m);
  }

  Index rows() const { return sum_.rows(); }
  Index cols() const { return sum_.cols(); }
  Index width() const { return width_; }
  Index batches() const { return batches_; }

  /// Adds X^T dY. \throws ShapeError  X not b x n, dY not b x m. \throws NumericalError  not finite.
  void add(const ConstRows<Scalar>& X, const ConstRows<Scalar>& dY) {
    detail::require_batch(rows(), cols(), X, dY, "StreamingSvd::add");
    renew(BatchGradient<Scalar>(X, dY));
  }
  /// Adds a gradient dL/dW (n x m) that the trainer has formed, in memory of either storage order; 8 n m k flops.
  /// \throws ShapeError, NumericalError.
  template <class Gradient>
  void add(const Gradient& G) {
    const View<const Scalar, detail::order_of<Gradient>> view(G);
    detail::require_gradient(rows(), cols(), view, "StreamingSvd::add");
    renew(ViewBase<Scalar, detail::order_of<Gradient>>(view));
  }

  /// The `rank` leading triplets of the mean over batches: an operator to hand to `GradientSvd`.
  /// \throws StateError  no batch. \throws ConfigError  rank outside [1, width].
  TruncatedSvd<Scalar> svd(Index rank) const {
    detail::require<StateError>(batches_ > 0, "StreamingSvd::svd: needs at least one batch, got none");
    detail::require<ConfigError>(rank >= 1 && rank <= width(), "StreamingSvd::svd: rank must lie in [1, width] = [1, ",
                                 width(), "], got ", rank);
    auto mean = sum_.leading(rank);
    mean.S /= static_cast<Scalar>(batches_);
    return mean;
  }

 private:
  static Index checked_width(Index n, Index m, Index width) {
    detail::require<ConfigError>(width >= 1 && width <= std::min(n, m),
                                 "StreamingSvd: width must lie in [1, min(n, m)] = [1, ", std::min(n, m), "], got ",
                                 width);
    return width;
  }

  /// The sum so far and one batch more.
  template <LinearOperator Batch>
  struct Sum {
    using Scalar = RealScalar;
    const TruncatedSvd<Scalar>& sum;
    const Batch& batch;

    Index rows() const { return sum.rows(); }
    Index cols() const { return sum.cols(); }
    void multiply(const ConstRows<Scalar>& in, Rows<Scalar> out) const {
      batch.multiply(in, out);
      sum.add_multiply(in, out);
    }
    void multiply_transposed(const ConstRows<Scalar>& in, Rows<Scalar> out) const {
      batch.multiply_transposed(in, out);
      sum.add_multiply_transposed(in, out);
    }
  };

  template <LinearOperator Batch>
  void renew(const Batch& batch) {
    Random random = random_;  // what throws has changed nothing
    sum_ = truncated_svd(Sum<Batch>{sum_, batch}, width_, random, {.oversampling = 0, .power_iterations = 1});
    random_ = random;
    ++batches_;
  }

  Index width_;
  Random random_;
  TruncatedSvd<Scalar> sum_;
  Index batches_ = 0;
};

}  // namespace lora
