// SPDX-License-Identifier: MIT
// Byte pair encoding of words: bytes, of which the pair of lowest rank is merged until there is none.
#pragma once

#include "vocabulary.hpp"

#include <lora/core/error.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace llm {

/// The merges of a vocabulary, in order of rank.
class Bpe {
 public:
  /// No merges yet. Bytes without a token of their own are left out of what is encoded, as `tokenizers` does.
  Bpe() = default;
  explicit Bpe(const Vocabulary& vocabulary) {
    for (unsigned byte = 0; byte < 256; ++byte)
      bytes_[byte] = vocabulary.find(byte_text(static_cast<unsigned char>(byte))).value_or(absent);
  }

  /// The next merge: `left` and `right`, both tokens, become the token of their joined text.
  /// \throws lora::FormatError  one of the three is no token; the pair has a rank already.
  void add_merge(const Vocabulary& vocabulary, std::string_view left, std::string_view right, std::string_view where) {
    const auto rank = merges_.size();
    const auto token = [&](std::string_view text) {
      const auto found = vocabulary.find(text);
      lora::detail::require<lora::FormatError>(found.has_value(), where, "[", rank, "]: ", lora::detail::Quoted{text},
                                               " must be a token, got none of that text");
      return *found;
    };
    const Merge merge{token(left), token(right), token(std::string(left).append(right))};
    const auto [place, is_new] = ranks_.try_emplace(pair(merge.left, merge.right), static_cast<std::int32_t>(rank));
    lora::detail::require<lora::FormatError>(is_new, where, "[", rank, "]: a pair must stand once, got ",
                                             lora::detail::Quoted{left}, " and ", lora::detail::Quoted{right},
                                             " like [", place->second, "]");
    merges_.push_back(merge);
  }

  /// The same, of a merge written "left right".
  void add_merge(const Vocabulary& vocabulary, std::string_view merge, std::string_view where) {
    const auto blank = merge.find(' ');
    const bool two = blank != std::string_view::npos && merge.find(' ', blank + 1) == std::string_view::npos;
    lora::detail::require<lora::FormatError>(two, where, "[", merges_.size(),
                                             "]: a merge must be two tokens with one space between, got ",
                                             lora::detail::Quoted{merge});
    add_merge(vocabulary, merge.substr(0, blank), merge.substr(blank + 1), where);
  }

  /// From now on a word that is a token is that token, whatever the merges make of it ("ignore_merges").
  void prefer_whole_words(const Vocabulary& vocabulary) {
    for (Token token = 0; token < vocabulary.size(); ++token) {
      if (auto bytes = bytes_of_text(vocabulary.text(token))) whole_words_.emplace(std::move(*bytes), token);
    }
  }

  /// Whether every byte has a token.
  bool is_complete() const { return std::find(bytes_.begin(), bytes_.end(), absent) == bytes_.end(); }

  /// Memory that encoding one word after another needs.
  class Workspace {
    friend class Bpe;
    struct Symbol {
      Token token;
      std::int32_t previous, next;  // -1: none
    };
    std::vector<Symbol> symbols_;
    std::vector<std::uint64_t> candidates_;
  };

  /// Appends the tokens of a word of n bytes, in O(n log n). \throws lora::FormatError  2^31 bytes or more.
  void encode(std::string_view word, Workspace& work, std::vector<Token>& tokens) const {
    if (!whole_words_.empty()) {
      if (const auto whole = whole_words_.find(word); whole != whole_words_.end()) {
        tokens.push_back(whole->second);
        return;
      }
    }
    split_to_bytes(word, work);
    merge_all(work);
    for (const auto& symbol : work.symbols_) {
      if (symbol.token != absent) tokens.push_back(symbol.token);
    }
  }

 private:
  struct Merge {
    Token left, right, joined;
  };
  using Symbol = Workspace::Symbol;
  static constexpr Token absent = -1;

  static std::uint64_t pair(Token left, Token right) {
    return std::uint64_t{static_cast<std::uint32_t>(left)} << 32U | static_cast<std::uint32_t>(right);
  }

  void split_to_bytes(std::string_view word, Workspace& work) const {
    constexpr std::size_t most = std::numeric_limits<std::int32_t>::max();
    lora::detail::require<lora::FormatError>(word.size() <= most, "text: a word must have at most ", most,
                                             " bytes, got ", word.size());
    auto& symbols = work.symbols_;
    symbols.clear();
    for (const char byte : word) {
      const Token token = bytes_[static_cast<unsigned char>(byte)];
      if (token == absent) continue;
      const auto at = static_cast<std::int32_t>(symbols.size());
      symbols.push_back({token, at - 1, at + 1});
    }
    if (!symbols.empty()) symbols.back().next = -1;
  }

  /// A candidate is the rank of a merge and the place of its left symbol in one number, so that the smallest is next:
  /// the lowest rank, and of equal ones the leftmost. One whose symbols have changed since is passed over.
  void merge_all(Workspace& work) const {
    auto& symbols = work.symbols_;
    auto& candidates = work.candidates_;
    candidates.clear();
    const auto symbol = [&](std::int32_t at) -> Symbol& { return symbols[static_cast<std::size_t>(at)]; };
    const auto candidate = [&](std::int32_t at) -> std::optional<std::uint64_t> {
      if (at < 0 || symbol(at).next < 0) return std::nullopt;
      const auto found = ranks_.find(pair(symbol(at).token, symbol(symbol(at).next).token));
      if (found == ranks_.end()) return std::nullopt;
      return std::uint64_t{static_cast<std::uint32_t>(found->second)} << 32U | static_cast<std::uint32_t>(at);
    };
    const auto push = [&](std::int32_t at) {
      const auto found = candidate(at);
      if (!found) return;
      candidates.push_back(*found);
      std::push_heap(candidates.begin(), candidates.end(), std::greater<>());
    };

    for (std::size_t at = 0; at < symbols.size(); ++at) {
      if (const auto found = candidate(static_cast<std::int32_t>(at))) candidates.push_back(*found);
    }
    std::make_heap(candidates.begin(), candidates.end(), std::greater<>());
    while (!candidates.empty()) {
      std::pop_heap(candidates.begin(), candidates.end(), std::greater<>());
      const auto next = candidates.back();
      candidates.pop_back();
      const Merge& merge = merges_[static_cast<std::size_t>(next >> 32U)];
      const auto at = static_cast<std::int32_t>(next & 0xFFFFFFFFU);
      Symbol& left = symbol(at);
      if (left.token != merge.left || left.next < 0 || symbol(left.next).token != merge.right) continue;
      Symbol& right = symbol(left.next);
      left.token = merge.joined;
      left.next = right.next;
      right.token = absent;
      if (left.next >= 0) symbol(left.next).previous = at;
      push(left.previous);
      push(at);
    }
  }

  std::array<Token, 256> bytes_ = [] {
    std::array<Token, 256> none{};
    none.fill(absent);
    return none;
  }();
  std::vector<Merge> merges_;                              // by rank
  std::unordered_map<std::uint64_t, std::int32_t> ranks_;  // by pair
  TextMap<Token> whole_words_;                             // by bytes
};

/// Encodes the words of one text, most of which come again and again: what an earlier one gave is copied.
class WordEncoder {
 public:
  /// Appends to `tokens`. \pre both outlive this, and nobody takes anything out of `tokens`.
  WordEncoder(const Bpe& bpe, std::vector<Token>& tokens) : bpe_(bpe), tokens_(tokens) {}

  void operator()(std::string_view word) {
    if (const auto known = words_.find(word); known != words_.end()) {
      for (auto at = known->second.first; at < known->second.end; ++at) tokens_.push_back(Token{tokens_[at]});
      return;
    }
    const auto first = tokens_.size();
    bpe_.encode(word, work_, tokens_);
    if (word.size() <= longest && words_.size() < most) words_.emplace(std::string(word), Range{first, tokens_.size()});
  }

 private:
  struct Range {
    std::size_t first, end;  // in tokens_
  };
  static constexpr std::size_t longest = 32, most = 1U << 16U;  // of the words kept: some 10 MB

  const Bpe& bpe_;
  std::vector<Token>& tokens_;
  Bpe::Workspace work_;
  TextMap<Range> words_;
};

}  // namespace llm
