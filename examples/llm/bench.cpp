// SPDX-License-Identifier: MIT
// `llm bench`: the speed of training, for comparisons (bench/peft/llm.py). One line of JSON.
#include "commands.hpp"
#include "memory.hpp"
#include "progress.hpp"
#include "setup.hpp"

#include <lora/model/model_optimizer.hpp>
#include <lora/optim/adamw.hpp>
#include <lora/optim/per_factor.hpp>

#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <utility>
#include <vector>

namespace llm {

int bench(const BenchOptions& options) {
  use_threads(options.model);
  const auto weights = Weights::open(options.model.model);
  const auto model = open_model(weights, options.model.storage(), options.recompute ? Keep::Inputs : Keep::All);
  auto set = layers_of(*model);
  auto modules = linear_layers(weights.config());
  modules.pop_back();
  const auto plan = lora::plan(modules, {.pattern = "all-linear", .lora = {.rank = options.rank, .alpha = 16}});
  put_in(set, lora::zero_adapter<float>(plan.layers));
  lora::Random random(1);
  model->start(Start::KaimingUniform, {}, random);
  lora::ModelOptimizer optimizer{lora::PerFactor{lora::AdamW{.learning_rate = 1e-4}}, set};

  Batch batch{{}, {}, options.length};
  for (Index t = 0; t < options.sequences * options.length; ++t) {
    batch.tokens.push_back(static_cast<Token>(random.below(weights.config().vocab_size)));
  }
  batch.targets = batch.tokens;
  std::rotate(batch.targets.begin(), batch.targets.begin() + 1, batch.targets.end());
  const auto step = [&] {
    set.zero_gradients();
    model->train(batch, set, 1 / static_cast<double>(batch.size()));
    set.clip(1);
    optimizer.step(set);
  };
  for (int warm = 0; warm < 2; ++warm) step();
  const Profile before = model->profile();
  std::vector<double> seconds;
  for (Index i = 0; i < options.steps; ++i) {
    const double begin = steady_seconds();
    step();
    seconds.push_back(steady_seconds() - begin);
  }
  const Profile after = model->profile();
  std::vector<double> sorted = seconds;
  std::sort(sorted.begin(), sorted.end());
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  const auto steps = static_cast<double>(options.steps);
  const double products = (after.products - before.products) / steps, head = (after.head - before.head) / steps;
  const double attention = (after.attention - before.attention) / steps, all = sorted[sorted.size() / 2];
  std::printf("{\"tokens_per_second\": %.3f, \"peak_bytes\": %lld, \"seconds\": [",
              static_cast<double>(batch.size()) / all, static_cast<long long>(usage.ru_maxrss) * 1024);
  for (std::size_t i = 0; i < seconds.size(); ++i) std::printf("%s%.4f", i > 0 ? ", " : "", seconds[i]);
  std::printf("], \"profile\": {\"products\": %.4f, \"attention\": %.4f, \"head\": %.4f, \"rest\": %.4f}}\n", products,
              attention, head, std::max(0.0, all - products - attention - head));
  return 0;
}

}  // namespace llm
