// SPDX-License-Identifier: MIT
// Characters of UTF-8 text and the classes that pre-tokenisers tell apart; the tables are utf8proc's.
#pragma once

#include <lora/core/error.hpp>

#include <utf8proc.h>

#include <array>
#include <cstddef>
#include <string_view>

namespace llm {

/// \p{L}, \p{N}, White_Space and the rest. A character younger than the installed utf8proc is of the rest: 2.8 knows
/// Unicode 15.0, where 5004 letters and numbers of Unicode 15.1 and 16 are missing.
enum class CharacterClass : unsigned char { Letter, Number, Space, Other };

struct Character {
  char32_t code;
  std::size_t bytes;  ///< of its UTF-8; 0 where there is none
};

/// The character that begins at byte `at`: shortest forms only, no surrogates, at most U+10FFFF. \pre at < text.size().
inline Character character_at(std::string_view text, std::size_t at) {
  const auto first = static_cast<unsigned char>(text[at]);
  if (first < 0x80) return {first, 1};
  utf8proc_int32_t code = 0;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + at;
  const auto read = utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(text.size() - at), &code);
  return read > 0 ? Character{static_cast<char32_t>(code), static_cast<std::size_t>(read)} : Character{0, 0};
}

/// The character that ends before byte `end`. \pre `text` is UTF-8, 0 < end <= text.size().
inline Character character_before(std::string_view text, std::size_t end) {
  std::size_t at = end - 1;
  while ((static_cast<unsigned char>(text[at]) & 0xC0U) == 0x80) --at;
  return character_at(text, at);
}

/// \throws lora::FormatError  `text` is not UTF-8; the message has the place.
inline void require_utf8(std::string_view text, std::string_view where) {
  for (std::size_t at = 0; at < text.size();) {
    const auto bytes = character_at(text, at).bytes;
    lora::detail::require<lora::FormatError>(bytes > 0, where, " must be UTF-8, got the byte ",
                                             static_cast<unsigned>(static_cast<unsigned char>(text[at])),
                                             " at position ", at, ", which begins no character");
    at += bytes;
  }
}

/// Unicode's White_Space. Spelt out, for neither iswspace nor any library's \s is the same everywhere.
constexpr bool is_space(char32_t code) {
  return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 || code == 0x1680 ||
         (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F ||
         code == 0x3000;
}

inline CharacterClass class_of(char32_t code) {
  constexpr auto ascii = [] {
    std::array<CharacterClass, 128> classes{};
    for (char32_t c = 0; c < 128; ++c) {
      const bool letter = (c >= U'A' && c <= U'Z') || (c >= U'a' && c <= U'z');
      classes[c] = letter                   ? CharacterClass::Letter
                   : c >= U'0' && c <= U'9' ? CharacterClass::Number
                   : is_space(c)            ? CharacterClass::Space
                                            : CharacterClass::Other;
    }
    return classes;
  }();
  if (code < 128) return ascii[code];
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return CharacterClass::Letter;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return CharacterClass::Number;
    default:
      return is_space(code) ? CharacterClass::Space : CharacterClass::Other;
  }
}

}  // namespace llm
