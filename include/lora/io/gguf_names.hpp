// SPDX-License-Identifier: MIT
// What llama.cpp calls the weights of a model's modules, and the order in which it keeps the rows of some.
#pragma once

#include <lora/core/matrix.hpp>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace lora::gguf {

/// The kinds of model whose adapters are written and read.
enum class Architecture {
  Llama,  ///< `general.architecture` "llama": Hugging Face's LlamaForCausalLM
  Gpt2,   ///< "gpt2": GPT2LMHeadModel
};

inline std::string_view name(Architecture architecture) {
  return architecture == Architecture::Llama ? "llama" : "gpt2";
}

}  // namespace lora::gguf

namespace lora::detail {

/// A module within a layer: "self_attn.q_proj" beside "attn_q".
struct LayerName {
  std::string_view module, tensor;
};

inline std::span<const LayerName> gguf_layer_names(gguf::Architecture architecture) {
  static constexpr LayerName llama[] = {
      {"self_attn.q_proj", "attn_q"},      {"self_attn.k_proj", "attn_k"}, {"self_attn.v_proj", "attn_v"},
      {"self_attn.o_proj", "attn_output"}, {"mlp.gate_proj", "ffn_gate"},  {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"},
  };
  static constexpr LayerName gpt2[] = {
      {"attn.c_attn", "attn_qkv"},
      {"attn.c_proj", "attn_output"},
      {"mlp.c_fc", "ffn_up"},
      {"mlp.c_proj", "ffn_down"},
  };
  return architecture == gguf::Architecture::Llama ? std::span<const LayerName>(llama)
                                                   : std::span<const LayerName>(gpt2);
}
inline std::string_view gguf_layer_prefix(gguf::Architecture architecture) {
  return architecture == gguf::Architecture::Llama ? "model.layers." : "transformer.h.";
}
inline constexpr std::string_view gguf_output_module = "lm_head", gguf_output_tensor = "output.weight";

/// "prefix 12 . rest" taken apart; the number as a program writes it, at most nine digits.
struct NumberedName {
  std::string_view number, rest;
};
inline std::optional<NumberedName> numbered_name(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  const auto dot = name.find('.');
  if (dot == std::string_view::npos || dot == 0 || dot > 9) return std::nullopt;
  const auto number = name.substr(0, dot);
  const auto digit = [](char each) { return each >= '0' && each <= '9'; };
  if (!std::all_of(number.begin(), number.end(), digit) || (number.front() == '0' && dot > 1)) return std::nullopt;
  return NumberedName{number, name.substr(dot + 1)};
}

}  // namespace lora::detail

namespace lora::gguf {

/// "blk.3.attn_q.weight" for "model.layers.3.self_attn.q_proj"; nothing for a module that llama.cpp does not adapt.
inline std::optional<std::string> tensor_name(Architecture architecture, std::string_view module) {
  if (module == detail::gguf_output_module) return std::string(detail::gguf_output_tensor);
  const auto parts = detail::numbered_name(module, detail::gguf_layer_prefix(architecture));
  if (!parts) return std::nullopt;
  for (const auto& each : detail::gguf_layer_names(architecture)) {
    if (each.module == parts->rest) {
      return "blk." + std::string(parts->number) + "." + std::string(each.tensor) + ".weight";
    }
  }
  return std::nullopt;
}

/// The inverse of `tensor_name`.
inline std::optional<std::string> module_name(Architecture architecture, std::string_view tensor) {
  constexpr std::string_view suffix = ".weight";
  if (tensor == detail::gguf_output_tensor) return std::string(detail::gguf_output_module);
  const auto parts = detail::numbered_name(tensor, "blk.");
  if (!parts || !parts->rest.ends_with(suffix)) return std::nullopt;
  const auto kind = parts->rest.substr(0, parts->rest.size() - suffix.size());
  for (const auto& each : detail::gguf_layer_names(architecture)) {
    if (each.tensor == kind) {
      return std::string(detail::gguf_layer_prefix(architecture)) + std::string(parts->number) + "." +
             std::string(each.module);
    }
  }
  return std::nullopt;
}

}  // namespace lora::gguf

namespace lora::detail {

/// The output of Hugging Face's module that is output `row` in llama.cpp, where a head has `head_dim` outputs: there
/// the two numbers that a rotation turns stand side by side (2j and 2j + 1), here half a head apart (j, j +
/// head_dim/2).
constexpr Index rotary_source(Index row, Index head_dim) {
  const Index within = row % head_dim;
  return row - within + within % 2 * (head_dim / 2) + within / 2;
}
/// The inverse: where llama.cpp has output `row` of Hugging Face's module.
constexpr Index rotary_place(Index row, Index head_dim) {
  const Index within = row % head_dim;
  return row - within + within % (head_dim / 2) * 2 + within / (head_dim / 2);
}

}  // namespace lora::detail
