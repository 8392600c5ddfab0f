// SPDX-License-Identifier: MIT
// The tokens of a byte-level vocabulary by number and by text, and the characters that stand for bytes in it.
#pragma once

#include "batch.hpp"
#include "unicode.hpp"

#include <lora/core/error.hpp>
#include <lora/io/gguf_reader.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace llm {

/// Finds strings by views of them.
struct TextHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
template <class Value>
using TextMap = std::unordered_map<std::string, Value, TextHash, std::equal_to<>>;

/// The character of each byte, GPT-2's choice: 0x21-0x7E, 0xA1-0xAC and 0xAE-0xFF are themselves, the other 68 follow
/// from U+0100 on (space is U+0120), so that no token holds space or control characters.
inline constexpr std::array<char16_t, 256> byte_characters = [] {
  std::array<char16_t, 256> characters{};
  char16_t next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool itself = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    characters[byte] = itself ? static_cast<char16_t>(byte) : next++;
  }
  return characters;
}();

/// The token that is one byte, as the vocabulary writes it.
inline std::string byte_text(unsigned char byte) {
  const unsigned code = byte_characters[byte];
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0U | code >> 6U), static_cast<char>(0x80U | (code & 0x3FU))};
}

/// The bytes that the text of a token stands for; none where a character of it stands for no byte.
inline std::optional<std::string> bytes_of_text(std::string_view text) {
  constexpr auto bytes_by_character = [] {
    std::array<std::int16_t, 0x144> bytes{};
    bytes.fill(-1);
    for (std::size_t byte = 0; byte < 256; ++byte) bytes[byte_characters[byte]] = static_cast<std::int16_t>(byte);
    return bytes;
  }();
  std::string bytes;
  bytes.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const auto [code, length] = character_at(text, at);
    if (length == 0 || code >= bytes_by_character.size() || bytes_by_character[code] < 0) return std::nullopt;
    bytes += static_cast<char>(bytes_by_character[code]);
    at += length;
  }
  return bytes;
}

/// Tokens 0, 1, 2, ..., each with a text of its own.
class Vocabulary {
 public:
  Index size() const { return std::ssize(texts_); }
  bool contains(Token token) const { return token >= 0 && token < size(); }
  /// \pre contains(token).
  const std::string& text(Token token) const { return texts_[static_cast<std::size_t>(token)]; }
  std::optional<Token> find(std::string_view text) const {
    const auto found = tokens_.find(text);
    return found == tokens_.end() ? std::nullopt : std::optional(found->second);
  }

  /// Gives `text` the next number. \throws lora::FormatError  it has one already.
  Token add(std::string text, std::string_view where) {
    const auto token = static_cast<Token>(texts_.size());
    const auto [place, is_new] = tokens_.try_emplace(std::move(text), token);
    lora::detail::require<lora::FormatError>(is_new, where, ": token ", token, " must have a text of its own, got ",
                                             lora::detail::Quoted{place->first}, " like token ", place->second);
    texts_.push_back(place->first);
    return token;
  }

 private:
  std::vector<std::string> texts_;
  TextMap<Token> tokens_;
};

}  // namespace llm
