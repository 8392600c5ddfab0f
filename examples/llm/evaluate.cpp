// SPDX-License-Identifier: MIT
// `llm evaluate`: how surprised a model is by a text.
#include "batches.hpp"
#include "commands.hpp"
#include "setup.hpp"
#include "text_data.hpp"
#include "validation.hpp"

#include <cmath>
#include <cstdio>
#include <utility>

namespace llm {

int evaluate(const EvaluateOptions& options) {
  use_threads(options.model);
  const auto weights = Weights::open(options.model.model);
  require_length(options.length, weights.config());
  const auto tokenizer = open_tokenizer(weights, options.model.model);
  auto data = read_text_data(options.text, options.length, encoder_of(tokenizer));
  std::printf("%s\n", data.summary().c_str());
  const auto model = open_model(weights, options.model.storage(), Keep::Inputs);
  auto set = layers_of(*model);
  load_adapter(options.model, *model, set);
  const auto sequences = options.validation > 0 ? split(std::move(data), options.validation, options.seed).validation
                                                : std::move(data.sequences);
  const double loss = mean_loss(*model, sequences, options.batch);
  std::printf("targets %lld\nloss %.6f\nperplexity %.5f\n", static_cast<long long>(sequences.counted()), loss,
              std::exp(loss));
  return 0;
}

}  // namespace llm
