// SPDX-License-Identifier: MIT
// Between the adapters of a model and what files hold of them: PEFT's value, GGUF's list.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/scaling.hpp>
#include <lora/io/gguf_adapter.hpp>
#include <lora/io/peft.hpp>
#include <lora/io/peft_match.hpp>
#include <lora/model/model_adapter.hpp>

#include <algorithm>
#include <utility>
#include <vector>

namespace lora::peft {

/// What `AdapterSet::adapter` gives, for `save` and `save_portable`. `config` brings what layers do not know: targets,
/// the base's name, the task. It says `use_rslora` where every layer is rank-stabilised; scales set at run time count.
template <Real Scalar>
Adapter<Scalar> adapter_of(const ModelAdapter<Scalar>& model, AdapterConfig config = {}) {
  Adapter<Scalar> adapter{std::move(config), {}};
  const bool stabilised = !model.empty() && std::all_of(model.begin(), model.end(), [](const auto& item) {
    return item.second.config.scaling == Scaling::RankStabilized;
  });
  adapter.config.scaling = stabilised ? Scaling::RankStabilized : Scaling::Standard;
  if (!model.empty()) adapter.config.lora_dropout = model.begin()->second.config.dropout;
  for (const auto& [name, state] : model) {
    adapter.modules.emplace(name, Module<Scalar>{state.factors, state.scale, state.config.alpha, state.initial});
  }
  return adapter;
}

/// For `AdapterSet::add`, from what `load` gives. Layers keep the file's scales bit for bit; an alpha that is not
/// positive, which a layer cannot have, becomes r and lives on in the scale.
template <Real Scalar>
ModelAdapter<Scalar> model_adapter(const Adapter<Scalar>& adapter) {
  ModelAdapter<Scalar> model;
  for (const auto& [name, module] : adapter.modules) {
    const Index rank = module.factors.rank();
    const double alpha = module.alpha > 0 ? module.alpha : static_cast<double>(rank);
    const LoraConfig config{rank, alpha, adapter.config.scaling, adapter.config.lora_dropout};
    model.emplace(name, AdapterState<Scalar>{config, module.scale, module.factors, module.initial});
  }
  return model;
}

}  // namespace lora::peft

namespace lora::gguf {

/// For `save_adapter`; initial factors folded in, at rank 2r.
inline std::vector<AdapterModule> modules_of(const ModelAdapter<float>& model) {
  std::vector<AdapterModule> modules;
  for (const auto& [name, state] : model) modules.push_back({name, state.delta(), state.scale});
  return modules;
}

/// For `AdapterSet::add`, from what `load_adapter` gives: alpha = s r, or r at a scale that is not positive, which then
/// lives on in `scale` alone. \throws ConfigError  a module twice.
inline ModelAdapter<float> model_adapter(const std::vector<AdapterModule>& modules) {
  ModelAdapter<float> model;
  for (const auto& [name, factors, scale] : modules) {
    const auto rank = static_cast<double>(factors.rank());
    const LoraConfig config{.rank = factors.rank(), .alpha = scale > 0 ? scale * rank : rank};
    const bool is_new = model.emplace(name, AdapterState<float>{config, scale, factors, {}}).second;
    detail::require<ConfigError>(is_new, "gguf::model_adapter: a module must stand once, got a second ", name);
  }
  return model;
}

}  // namespace lora::gguf
