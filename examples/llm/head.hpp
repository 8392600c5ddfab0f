// SPDX-License-Identifier: MIT
// From the last hidden state to the loss: logits, a few rows at a time, and the cross entropy of the targets.
#pragma once

#include "batch.hpp"
#include "config.hpp"
#include "weights.hpp"

#include <lora/base/frozen_base.hpp>
#include <lora/core/buffer.hpp>
#include <lora/core/threads.hpp>
#include <lora/core/views.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

namespace llm {

/// Rows of logits that are there at once.
inline constexpr Index head_chunk = 128;

/// logits = X W, W (hidden x vocabulary) frozen: the embeddings' transpose where the model ties them.
///
/// The b x vocabulary logits are never there as a whole: `head_chunk` rows at a time take part in loss and gradient,
/// and only rows whose target counts.
template <lora::FrozenBase Base>
class Head {
 public:
  explicit Head(const Weights& weights)
      : base_(weights
                  .matrix(weights.config().tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight",
                          weights.config().vocab_size, weights.config().hidden_size)
                  .transpose()) {}

  lora::ConstRows<float> logits(const lora::ConstRows<float>& X) {
    const auto out = logits_.reshape(X.rows(), base_.cols());
    base_.multiply(X, out);
    return out;
  }
  /// The sum of -log softmax(X W)[target] over the targets that count.
  double loss(const lora::ConstRows<float>& X, std::span<const Token> targets) {
    return in_chunks(
        X, targets, [](Index, Rows) {}, 0);
  }
  /// The same, and dX = `weight` times its derivative by X.
  double backward(const lora::ConstRows<float>& X, std::span<const Token> targets, double weight,
                  lora::Rows<float> dX) {
    dX.setZero();
    return in_chunks(
        X, targets,
        [&](Index row, Rows gradient) {
          base_.multiply_transposed(gradient, dX_.reshape(gradient.rows(), dX.cols()));
          for (Index i = 0; i < gradient.rows(); ++i)
            dX.row(rows_[static_cast<std::size_t>(row + i)]) = dX_.view().row(i);
        },
        static_cast<float>(weight));
  }

 private:
  using Rows = lora::Rows<float>;

  /// use(first, gradient by the logits of rows_[first], rows_[first + 1], ...) for all rows that count.
  template <class Use>
  double in_chunks(const lora::ConstRows<float>& X, std::span<const Token> targets, const Use& use, float weight) {
    rows_.clear();
    for (Index t = 0; t < X.rows(); ++t) {
      if (targets[static_cast<std::size_t>(t)] != ignored) rows_.push_back(t);
    }
    double sum = 0;
    const Index count = std::ssize(rows_);
    for (Index first = 0; first < count; first += head_chunk) {
      const Index size = std::min(head_chunk, count - first);
      auto some = X_.reshape(size, X.cols());
      for (Index i = 0; i < size; ++i) some.row(i) = X.row(rows_[static_cast<std::size_t>(first + i)]);
      auto logits = logits_.reshape(size, base_.cols());
      base_.multiply(some, logits);
      losses_.resize(static_cast<std::size_t>(size));
      lora::parallel_for(size, 20.0 * static_cast<double>(logits.size()), [&](Index begin, Index end) {
        for (Index i = begin; i < end; ++i) {
          const Index target = targets[static_cast<std::size_t>(rows_[static_cast<std::size_t>(first + i)])];
          losses_[static_cast<std::size_t>(i)] = cross_entropy(logits.row(i), target, weight);
        }
      });
      for (const double loss : losses_) sum += loss;
      if (weight != 0) use(first, logits);
    }
    return sum;
  }
  /// -log softmax(z)[target]; z becomes weight (softmax(z) - e_target), unless that is 0.
  template <class Row>
  static double cross_entropy(Row z, Index target, float weight) {
    const float largest = z.maxCoeff(), chosen = z(target);
    z = (z.array() - largest).exp();
    const float sum = z.sum();
    if (weight != 0) {
      z *= weight / sum;
      z(target) -= weight;
    }
    return std::log(static_cast<double>(sum)) + static_cast<double>(largest) - static_cast<double>(chosen);
  }

  Base base_;
  lora::Buffer<float> X_, logits_, dX_;
  std::vector<Index> rows_;
  std::vector<double> losses_;
};

}  // namespace llm
