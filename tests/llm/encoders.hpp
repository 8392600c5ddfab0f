// SPDX-License-Identifier: MIT
// A tokenizer that a reader can follow: every byte is a token.
#pragma once

#include "llm/text_data.hpp"

#include <string>
#include <string_view>
#include <vector>

namespace llm::test {

inline constexpr Token end = 256, begin = 257;

inline std::vector<Token> bytes_as_tokens(std::string_view text) {
  std::vector<Token> tokens;
  for (const char letter : text) tokens.push_back(static_cast<unsigned char>(letter));
  return tokens;
}
inline TextEncoder byte_encoder() { return {bytes_as_tokens, end, {}}; }

/// "ab$" for a, b and an end of text; "." is an ignored target, "^" a begin.
template <class Tokens>
std::string shown(const Tokens& tokens) {
  std::string text;
  for (const Token token : tokens) {
    text += token == end ? '$' : token == begin ? '^' : token == ignored ? '.' : static_cast<char>(token);
  }
  return text;
}
/// "abc>bc$ ..." for all rows.
inline std::string shown(const Sequences& sequences) {
  std::string text;
  for (Index i = 0; i < sequences.size(); ++i) {
    text += (i > 0 ? " " : "") + shown(sequences.tokens(i)) + ">" + shown(sequences.targets(i));
  }
  return text;
}

/// Rows "a", "b", ... of one token.
inline Sequences letters(Index count) {
  Sequences rows(1);
  for (Index i = 0; i < count; ++i) rows.targets(rows.add(static_cast<Token>('a' + i)))[0] = end;
  return rows;
}

}  // namespace llm::test
