// SPDX-License-Identifier: MIT
// The comparison: one pre-trained network, one new task, every method at its own tuned learning rate.
#pragma once

#include "dataset.hpp"
#include "network.hpp"

#include <lora/lora.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace digits {

struct Settings {
  int seeds = 10;
  int sweep_seeds = 10;
  Index steps = 60, warmup = 10, batch = 32;
  Index rank = 4;
  double alpha = 8;
  int rates_per_decade = 6;
  Index pretrain_steps = 150;

  lora::LoraConfig adapter() const { return {.rank = rank, .alpha = alpha, .scaling = lora::Scaling::RankStabilized}; }
  lora::Schedule schedule() const {
    return {.warmup_steps = warmup, .total_steps = steps, .tail = lora::Schedule::Tail::Cosine};
  }
};

using Base = Network<DenseLayer>;

/// One training: the loss on the whole training set before and after every step, and the score on unseen images.
struct Run {
  std::vector<double> training_loss;  // steps + 1 values; in a sweep only the last one
  Score test;
  double final_loss() const { return training_loss.back(); }
};

enum class Record { EveryStep, LastStep };

/// A way to adapt the base to the new task at a given learning rate and seed.
struct Method {
  std::string name;
  std::string key;  // for --methods
  Index trainable = 0;
  double usual_rate = 0;  // where the sweep begins
  std::function<Run(double rate, std::uint64_t seed, Record)> run;
};

// ---- what is trained, and how it steps ----------------------------------------------------------------------------

/// LoRA on every layer of the base, the weights of which are only viewed.
template <class FactorMethod>
class AdapterStudent {
 public:
  AdapterStudent(const Base& base, const Settings& settings, const FactorMethod& method, lora::Random& random)
      : network(adapt(base, settings, random)) {
    for (const auto& layer : network.layers) optimizers_.emplace_back(method, layer);
  }
  void step(double rate) {
    for (std::size_t k = 0; k < network.layers.size(); ++k)
      optimizers_[k].step(network.layers[k], network.gradients[k], rate);
  }
  Index trainable() const {
    Index count = 0;
    for (const auto& layer : network.layers) count += layer.factors().parameters();
    return count;
  }

  using Layer = lora::LoraLinear<lora::ViewBase<float>>;
  Network<Layer> network;

 private:
  static Network<Layer> adapt(const Base& base, const Settings& settings, lora::Random& random) {
    std::vector<Layer> layers;
    for (const auto& dense : base.layers) {
      Layer layer(dense.W, settings.adapter());
      layer.set_bias({dense.bias.data(), static_cast<std::size_t>(dense.bias.size())});
      layer.initialize(lora::KaimingUniform{}, random);
      layers.push_back(std::move(layer));
    }
    return Network<Layer>(std::move(layers));
  }

  std::vector<lora::Optimizer<FactorMethod, float>> optimizers_;
};

/// Every weight of a copy of the base; the biases too where asked for (they are frozen beside adapters).
class FullStudent {
 public:
  enum class Biases { Frozen, Trained };

  FullStudent(Base base, double rate, Biases biases)
      : network(std::move(base)), rule_{{.learning_rate = rate}}, biases_(biases) {
    for (const auto& layer : network.layers) {
      weight_states_.push_back(rule_.init(layer.W));
      bias_states_.push_back(rule_.init(layer.bias));
    }
  }
  void step(double rate) {
    for (std::size_t k = 0; k < network.layers.size(); ++k) {
      rule_.step(weight_states_[k], network.layers[k].W, network.gradients[k].W, rate);
      if (biases_ == Biases::Trained)
        rule_.step(bias_states_[k], network.layers[k].bias, network.gradients[k].bias, rate);
    }
  }
  Index trainable() const {
    Index count = 0;
    for (const auto& layer : network.layers) count += layer.W.size();
    return count;
  }

  Base network;

 private:
  using Rule = lora::FullFineTuning<lora::AdamW>;
  Rule rule_;
  Biases biases_;
  std::vector<Rule::State<float>> weight_states_, bias_states_;
};

template <class Student>
Run train(Student& student, const Task& task, const Settings& settings, std::uint64_t seed, Record record) {
  Run run;
  const auto schedule = settings.schedule();
  Batches batches(task.train, settings.batch, seed);
  const auto note = [&] { run.training_loss.push_back(student.network.evaluate(task.train).loss); };
  if (record == Record::EveryStep) note();
  for (Index step = 0; step < settings.steps; ++step) {
    student.network.differentiate(batches.next());
    try {
      student.step(schedule(step));
    } catch (const lora::NumericalError&) {  // diverged: the curve stays at infinity
      run.training_loss.resize(record == Record::EveryStep ? static_cast<std::size_t>(settings.steps) + 1 : 1,
                               std::numeric_limits<double>::infinity());
      return run;
    }
    if (record == Record::EveryStep || step + 1 == settings.steps) note();
  }
  run.test = student.network.evaluate(task.test);
  return run;
}

/// 64-256-256-10, trained on the first task.
inline Base pretrain(const Task& task, Index steps) {
  lora::Random random(2718);
  std::vector<DenseLayer> layers;
  for (const auto& [n, m] : {std::pair{pixel_count, Index{256}}, {256, 256}, {256, class_count}})
    layers.emplace_back(n, m, random);
  FullStudent student(Base(std::move(layers)), 1e-3, FullStudent::Biases::Trained);
  train(student, task, {.steps = steps, .warmup = 20, .batch = 64}, 31, Record::LastStep);
  return student.network;
}

/// A method that steps the factors of adapters; `make(rate)` gives the factor optimizer at a learning rate.
template <class Make>
Method adapter_method(std::string name, std::string key, double usual_rate, const Base& base, const Task& task,
                      const Settings& settings, Make make) {
  lora::Random any(0);
  const auto trainable = AdapterStudent(base, settings, make(usual_rate), any).trainable();
  return {std::move(name), std::move(key), trainable, usual_rate,
          [&base, &task, &settings, make](double rate, std::uint64_t seed, Record record) {
            lora::Random random(seed);
            AdapterStudent student(base, settings, make(rate), random);
            return train(student, task, settings, seed, record);
          }};
}

/// Every method that the library has. Plain LoRA stands first: the others are measured against it.
inline std::vector<Method> all_methods(const Base& base, const Task& task, const Settings& settings) {
  using lora::AdamW;
  return {
      adapter_method("LoRA", "lora", 1e-2, base, task, settings,
                     [](double rate) { return lora::PerFactor{AdamW{.learning_rate = rate}}; }),
      adapter_method("LoRA+ (ratio 16)", "lora+", 2e-3, base, task, settings,
                     [](double rate) {
                       return lora::LoraPlus{AdamW{.learning_rate = rate}, 16};
                     }),
      {"full fine-tuning", "full", FullStudent(base, 1e-3, FullStudent::Biases::Frozen).trainable(), 2e-3,
       [&base, &task, &settings](double rate, std::uint64_t seed, Record record) {
         FullStudent student(base, rate, FullStudent::Biases::Frozen);
         return train(student, task, settings, seed, record);
       }},
  };
}

// ---- tuning and comparing ------------------------------------------------------------------------------------------

/// Final training loss (mean over the sweep's seeds) by learning rate.
using Sweep = std::map<double, double>;

/// A rate of the grid: 10^(index / rates_per_decade).
inline double grid_rate(int index, const Settings& settings) {
  return std::pow(10.0, static_cast<double>(index) / settings.rates_per_decade);
}

/// Every second rate within a decade of the usual one, then from the best outwards until both of its sides have been
/// worse twice. `tick` is called after each rate. Seeds differ from those of the final runs.
inline Sweep tune(const Method& method, const Settings& settings, const std::function<void()>& tick) {
  std::map<int, double> losses;
  const auto loss_at = [&](int index) {
    const auto [place, fresh] = losses.try_emplace(index, 0.0);
    if (!fresh) return place->second;
    for (int seed = 0; seed < settings.sweep_seeds; ++seed) {
      const double loss =
          method.run(grid_rate(index, settings), 1000 + static_cast<std::uint64_t>(seed), Record::LastStep)
              .final_loss();
      place->second += (std::isfinite(loss) ? loss : std::numeric_limits<double>::infinity()) / settings.sweep_seeds;
    }
    tick();
    return place->second;
  };
  const int usual = static_cast<int>(std::lround(std::log10(method.usual_rate) * settings.rates_per_decade));
  int best = usual;
  loss_at(best);
  for (int index = usual - settings.rates_per_decade; index <= usual + settings.rates_per_decade; index += 2) {
    if (loss_at(index) < losses.at(best)) best = index;
  }
  for (bool moved = true; moved;) {
    moved = false;
    for (const int index : {best - 2, best - 1, best + 1, best + 2}) {
      if (loss_at(index) < losses.at(best)) {
        best = index;
        moved = true;
        break;
      }
    }
  }
  Sweep sweep;
  for (const auto& [index, loss] : losses) sweep[grid_rate(index, settings)] = loss;
  return sweep;
}

inline double best_rate(const Sweep& sweep) {
  return std::min_element(sweep.begin(), sweep.end(), [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

struct Result {
  const Method* method = nullptr;
  Sweep sweep;
  double rate = 0;
  std::vector<Run> runs;              // one a seed
  std::vector<double> steps_to_lora;  // one a seed: first step at or below plain LoRA's final loss of that seed
  int reached = 0;                    // in how many seeds it was reached at all
};

/// Fills `steps_to_lora`; a run that never gets there counts with all its steps, and is reported.
inline void measure_against(const Result& lora_result, Result& result) {
  for (std::size_t seed = 0; seed < result.runs.size(); ++seed) {
    const auto& curve = result.runs[seed].training_loss;
    const double goal = lora_result.runs[seed].final_loss();
    const auto hit = std::find_if(curve.begin(), curve.end(), [&](double loss) { return loss <= goal; });
    result.reached += hit != curve.end() ? 1 : 0;
    result.steps_to_lora.push_back(
        static_cast<double>(std::min<std::ptrdiff_t>(hit - curve.begin(), std::ssize(curve) - 1)));
  }
}

}  // namespace digits
