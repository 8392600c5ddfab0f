// SPDX-License-Identifier: MIT
// What the adapters of a whole model will take, in bytes and flops, before anything is allocated.
#pragma once

#include <lora/analysis/estimate.hpp>
#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>
#include <lora/model/model_adapter.hpp>
#include <lora/model/table.hpp>

#include <array>
#include <span>
#include <string>
#include <vector>

namespace lora {

/// The estimates of the layers and their sum.
struct ModelEstimate {
  struct Layer {
    AdaptedLayer layer;
    Estimate estimate;
    bool operator==(const Layer&) const = default;
  };
  std::vector<Layer> layers;
  Estimate total;

  bool operator==(const ModelEstimate&) const = default;

  /// A table of bytes by layer and part, with the sum.
  std::string describe() const {
    detail::Table table;
    table.add("layer", "r", "base", "factors", "gradient", "optimizer", "saved", "bytes");
    const auto add = [&](const std::string& name, const auto& rank, const MemoryEstimate& bytes) {
      table.add(name, rank, bytes.base, bytes.factors + bytes.initial_factors, bytes.gradient,
                bytes.optimizer_state + bytes.optimizer_scratch, bytes.saved_state, bytes.total());
    };
    for (const auto& [layer, estimate] : layers) add(layer.name, layer.config.rank, estimate.bytes);
    add("total", "", total.bytes);
    return table.text();
  }
};

/// `estimate` for every layer of a plan (`TargetPlan::layers`) or of a set (`AdapterSet::layers()`), each used once a
/// step with `tokens` rows. `config` holds for all layers, but dropout is the layer's own.
/// \throws ShapeError, ConfigError  as `estimate`, with the layer's name.
template <Real Scalar, class Method>
ModelEstimate estimate_model(std::span<const AdaptedLayer> layers, Index tokens, const Method& method,
                             EstimateConfig config = {}) {
  ModelEstimate result;
  const auto add_up = [](const auto& parts, auto& sums, const auto& part) {
    for (const auto member : parts) {
      detail::require<ShapeError>(sums.*member <= (Index{1} << 60) - part.*member,
                                  "estimate_model: the sum over the layers must stay below 2^60, got more");
      sums.*member += part.*member;
    }
  };
  using M = MemoryEstimate;
  using F = FlopEstimate;
  for (const auto& layer : layers) {
    config.dropout = layer.config.dropout;
    const LayerShape shape{layer.in_features, layer.out_features, layer.config.rank, tokens};
    Estimate one;
    try {
      one = estimate<Scalar>(shape, method, config);
    } catch (const ShapeError& error) {
      throw ShapeError("estimate_model: layer " + layer.name + ": " + error.what());
    } catch (const ConfigError& error) {
      throw ConfigError("estimate_model: layer " + layer.name + ": " + error.what());
    }
    add_up(std::array{&M::base, &M::factors, &M::initial_factors, &M::gradient, &M::optimizer_state,
                      &M::optimizer_scratch, &M::saved_state},
           result.total.bytes, one.bytes);
    add_up(std::array{&F::base_forward, &F::base_backward, &F::branch_forward, &F::branch_backward, &F::optimizer_step},
           result.total.flops, one.flops);
    result.layers.push_back({layer, one});
  }
  return result;
}

}  // namespace lora
