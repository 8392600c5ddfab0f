// SPDX-License-Identifier: MIT
// `llm generate`: goes on with a text, token after token.
#include "commands.hpp"
#include "sampler.hpp"
#include "setup.hpp"

#include <lora/core/error.hpp>

#include <algorithm>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

namespace llm {
namespace {

/// Prints text as it comes, but never a part of a character.
class Printer {
 public:
  void add(std::string_view bytes) {
    waiting_ += bytes;
    const std::size_t whole = whole_characters();
    std::fwrite(waiting_.data(), 1, whole, stdout);
    std::fflush(stdout);
    waiting_.erase(0, whole);
  }
  void finish() {
    std::fwrite(waiting_.data(), 1, waiting_.size(), stdout);
    std::fputc('\n', stdout);
  }

 private:
  /// The bytes before a character that has only begun.
  std::size_t whole_characters() const {
    const std::size_t size = waiting_.size();
    for (std::size_t back = 1; back <= std::min<std::size_t>(size, 3); ++back) {
      const auto byte = static_cast<unsigned char>(waiting_[size - back]);
      if ((byte & 0xC0U) == 0x80U) continue;  // in the middle of one
      const std::size_t length = byte >= 0xF0U ? 4 : byte >= 0xE0U ? 3 : byte >= 0xC0U ? 2 : 1;
      return length > back ? size - back : size;
    }
    return size;
  }

  std::string waiting_;
};

/// The form in which models such as SmolLM2-Instruct have seen conversations (ChatML).
std::vector<Token> chat_prompt(const Tokenizer& tokenizer, const std::string& prompt) {
  const bool knows = tokenizer.find("<|im_start|>") && tokenizer.find("<|im_end|>");
  lora::detail::require<lora::ConfigError>(knows, "--chat: needs a model with the tokens <|im_start|> and <|im_end|>, ",
                                           "got one without; leave it out");
  auto ids = tokenizer.encode("<|im_start|>user\n", Tokenizer::Special::Parse);
  const auto text = tokenizer.encode(prompt);  // what looks like a special token in there is text
  ids.insert(ids.end(), text.begin(), text.end());
  const auto end = tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n", Tokenizer::Special::Parse);
  ids.insert(ids.end(), end.begin(), end.end());
  return ids;
}

}  // namespace

int generate(const GenerateOptions& options) {
  use_threads(options.model);
  const auto weights = Weights::open(options.model.model);
  const auto tokenizer = open_tokenizer(weights, options.model.model);
  auto prompt = options.chat ? chat_prompt(tokenizer, options.prompt) : tokenizer.encode(options.prompt);
  if (const auto begin = tokenizer.begin_of_text()) prompt.insert(prompt.begin(), *begin);
  lora::detail::require<lora::ConfigError>(!prompt.empty(), "--prompt: must have a token, got an empty text");
  const Index room = weights.config().max_position_embeddings - std::ssize(prompt);
  lora::detail::require<lora::ConfigError>(room >= 1, "--prompt: must leave room in the model's context of ",
                                           weights.config().max_position_embeddings, " tokens, got ",
                                           std::ssize(prompt));
  lora::detail::require<lora::ConfigError>(options.tokens >= 1, "--tokens: must be at least 1, got ", options.tokens);
  const Index count = std::min(options.tokens, room);
  Sampler sampler(options.temperature, options.top_p, options.seed);

  const auto model = open_model(weights, options.model.storage(), Keep::Inputs);
  auto set = layers_of(*model);
  load_adapter(options.model, *model, set);
  auto cache = model->cache(std::ssize(prompt) + count);
  Eigen::RowVectorXf logits = model->next(cache, prompt);
  Printer printer;
  for (Index i = 0; i < count; ++i) {
    const Token token = sampler(logits);
    if (options.ids) {
      std::printf("%s%d", i > 0 ? " " : "", static_cast<int>(token));
    } else {
      if (token == tokenizer.end_of_text() || (options.chat && token == tokenizer.find("<|im_end|>"))) break;
      printer.add(tokenizer.decode(std::span(&token, 1)));
    }
    if (i + 1 < count) logits = model->next(cache, std::span(&token, 1));
  }
  if (options.ids) {
    std::printf("\n");
  } else {
    printer.finish();
  }
  return 0;
}

}  // namespace llm
