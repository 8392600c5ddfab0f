// SPDX-License-Identifier: MIT
// RMSNorm (Zhang and Sennrich, arXiv:1910.07467).
#pragma once

#include <lora/core/matrix.hpp>
#include <lora/core/threads.hpp>
#include <lora/core/views.hpp>

#include <Eigen/Core>

#include <cmath>
#include <utility>

namespace llm {

using lora::Index;

/// y = w x / sqrt(mean(x^2) + epsilon) for each row x of h numbers. Keeps nothing: the backward works x's length out
/// again.
class RmsNorm {
 public:
  RmsNorm(Eigen::RowVectorXf weight, double epsilon)
      : weight_(std::move(weight)), epsilon_(static_cast<float>(epsilon)) {}

  void forward(const lora::ConstRows<float>& X, lora::Rows<float> Y) const {
    lora::parallel_for(X.rows(), 6.0 * static_cast<double>(X.size()), [&](Index first, Index last) {
      for (Index t = first; t < last; ++t) Y.row(t) = weight_.cwiseProduct(X.row(t)) * inverse(X.row(t));
    });
  }
  /// dX += the derivative by X, given that by Y.
  void add_backward(const lora::ConstRows<float>& X, const lora::ConstRows<float>& dY, lora::Rows<float> dX) const {
    lora::parallel_for(X.rows(), 12.0 * static_cast<double>(X.size()), [&](Index first, Index last) {
      for (Index t = first; t < last; ++t) {
        const float s = inverse(X.row(t));
        const float along = weight_.cwiseProduct(dY.row(t)).dot(X.row(t)) * s * s / static_cast<float>(X.cols());
        dX.row(t) += s * (weight_.cwiseProduct(dY.row(t)) - along * X.row(t));
      }
    });
  }

 private:
  template <class Row>
  float inverse(const Row& x) const {
    return 1 / std::sqrt(x.squaredNorm() / static_cast<float>(x.size()) + epsilon_);
  }

  Eigen::RowVectorXf weight_;
  float epsilon_;
};

}  // namespace llm
