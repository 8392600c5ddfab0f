// SPDX-License-Identifier: MIT
// The methods by name: where an adapter starts, what it is scaled by and which optimizer moves it.
#pragma once

#include "model.hpp"

#include <lora/core/error.hpp>
#include <lora/core/scaling.hpp>
#include <lora/optim/adamw.hpp>
#include <lora/optim/lora_pro.hpp>
#include <lora/optim/per_factor.hpp>

#include <array>
#include <string>
#include <string_view>

namespace llm {

struct Method {
  enum class Optimizer { AdamW, LoraPlus, LoraPro };

  std::string_view name, about;
  double learning_rate;  ///< a first guess for a small model: see README.md
  Start start = Start::KaimingUniform;
  lora::Scaling scaling = lora::Scaling::Standard;
  Optimizer optimizer = Optimizer::AdamW;
  lora::LoraProMode mode = lora::LoraProMode::Factored;

  bool uses_gradients() const { return start == Start::GradientSvd; }
  bool has_offset() const { return start != Start::KaimingUniform; }
};

inline constexpr std::array methods{
    Method{"lora", "LoRA: AdamW on both factors", 2e-3},
    Method{"lora+", "LoRA+: B learns 16 times as fast as A", 1e-4, Start::KaimingUniform, lora::Scaling::Standard,
           Method::Optimizer::LoraPlus},
    Method{"rslora", "rank-stabilised LoRA: s = alpha / sqrt(r)", 5e-4, Start::KaimingUniform,
           lora::Scaling::RankStabilized},
    Method{"lora-ga", "LoRA-GA: starts from the gradient of some batches", 2e-4, Start::GradientSvd},
    Method{"pissa", "PiSSA: starts from the leading triplets of each weight", 2e-4, Start::PrincipalSvd},
    Method{"lora-pro", "LoRA-Pro, `Factored`: steps nearest to full fine-tuning's, moments as products", 5e-4,
           Start::KaimingUniform, lora::Scaling::Standard, Method::Optimizer::LoraPro, lora::LoraProMode::Factored},
    Method{"lora-pro-sgd", "LoRA-Pro, `Sgd`: without moments", 1e-1, Start::KaimingUniform, lora::Scaling::Standard,
           Method::Optimizer::LoraPro, lora::LoraProMode::Sgd},
    Method{"lora-pro-efficient", "LoRA-Pro, `Efficient`: Adam's moments on the projected gradients", 1e-3,
           Start::KaimingUniform, lora::Scaling::Standard, Method::Optimizer::LoraPro, lora::LoraProMode::Efficient},
    Method{"lora-pro-full", "LoRA-Pro, `Full`: Adam's moments of whole weights, as large as the model", 2e-4,
           Start::KaimingUniform, lora::Scaling::Standard, Method::Optimizer::LoraPro, lora::LoraProMode::Full},
    Method{"lora-ga+pro", "LoRA-GA's start, LoRA-Pro's steps (`Factored`)", 2e-4, Start::GradientSvd,
           lora::Scaling::Standard, Method::Optimizer::LoraPro, lora::LoraProMode::Factored},
};

/// \throws ConfigError  no method of that name.
inline const Method& find_method(std::string_view name) {
  std::string names;
  for (const Method& method : methods) {
    if (method.name == name) return method;
    names += (names.empty() ? "" : ", ") + std::string(method.name);
  }
  throw lora::ConfigError("--method: must be one of " + names + ", got " + std::string(name));
}

/// Calls `use` with the method's optimizer for one layer.
template <class Use>
auto with_optimizer(const Method& method, double learning_rate, double weight_decay, const Use& use) {
  const lora::AdamW adamw{.learning_rate = learning_rate, .weight_decay = weight_decay};
  switch (method.optimizer) {
    case Method::Optimizer::LoraPlus:
      return use(lora::LoraPlus{adamw});
    case Method::Optimizer::LoraPro:
      return use(lora::LoraPro{.learning_rate = learning_rate, .mode = method.mode, .weight_decay = weight_decay});
    case Method::Optimizer::AdamW:
      break;
  }
  return use(lora::PerFactor{adamw});
}

}  // namespace llm
