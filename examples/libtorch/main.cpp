// SPDX-License-Identifier: MIT
// LibTorch as the trainer: our layer under its autograd, our optimizers on its tensors, against LoRA in LibTorch alone.
#include "checks.hpp"
#include "lora_module.hpp"
#include "network.hpp"
#include "optimizer_views.hpp"
#include "pure_lora.hpp"

#include <lora/lora.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>

using lora_torch::FactorStep, lora_torch::LoraModule, lora_torch::WeightStep;

namespace setting {
constexpr lora::LoraConfig config{.rank = 4, .alpha = 8};
constexpr double scale = 2;  // alpha / r
constexpr double learning_rate = 2e-3, ratio = 4, decay = 0.01;
constexpr double tolerance = 1e-4;
const lora::LoraPlus method{lora::AdamW{.learning_rate = learning_rate, .weight_decay = decay}, ratio};
}  // namespace setting

/// Three adapters with the same start at every call, on layers of their own.
std::array<LoraModule, 3> adapters() {
  const auto layers = pretrained();
  lora::Random random{7};
  const auto adapted = [&](std::size_t i) { return LoraModule(layers[i], setting::config, random); };
  auto first = adapted(0), middle = adapted(1), last = adapted(2);
  return {first, middle, last};
}

std::vector<double> pure(const std::vector<Batch>& batches) {
  const auto layers = pretrained();
  const auto start = adapters();
  const auto lora = [&](std::size_t i) { return PureLora{layers[i], start[i]->A, start[i]->B, setting::scale}; };
  const std::array network{lora(0), lora(1), lora(2)};
  auto optimizer = lora_plus({network[0].A, network[1].A, network[2].A}, {network[0].B, network[1].B, network[2].B},
                             setting::learning_rate, setting::ratio, setting::decay);
  return train({network[0], network[1], network[2]}, batches, [&] {
    optimizer.step();
    optimizer.zero_grad();
  });
}

// [runs]
std::vector<double> our_layer(const std::vector<Batch>& batches) {
  const auto layers = adapters();
  auto optimizer = lora_plus({layers[0]->A, layers[1]->A, layers[2]->A}, {layers[0]->B, layers[1]->B, layers[2]->B},
                             setting::learning_rate, setting::ratio, setting::decay);
  return train({layers[0], layers[1], layers[2]}, batches, [&] {
    optimizer.step();
    optimizer.zero_grad();
  });
}

std::vector<double> our_layer_and_optimizer(const std::vector<Batch>& batches) {
  const auto layers = adapters();
  std::vector<FactorStep<lora::LoraPlus<>>> optimizers;
  for (const auto& layer : layers) optimizers.emplace_back(setting::method, layer->A, layer->B, setting::scale);
  return train({layers[0], layers[1], layers[2]}, batches, [&] {
    for (auto& optimizer : optimizers) optimizer.step();
    for (auto layer : layers) layer->zero_grad();
  });
}

std::vector<double> our_optimizer_on_weights(const std::vector<Batch>& batches) {
  const auto start = adapters();
  const auto layers = pretrained();  // torch's own layers, with gradients of their weights
  std::vector<WeightStep<lora::LoraPlus<>>> optimizers;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    layers[i]->bias.requires_grad_(false);
    optimizers.emplace_back(setting::method, layers[i]->weight, start[i]->layer().factors(), setting::scale);
  }
  return train({layers[0], layers[1], layers[2]}, batches, [&] {
    for (auto& optimizer : optimizers) optimizer.step();
    for (auto layer : layers) layer->zero_grad();
  });
}
// [/runs]

int main() {
  at::set_num_threads(1);  // small products; see README.md on the two libraries' threads
  const auto batches = make_batches();
  const auto reference = pure(batches);
  bool passed = true;
  std::printf("%-36s", "loss at step");
  for (std::size_t step = 0; step < train_steps; step += 50) std::printf(" %8zu", step);
  std::printf("   largest relative difference\n");
  const auto report = [&](const char* name, const std::vector<double>& losses) {
    double largest = 0;
    std::printf("%-36s", name);
    for (std::size_t step = 0; step < train_steps; ++step) {
      if (step % 50 == 0) std::printf(" %8.4f", losses[step]);
      const double difference = std::abs(losses[step] - reference[step]) / reference[step];
      largest = std::isfinite(difference) ? std::max(largest, difference) : 1.0;
    }
    std::printf("   %.1e\n", largest);
    passed = passed && largest <= setting::tolerance;
  };
  report("LibTorch alone", reference);
  report("our layer, torch's AdamW", our_layer(batches));
  report("our layer, our LoRA+", our_layer_and_optimizer(batches));
  report("plain layers, our LoRA+ on weights", our_optimizer_on_weights(batches));
  std::printf("tensors copied for their strides: %d\n", static_cast<int>(lora_torch::copies));
  passed = passed && lora_torch::copies == 0 && check_module(adapters()[0], pretrained()[0], setting::scale);
  std::printf("agree within %g: %s\n", setting::tolerance, passed ? "yes" : "NO");
  return passed ? 0 : 1;
}
