// SPDX-License-Identifier: MIT
// Between the adapters of a model and what files hold of them: PEFT's value, GGUF's list.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/scaling.hpp>
#include <lora/io/gguf_adapter.hpp>
#include <lora/io/peft.hpp>
#include <lora/io/peft_match.hpp>
#include <lora/model/model_adapter.hpp>

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace lora::detail {

/// The factors at a rank that a layer may have, where that costs nothing: of r > min(n, m) components those go whose
/// column of A and row of B are zero, the padding of `save_portable`. They do nothing, and as each gradient is a
/// product with the other factor, they never would. Factors with too many others stay as they are.
template <Real Scalar>
Factors<Scalar> without_padding(Factors<Scalar> factors) {
  const Index most = std::min(factors.in_features(), factors.out_features());
  if (factors.rank() <= most) return factors;
  std::vector<Index> kept;
  for (Index k = 0; k < factors.rank(); ++k) {
    if ((factors.A.col(k).array() != 0).any() || (factors.B.row(k).array() != 0).any()) kept.push_back(k);
  }
  if (kept.empty()) kept.push_back(0);
  const auto rank = static_cast<Index>(kept.size());
  if (rank > most) return factors;
  auto result = Factors<Scalar>::zero(factors.in_features(), factors.out_features(), rank);
  for (Index k = 0; k < rank; ++k) {
    result.A.col(k) = factors.A.col(kept[static_cast<std::size_t>(k)]);
    result.B.row(k) = factors.B.row(kept[static_cast<std::size_t>(k)]);
  }
  return result;
}

}  // namespace lora::detail

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
/// positive, which a layer cannot have, becomes r and lives on in the scale. Zeros that only fill up a rank above
/// min(n, m), as `save_portable` writes them beside larger layers, are left out, alpha with them. (PEFT trains such
/// ranks too; a set refuses them, and `combine` by `Svd` makes them smaller.)
template <Real Scalar>
ModelAdapter<Scalar> model_adapter(const Adapter<Scalar>& adapter) {
  ModelAdapter<Scalar> model;
  for (const auto& [name, module] : adapter.modules) {
    const Scaling scaling = adapter.config.scaling;
    auto factors = module.initial.rank() == 0 ? detail::without_padding(module.factors) : module.factors;
    const Index before = module.factors.rank(), rank = factors.rank();
    double alpha = module.alpha > 0 ? module.alpha : static_cast<double>(before);
    if (rank != before) alpha *= detail::divisor(rank, scaling) / detail::divisor(before, scaling);
    const LoraConfig config{rank, alpha, scaling, adapter.config.lora_dropout};
    model.emplace(name, AdapterState<Scalar>{config, module.scale, std::move(factors), module.initial});
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
/// lives on in `scale` alone. Zeros beyond min(n, m) are left out as above. \throws ConfigError  a module twice.
inline ModelAdapter<float> model_adapter(const std::vector<AdapterModule>& modules) {
  ModelAdapter<float> model;
  for (const auto& [name, stored, scale] : modules) {
    auto factors = detail::without_padding(stored);
    const auto rank = static_cast<double>(factors.rank());
    const LoraConfig config{.rank = factors.rank(), .alpha = scale > 0 ? scale * rank : rank};
    const bool is_new = model.emplace(name, AdapterState<float>{config, scale, std::move(factors), {}}).second;
    detail::require<ConfigError>(is_new, "gguf::model_adapter: a module must stand once, got a second ", name);
  }
  return model;
}

}  // namespace lora::gguf
