// SPDX-License-Identifier: MIT
// A Llama with frozen weights: the loss of a batch, the gradients of its adapters, and one token after another.
#pragma once

#include "batch.hpp"
#include "block.hpp"
#include "config.hpp"
#include "head.hpp"
#include "norm.hpp"
#include "profile.hpp"
#include "rotary.hpp"
#include "weights.hpp"

#include <lora/base/frozen_base.hpp>
#include <lora/core/error.hpp>
#include <lora/core/views.hpp>
#include <lora/model/adapter_set.hpp>

#include <span>
#include <string>
#include <utility>
#include <vector>

namespace llm {

/// What a forward keeps for its backward.
enum class Keep {
  All,     ///< every layer's activations
  Inputs,  ///< of every layer its input alone; the rest is computed once more in the backward ("activation
           ///< checkpointing")
};

/// Keys and values of the tokens so far, for generation.
struct Cache {
  std::vector<lora::RowMatrix<float>> keys, values;  ///< by layer, with room for `capacity` tokens
  Index capacity = 0, length = 0;
};

/// The model. `weights` must outlive it: the embeddings of tokens are read from there.
///
/// Base holds the weights of the linear layers: `lora::PackedBase<float>` or `lora::PackedBf16Base`.
template <lora::FrozenBase Base>
class Llama {
 public:
  using Layer = lora::LoraLinear<Base>;

  explicit Llama(const Weights& weights, Keep keep = Keep::All)
      : weights_(&weights),
        keep_(keep),
        head_(weights),
        norm_(weights.vector("model.norm.weight", config().hidden_size), config().rms_norm_eps),
        rotary_(config()) {
    for (Index i = 0; i < config().num_hidden_layers; ++i) {
      blocks_.emplace_back(weights, config(), "model.layers." + std::to_string(i) + ".");
    }
  }

  const LlamaConfig& config() const { return weights_->config(); }
  /// visit(name, layer) in the order of the model. The layers stay where they are.
  template <class Visit>
  void for_each_linear(const Visit& visit) {
    for (auto& block : blocks_) {
      block.for_each_linear([&](Linear<Base>& linear) { visit(std::as_const(linear.name), linear.layer); });
    }
  }
  const Profile& profile() const { return work_.profile; }

  /// The sum of -log p(target) over the targets that count; keeps nothing.
  /// \throws ConfigError  a token out of the vocabulary, sequences longer than the model's context.
  double loss(const Batch& batch) {
    embed(batch.tokens, batch.length);
    if (states_.empty()) states_.resize(1);
    for (const auto& block : blocks_) {
      block.forward(hidden_[0].view(), rotary_, batch.length, states_[0], work_, hidden_[1]);
      std::swap(hidden_[0], hidden_[1]);
    }
    const auto X = last_norm(hidden_[0].view());
    const Stopwatch watch(work_.profile.head);
    return head_.loss(X, batch.targets);
  }
  /// The same, and adds `weight` times its derivatives to the gradients of the set's active adapter.
  double train(const Batch& batch, lora::AdapterSet<float>& set, double weight) {
    return backward(batch, weight, [&](const Linear<Base>& linear, const auto& dY, auto& saved, Rows<float> dX) {
      if (linear.layer.enabled()) {
        linear.layer.backward(dY, saved, set.gradient(linear.name), dX);
      } else {
        linear.layer.multiply_transposed(dY, dX);
      }
    });
  }
  /// The same, but adds to nothing and shows the two halves of each frozen weight's gradient X^T dY to
  /// visit(name, X, dY): what LoRA-GA starts from. They are there within the call alone.
  template <class Visit>
  double gradients(const Batch& batch, double weight, const Visit& visit) {
    return backward(batch, weight, [&](const Linear<Base>& linear, const auto& dY, auto& saved, Rows<float> dX) {
      visit(linear.name, saved.input(), dY);
      linear.layer.multiply_transposed(dY, dX);
    });
  }

  Cache cache(Index capacity) const {
    lora::detail::require<lora::ConfigError>(capacity >= 1 && capacity <= config().max_position_embeddings,
                                             "cache: must have room for 1 to ", config().max_position_embeddings,
                                             " tokens, the context of the model, got ", capacity);
    Cache cache{{}, {}, capacity, 0};
    const Index width = config().num_key_value_heads * config().head_dim;
    cache.keys.assign(blocks_.size(), lora::RowMatrix<float>(capacity, width));
    cache.values = cache.keys;
    return cache;
  }
  /// Adds tokens to a sequence; the logits of the one that follows, until the next call.
  /// \throws ConfigError  none, or no room in the cache.
  Eigen::RowVectorXf next(Cache& cache, std::span<const Token> tokens) {
    const Index count = std::ssize(tokens);
    lora::detail::require<lora::ConfigError>(count >= 1 && count <= cache.capacity - cache.length, "next: takes 1 to ",
                                             cache.capacity - cache.length, " tokens, the room that is left, got ",
                                             count);
    embed(tokens, count);
    if (states_.empty()) states_.resize(1);
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      blocks_[i].extend(hidden_[0].view(), rotary_, cache.length, cache.keys[i], cache.values[i], states_[0], work_,
                        hidden_[1]);
      std::swap(hidden_[0], hidden_[1]);
    }
    cache.length += count;
    const auto X = last_norm(hidden_[0].view().bottomRows(1));
    const Stopwatch watch(work_.profile.head);
    return head_.logits(X).row(0);
  }

 private:
  /// The embeddings of the tokens, in hidden_[0].
  void embed(std::span<const Token> tokens, Index length) {
    lora::detail::require<lora::ConfigError>(
        length >= 1 && length <= config().max_position_embeddings && std::ssize(tokens) % length == 0,
        "Llama: sequences must have 1 to ", config().max_position_embeddings, " tokens, the model's context, got ",
        length);
    for (const Token token : tokens) {
      lora::detail::require<lora::ConfigError>(token >= 0 && token < config().vocab_size,
                                               "Llama: tokens must lie in [0, ", config().vocab_size, "), got ", token);
    }
    if (hidden_.size() < 2) hidden_.resize(2);
    auto H = hidden_[0].reshape(std::ssize(tokens), config().hidden_size);
    for (Index t = 0; t < H.rows(); ++t) {
      weights_->row("model.embed_tokens.weight", tokens[static_cast<std::size_t>(t)],
                    std::span(H.row(t).data(), static_cast<std::size_t>(H.cols())));
    }
  }
  ConstRows<float> last_norm(const ConstRows<float>& H) {
    const Stopwatch watch(work_.profile.rest);
    const auto X = work_.X.reshape(H.rows(), H.cols());
    norm_.forward(H, X);
    return X;
  }

  template <class Through>
  double backward(const Batch& batch, double weight, const Through& through) {
    embed(batch.tokens, batch.length);
    const std::size_t count = blocks_.size();
    if (hidden_.size() <= count) hidden_.resize(count + 1);
    states_.resize(keep_ == Keep::All ? count : 1);
    const auto state = [&](std::size_t i) -> BlockState& { return states_[keep_ == Keep::All ? i : 0]; };
    for (std::size_t i = 0; i < count; ++i) {
      blocks_[i].forward(hidden_[i].view(), rotary_, batch.length, state(i), work_, hidden_[i + 1]);
    }
    const auto H = hidden_[count].view();
    const auto X = last_norm(H);
    const auto dX = work_.dX.reshape(H.rows(), H.cols());
    auto dH = dH_.reshape(H.rows(), H.cols());
    double sum = 0;
    {
      const Stopwatch watch(work_.profile.head);
      sum = head_.backward(X, batch.targets, weight, dX);
    }
    dH.setZero();
    norm_.add_backward(H, dX, dH);
    for (std::size_t i = count; i-- > 0;) {
      if (keep_ == Keep::Inputs && i + 1 < count) {
        blocks_[i].forward(hidden_[i].view(), rotary_, batch.length, state(i), work_, hidden_[i + 1]);
      }
      blocks_[i].backward(hidden_[i].view(), rotary_, batch.length, state(i), work_, dH, through);
    }
    return sum;
  }

  const Weights* weights_;
  Keep keep_;
  Head<Base> head_;
  RmsNorm norm_;
  Rotary rotary_;
  std::vector<Block<Base>> blocks_;
  std::vector<BlockState> states_;
  std::vector<Activations> hidden_;  // before each block, and after the last
  Activations dH_;
  Workspace work_;
};

}  // namespace llm
