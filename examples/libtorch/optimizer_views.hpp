// SPDX-License-Identifier: MIT
// Our optimizers on torch's tensors, where they lie: on the factors of a layer, and on a weight that has none.
#pragma once

#include "tensor_views.hpp"

#include <lora/core/factors.hpp>
#include <lora/optim/optimizer.hpp>
#include <lora/optim/weight_space.hpp>

#include <torch/torch.h>

#include <utility>

namespace lora_torch {

// [steps]
/// A factor optimizer for lora_A [r, n] and lora_B [m, r] (strides (1, m)), whoever computes their gradients.
template <class Method>
class FactorStep {
 public:
  FactorStep(Method method, torch::Tensor lora_A, torch::Tensor lora_B, double s)
      : A_(std::move(lora_A)),
        B_(std::move(lora_B)),
        scale_(s),
        optimizer_(std::move(method), A_.size(1), B_.size(0), A_.size(0)) {}

  void step(double rate = 1) {
    const auto dA = as_rows(A_.grad()), dB = as_rows(B_.grad().t());
    optimizer_.step(factors(A_, B_), factors(dA, dB.t()), scale_, rate);
    mark_changed(A_);
    mark_changed(B_);
  }

 private:
  torch::Tensor A_, B_;
  double scale_;
  lora::Optimizer<Method, float> optimizer_;
};

/// LoRA as the optimizer of a plain weight [m, n]: the network knows nothing of it.
template <class Method>
class WeightStep {
 public:
  WeightStep(Method method, torch::Tensor weight, lora::Factors<float> start, double s)
      : weight_(std::move(weight)), space_(std::move(method), std::move(start), s) {}

  void step(double rate = 1) {
    const auto gradient = as_rows(weight_.grad());
    space_.step(columns(weight_), columns(gradient), rate);
    mark_changed(weight_);
  }

 private:
  torch::Tensor weight_;
  lora::WeightSpace<Method, float> space_;
};
// [/steps]

}  // namespace lora_torch
