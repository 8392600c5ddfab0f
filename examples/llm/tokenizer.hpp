// SPDX-License-Identifier: MIT
// Text to tokens and back: byte-level BPE with the words of GPT-2 or SmolLM.
#pragma once

#include "added_tokens.hpp"
#include "batch.hpp"
#include "bpe.hpp"
#include "tokenizer_gguf.hpp"
#include "tokenizer_json.hpp"
#include "tokenizer_parts.hpp"
#include "unicode.hpp"
#include "vocabulary.hpp"

#include <lora/core/error.hpp>
#include <lora/io/gguf_metadata.hpp>

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llm {

/// Gives the tokens that Hugging Face's `tokenizers` gives. Does not put begin_of_text() before or end_of_text() behind
/// a text; whoever wants them does.
class Tokenizer {
 public:
  using Special = llm::Special;

  /// \throws lora::FormatError, lora::IoError  \see read_tokenizer_json.
  static Tokenizer open(const std::filesystem::path& tokenizer_json) {
    return Tokenizer(read_tokenizer_json(tokenizer_json));
  }
  /// The one inside a GGUF file. \throws lora::FormatError  \see read_tokenizer.
  static Tokenizer from(const lora::gguf::Metadata& metadata) { return Tokenizer(read_tokenizer(metadata)); }

  /// Time about linear in the text. Bytes that the vocabulary has no token for are left out.
  /// \throws lora::FormatError  the text is not UTF-8, or has 2^31 bytes without a word's end.
  std::vector<Token> encode(std::string_view text, Special special = Special::AsText) const {
    require_utf8(text, "text");
    std::vector<Token> tokens;
    WordEncoder encode_word(parts_.bpe, tokens);
    const auto visit_word = [&](std::string_view word) { encode_word(word); };
    parts_.added.split(
        text, special, [&](std::string_view piece) { parts_.pre_tokenizer.split(piece, visit_word); },
        [&](Token token) { tokens.push_back(token); });
    return tokens;
  }

  /// The bytes of the tokens, added ones written out; they may begin or end within a character.
  /// \throws lora::ConfigError  a token outside [0, size()).
  std::string decode(std::span<const Token> tokens) const {
    std::string bytes;
    for (const Token token : tokens) {
      lora::detail::require<lora::ConfigError>(parts_.vocabulary.contains(token),
                                               "Tokenizer::decode: a token must lie in [0, ", size(), "), got ", token);
      const auto& text = parts_.vocabulary.text(token);
      bytes += parts_.added.contains(token) ? text : bytes_of_text(text).value_or(text);
    }
    return bytes;
  }

  Index size() const { return parts_.vocabulary.size(); }
  /// By its text in the vocabulary, where the space of " the" is U+0120: for tokens like "<|im_end|>".
  std::optional<Token> find(std::string_view token) const { return parts_.vocabulary.find(token); }

  /// The token behind a text: of GGUF eos_token_id; else eos_token of tokenizer_config.json, eos_token_id of
  /// generation_config.json or config.json beside the file, "<|endoftext|>". \throws lora::FormatError  none of these.
  Token end_of_text() const {
    lora::detail::require<lora::FormatError>(
        parts_.end_of_text.has_value(), parts_.file,
        ": must name the token at the end of a text, got none; a tokenizer_config.json beside it may, as eos_token");
    return *parts_.end_of_text;
  }
  /// The token before a text, where the model wants one.
  std::optional<Token> begin_of_text() const { return parts_.begin_of_text; }

 private:
  explicit Tokenizer(TokenizerParts parts) : parts_(std::move(parts)) {}

  TokenizerParts parts_;
};

}  // namespace llm
