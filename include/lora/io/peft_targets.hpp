// SPDX-License-Identifier: MIT
// Which layers of a model PEFT adapts by an adapter_config.json, and at which ranks and alphas: for `plan`.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>
#include <lora/io/config_json.hpp>
#include <lora/io/peft_config.hpp>
#include <lora/io/safetensors_header.hpp>
#include <lora/model/targets.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lora::detail {

/// One value, or each of a list; none of null, and none of "", as PEFT reads it.
inline std::vector<nlohmann::json> config_entries(const std::optional<nlohmann::json>& value) {
  if (!value || *value == nlohmann::json(std::string())) return {};
  if (!value->is_array()) return {*value};
  return {value->begin(), value->end()};
}

/// PEFT's word for every linear layer but the head, in any case of letters.
inline bool is_all_linear(std::string_view pattern) {
  constexpr std::string_view word = "all-linear";
  return std::equal(pattern.begin(), pattern.end(), word.begin(), word.end(),
                    [](char a, char b) { return (a >= 'A' && a <= 'Z' ? a - 'A' + 'a' : a) == b; });
}

}  // namespace lora::detail

namespace lora::peft {

/// The targets of a config in the words of `plan`, with its exceptions, ranks, alphas and dropout:
///
///     const auto plan = lora::plan(modules, peft::targets(adapter.config));
///
/// PEFT asks the model for the head that "all-linear" leaves out; here it is what is called lm_head, or score or
/// classifier where the task is SEQ_CLS. PEFT lets pass what matches nothing: set `unmatched` to `Report` for that.
/// `plan` refuses a config without targets (PEFT knows some for each architecture) and an alpha that is not positive.
/// \throws FormatError  `exclude_modules`, `layers_to_transform` or `layers_pattern` of another type; the message
/// begins with `where`.
inline TargetConfig targets(const AdapterConfig& config, const std::string& where = "adapter_config.json") {
  detail::ConfigReader reader(config.other, where);
  const auto texts = [&](const char* key, const std::optional<nlohmann::json>& value) {
    std::vector<std::string> result;
    for (const auto& entry : detail::config_entries(value)) {
      reader.check(entry.is_string(), key, " must be strings or a string, got ",
                   detail::ConfigReader::shown(std::optional(entry)));
      result.push_back(entry.get<std::string>());
    }
    return result;
  };

  TargetConfig result;
  result.targets = config.target_modules;
  result.pattern = config.target_pattern;
  if (detail::is_all_linear(config.target_pattern)) {
    const std::string head = config.task_type == "SEQ_CLS" ? "score|classifier" : "lm_head";
    result.pattern = R"((?!(?:.*\.)?(?:)" + head + ")$).*";
  }
  const auto exclude = reader.take("exclude_modules");
  auto excluded = texts("exclude_modules", exclude);
  if (exclude && exclude->is_string()) {
    if (!excluded.empty()) result.exclude_pattern = excluded.front();
  } else {
    result.exclude = std::move(excluded);
  }
  for (const auto& number : detail::config_entries(reader.take("layers_to_transform"))) {
    constexpr std::uint64_t most = std::numeric_limits<std::int32_t>::max();
    reader.check(number.is_number_unsigned() && number.get<std::uint64_t>() <= most, "layers_to_transform",
                 " must be whole numbers or one, got ", detail::ConfigReader::shown(std::optional(number)));
    result.layers_to_transform.push_back(number.get<Index>());
  }
  result.layers_pattern = texts("layers_pattern", reader.take("layers_pattern"));
  result.lora = {config.r, config.lora_alpha, config.scaling, config.lora_dropout};
  result.rank_pattern = config.rank_pattern;
  result.alpha_pattern = config.alpha_pattern;
  return result;
}

}  // namespace lora::peft

namespace lora::detail {

/// Whether the config keeps out modules that its targets name.
inline bool has_exceptions(const peft::AdapterConfig& config) {
  for (const char* key : {"exclude_modules", "layers_to_transform", "layers_pattern"}) {
    const auto position = config.other.find(key);
    if (position == config.other.end() || position->is_null()) continue;
    if (!config_entries(*position).empty()) return true;
  }
  return false;
}

/// PEFT ignores factors of a module that is no target, without a word: so none may be written.
/// \throws FormatError  a module, a key of `modules`, that the config does not adapt; targets that `plan` cannot read.
template <class Modules>
void require_targeted(const peft::AdapterConfig& config, const Modules& modules) {
  if (config.target_pattern.empty() && !has_exceptions(config)) {  // as usual; names of any kind
    for (const auto& item : modules) {
      const std::string& name = item.first;
      const bool named = std::any_of(config.target_modules.begin(), config.target_modules.end(),
                                     [&](const auto& entry) { return is_named(name, entry); });
      require<FormatError>(named, "peft::save: target_modules must name the module ", detail::quoted(name),
                           ", got none that does");
    }
    return;
  }
  auto rules = peft::targets(config, "peft::save");
  rules.lora = {.rank = 1, .alpha = 1};  // not what is asked here, and valid for any layer
  rules.rank_pattern.clear();
  rules.alpha_pattern.clear();
  rules.unmatched = Unmatched::Report;
  std::vector<ModuleShape> shapes;
  shapes.reserve(modules.size());
  for (const auto& item : modules) shapes.push_back({item.first, 1, 1});
  std::set<std::string> adapted;
  try {
    for (const auto& layer : plan(shapes, rules).layers) adapted.insert(layer.name);
  } catch (const ConfigError& error) {
    throw FormatError(std::string("peft::save: ") + error.what());
  }
  for (const auto& shape : shapes) {
    require<FormatError>(adapted.count(shape.name) == 1, "peft::save: targets and exceptions must let in the module ",
                         detail::quoted(shape.name), ", got a config that leaves it out");
  }
}

}  // namespace lora::detail
