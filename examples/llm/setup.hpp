// SPDX-License-Identifier: MIT
// What all commands begin with: threads, the tokenizer of a model, an adapter from a file.
#pragma once

#include "commands.hpp"
#include "model.hpp"
#include "text_data.hpp"
#include "tokenizer.hpp"
#include "weights.hpp"

#include <lora/core/threads.hpp>
#include <lora/io/gguf.hpp>
#include <lora/io/gguf_adapter.hpp>
#include <lora/io/model_files.hpp>
#include <lora/io/peft.hpp>
#include <lora/io/peft_match.hpp>
#include <lora/model/adapter_set.hpp>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>

namespace llm {

/// The adapter's name in the set of a model.
inline constexpr const char* adapter_name = "adapter";

inline void use_threads(const ModelOptions& options) {
  if (options.threads > 0) lora::set_threads(options.threads);
}

/// \throws ConfigError  sequences that the model cannot take.
inline void require_length(Index length, const LlamaConfig& config) {
  lora::detail::require<lora::ConfigError>(length >= 1 && length <= config.max_position_embeddings,
                                           "--length: must lie in [1, ", config.max_position_embeddings,
                                           "], the model's context, got ", length);
}

/// From the model's own file or folder. \throws FormatError, IoError.
inline Tokenizer open_tokenizer(const Weights& weights, const std::filesystem::path& model) {
  return weights.metadata() != nullptr ? Tokenizer::from(*weights.metadata())
                                       : Tokenizer::open(model / "tokenizer.json");
}

/// For `read_text_data`. The tokenizer must outlive it.
inline TextEncoder encoder_of(const Tokenizer& tokenizer) {
  return {[&tokenizer](std::string_view text) { return tokenizer.encode(text); }, tokenizer.end_of_text(),
          tokenizer.begin_of_text()};
}

/// What an adapter GGUF depends on.
inline lora::gguf::BaseModel gguf_base(const LlamaConfig& config) {
  return {.architecture = lora::gguf::Architecture::Llama,
          .head_count = config.num_attention_heads,
          .head_count_kv = config.num_key_value_heads,
          .has_output_weight = !config.tie_word_embeddings};
}

/// A set of all layers of a model, none of them with an adapter. \pre the model outlives it and stays where it is.
inline lora::AdapterSet<float> layers_of(Model& model) {
  lora::AdapterSet<float> set("none");
  model.add_layers(set);
  return set;
}

/// Makes an adapter the only one of the set.
inline void put_in(lora::AdapterSet<float>& set, lora::ModelAdapter<float> adapter) {
  set.add(adapter_name, std::move(adapter));
  set.activate(adapter_name);
  set.remove("none");
  set.enable();
}

/// Puts the adapter that the options name into the model, if they name one.
/// \throws FormatError, IoError, ConfigError  it cannot be read, or does not fit the model in every part.
inline void load_adapter(const ModelOptions& options, const Model& model, lora::AdapterSet<float>& set) {
  if (options.adapter.empty()) return;
  if (options.adapter.extension() == ".gguf") {
    put_in(set, lora::gguf::model_adapter(lora::gguf::load_adapter(options.adapter, gguf_base(model.config()))));
  } else {
    put_in(set, lora::peft::model_adapter(lora::peft::load<float>(options.adapter)));
  }
}

}  // namespace llm
