// SPDX-License-Identifier: MIT
// The fixed task: a small network whose three linear layers are anybody's, batches, and a run that notes its losses.
#pragma once

#include <torch/torch.h>

#include <array>
#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

constexpr std::int64_t width = 48, inputs = 32, hidden = 64, outputs = 10, sequences = 8, length = 16;
constexpr std::size_t train_steps = 200;

using Linear = std::function<torch::Tensor(const torch::Tensor&)>;
using Linears = std::array<Linear, 3>;

/// The input is a slice of a wider tensor, and the middle layer runs twice before its backward.
inline torch::Tensor network(const Linears& linear, const torch::Tensor& x) {
  auto h = torch::gelu(linear[0](x.narrow(-1, 0, inputs)));
  for (int repeat = 0; repeat < 2; ++repeat) h = h + torch::tanh(linear[1](h));
  return linear[2](h);
}

/// The pretrained layers, the same numbers at every call.
inline std::array<torch::nn::Linear, 3> pretrained() {
  torch::manual_seed(1);
  return {torch::nn::Linear(inputs, hidden), torch::nn::Linear(hidden, hidden), torch::nn::Linear(hidden, outputs)};
}

struct Batch {
  torch::Tensor x, target;
};

/// The new task: every weight off by a matrix of rank 2, and a little noise, so that losses do not go to zero.
inline std::vector<Batch> make_batches() {
  const torch::NoGradGuard no_gradient;
  auto layers = pretrained();
  for (auto& layer : layers) {
    const auto m = layer->weight.size(0), n = layer->weight.size(1);
    const auto left = torch::randn({m, 2});
    const auto right = torch::randn({2, n});  // one draw a statement: the order of two in one is the compiler's
    layer->weight += 0.1 * torch::mm(left, right);
  }
  const Linears teacher{layers[0], layers[1], layers[2]};
  std::vector<Batch> batches;
  for (int i = 0; i < 20; ++i) {
    const auto x = torch::randn({sequences, length, width});
    batches.push_back({x, network(teacher, x) + 0.3 * torch::randn({sequences, length, outputs})});
  }
  return batches;
}

/// Trains; `step` clears the gradients after it has used them. The loss of each step, before it.
inline std::vector<double> train(const Linears& layers, const std::vector<Batch>& batches,
                                 const std::function<void()>& step) {
  std::vector<double> losses;
  for (std::size_t i = 0; i < train_steps; ++i) {
    const auto& [x, target] = batches[i % batches.size()];
    const auto loss = torch::mse_loss(network(layers, x), target);
    losses.push_back(loss.item<double>());
    loss.backward();
    step();
  }
  return losses;
}
