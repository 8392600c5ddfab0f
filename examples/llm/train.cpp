// SPDX-License-Identifier: MIT
// `llm train`: fine-tunes an adapter on a text.
#include "batches.hpp"
#include "commands.hpp"
#include "folder.hpp"
#include "interrupt.hpp"
#include "log.hpp"
#include "memory.hpp"
#include "method.hpp"
#include "plot.hpp"
#include "progress.hpp"
#include "setup.hpp"
#include "text_data.hpp"
#include "validation.hpp"

#include <lora/core/error.hpp>
#include <lora/core/fields.hpp>
#include <lora/core/threads.hpp>
#include <lora/io/checkpoint.hpp>
#include <lora/io/crc64.hpp>
#include <lora/io/model_files.hpp>
#include <lora/model/model_optimizer.hpp>
#include <lora/model/targets.hpp>
#include <lora/optim/schedule.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace llm {
namespace {

constexpr const char* portable_name = "adapter-portable";
constexpr double most_steps = 1e9;

/// A checksum of the sizes and of some embeddings: another model gives another one.
std::uint64_t identity_of(const Weights& weights) {
  const LlamaConfig& config = weights.config();
  std::vector<float> row(static_cast<std::size_t>(config.hidden_size));
  lora::io::Crc64 sum;
  for (Index token = 0; token < config.vocab_size; token += std::max<Index>(1, config.vocab_size / 16)) {
    weights.row("model.embed_tokens.weight", token, row);
    sum.update(std::as_bytes(std::span<const float>(row)));
  }
  const std::array sizes{config.num_hidden_layers, config.intermediate_size, config.vocab_size};
  sum.update(std::as_bytes(std::span(sizes)));
  return sum.value();
}

/// What decides how a run goes on, beside what layers, optimizer and batches compare by themselves.
struct RunIdentity {
  std::uint64_t model = 0;
  std::int64_t method = 0, bf16_base = 0, threads = 1, accumulate = 1;
  double clip = 1;

  RunIdentity(const TrainOptions& options, const Method& chosen, const Weights& weights)
      : model(identity_of(weights)),
        method(&chosen - methods.data()),
        bf16_base(options.model.storage() == Storage::Bf16 ? 1 : 0),
        threads(lora::threads()),
        accumulate(options.accumulate),
        clip(options.clip) {}

  static void fields(auto& self, const auto& visit) {
    visit("model", lora::fixed(self.model));
    visit("method", lora::fixed(self.method));
    visit("bf16_base", lora::fixed(self.bf16_base));
    visit("threads", lora::fixed(self.threads));
    visit("accumulate", lora::fixed(self.accumulate));
    visit("clip", lora::fixed(self.clip));
  }
};

/// What the command line says, in the library's terms.
struct Setup {
  const Method& method;
  double learning_rate;
  lora::Schedule schedule;
  lora::TargetPlan plan;
  Index steps;
  RunIdentity identity;
};

lora::Schedule schedule_of(const TrainOptions& options, Index steps) {
  const auto warmup = static_cast<Index>(std::ceil(options.warmup * static_cast<double>(steps)));
  lora::Schedule schedule{.warmup_steps = std::min(warmup, steps - 1), .total_steps = steps};
  using Tail = lora::Schedule::Tail;
  schedule.tail = options.schedule == "cosine"   ? Tail::Cosine
                  : options.schedule == "linear" ? Tail::Linear
                                                 : Tail::Constant;
  return schedule;
}

lora::TargetPlan plan_of(const TrainOptions& options, const LlamaConfig& config, const Method& method) {
  auto modules = linear_layers(config);
  modules.pop_back();  // the head is frozen
  lora::TargetConfig targets{.targets = options.targets,
                             .lora = {.rank = options.rank, .alpha = options.alpha, .scaling = method.scaling}};
  if (options.targets.empty()) targets.pattern = "all-linear";
  return lora::plan(modules, targets);
}

Index steps_of(const TrainOptions& options, Index sequences) {
  if (options.steps) return *options.steps;
  const auto a_step = static_cast<double>(options.batch * options.accumulate);
  const double steps = std::ceil(options.epochs * static_cast<double>(sequences) / a_step);
  lora::detail::require<lora::ConfigError>(steps <= most_steps, "--epochs: must make at most ", most_steps,
                                           " steps, got ", steps);
  return std::max<Index>(1, static_cast<Index>(steps));
}

/// A run in progress: model, adapter, optimizer and the place in the data. All of it but the data is in a checkpoint.
template <class Optimizer>
class Training {
 public:
  Training(const TrainOptions& options, const Setup& setup, Model& model, lora::AdapterSet<float>& set,
           const Sequences& data, Optimizer optimizer)
      : model_(model),
        set_(set),
        schedule_(setup.schedule),
        identity_(setup.identity),
        batches_(data, options.batch, options.seed),
        optimizer_(std::move(optimizer), set),
        micro_(static_cast<std::size_t>(options.accumulate)) {
    model.add_parts(checkpoint_);
    for (const auto& layer : set.layers())
      checkpoint_.add("states/" + layer.name, optimizer_.state(adapter_name, layer.name));
    checkpoint_.add("optimizer", optimizer_.method()).add("schedule", schedule_).add("run", identity_);
    checkpoint_.add("batches", batches_).add("step", step_).add("tokens", tokens_);
  }

  /// One step of the optimizer; the mean loss before it.
  double step() {
    Index counted = 0;
    for (Batch& batch : micro_) {
      batch = batches_.next();
      counted += batch.counted();
      tokens_ += batch.size();
    }
    set_.zero_gradients();
    double sum = 0;
    const double weight = 1 / static_cast<double>(std::max<Index>(counted, 1));
    for (const Batch& batch : micro_) sum += model_.train(batch, set_, weight);
    lora::detail::require<lora::NumericalError>(std::isfinite(sum), "train: the loss must be finite, got ", sum,
                                                " at step ", step_ + 1, "; try a lower --rate");
    if (identity_.clip > 0) set_.clip(identity_.clip);
    optimizer_.step(set_, schedule_(step_));
    ++step_;
    return sum * weight;
  }

  Index steps() const { return step_; }
  Index tokens() const { return tokens_; }
  double learning_rate() const { return rate_of(optimizer_.method()) * schedule_(std::max<Index>(step_ - 1, 0)); }
  void write(const std::filesystem::path& path) const { checkpoint_.write(path); }
  void restore(const std::filesystem::path& path) { checkpoint_.restore(path); }

 private:
  static double rate_of(const lora::LoraPro& method) { return method.learning_rate; }
  static double rate_of(const auto& method) { return method.rule.learning_rate; }

  Model& model_;
  lora::AdapterSet<float>& set_;
  lora::Schedule schedule_;
  RunIdentity identity_;
  Batches batches_;
  lora::ModelOptimizer<Optimizer, float> optimizer_;
  std::vector<Batch> micro_;
  Index step_ = 0, tokens_ = 0;
  lora::Checkpoint checkpoint_;
};

void save(const RunFolder& folder, const TrainOptions& options, const Model& model,
          const lora::AdapterSet<float>& set) {
  const auto state = set.adapter(adapter_name);
  const auto adapter = lora::peft::adapter_of(
      state, {.base_model_name_or_path = options.model.model.string(), .task_type = "CAUSAL_LM"});
  const auto put = [](const std::filesystem::path& path, const auto& write) {
    StagedFolder staged(path, {"adapter_config.json", "adapter_model.safetensors"});
    write(staged.path());
    staged.commit();
  };
  put(folder.adapter(), [&](const auto& path) { lora::peft::save(path, adapter); });
  put(folder.path() / portable_name, [&](const auto& path) { lora::peft::save_portable(path, adapter); });
  lora::gguf::save_adapter(folder.gguf(), lora::gguf::modules_of(state), gguf_base(model.config()));
}

template <class Optimizer>
int run(const TrainOptions& options, const Setup& setup, const Split& data, Model& model, RunFolder& folder,
        Optimizer optimizer) {
  auto set = layers_of(model);
  put_in(set, lora::zero_adapter<float>(setup.plan.layers));
  Training training(options, setup, model, set, data.training, std::move(optimizer));
  const Interrupt interrupt;
  folder.begin();
  if (options.resume) {
    training.restore(folder.checkpoint());
  } else {
    std::vector<Batch> batches;
    Batches source(data.training, options.batch, options.seed);
    for (Index i = 0; setup.method.uses_gradients() && i < options.gradient_batches; ++i)
      batches.push_back(source.next());
    lora::Random random(options.seed);
    model.start(setup.method.start, batches, random);
    training.write(folder.checkpoint());
  }

  RunLog log = options.resume ? RunLog::resume(folder.log(), training.steps()) : RunLog(folder.log());
  const double begin = steady_seconds() - (log.last() ? log.last()->seconds : 0);
  Progress progress(std::cerr, setup.steps, training.steps(), Display::of(STDERR_FILENO));
  const auto validate = [&] {
    const double loss = mean_loss(model, data.validation, options.batch);
    char text[96];
    std::snprintf(text, sizeof text, "step %lld  validation loss %.4f, perplexity %.3f",
                  static_cast<long long>(training.steps()), loss, std::exp(loss));
    progress.note(text);
    return loss;
  };
  if (training.steps() == 0 && !log.last())
    log.add({.validation_loss = validate(), .seconds = steady_seconds() - begin});
  const Index every = options.evaluate_every > 0 ? options.evaluate_every : setup.steps;
  while (training.steps() < setup.steps && !interrupt.requested()) {
    const double start = steady_seconds();
    const Index before = training.tokens();
    const double loss = training.step();
    const double seconds = steady_seconds() - start;
    const Index tokens = training.tokens() - before;
    progress.step({training.steps(), loss, training.learning_rate(), tokens, seconds});
    LogRow row{.step = training.steps(),
               .tokens = training.tokens(),
               .learning_rate = training.learning_rate(),
               .training_loss = loss,
               .tokens_per_second = static_cast<double>(tokens) / seconds};
    const bool last = training.steps() == setup.steps;
    if (last || training.steps() % every == 0) row.validation_loss = validate();
    row.seconds = steady_seconds() - begin;
    log.add(row);
    if (last || training.steps() % options.save_every == 0 || interrupt.requested())
      training.write(folder.checkpoint());
  }
  progress.finish();
  if (training.steps() < setup.steps) {
    std::printf("interrupted after step %lld of %lld; go on with --resume\n", static_cast<long long>(training.steps()),
                static_cast<long long>(setup.steps));
    return 128 + interrupt.signal();
  }
  save(folder, options, model, set);
  std::printf("written: %s, %s, %s\n", folder.adapter().c_str(), (folder.path() / portable_name).c_str(),
              folder.gguf().c_str());
  const auto picture = plot_losses(folder.path(), RunFolder::plot_name, {{options.method, read_log(folder.log())}},
                                   options.model.model.filename().string() + ", " + options.text.filename().string());
  if (!picture.empty()) std::printf("picture: %s\n", picture.c_str());
  return 0;
}

}  // namespace

int train(const TrainOptions& options) {
  use_threads(options.model);
  const Method& method = find_method(options.method);
  const Existing existing = options.resume      ? Existing::Resume
                            : options.overwrite ? Existing::Overwrite
                                                : Existing::Refuse;
  RunFolder folder(options.out, existing, {portable_name});
  const auto weights = Weights::open(options.model.model);
  require_length(options.length, weights.config());
  const auto tokenizer = open_tokenizer(weights, options.model.model);
  auto text = read_text_data(options.text, options.length, encoder_of(tokenizer));
  std::printf("%s\n", text.summary().c_str());
  const Split data = split(std::move(text), options.validation, options.seed);
  const Index steps = steps_of(options, data.training.size());
  const Setup setup{method,
                    options.learning_rate.value_or(method.learning_rate),
                    schedule_of(options, steps),
                    plan_of(options, weights.config(), method),
                    steps,
                    RunIdentity(options, method, weights)};
  return with_optimizer(method, setup.learning_rate, options.weight_decay, [&](const auto& optimizer) {
    const auto memory = training_memory(weights.config(), options.model.storage(), options.keep(), setup.plan.layers,
                                        options.batch * options.length, optimizer, method);
    require_memory(memory, available_memory());
    std::printf("%lld sequences of %lld tokens to train on, %lld to validate; %lld steps of %lld\nmemory %s\n",
                static_cast<long long>(data.training.size()), static_cast<long long>(options.length),
                static_cast<long long>(data.validation.size()), static_cast<long long>(steps),
                static_cast<long long>(options.batch * options.accumulate), memory.describe().c_str());
    std::fflush(stdout);
    const auto model = open_model(weights, options.model.storage(), options.keep());
    return run(options, setup, data, *model, folder, optimizer);
  });
}

}  // namespace llm
