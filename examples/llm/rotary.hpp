// SPDX-License-Identifier: MIT
// Rotary positions (Su et al., arXiv:2104.09864), in the layout of transformers: pairs (i, i + d/2) of each head.
#pragma once

#include "config.hpp"

#include <lora/core/matrix.hpp>
#include <lora/core/threads.hpp>
#include <lora/core/views.hpp>

#include <Eigen/Core>

#include <cmath>

namespace llm {

/// Turns pair i of each head of d numbers by position x theta^(-2i/d).
class Rotary {
 public:
  explicit Rotary(const LlamaConfig& config)
      : cos_(config.max_position_embeddings, config.head_dim / 2), sin_(cos_.rows(), cos_.cols()) {
    for (Index i = 0; i < cos_.cols(); ++i) {
      const double frequency = std::pow(config.rope_theta, -static_cast<double>(i) / static_cast<double>(cos_.cols()));
      for (Index position = 0; position < cos_.rows(); ++position) {
        const double angle = static_cast<double>(position) * frequency;
        cos_(position, i) = static_cast<float>(std::cos(angle));
        sin_(position, i) = static_cast<float>(std::sin(angle));
      }
    }
  }

  /// Row t is at position first + t % length.
  void turn(lora::Rows<float> X, Index length, Index first = 0) const { turn(X, length, first, 1); }
  /// The transpose of `turn`: its backward.
  void turn_back(lora::Rows<float> X, Index length) const { turn(X, length, 0, -1); }

 private:
  void turn(lora::Rows<float>& X, Index length, Index first_position, float sign) const {
    const Index half = cos_.cols();
    lora::parallel_for(X.rows(), 6.0 * static_cast<double>(X.size()), [&](Index first, Index last) {
      for (Index t = first; t < last; ++t) {
        const float* const c = cos_.row(first_position + t % length).data();
        const float* const s = sin_.row(first_position + t % length).data();
        for (Index head = 0; head < X.cols(); head += 2 * half) {
          float* const left = X.row(t).data() + head;
          float* const right = left + half;
          for (Index i = 0; i < half; ++i) {
            const float x = left[i], y = right[i], sine = sign * s[i];
            left[i] = x * c[i] - y * sine;
            right[i] = y * c[i] + x * sine;
          }
        }
      }
    });
  }

  lora::RowMatrix<float> cos_, sin_;
};

}  // namespace llm
