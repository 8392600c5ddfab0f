// SPDX-License-Identifier: MIT
// Every optimizer of the pair in every mode, for tests of what all of them must keep.
#pragma once

#include <lora/optim/adamw.hpp>
#include <lora/optim/lora_fa.hpp>
#include <lora/optim/lora_pro.hpp>
#include <lora/optim/per_factor.hpp>
#include <lora/optim/riemannian.hpp>
#include <lora/optim/sgd.hpp>

namespace lora::test {

/// Calls `visit(method, name)` for each, with hyper-parameters that leave traces in the state.
template <class Visit>
void for_each_pair_method(const Visit& visit) {
  const AdamW adamw{.learning_rate = 0.01, .weight_decay = 0.1};
  const Sgd heavy{.learning_rate = 0.01, .momentum = 0.9, .weight_decay = 0.01};
  const Sgd nesterov{.learning_rate = 0.01, .momentum = 0.9, .kind = Sgd::Momentum::Nesterov};
  visit(PerFactor{adamw}, "LoRA, AdamW");
  visit(PerFactor{Sgd{.learning_rate = 0.01}}, "LoRA, SGD");
  visit(PerFactor{nesterov}, "LoRA, Nesterov");
  visit(LoraPlus{adamw, 4}, "LoRA+, AdamW");
  visit(LoraPlus{heavy, 2}, "LoRA+, momentum");
  for (const auto mode : {LoraProMode::Sgd, LoraProMode::Efficient, LoraProMode::Full, LoraProMode::Factored}) {
    visit(LoraPro{.learning_rate = 0.01, .mode = mode, .weight_decay = 0.1}, name_of(mode));
    visit(LoraPro{.learning_rate = 0.01, .mode = mode, .freedom = Freedom::Symmetric, .trust = 0.5}, name_of(mode));
    visit(LoraPro{.learning_rate = 0.01, .mode = mode, .damping = 0.01, .compat = LoraPro::Compat::DeepSpeed},
          name_of(mode));
  }
  visit(Riemannian{adamw}, "Riemannian, AdamW");
  visit(Riemannian{heavy, 0.1}, "Riemannian, momentum");
  visit(LoraFa{adamw}, "LoRA-FA, AdamW");
  visit(LoraFa{heavy}, "LoRA-FA, momentum");
}

}  // namespace lora::test
