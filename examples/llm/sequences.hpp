// SPDX-License-Identifier: MIT
// Rows of tokens, all of one length, with what should follow each: what a text becomes to be trained on.
#pragma once

#include "batch.hpp"

#include <lora/core/error.hpp>
#include <lora/core/random.hpp>
#include <lora/io/crc64.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace llm {

/// Row i has `length` tokens and their `length` targets; \pre i in [0, size()).
class Sequences {
  template <class Tokens>
  auto row(Tokens& tokens, Index i) const {
    return std::span(tokens).subspan(static_cast<std::size_t>(i * length_), static_cast<std::size_t>(length_));
  }

 public:
  /// \throws ConfigError  length < 1.
  explicit Sequences(Index length) : length_(length) {
    lora::detail::require<lora::ConfigError>(length >= 1, "Sequences: length must be at least 1, got ", length);
  }

  Index length() const { return length_; }
  Index size() const { return std::ssize(tokens_) / length_; }
  std::span<const Token> tokens(Index i) const { return row(tokens_, i); }
  std::span<Token> tokens(Index i) { return row(tokens_, i); }
  std::span<const Token> targets(Index i) const { return row(targets_, i); }
  std::span<Token> targets(Index i) { return row(targets_, i); }
  /// Targets that count.
  Index counted() const { return std::ssize(targets_) - std::count(targets_.begin(), targets_.end(), ignored); }

  /// Adds a row that is all `fill`, its targets ignored, and returns its number.
  Index add(Token fill) {
    const std::size_t size = tokens_.size() + static_cast<std::size_t>(length_);
    tokens_.resize(size, fill);
    targets_.resize(size, ignored);
    return this->size() - 1;
  }
  /// Adds a row of another.
  /// \throws ConfigError  of another length.
  void add(const Sequences& other, Index i) {
    lora::detail::require<lora::ConfigError>(other.length_ == length_, "Sequences::add: rows must have ", length_,
                                             " tokens, got ", other.length_);
    const auto tokens = other.tokens(i), targets = other.targets(i);
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
    targets_.insert(targets_.end(), targets.begin(), targets.end());
  }
  /// Keeps the first `size` rows.
  void shrink(Index size) {
    tokens_.resize(static_cast<std::size_t>(size * length_));
    targets_.resize(static_cast<std::size_t>(size * length_));
  }

  /// Makes `batch` the rows `which`, in that order; allocates nothing where the batch has been as large before.
  void gather(std::span<const Index> which, Batch& batch) const {
    batch.length = length_;
    batch.tokens.clear();
    batch.targets.clear();
    for (const Index i : which) {
      const auto from = tokens(i), to = targets(i);
      batch.tokens.insert(batch.tokens.end(), from.begin(), from.end());
      batch.targets.insert(batch.targets.end(), to.begin(), to.end());
    }
  }

  /// Of all tokens and targets: whether a run goes on with the text that it began with.
  std::uint64_t checksum() const {
    lora::io::Crc64 sum;
    sum.update(std::as_bytes(std::span(tokens_)));
    sum.update(std::as_bytes(std::span(targets_)));
    return sum.value();
  }

 private:
  Index length_;
  std::vector<Token> tokens_, targets_;
};

/// What is trained on, and what tells whether that helps.
struct Split {
  Sequences training, validation;
};

/// How many of `size` sequences validate: the nearest to that share, but at least one of each kind.
inline Index validation_size(Index size, double share) {
  return std::clamp(static_cast<Index>(std::llround(share * static_cast<double>(size))), Index{1}, size - 1);
}

/// The last sequences validate: of a text, so that what is trained on and what is not are not neighbours everywhere.
/// \pre at least two sequences.
inline Split split_last(Sequences all, double share) {
  const Index kept = all.size() - validation_size(all.size(), share);
  Sequences validation(all.length());
  for (Index i = kept; i < all.size(); ++i) validation.add(all, i);
  all.shrink(kept);
  return {std::move(all), std::move(validation)};
}

/// Every choice of the sequences that validate is as likely as any other; both parts keep their order.
/// \pre at least two sequences.
inline Split split_drawn(const Sequences& all, double share, std::uint64_t seed) {
  Split split{Sequences(all.length()), Sequences(all.length())};
  lora::Random random(seed);
  Index wanted = validation_size(all.size(), share);
  for (Index i = 0; i < all.size(); ++i) {  // Knuth's selection sampling: each with wanted / left
    const bool drawn = random.below(all.size() - i) < wanted;
    (drawn ? split.validation : split.training).add(all, i);
    wanted -= drawn ? 1 : 0;
  }
  return split;
}

}  // namespace llm
