// SPDX-License-Identifier: MIT
// What a run will take of the memory, before it takes any.
#pragma once

#include "config.hpp"
#include "llama.hpp"
#include "method.hpp"
#include "model.hpp"

#include <lora/analysis/estimate.hpp>
#include <lora/analysis/model_estimate.hpp>
#include <lora/core/error.hpp>
#include <lora/model/targets.hpp>
#include <lora/optim/sgd.hpp>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <span>
#include <string>
#include <vector>

namespace llm {

/// In bytes.
struct RunMemory {
  Index weights = 0;      ///< as packed for the products, the head among them
  Index adapters = 0;     ///< factors, gradients, the optimizer's state
  Index activations = 0;  ///< kept from the forward for the backward
  Index workspace = 0;    ///< what layers use one after another, and a stretch of logits

  Index total() const { return weights + adapters + activations + workspace; }
  std::string describe() const {
    const auto mib = [](Index bytes) {
      char text[32];
      const double size = static_cast<double>(bytes) / (1 << 20);
      std::snprintf(text, sizeof text, "%.*f MiB", size < 10 ? 1 : 0, size);
      return std::string(text);
    };
    return mib(total()) + ": weights " + mib(weights) + ", adapters " + mib(adapters) + ", activations " +
           mib(activations) + ", workspace " + mib(workspace);
  }
};

/// The linear layers of the model, the head last: what its file promises, for nothing has been read yet.
inline std::vector<lora::ModuleShape> linear_layers(const LlamaConfig& config) {
  const Index q = config.num_attention_heads * config.head_dim, kv = config.num_key_value_heads * config.head_dim;
  const Index hidden = config.hidden_size, wide = config.intermediate_size;
  std::vector<lora::ModuleShape> layers;
  for (Index i = 0; i < config.num_hidden_layers; ++i) {
    const std::string block = "model.layers." + std::to_string(i);
    for (const auto& [name, n, m] : {lora::ModuleShape{".self_attn.q_proj", hidden, q},
                                     {".self_attn.k_proj", hidden, kv},
                                     {".self_attn.v_proj", hidden, kv},
                                     {".self_attn.o_proj", q, hidden},
                                     {".mlp.gate_proj", hidden, wide},
                                     {".mlp.up_proj", hidden, wide},
                                     {".mlp.down_proj", wide, hidden}}) {
      layers.push_back({block + name, n, m});
    }
  }
  layers.push_back({"lm_head", hidden, config.vocab_size});
  return layers;
}

/// Of a training run with batches of `tokens` tokens.
template <class Optimizer>
RunMemory training_memory(const LlamaConfig& config, Storage storage, Keep keep,
                          std::span<const lora::AdaptedLayer> adapted, Index tokens, const Optimizer& optimizer,
                          const Method& method) {
  constexpr Index size = sizeof(float);
  const lora::EstimateConfig base{.storage = storage == Storage::Float ? lora::BaseStorage::PackedBoth
                                                                       : lora::BaseStorage::PackedBf16};
  RunMemory memory;
  for (const auto& [name, n, m] : linear_layers(config)) {
    memory.weights += lora::estimate<float>({n, m, 1, 0}, lora::PerFactor{lora::Sgd{}}, base).bytes.base;
  }
  const auto trained = lora::estimate_model<float>(
      adapted, tokens, optimizer,
      {.offset = method.has_offset() ? lora::OffsetStart::Carried : lora::OffsetStart::None});
  memory.adapters = trained.total.bytes.total() - trained.total.bytes.saved_state;
  if (method.uses_gradients()) memory.adapters += 4 * trained.total.bytes.factors;  // sketches, before the first step

  const Index hidden = config.hidden_size, wide = config.intermediate_size, layers = config.num_hidden_layers;
  const Index q = config.num_attention_heads * config.head_dim, kv = config.num_key_value_heads * config.head_dim;
  const Index block = hidden + 2 * q + 2 * kv + 2 * wide + config.num_attention_heads;
  const Index blocks = keep == Keep::All ? layers : 1;
  memory.activations = size * tokens * ((layers + 1) * hidden + blocks * block) +
                       trained.total.bytes.saved_state / (keep == Keep::All ? 1 : layers);
  memory.workspace =
      size * (tokens * (4 * hidden + q + 2 * kv + wide + std::max(wide, q)) +
              head_chunk * (config.vocab_size + 2 * hidden) + config.max_position_embeddings * config.head_dim);
  return memory;
}

/// What the system could give now, in bytes; 0 where it does not say.
inline Index available_memory() {
  std::ifstream file("/proc/meminfo");
  for (std::string key; file >> key;) {
    Index kib = 0;
    if (key == "MemAvailable:" && file >> kib) return kib * 1024;
    file.ignore(256, '\n');
  }
  return 0;
}

/// \throws ConfigError  more than there is.
inline void require_memory(const RunMemory& needed, Index available) {
  lora::detail::require<lora::ConfigError>(
      available == 0 || needed.total() <= available, "memory: the run must fit into ", available >> 20,
      " MiB that are free, got ", needed.describe(),
      "; try --recompute, --base bf16, a smaller --batch (with --accumulate) or a shorter --length");
}

}  // namespace llm
