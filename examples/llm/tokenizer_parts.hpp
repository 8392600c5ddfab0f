// SPDX-License-Identifier: MIT
// What a tokeniser is made of, whichever file it comes from.
#pragma once

#include "added_tokens.hpp"
#include "bpe.hpp"
#include "pre_tokenizer.hpp"
#include "vocabulary.hpp"

#include <optional>
#include <string>

namespace llm {

struct TokenizerParts {
  std::string file;  ///< for messages
  Vocabulary vocabulary;
  Bpe bpe;
  AddedTokens added;
  PreTokenizer pre_tokenizer;
  std::optional<Token> begin_of_text, end_of_text;
};

}  // namespace llm
