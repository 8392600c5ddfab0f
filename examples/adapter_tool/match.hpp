// SPDX-License-Identifier: MIT
// Which layers of a model an adapter is meant for, by its config, and which it has factors for.
#pragma once

#include "weights.hpp"

#include <lora/core/error.hpp>
#include <lora/io/peft.hpp>
#include <lora/io/peft_match.hpp>
#include <lora/io/peft_targets.hpp>
#include <lora/model/targets.hpp>

#include <filesystem>
#include <set>
#include <string>
#include <vector>

namespace adapter_tool {

/// Which of the layers PEFT would adapt by the config; none by a config without targets.
/// \param folder  of the adapter, for messages.
inline std::set<std::string> targeted(const lora::peft::AdapterConfig& config,
                                      const std::vector<lora::ModuleShape>& layers,
                                      const std::filesystem::path& folder) {
  const std::string where = (folder / "adapter_config.json").string();
  auto rules = lora::peft::targets(config, where);
  if (rules.targets.empty() && rules.pattern.empty()) return {};
  rules.lora = {.rank = 1, .alpha = 1};  // not what is asked here, and valid for any layer
  rules.rank_pattern.clear();
  rules.alpha_pattern.clear();
  rules.unmatched = lora::Unmatched::Report;
  std::set<std::string> names;
  try {
    for (const auto& layer : lora::plan(layers, rules).layers) names.insert(layer.name);
  } catch (const lora::ConfigError& error) {
    throw lora::FormatError(where + ": " + error.what());
  }
  return names;
}

/// Layers that the config adapts and layers that have factors, against the factors.
inline lora::peft::MatchReport match_model(const lora::peft::Adapter<float>& adapter, const Weights& weights,
                                           const std::filesystem::path& folder) {
  auto layers = weights.linear_layers();
  const auto wanted = targeted(adapter.config, layers, folder);
  std::erase_if(layers, [&](const lora::ModuleShape& layer) {
    return adapter.modules.count(layer.name) == 0 && wanted.count(layer.name) == 0;
  });
  return lora::peft::match(adapter, layers);
}

}  // namespace adapter_tool
