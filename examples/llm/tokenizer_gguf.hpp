// SPDX-License-Identifier: MIT
// The tokeniser inside a GGUF file: the keys tokenizer.ggml.*.
#pragma once

#include "tokenizer_parts.hpp"

#include <lora/core/error.hpp>
#include <lora/io/gguf_metadata.hpp>
#include <lora/io/gguf_reader.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llm::detail {

/// The names that llama.cpp gave to pre-tokenisers, of those that are built here.
struct NamedPreTokenizer {
  std::string_view name;
  PreTokenizer pre_tokenizer;
};
inline constexpr NamedPreTokenizer gguf_pre_tokenizers[] = {{"gpt-2", {}}, {"smollm", {.single_digits = true}}};

/// llama.cpp's types of tokens; "unknown" is a control token for its BPE.
enum class GgufTokenType : std::int32_t { Normal = 1, Unknown, Control, UserDefined, Unused };

inline PreTokenizer gguf_pre_tokenizer(const lora::gguf::Metadata& metadata) {
  const auto& model = metadata.get<std::string>("tokenizer.ggml.model");
  lora::detail::require<lora::FormatError>(model == "gpt2", metadata.file(),
                                           ": key \"tokenizer.ggml.model\" must be \"gpt2\", byte-level BPE, got ",
                                           lora::detail::Quoted{model}, "; such a tokeniser is not supported");
  const auto& name = metadata.get<std::string>("tokenizer.ggml.pre");
  const auto* const found = std::find_if(std::begin(gguf_pre_tokenizers), std::end(gguf_pre_tokenizers),
                                         [&](const NamedPreTokenizer& each) { return each.name == name; });
  lora::detail::require<lora::FormatError>(found != std::end(gguf_pre_tokenizers), metadata.file(),
                                           ": key \"tokenizer.ggml.pre\" must be \"gpt-2\" or \"smollm\", got ",
                                           lora::detail::Quoted{name}, "; such a tokeniser is not supported");
  auto pre_tokenizer = found->pre_tokenizer;
  pre_tokenizer.prefix_space = metadata.get_or("tokenizer.ggml.add_space_prefix", false);
  return pre_tokenizer;
}

inline void read_gguf_tokens(const lora::gguf::Metadata& metadata, TokenizerParts& parts) {
  using lora::detail::require;
  const std::string where = metadata.file() + ": key \"tokenizer.ggml.tokens\"";
  const auto& texts = metadata.get<std::vector<std::string>>("tokenizer.ggml.tokens");
  const auto& types = metadata.get<std::vector<std::int32_t>>("tokenizer.ggml.token_type");
  require<lora::FormatError>(!texts.empty(), where, " must not be empty");
  require<lora::FormatError>(types.size() == texts.size(), metadata.file(),
                             ": key \"tokenizer.ggml.token_type\" must have a type for each of the ", texts.size(),
                             " tokens, got ", types.size());
  for (std::size_t id = 0; id < texts.size(); ++id) {
    require<lora::FormatError>(lora::detail::is_utf8(texts[id]), where, ": token ", id,
                               " must be UTF-8, got other bytes");
    const Token token = parts.vocabulary.add(texts[id], where);
    const auto type = static_cast<GgufTokenType>(types[id]);
    require<lora::FormatError>(type >= GgufTokenType::Normal && type <= GgufTokenType::Unused, metadata.file(),
                               ": key \"tokenizer.ggml.token_type\": the type of token ", id,
                               " must lie in [1, 5], got ", types[id]);
    const bool special = type == GgufTokenType::Control || type == GgufTokenType::Unknown;
    const bool user_defined = type == GgufTokenType::UserDefined;
    if (special || user_defined)
      parts.added.add(texts[id], {.id = token, .special = special, .normalized = user_defined}, where);
  }
}

inline void read_gguf_merges(const lora::gguf::Metadata& metadata, TokenizerParts& parts) {
  const std::string where = metadata.file() + ": key \"tokenizer.ggml.merges\"";
  parts.bpe = Bpe(parts.vocabulary);
  const auto& merges = metadata.get<std::vector<std::string>>("tokenizer.ggml.merges");
  for (std::size_t i = 0; i < merges.size(); ++i) {
    lora::detail::require<lora::FormatError>(lora::detail::is_utf8(merges[i]), where, "[", i,
                                             "]: a merge must be UTF-8, got other bytes");
    parts.bpe.add_merge(parts.vocabulary, merges[i], where);
  }
}

inline std::optional<Token> gguf_token(const lora::gguf::Metadata& metadata, std::string_view key,
                                       const Vocabulary& vocabulary) {
  if (metadata.find(key) == nullptr) return std::nullopt;
  const auto id = metadata.get<std::uint32_t>(key);
  lora::detail::require<lora::FormatError>(std::int64_t{id} < vocabulary.size(), metadata.file(), ": key \"", key,
                                           "\" must be less than the number of tokens ", vocabulary.size(), ", got ",
                                           id);
  return static_cast<Token>(id);
}

}  // namespace llm::detail

namespace llm {

/// \throws lora::FormatError  a key is missing or has another type; another model or pre-tokeniser than "gpt2" with
/// "gpt-2" or "smollm"; tokens or merges that break a rule.
inline TokenizerParts read_tokenizer(const lora::gguf::Metadata& metadata) {
  TokenizerParts parts;
  parts.file = metadata.file();
  parts.pre_tokenizer = detail::gguf_pre_tokenizer(metadata);
  detail::read_gguf_tokens(metadata, parts);
  detail::read_gguf_merges(metadata, parts);
  if (metadata.get_or("tokenizer.ggml.add_bos_token", false)) {
    parts.begin_of_text = detail::gguf_token(metadata, "tokenizer.ggml.bos_token_id", parts.vocabulary);
    lora::detail::require<lora::FormatError>(parts.begin_of_text.has_value(), parts.file,
                                             ": key \"tokenizer.ggml.bos_token_id\" must be u32, for "
                                             "\"tokenizer.ggml.add_bos_token\" is true, got no such key");
  }
  parts.end_of_text = detail::gguf_token(metadata, "tokenizer.ggml.eos_token_id", parts.vocabulary);
  return parts;
}

}  // namespace llm
