// SPDX-License-Identifier: MIT
// Reads a Llama's sizes from the metadata of a GGUF file, and refuses what this Llama does not compute.
#pragma once

#include "config.hpp"
#include "config_rules.hpp"

#include <lora/core/error.hpp>
#include <lora/io/gguf_metadata.hpp>
#include <lora/io/gguf_reader.hpp>
#include <lora/io/safetensors_header.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>

namespace llm {

/// The metadata of a GGUF file, key by key.
class ConfigGguf {
 public:
  explicit ConfigGguf(const lora::gguf::Contents& contents) : contents_(contents), metadata_(contents.metadata()) {}

  LlamaConfig read() const {
    require_llama();
    LlamaConfig config;
    config.hidden_size = size("embedding_length");
    config.intermediate_size = size("feed_forward_length");
    config.num_hidden_layers = size("block_count");
    config.num_attention_heads = size("attention.head_count");
    config.num_key_value_heads = size_or("attention.head_count_kv", config.num_attention_heads);
    config.head_dim = head_dim(config);
    config.max_position_embeddings = size("context_length");
    config.vocab_size = vocab_size();
    config.rms_norm_eps = decimal(metadata_.get<float>(key("attention.layer_norm_rms_epsilon")));
    config.rope_theta = decimal(metadata_.get_or<float>(key("rope.freq_base"), 10000));
    config.tie_word_embeddings = contents_.find("output.weight") == nullptr;
    check_config(config, contents_.file(),
                 {"llama.embedding_length", "llama.attention.head_count", "llama.attention.head_count_kv",
                  "llama.rope.dimension_count", "llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base"});
    return config;
  }

 private:
  using Value = lora::gguf::Value;
  static constexpr std::string_view architecture = "general.architecture", prefix = "llama.";

  static std::string key(std::string_view field) { return std::string(prefix).append(field); }
  template <class... Parts>
  void check(bool rule, std::string_view key, const Parts&... parts) const {
    lora::detail::require<lora::FormatError>(rule, contents_.file(), ": key \"", key, "\" must ", parts...);
  }
  static std::string shown(const Value& value) {
    std::string text;
    std::visit(
        [&](const auto& each) {
          using Type = std::decay_t<decltype(each)>;
          if constexpr (std::is_same_v<Type, std::string>) {
            text = lora::detail::quoted(each);
          } else if constexpr (std::is_same_v<Type, bool>) {
            text = each ? "true" : "false";
          } else if constexpr (std::is_arithmetic_v<Type>) {
            lora::detail::append(text, each);
          } else {
            text = "an array";
          }
        },
        value);
    return text;
  }

  void require_llama() const {
    const auto& name = metadata_.get<std::string>(architecture);
    check(name == "llama", architecture, "be \"llama\" (no other model is supported), got ",
          lora::detail::quoted(name));
    const auto type = metadata_.get_or<std::string>("general.type", "model");
    check(type == "model", "general.type", "be \"model\", got ", lora::detail::quoted(type));
    const Value* parts = metadata_.find("split.count");
    check(parts == nullptr || *parts == Value(std::uint16_t{1}), "split.count",
          "be 1: join the files of the model with llama.cpp's gguf-split --merge, got ",
          parts == nullptr ? std::string() : shown(*parts));
    for (const auto& [each, value] : metadata_.items()) {
      if (each.starts_with(prefix)) require_known(each, value);
    }
  }

  /// A key of the architecture that is read, or one that says that its feature is not used.
  void require_known(const std::string& name, const Value& value) const {
    static constexpr std::array<std::string_view, 12> read{"embedding_length",
                                                           "feed_forward_length",
                                                           "block_count",
                                                           "attention.head_count",
                                                           "attention.head_count_kv",
                                                           "attention.key_length",
                                                           "attention.value_length",
                                                           "attention.layer_norm_rms_epsilon",
                                                           "rope.dimension_count",
                                                           "rope.freq_base",
                                                           "context_length",
                                                           "vocab_size"};
    static const std::map<std::string_view, Value> unused{{"rope.scaling.type", std::string("none")},
                                                          {"rope.scaling.factor", 1.0F},
                                                          {"rope.scaling.finetuned", false},
                                                          {"rope.scale_linear", 1.0F},
                                                          {"attention.sliding_window", 0U},
                                                          {"attention.causal", true},
                                                          {"use_parallel_residual", false},
                                                          {"expert_count", 0U},
                                                          {"expert_used_count", 0U}};
    const auto field = std::string_view(name).substr(prefix.size());
    if (std::find(read.begin(), read.end(), field) != read.end()) return;
    const auto position = unused.find(field);
    check(position != unused.end(), name, "not be there: this Llama does not know what it asks for, got ",
          shown(value));
    check(value == position->second, name, "be ", shown(position->second), " (nothing else is supported), got ",
          shown(value));
  }

  Index size(std::string_view field) const {
    const std::string name = key(field);
    const auto value = metadata_.get<std::uint32_t>(name);
    check(value >= 1 && value <= largest_size, name, "lie in [1, ", largest_size, "], got ", value);
    return value;
  }
  Index size_or(std::string_view field, Index fallback) const {
    return metadata_.find(key(field)) == nullptr ? fallback : size(field);
  }

  /// One for queries, keys and values, all of it rotated.
  Index head_dim(const LlamaConfig& config) const {
    const bool named = metadata_.find(key("attention.key_length")) != nullptr;
    check(named || config.hidden_size % config.num_attention_heads == 0, key("embedding_length"),
          "be a multiple of the ", config.num_attention_heads, " heads, got ", config.hidden_size);
    const Index length = named ? size("attention.key_length") : config.hidden_size / config.num_attention_heads;
    for (const char* field : {"attention.value_length", "rope.dimension_count"}) {
      const Index other = size_or(field, length);
      check(other == length, key(field), "be ", length, ", the size of a head (nothing else is supported), got ",
            other);
    }
    return length;
  }

  /// Files of some writers leave it out.
  Index vocab_size() const {
    if (metadata_.find(key("vocab_size")) != nullptr) return size("vocab_size");
    const Index rows = contents_.tensor("token_embd.weight").ne[1];
    lora::detail::require<lora::FormatError>(rows >= 1 && rows <= largest_size, contents_.file(),
                                             ": tensor \"token_embd.weight\" must have between 1 and ", largest_size,
                                             " rows, got ", rows);
    return rows;
  }

  /// The number that was meant, 1e-5 for 9.99999975e-06: the shortest decimal that rounds to the float.
  static double decimal(float value) {
    std::string text;
    lora::detail::append(text, value);
    double number = 0;
    std::from_chars(text.data(), text.data() + text.size(), number);
    return number;
  }

  const lora::gguf::Contents& contents_;
  const lora::gguf::Metadata& metadata_;
};

/// The sizes in a GGUF file of architecture "llama". Heads are tied to the embedding where there is no output matrix.
/// \throws FormatError  a key missing, of another type or out of range, or a model that this one does not compute; the
///                      message names file, key, value and what is supported.
inline LlamaConfig config_from_gguf(const lora::gguf::Contents& contents) { return ConfigGguf(contents).read(); }

}  // namespace llm
