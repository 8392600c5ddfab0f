// SPDX-License-Identifier: MIT
// The model as the commands see it, however its weights are held.
#pragma once

#include "batch.hpp"
#include "config.hpp"
#include "llama.hpp"
#include "profile.hpp"
#include "weights.hpp"

#include <lora/core/random.hpp>
#include <lora/io/checkpoint.hpp>
#include <lora/model/adapter_set.hpp>

#include <Eigen/Core>

#include <memory>
#include <span>

namespace llm {

/// How the frozen weights are held.
enum class Storage {
  Float,  ///< `lora::PackedBase<float>`, 8 bytes a weight
  Bf16,   ///< `lora::PackedBf16Base`, 4 bytes a weight
};

/// What adapters start from. (GradientSvd takes more than a layer: see `Model::start`.)
enum class Start { KaimingUniform, GradientSvd, PrincipalSvd };

/// One virtual call for a batch: what the commands do need not be compiled for each way to hold weights.
class Model {
 public:
  virtual ~Model() = default;

  virtual const LlamaConfig& config() const = 0;
  /// Puts all of them into a set; switched off until an adapter is on them. The model must outlive the set.
  virtual void add_layers(lora::AdapterSet<float>& set) = 0;
  /// As parts "layers/NAME" of a checkpoint, those that are switched on.
  virtual void add_parts(lora::Checkpoint& checkpoint) = 0;

  /// Sets the layers that are switched on to a start. GradientSvd (LoRA-GA) looks at `batches`, one pass forward and
  /// backward through the frozen model each, and keeps a sketch of every layer's mean gradient: 4 r (n + m) numbers.
  virtual void start(Start start, std::span<const Batch> batches, lora::Random& random) = 0;

  /// The sum of -log p(target) over the targets that count.
  virtual double loss(const Batch& batch) = 0;
  /// The same; adds `weight` times its derivatives to the gradients of the set's active adapter.
  virtual double train(const Batch& batch, lora::AdapterSet<float>& set, double weight) = 0;

  virtual Cache cache(Index capacity) const = 0;
  /// Adds tokens to a sequence: the logits of the one that follows.
  virtual Eigen::RowVectorXf next(Cache& cache, std::span<const Token> tokens) = 0;

  virtual const Profile& profile() const = 0;
};

/// Loads the weights. They must outlive the model, which reads the embeddings of tokens from them.
std::unique_ptr<Model> open_model(const Weights& weights, Storage storage, Keep keep = Keep::All);

}  // namespace llm
