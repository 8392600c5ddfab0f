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
#include <lora/io/checkpoint.hpp>
#include <lora/io/model_files.hpp>
#include <lora/model/model_optimizer.hpp>
#include <lora/model/targets.hpp>
#include <lora/optim/schedule.hpp>

#include <cmath>
#include <cstdio>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

namespace llm {
namespace {

constexpr const char* portable_name = "adapter-portable";

/// What the command line says, in the library's terms.
struct Setup {
  const Method& method;
  double learning_rate;
  lora::Schedule schedule;
  lora::TargetPlan plan;
  Index steps;
};

lora::Schedule schedule_of(const TrainOptions& options, Index steps) {
  lora::Schedule schedule{.warmup_steps = static_cast<Index>(std::ceil(options.warmup * static_cast<double>(steps))),
                          .total_steps = steps};
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
  return std::max<Index>(1, static_cast<Index>(std::ceil(options.epochs * static_cast<double>(sequences) / a_step)));
}

/// What a step uses beside the optimizer; a run that goes on must use the same.
struct StepOptions {
  Index accumulate = 1;
  double clip = 1;

  static void fields(auto& self, const auto& visit) {
    visit("accumulate", lora::fixed(self.accumulate));
    visit("clip", lora::fixed(self.clip));
  }
};

/// A run in progress: model, adapter, optimizer and the place in the data. All of it but the data is in a checkpoint.
template <class Optimizer>
class Training {
 public:
  Training(const TrainOptions& options, const Setup& setup, Model& model, lora::AdapterSet<float>& set,
           const Sequences& data, Optimizer optimizer)
      : model_(model),
        set_(set),
        schedule_(setup.schedule),
        options_{options.accumulate, options.clip},
        batches_(data, options.batch, options.seed),
        optimizer_(std::move(optimizer), set),
        micro_(static_cast<std::size_t>(options.accumulate)) {
    model.add_parts(checkpoint_);
    for (const auto& layer : set.layers())
      checkpoint_.add("states/" + layer.name, optimizer_.state(adapter_name, layer.name));
    checkpoint_.add("optimizer", optimizer_.method()).add("schedule", schedule_).add("options", options_);
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
    if (options_.clip > 0) set_.clip(options_.clip);
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
  StepOptions options_;
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
  lora::peft::save(folder.adapter(), adapter);
  lora::peft::save_portable(folder.path() / portable_name, adapter);
  lora::gguf::save_adapter(folder.gguf(), lora::gguf::modules_of(state), gguf_base(model.config()));
}

template <class Optimizer>
int run(const TrainOptions& options, const Setup& setup, const Split& data, Model& model, RunFolder& folder,
        Optimizer optimizer) {
  auto set = layers_of(model);
  put_in(set, lora::zero_adapter<float>(setup.plan.layers));
  Training training(options, setup, model, set, data.training, std::move(optimizer));
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
  }

  const Interrupt interrupt;
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
  if (training.steps() == 0) log.add({.validation_loss = validate(), .seconds = steady_seconds() - begin});
  const Index every = options.evaluate_every > 0 ? options.evaluate_every : setup.steps;
  while (training.steps() < setup.steps && !interrupt.requested()) {
    const double start = steady_seconds();
    const Index before = training.tokens();
    const double loss = training.step();
    const double seconds = steady_seconds() - start;
    lora::detail::require<lora::NumericalError>(std::isfinite(loss), "train: the loss must be finite, got ", loss,
                                                " at step ", training.steps(), "; try a lower --rate");
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
  const auto picture = plot_losses(folder.path(), RunFolder::plot_name, {{options.method, read_log(folder.log())}},
                                   options.model.model.filename().string() + ", " + options.text.filename().string());
  std::printf("written: %s, %s, %s%s\n", folder.adapter().c_str(), (folder.path() / portable_name).c_str(),
              folder.gguf().c_str(), picture.empty() ? "" : (", " + picture.string()).c_str());
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
  const Setup setup{method, options.learning_rate.value_or(method.learning_rate), schedule_of(options, steps),
                    plan_of(options, weights.config(), method), steps};
  return with_optimizer(method, setup.learning_rate, options.weight_decay, [&](const auto& optimizer) {
    const auto memory = training_memory(weights.config(), options.model.storage(), options.keep(), setup.plan.layers,
                                        options.batch * options.length, optimizer, method.has_offset());
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
