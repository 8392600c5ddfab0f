// SPDX-License-Identifier: MIT
// One adapter of a whole model as a value: what it is on each layer, by the layers' names.
#pragma once

#include <lora/adapter/adapter_state.hpp>
#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>

#include <functional>
#include <map>
#include <span>
#include <string>

namespace lora {

/// By names as the base model has them: "model.layers.0.self_attn.q_proj". Layers without an entry stay as they are.
template <Real Scalar>
using ModelAdapter = std::map<std::string, AdapterState<Scalar>, std::less<>>;

/// A layer of a model by name, W0 n x m, and the config of an adapter on it.
struct AdaptedLayer {
  std::string name;
  Index in_features = 0;   ///< n
  Index out_features = 0;  ///< m
  LoraConfig config;

  bool operator==(const AdaptedLayer&) const = default;
};

/// A new adapter with A = B = 0 on each of the layers. Activate it, then initialize the layers.
/// \throws ConfigError  a name twice; a config that its layer cannot have.
template <Real Scalar>
ModelAdapter<Scalar> zero_adapter(std::span<const AdaptedLayer> layers) {
  ModelAdapter<Scalar> adapter;
  for (const auto& [name, n, m, config] : layers) {
    config.check(n, m, "zero_adapter: layer ", name);
    const bool is_new = adapter.emplace(name, AdapterState<Scalar>::zero(n, m, config)).second;
    detail::require<ConfigError>(is_new, "zero_adapter: a layer must stand once, got a second ", name);
  }
  return adapter;
}

}  // namespace lora
