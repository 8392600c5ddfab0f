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
#include <optional>
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
  Index start_images = 128;  // of the training set, for LoRA-GA's gradient

  lora::LoraConfig adapter() const { return {.rank = rank, .alpha = alpha, .scaling = lora::Scaling::RankStabilized}; }
  lora::Schedule schedule() const {
    return {.warmup_steps = warmup, .total_steps = steps, .tail = lora::Schedule::Tail::Cosine};
  }
};

using Base = Network<DenseLayer>;

/// One training: the loss on the whole training set before and after every step, and the score on unseen images.
struct Run {
  std::vector<double> training_loss;  // steps + 1 values; in a sweep only the last one
  std::vector<double> alignment;      // a value a step, of adapters; none in a sweep
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

/// How the factors start: A random and B = 0, LoRA-GA, PiSSA.
enum class Start { Kaiming, GradientSvd, PrincipalSvd };

/// LoRA on every layer of the base, the weights of which are only viewed.
template <class FactorMethod>
class AdapterStudent {
 public:
  AdapterStudent(const Base& base, const Task& task, const Settings& settings, Start start, const FactorMethod& method,
                 std::uint64_t seed)
      : network(adapt(base, task, settings, start, seed)) {
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
  static Network<Layer> adapt(const Base& base, const Task& task, const Settings& settings, Start start,
                              std::uint64_t seed) {
    lora::Random random(seed);
    const auto images = Batches(task.train, settings.start_images, seed).next();
    Base copy = base;
    if (start == Start::GradientSvd) copy.differentiate(images);
    std::vector<Layer> layers;
    for (std::size_t k = 0; k < base.layers.size(); ++k) {
      const auto& dense = base.layers[k];
      Layer layer(dense.W, settings.adapter());
      layer.set_bias({dense.bias.data(), static_cast<std::size_t>(dense.bias.size())});
      switch (start) {
        case Start::Kaiming:
          layer.initialize(lora::KaimingUniform{}, random);
          break;
        case Start::GradientSvd:
          layer.initialize(lora::GradientSvd{}, copy.weight_gradient(k), random);
          break;
        case Start::PrincipalSvd:
          layer.initialize(lora::PrincipalSvd{}, random);
          break;
      }
      layers.push_back(std::move(layer));
    }
    return Network<Layer>(std::move(layers));
  }

  std::vector<lora::Optimizer<FactorMethod, float>> optimizers_;
};

/// Beside each layer of an adapter, the step that full fine-tuning by AdamW would take on the same gradient.
class FullStepBeside {
 public:
  template <class Layer>
  explicit FullStepBeside(const Network<Layer>& network) : meters_(network.layers.size()) {
    for (const auto& layer : network.layers) {
      wanted_.emplace_back(layer.in_features(), layer.out_features());
      states_.push_back(rule_.init(wanted_.back()));
    }
  }
  /// After `differentiate`, before the step.
  template <class Layer>
  void before(const Network<Layer>& network) {
    for (std::size_t k = 0; k < meters_.size(); ++k) {
      meters_[k].begin(network.layers[k].factors());
      wanted_[k].setZero();
      rule_.step(states_[k], wanted_[k], lora::to_dense(network.weight_gradient(k)));
    }
  }
  /// After the step: the cosine between the two steps of the weight, as a mean over the layers.
  template <class Layer>
  double after(const Network<Layer>& network) const {
    double mean = 0;
    for (std::size_t k = 0; k < meters_.size(); ++k) {
      const auto& layer = network.layers[k];
      mean += meters_[k].measure(layer.factors(), layer.scale(), lora::ViewBase(wanted_[k])).cosine;
    }
    return mean / static_cast<double>(meters_.size());
  }

 private:
  lora::FullFineTuning<lora::AdamW> rule_{{.learning_rate = 1}};
  std::vector<lora::AlignmentMeter<float>> meters_;
  std::vector<lora::ColMatrix<float>> wanted_;
  std::vector<lora::FullFineTuning<lora::AdamW>::State<float>> states_;
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
  constexpr bool has_factors = requires { student.network.layers.front().factors(); };
  std::optional<FullStepBeside> beside;
  if constexpr (has_factors) {
    if (record == Record::EveryStep) beside.emplace(student.network);
  }
  if (record == Record::EveryStep) note();
  for (Index step = 0; step < settings.steps; ++step) {
    const auto batch = batches.next();
    student.network.differentiate(batch);
    try {
      if constexpr (has_factors) {
        if (beside) beside->before(student.network);
      }
      student.step(schedule(step));
      if constexpr (has_factors) {
        if (beside) run.alignment.push_back(beside->after(student.network));
      }
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
                      const Settings& settings, Start start, Make make) {
  const auto trainable = AdapterStudent(base, task, settings, start, make(usual_rate), 0).trainable();
  return {std::move(name), std::move(key), trainable, usual_rate,
          [&base, &task, &settings, start, make](double rate, std::uint64_t seed, Record record) {
            AdapterStudent student(base, task, settings, start, make(rate), seed);
            return train(student, task, settings, seed, record);
          }};
}

/// Every method that the library has. Plain LoRA stands first: the others are measured against it.
inline std::vector<Method> all_methods(const Base& base, const Task& task, const Settings& settings) {
  const auto adapter = [&](std::string name, std::string key, double usual_rate, Start start, auto make) {
    return adapter_method(std::move(name), std::move(key), usual_rate, base, task, settings, start, make);
  };
  const auto adamw = [](double rate) { return lora::PerFactor{lora::AdamW{.learning_rate = rate}}; };
  const auto pro = [](lora::LoraPro::Mode mode) {
    return [mode](double rate) { return lora::LoraPro{.learning_rate = rate, .mode = mode}; };
  };
  using Mode = lora::LoraPro::Mode;
  return {
      adapter("LoRA", "lora", 1e-2, Start::Kaiming, adamw),
      adapter("LoRA+ (ratio 16)", "lora+", 2e-3, Start::Kaiming,
              [](double rate) {
                return lora::LoraPlus{lora::AdamW{.learning_rate = rate}, 16};
              }),
      adapter("LoRA-GA", "ga", 5e-3, Start::GradientSvd, adamw),
      adapter("PiSSA", "pissa", 5e-3, Start::PrincipalSvd, adamw),
      adapter("LoRA-Pro, full", "pro", 2e-3, Start::Kaiming, pro(Mode::Full)),
      adapter("LoRA-Pro, factored", "pro-factored", 2e-3, Start::Kaiming, pro(Mode::Factored)),
      adapter("LoRA-Pro, efficient", "pro-efficient", 1e-2, Start::Kaiming, pro(Mode::Efficient)),
      adapter("LoRA-GA + LoRA-Pro", "ga+pro", 2e-3, Start::GradientSvd, pro(Mode::Factored)),
      adapter("Riemannian", "riemannian", 5e-3, Start::Kaiming,
              [](double rate) { return lora::Riemannian{lora::AdamW{.learning_rate = rate}}; }),
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
