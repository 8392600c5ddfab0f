// SPDX-License-Identifier: MIT
// LoRA in LibTorch alone, the yardstick: not a word of the library in it.
#pragma once

#include <torch/torch.h>

#include <memory>
#include <vector>

/// y = x W^T + bias + s (x A^T) B^T by torch's operations, its own gradients, contiguous factors.
struct PureLora {
  torch::Tensor weight, bias, A, B;
  double scale;

  PureLora(const torch::nn::Linear& linear, const torch::Tensor& lora_A, const torch::Tensor& lora_B, double s)
      : weight(linear->weight.detach()),
        bias(linear->bias.detach()),
        A(lora_A.detach().clone().contiguous().requires_grad_()),
        B(lora_B.detach().clone(torch::MemoryFormat::Contiguous).requires_grad_()),
        scale(s) {}

  torch::Tensor operator()(const torch::Tensor& x) const {
    return torch::nn::functional::linear(x, weight, bias) +
           scale * torch::nn::functional::linear(torch::nn::functional::linear(x, A), B);
  }
};

/// LoRA+ by torch's AdamW: two groups, B at `ratio` times A's learning rate.
inline torch::optim::AdamW lora_plus(const std::vector<torch::Tensor>& A, const std::vector<torch::Tensor>& B,
                                     double learning_rate, double ratio, double decay) {
  const auto options = [&](double rate) {
    return std::make_unique<torch::optim::AdamWOptions>(torch::optim::AdamWOptions(rate).weight_decay(decay));
  };
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(A, options(learning_rate));
  groups.emplace_back(B, options(learning_rate * ratio));
  return torch::optim::AdamW{groups, torch::optim::AdamWOptions(learning_rate).weight_decay(decay)};
}
