// SPDX-License-Identifier: MIT
// LoRA seen as an optimizer, on digits: a dense network that knows nothing of adapters, trained by `WeightSpace`,
// follows the network with adapters in it. Prints the largest relative difference of their weights over 100 steps and
// fails above 1e-6, above 1e-5 with LoRA-Pro: both runs round in float in another order, and its divisions by B B^T
// amplify that.

#include "experiment.hpp"

#include <cstdio>
#include <exception>
#include <utility>

namespace {

using namespace digits;

/// The largest difference over the layers and 100 steps, relative in the Frobenius norm.
template <class FactorMethod>
double largest_difference(const Base& base, const Task& task, const Settings& settings, const FactorMethod& method) {
  AdapterStudent inside(base, task, settings, Start::Kaiming, method, 1);
  Base network = base;
  std::vector<lora::WeightSpace<FactorMethod, float>> optimizers;
  for (const auto& layer : inside.network.layers)
    optimizers.emplace_back(method, std::as_const(layer).factors(), layer.scale());
  Batches batches(task.train, settings.batch, 1);
  double largest = 0;
  for (Index step = 0; step < 100; ++step) {
    const auto batch = batches.next();
    inside.network.differentiate(batch);
    inside.step(1);
    network.differentiate(batch);
    for (std::size_t k = 0; k < optimizers.size(); ++k) {
      optimizers[k].step(network.layers[k].W, network.gradients[k].W);
      const auto wanted = inside.network.layers[k].merged_weight();
      largest = std::max<double>(largest, (network.layers[k].W - wanted).norm() / wanted.norm());
    }
  }
  return largest;
}

}  // namespace

int main() {
  try {
    const auto all = load(DIGITS_DATA);
    const Settings settings;
    const Base base = pretrain(make_task(all, 0, 4), settings.pretrain_steps);
    const Task task = make_task(all, 5, 9);
    bool near = true;
    const auto show = [&](const char* name, double bound, const auto& method) {
      const double difference = largest_difference(base, task, settings, method);
      std::printf("%-20s %.2g\n", name, difference);
      near = near && difference <= bound;
    };
    show("Sgd", 1e-6, lora::PerFactor{lora::Sgd{.learning_rate = 0.005}});
    show("AdamW", 1e-6, lora::PerFactor{lora::AdamW{.learning_rate = 5e-3}});
    show("LoRA+", 1e-6, lora::LoraPlus{lora::AdamW{.learning_rate = 1e-3}, 16});
    show("LoRA-Pro, factored", 1e-5, lora::LoraPro{.learning_rate = 5e-3});
    show("LoRA-Pro, full", 1e-5, lora::LoraPro{.learning_rate = 5e-3, .mode = lora::LoraPro::Mode::Full});
    return near ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "optimizer_view: %s\n", error.what());
    return 1;
  }
}
