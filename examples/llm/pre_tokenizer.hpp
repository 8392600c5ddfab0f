// SPDX-License-Identifier: MIT
// Cuts text into the words within which byte pairs are merged: GPT-2's way, and SmolLM's, which takes digits singly.
#pragma once

#include "unicode.hpp"

#include <cstddef>
#include <string>
#include <string_view>

namespace llm {

/// The length of 's, 't, 're, 've, 'm, 'll or 'd, in small letters, at the start of `text`; 0 where there is none.
inline std::size_t contraction(std::string_view text) {
  if (text.size() < 2 || text[0] != '\'') return 0;
  const char second = text[1];
  if (second == 's' || second == 't' || second == 'm' || second == 'd') return 2;
  if (text.size() < 3) return 0;
  const char third = text[2];
  return ((second == 'r' || second == 'v') && third == 'e') || (second == 'l' && third == 'l') ? 3 : 0;
}

/// Words as the expression of GPT-2 finds them, tried in this order at each place:
///
///     's|'t|'re|'ve|'m|'ll|'d | ?\p{L}+ | ?\p{N}+ | ?[^\s\p{L}\p{N}]+ | \s+(?!\S) | \s+
///
/// So a run of space gives its last character up to the word behind it: " " goes in front of that word, any other
/// space is a word of its own. Words one after the other are the text again. Time linear in the text.
/// \pre `text` is UTF-8.
template <class Visit>
void split_gpt2(std::string_view text, const Visit& visit) {
  const auto skip = [&](std::size_t at, CharacterClass of_class) {
    while (at < text.size()) {
      const auto [code, bytes] = character_at(text, at);
      if (class_of(code) != of_class) break;
      at += bytes;
    }
    return at;
  };
  for (std::size_t start = 0, end = 0; start < text.size(); start = end) {
    if (const auto length = contraction(text.substr(start))) {
      end = start + length;
    } else {
      const bool blank = text[start] == ' ' && start + 1 < text.size();
      const auto first = class_of(character_at(text, start).code);
      const auto run = blank ? class_of(character_at(text, start + 1).code) : first;
      end = skip(blank ? start + 1 : start, run);
      if (run == CharacterClass::Space && end < text.size()) {
        const auto last = end - character_before(text, end).bytes;
        if (last > start) end = last;
      }
    }
    visit(text.substr(start, end - start));
  }
}

/// What a tokeniser's file says about words.
struct PreTokenizer {
  bool single_digits = false;  ///< each \p{N} is cut out first: nothing looks beyond it, neither " ?" nor \s+(?!\S)
  bool gpt2_split = true;      ///< else what is between digits is one word
  bool prefix_space = false;   ///< each piece that does not begin with " " gets one

  /// Visits the words of `text`; the views live as long as the visit. \pre `text` is UTF-8.
  template <class Visit>
  void split(std::string_view text, const Visit& visit) const {
    if (!single_digits) return split_piece(text, visit);
    std::size_t start = 0;
    for (std::size_t at = 0; at < text.size();) {
      const auto [code, bytes] = character_at(text, at);
      if (class_of(code) == CharacterClass::Number) {
        split_piece(text.substr(start, at - start), visit);
        split_piece(text.substr(at, bytes), visit);
        start = at + bytes;
      }
      at += bytes;
    }
    split_piece(text.substr(start), visit);
  }

  bool operator==(const PreTokenizer&) const = default;

 private:
  template <class Visit>
  void split_piece(std::string_view piece, const Visit& visit) const {
    if (piece.empty()) return;
    std::string longer;
    if (prefix_space && piece[0] != ' ') {
      longer.assign(1, ' ').append(piece);
      piece = longer;
    }
    if (gpt2_split) {
      split_gpt2(piece, visit);
    } else {
      visit(piece);
    }
  }
};

}  // namespace llm
