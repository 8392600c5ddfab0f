// SPDX-License-Identifier: MIT
// The tensors of a Llama: their names in transformers and in llama.cpp, and their shapes.
#pragma once

#include "config.hpp"

#include <lora/io/gguf_names.hpp>
#include <lora/io/safetensors_header.hpp>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace llm {

/// Calls `visit(name, shape)` for each tensor, names as in transformers, shapes [rows, cols] or [size].
template <class Visit>
void for_each_tensor(const LlamaConfig& config, const Visit& visit) {
  const auto call = [&](const std::string& name, std::initializer_list<Index> sizes) {
    lora::safetensors::Shape shape;
    for (const Index size : sizes) shape.push_back(static_cast<std::uint64_t>(size));
    visit(name, shape);
  };
  const Index hidden = config.hidden_size, inner = config.intermediate_size;
  const Index queries = config.num_attention_heads * config.head_dim;
  const Index keys = config.num_key_value_heads * config.head_dim;
  call("model.embed_tokens.weight", {config.vocab_size, hidden});
  for (Index i = 0; i < config.num_hidden_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    call(layer + "input_layernorm.weight", {hidden});
    call(layer + "self_attn.q_proj.weight", {queries, hidden});
    call(layer + "self_attn.k_proj.weight", {keys, hidden});
    call(layer + "self_attn.v_proj.weight", {keys, hidden});
    call(layer + "self_attn.o_proj.weight", {hidden, queries});
    call(layer + "post_attention_layernorm.weight", {hidden});
    call(layer + "mlp.gate_proj.weight", {inner, hidden});
    call(layer + "mlp.up_proj.weight", {inner, hidden});
    call(layer + "mlp.down_proj.weight", {hidden, inner});
  }
  call("model.norm.weight", {hidden});
  if (!config.tie_word_embeddings) call("lm_head.weight", {config.vocab_size, hidden});
}

/// llama.cpp's name of a tensor, from that in transformers. \pre one of `for_each_tensor`.
inline std::string gguf_tensor_name(std::string_view name) {
  if (name == "model.embed_tokens.weight") return "token_embd.weight";
  if (name == "model.norm.weight") return "output_norm.weight";
  name.remove_suffix(std::string_view(".weight").size());
  if (const auto linear = lora::gguf::tensor_name(lora::gguf::Architecture::Llama, name)) return *linear;
  const auto parts = lora::detail::numbered_name(name, "model.layers.").value();
  const std::string_view norm = parts.rest == "input_layernorm" ? "attn_norm" : "ffn_norm";
  return "blk." + std::string(parts.number) + "." + std::string(norm) + ".weight";
}

/// The outputs of a head in a matrix whose rows llama.cpp has in another order (see `lora::detail::rotary_source`); 0
/// for a matrix that it keeps as it is.
inline Index rotary_head_dim(std::string_view name, const LlamaConfig& config) {
  return name.ends_with(".q_proj.weight") || name.ends_with(".k_proj.weight") ? config.head_dim : 0;
}

}  // namespace llm
