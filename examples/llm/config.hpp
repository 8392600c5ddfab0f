// SPDX-License-Identifier: MIT
// The sizes of a Llama.
#pragma once

#include <lora/core/matrix.hpp>

namespace llm {

using lora::Index;

/// Names as in transformers' config.json.
struct LlamaConfig {
  Index hidden_size = 0;
  Index intermediate_size = 0;
  Index num_hidden_layers = 0;
  Index num_attention_heads = 0;
  Index num_key_value_heads = 0;
  Index head_dim = 0;
  Index vocab_size = 0;
  Index max_position_embeddings = 0;
  double rms_norm_eps = 1e-5;
  double rope_theta = 10000;
  bool tie_word_embeddings = false;

  bool operator==(const LlamaConfig&) const = default;
};

}  // namespace llm
