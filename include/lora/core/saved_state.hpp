// SPDX-License-Identifier: MIT
// What a forward leaves behind for its backward.
#pragma once

#include <lora/core/buffer.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/random.hpp>
#include <lora/core/views.hpp>

namespace lora {

/// Saved activations and scratch of one use of a low-rank layer. The caller owns it: one per use, so a layer can run
/// twice before its backward (tied layers, recurrence, threads). Reuse it over steps and it stops allocating.
///
/// Memory: 2 b r scalars, with dropout 2 b n more.
/// \pre X itself is not copied: it must stay in place, unchanged, until the backward.
template <Real Scalar>
struct SavedState {
  enum class Branch {
    NoForward,  ///< nothing saved yet
    Off,        ///< the forward ran without the low-rank branch: switched off or merged
    Plain,      ///< with the branch, on X as it is
    Dropped,    ///< with the branch, on X through the dropout mask
  };
  Branch branch = Branch::NoForward;
  double scale = 0;           ///< the s of the forward
  Index tokens = 0;           ///< b
  Index in_features = 0;      ///< n
  const Scalar* X = nullptr;  ///< where the activations are (b x n)
  Index X_stride = 0;
  Buffer<Scalar> P;       ///< s X A (b x r)
  Buffer<Scalar> Q;       ///< s dY B^T (b x r), scratch
  Buffer<Scalar> mask;    ///< 0 or 1 / (1 - p) (b x n)
  Buffer<Scalar> masked;  ///< X o mask (b x n), scratch

  /// Notes where the activations are.
  void remember(const ConstRows<Scalar>& activations) {
    X = activations.data();
    X_stride = activations.outerStride();
    tokens = activations.rows();
    in_features = activations.cols();
  }
  /// The activations of the forward (b x n), where they are.
  ConstRows<Scalar> input() const { return {X, tokens, in_features, X_stride}; }

  /// Draws the dropout mask of the activations, b n numbers: an element is dropped with probability `dropout`.
  void draw_mask(double dropout, Random& random) {
    const auto kept = static_cast<Scalar>(1 / (1 - dropout));
    for (Scalar& factor : mask.reshape(tokens, in_features).template reshaped<Eigen::RowMajor>()) {
      factor = random.uniform() < dropout ? Scalar{0} : kept;
    }
  }
  /// The activations through the mask, in `masked`.
  ConstRows<Scalar> drop(const ConstRows<Scalar>& activations) {
    auto through = masked.reshape(activations.rows(), activations.cols());
    through = activations.cwiseProduct(mask.view());
    return through;
  }
};

}  // namespace lora
