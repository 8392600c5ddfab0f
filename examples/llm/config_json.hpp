// SPDX-License-Identifier: MIT
// Reads a Llama's sizes from transformers' config.json, and refuses what this Llama does not compute.
#pragma once

#include "config.hpp"
#include "config_rules.hpp"

#include <lora/io/config_json.hpp>
#include <lora/io/file.hpp>

#include <nlohmann/json.hpp>

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace llm {

/// A config.json, key by key; null counts as absent.
class ConfigJson {
 public:
  explicit ConfigJson(const std::filesystem::path& path) : where_(path.string()), json_(parse(path, where_), where_) {}

  LlamaConfig read() {
    require_llama();
    LlamaConfig config;
    config.hidden_size = size("hidden_size");
    config.intermediate_size = size("intermediate_size");
    config.num_hidden_layers = size("num_hidden_layers");
    config.num_attention_heads = size("num_attention_heads");
    config.num_key_value_heads = size_or("num_key_value_heads", config.num_attention_heads);
    config.head_dim = size_or("head_dim", 0);
    config.vocab_size = size("vocab_size");
    config.max_position_embeddings = size("max_position_embeddings");
    config.rms_norm_eps = json_.real(json_.take("rms_norm_eps"), "rms_norm_eps");
    config.rope_theta = rope_theta();
    config.tie_word_embeddings = json_.flag("tie_word_embeddings");
    if (config.head_dim == 0) {
      json_.check(config.hidden_size % config.num_attention_heads == 0, "hidden_size",
                  " must be a multiple of num_attention_heads = ", config.num_attention_heads,
                  " where there is no head_dim, got ", config.hidden_size);
      config.head_dim = config.hidden_size / config.num_attention_heads;
    }
    check_config(
        config, where_,
        {"hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta"});
    return config;
  }

 private:
  using Json = nlohmann::json;

  static Json parse(const std::filesystem::path& path, const std::string& where) {
    constexpr std::uint64_t longest = 1 << 20;
    const auto bytes = lora::io::read_file(path, longest);
    std::map<std::string, std::vector<std::string>> order;  // not needed here
    return lora::detail::parse_config({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, where, order);
  }

  static std::string shown(const std::optional<Json>& value) { return lora::detail::ConfigReader::shown(value); }

  /// One value is supported, or none where `value` is null; absence means that one.
  void only(const char* key, const Json& value) {
    const auto got = json_.take(key);
    json_.check(!got || *got == value, key, " must be ", shown(value.is_null() ? std::nullopt : std::optional(value)),
                " (nothing else is supported), got ", shown(got));
  }

  void require_llama() {
    const auto type = json_.take("model_type");
    json_.check(type && *type == "llama", "model_type", " must be \"llama\" (no other model is supported), got ",
                shown(type));
    if (const auto names = json_.take("architectures")) {
      json_.check(names->is_array() && names->size() == 1 && names->front() == "LlamaForCausalLM", "architectures",
                  " must be [\"LlamaForCausalLM\"] (no other model is supported), got ", names->dump().substr(0, 200));
    }
    only("hidden_act", "silu");
    only("attention_bias", false);
    only("mlp_bias", false);
    only("attention_dropout", 0);
    only("sliding_window", nullptr);
    only("partial_rotary_factor", 1);
    only("rope_interleaved", false);
    only("quantization_config", nullptr);
  }

  Index size(const char* key) {
    const auto value = json_.take(key);
    const bool whole = value && value->is_number_unsigned();
    const auto number = whole ? value->get<std::uint64_t>() : std::uint64_t{0};
    json_.check(number >= 1 && number <= std::uint64_t{largest_size}, key, " must be a whole number in [1, ",
                largest_size, "], got ", shown(value));
    return static_cast<Index>(number);
  }
  Index size_or(const char* key, Index fallback) {
    if (!json_.rest().contains(key) || json_.rest().at(key).is_null()) return fallback;
    return size(key);
  }

  /// In `rope_theta`, or, since transformers 5, within `rope_parameters`; some files have both.
  double rope_theta() {
    std::optional<double> theta;
    if (const auto value = json_.take("rope_theta")) theta = json_.real(value, "rope_theta");
    for (const char* key : {"rope_parameters", "rope_scaling"}) {
      const auto object = json_.take(key);
      if (!object) continue;
      json_.check(object->is_object(), key, " must be an object or null, got ", shown(object));
      const std::string prefix = std::string(key) + ".";
      for (const char* type : {"rope_type", "type"}) {
        if (!object->contains(type)) continue;
        json_.check(object->at(type) == "default", prefix + type,
                    " must be \"default\" (no scaling is supported), got ", shown(object->at(type)));
      }
      for (const auto& [name, value] : object->items()) {
        if (value.is_null() || name == "rope_type" || name == "type") continue;
        json_.check(name == "rope_theta", prefix + name, " must be null (no scaling is supported), got ", shown(value));
        const double inside = json_.real(value, prefix + name);
        json_.check(theta.value_or(inside) == inside, prefix + name,
                    " must be the same as rope_theta = ", theta.value_or(inside), ", got ", inside);
        theta = inside;
      }
    }
    constexpr double of_the_first_llama = 10000;
    return theta.value_or(of_the_first_llama);
  }

  std::string where_;
  lora::detail::ConfigReader json_;
};

/// The sizes in a config.json of transformers, of any version.
/// \throws IoError      cannot be read, or is longer than 1 MiB.
/// \throws FormatError  not JSON, a key twice, a field missing or out of range, or a model that this one does not
/// compute;
///                      the message names file, field, value and what is supported.
inline LlamaConfig config_from_json(const std::filesystem::path& path) { return ConfigJson(path).read(); }

}  // namespace llm
