// SPDX-License-Identifier: MIT
// check: whether an adapter finds its layers in a model.
#include "adapter.hpp"
#include "match.hpp"
#include "text.hpp"
#include "weights.hpp"

#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

namespace adapter_tool {
namespace {

/// Factors on modules that are no targets, which PEFT drops in silence.
std::vector<std::string> untargeted(const lora::peft::Adapter<float>& adapter, const std::filesystem::path& folder) {
  std::vector<std::string> names;
  if (adapter.config.target_modules.empty() && adapter.config.target_pattern.empty()) return names;
  std::vector<lora::ModuleShape> layers;
  for (const auto& [name, module] : adapter.modules) {
    layers.push_back({name, module.factors.in_features(), module.factors.out_features()});
  }
  const auto wanted = targeted(adapter.config, layers, folder);
  for (const auto& layer : layers) {
    if (wanted.count(layer.name) == 0) names.push_back(layer.name);
  }
  return names;
}

}  // namespace

Status check(const CheckOptions& options) {
  const auto [adapter, kind, types, is_gguf] = load(options.adapter, {}, Order::DoesNotMatter);
  const auto stray = untargeted(adapter, options.adapter);
  std::cout << kind << ", " << count(adapter.modules.size(), "module") << ": reads without a fault\n";
  if (!stray.empty()) std::cout << stray.size() << " not among the targets, PEFT drops them: " << list(stray) << '\n';
  if (options.model.empty()) return stray.empty() ? Status::Fine : Status::DoesNotMatch;
  const auto files = open_model(options.model);
  const auto report = match_model(adapter, Weights(files, adapter), options.adapter);
  std::cout << report.describe() << '\n';
  return report.complete() && stray.empty() ? Status::Fine : Status::DoesNotMatch;
}

}  // namespace adapter_tool
