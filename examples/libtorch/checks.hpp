// SPDX-License-Identifier: MIT
// What the training loop does not show: odd strides are copied and counted, and misuse is refused.
#pragma once

#include "lora_module.hpp"
#include "pure_lora.hpp"

#include <cstdio>
#include <exception>

/// Does the call throw?
template <class Call>
bool refused(const Call& call) {
  try {
    call();
  } catch (const std::exception&) {
    return true;
  }
  return false;
}

/// Prints what failed. \return whether all held.
inline bool check_module(lora_torch::LoraModule layer, const torch::nn::Linear& linear, double scale) {
  bool all = true;
  const auto check = [&](const char* rule, bool holds) {
    if (!holds) std::printf("FAILED: %s\n", rule);
    all = all && holds;
  };
  const auto near = [](const torch::Tensor& left, const torch::Tensor& right) {
    return torch::allclose(left, right, 1e-4, 1e-5);
  };
  {
    const torch::NoGradGuard no_gradient;
    layer->B.normal_();  // torch writes into the layer
  }
  const PureLora pure{linear, layer->A, layer->B, scale};
  const auto x = torch::randn({linear->weight.size(1), 6}).t().requires_grad_();  // columns are adjacent, not rows
  const auto y = layer->forward(x);
  check("the output is that of LibTorch alone", near(y, pure(x)));
  check("an input without rows is copied once", lora_torch::copies == 1);
  y.sum().backward();  // its gradient is one number with strides 0
  check("so is a gradient of strides 0", lora_torch::copies == 2);
  const auto dX = x.grad().clone();
  x.mutable_grad().zero_();
  pure(x).sum().backward();
  check("gradients are those of LibTorch alone",
        near(dX, x.grad()) && near(layer->A.grad(), pure.A.grad()) && near(layer->B.grad(), pure.B.grad()));
  check("gradients have the strides of their parameters", layer->B.grad().strides() == layer->B.strides());

  const auto changed = torch::randn({6, linear->weight.size(1)});
  const auto loss = layer->forward(changed).sum();
  changed.mul_(2);
  check("an input that was changed since is refused", refused([&] { loss.backward(); }));
  check("second derivatives are refused", refused([&] {
          torch::autograd::grad({layer->forward(x).pow(2).sum()}, {x}, {}, /*retain_graph=*/true,
                                /*create_graph=*/true);
        }));
  check("a module that was converted is refused", refused([&] {
          layer->to(torch::kDouble);
          layer->forward(x);
        }));
  return all;
}
