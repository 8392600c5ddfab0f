// SPDX-License-Identifier: MIT
// Tokens that are found in the text itself, before it is cut into words: "<|im_start|>" and the like.
#pragma once

#include "batch.hpp"
#include "unicode.hpp"
#include "vocabulary.hpp"

#include <lora/core/error.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llm {

/// Names as in tokenizer.json.
struct AddedToken {
  Token id = 0;
  bool special = false;     ///< a token of control: its text in a text may be just that
  bool normalized = false;  ///< looked for after those that are not
  bool lstrip = false;      ///< takes the space before it along
  bool rstrip = false;      ///< and behind it
};

/// Whether "<|im_start|>" in a text is that token, or text like any other.
enum class Special { Parse, AsText };

/// Tokens of which the leftmost is found, and the longest of those that begin there, as `tokenizers` does.
class TokenFinder {
 public:
  /// \pre `text` is not empty and no token's yet.
  void add(const std::string& text, const AddedToken& token) {
    tokens_.emplace(text, token);
    auto& lengths = lengths_[static_cast<unsigned char>(text[0])];
    const auto place = std::lower_bound(lengths.begin(), lengths.end(), text.size(), std::greater<>());
    if (place == lengths.end() || *place != text.size()) lengths.insert(place, text.size());
  }

  /// Visits the text between tokens, where there is some, and the tokens, from left to right.
  template <class VisitText, class VisitToken>
  void split(std::string_view text, Special special, const VisitText& visit_text, const VisitToken& visit_token) const {
    std::size_t done = 0;
    for (std::size_t at = 0; at < text.size();) {
      const auto* found = find(text, at);
      if (found == nullptr) {
        ++at;
        continue;
      }
      const auto& token = found->second;
      auto start = at, end = at + found->first.size();
      at = end;
      if (token.special && special == Special::AsText) continue;
      if (token.lstrip) start = strip_left(text, done, start);
      if (token.rstrip) end = strip_right(text, end);
      if (done < start) visit_text(text.substr(done, start - done));
      visit_token(token.id);
      done = end;
    }
    if (done < text.size()) visit_text(text.substr(done));
  }

 private:
  using Found = TextMap<AddedToken>::value_type;

  const Found* find(std::string_view text, std::size_t at) const {
    for (const auto length : lengths_[static_cast<unsigned char>(text[at])]) {
      if (length > text.size() - at) continue;
      const auto found = tokens_.find(text.substr(at, length));
      if (found != tokens_.end()) return &*found;
    }
    return nullptr;
  }
  static std::size_t strip_left(std::string_view text, std::size_t done, std::size_t start) {
    while (start > done) {
      const auto [code, bytes] = character_before(text, start);
      if (!is_space(code)) break;
      start -= bytes;
    }
    return start;
  }
  static std::size_t strip_right(std::string_view text, std::size_t end) {
    while (end < text.size()) {
      const auto [code, bytes] = character_at(text, end);
      if (!is_space(code)) break;
      end += bytes;
    }
    return end;
  }

  TextMap<AddedToken> tokens_;
  std::array<std::vector<std::size_t>, 256> lengths_;  // of the tokens that begin with a byte, longest first
};

/// All added tokens of a tokeniser.
class AddedTokens {
 public:
  /// \throws lora::FormatError  a second time; an empty text.
  void add(const std::string& text, const AddedToken& token, std::string_view where) {
    lora::detail::require<lora::FormatError>(!text.empty(), where, ": the text of token ", token.id,
                                             " must not be empty");
    const bool is_new = ids_.emplace(text, token.id).second;
    lora::detail::require<lora::FormatError>(is_new, where, ": ", lora::detail::Quoted{text},
                                             " must stand once, got a second one");
    (token.normalized ? second_ : first_).add(text, token);
    const auto id = static_cast<std::size_t>(token.id);
    if (is_added_.size() <= id) is_added_.resize(id + 1);
    is_added_[id] = true;
  }
  /// Whether a token is one of these. \pre token >= 0.
  bool contains(Token token) const {
    const auto id = static_cast<std::size_t>(token);
    return id < is_added_.size() && is_added_[id];
  }

  /// \see TokenFinder::split. \pre `text` is UTF-8.
  template <class VisitText, class VisitToken>
  void split(std::string_view text, Special special, const VisitText& visit_text, const VisitToken& visit_token) const {
    const auto visit_rest = [&](std::string_view rest) { second_.split(rest, special, visit_text, visit_token); };
    first_.split(text, special, visit_rest, visit_token);
  }

 private:
  TokenFinder first_, second_;
  TextMap<Token> ids_;
  std::vector<bool> is_added_;
};

}  // namespace llm
