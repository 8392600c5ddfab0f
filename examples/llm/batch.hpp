// SPDX-License-Identifier: MIT
// What the model is trained on at once: sequences of tokens of one length, and what should follow each token.
#pragma once

#include <lora/core/matrix.hpp>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

namespace llm {

using lora::Index;

/// The number of a token in the vocabulary.
using Token = std::int32_t;

/// A target that does not count: the last token of a text, a prompt.
inline constexpr Token ignored = -1;

/// Sequences one after the other: row t of all activations belongs to tokens[t], whose position is t % length.
struct Batch {
  std::vector<Token> tokens;
  std::vector<Token> targets;  ///< what follows each token, or `ignored`
  Index length = 0;            ///< of a sequence

  Index size() const { return std::ssize(tokens); }
  Index sequences() const { return length > 0 ? size() / length : 0; }
  /// Targets that count.
  Index counted() const { return size() - std::count(targets.begin(), targets.end(), ignored); }
};

}  // namespace llm
