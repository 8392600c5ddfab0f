// SPDX-License-Identifier: MIT
// PEFT's adapter_config.json: what it says about ranks, scales and targets, read strictly and written back.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/scaling.hpp>
#include <lora/io/config_json.hpp>
#include <lora/io/end_pattern.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lora::peft {

/// The longest adapter_config.json that is read, in bytes.
inline constexpr std::uint64_t longest_config = std::uint64_t{1} << 22;

/// The part of PEFT's LoraConfig that gives an adapter its meaning, under PEFT's names; the rest stays in `other`.
///
/// Ranks and scales of the modules: `r` and `lora_alpha`, unless an entry of `rank_pattern` or `alpha_pattern` matches
/// (PEFT's `get_pattern_key`: `re.match(rf"(.*\.)?({entry})$", module)`, first match in the order of the file).
struct AdapterConfig {
  Index r = 8;
  double lora_alpha = 8;
  Scaling scaling = Scaling::Standard;  ///< `use_rslora`: RankStabilized
  double lora_dropout = 0;
  Pattern<Index> rank_pattern{};
  Pattern<double> alpha_pattern{};
  std::vector<std::string> target_modules{};        ///< names or ends of names; or, as one string,
  std::string target_pattern{};                     ///< a regular expression over the whole name, or "all-linear"
  bool fan_in_fan_out = false;                      ///< the base keeps [in, out] (GPT-2's Conv1D); factors are the same
  std::string init_lora_weights = "true";           ///< "true" or "false" for the booleans
  std::string base_model_name_or_path{};            ///< empty: null
  std::string task_type{};                          ///< "CAUSAL_LM", ...; empty: null
  nlohmann::json other = nlohmann::json::object();  ///< all that was read beside these, for writing back

  /// \param where  begins the messages: the path.
  /// \throws FormatError  no JSON object, a key twice, a value of the wrong type or out of range; and whatever makes
  /// it more than plain LoRA on linear layers: another `peft_type`, DoRA, biases, `modules_to_save`, a start that
  /// changed the base (PiSSA, LoRA-GA, ... saved without conversion), ... The message names the key.
  static AdapterConfig parse(std::string_view text, const std::string& where = "adapter_config.json");

  /// As PEFT writes it: two blanks of indent, keys in alphabetical order (so patterns come in alphabetical order too).
  std::string to_json() const;

  /// Keys in `other` that PEFT 0.21 does not know, as a newer or a foreign writer leaves them.
  std::vector<std::string> unknown_keys() const;

  bool operator==(const AdapterConfig&) const = default;
};

}  // namespace lora::peft

namespace lora::detail {

/// PEFT's other keys: kept as they are, without a say in what an adapter computes.
inline constexpr std::array silent_keys{
    "auto_mapping",   "corda_config",  "ensure_weight_tying", "eva_config",      "exclude_modules", "layers_pattern",
    "loftq_config",   "revision",      "layers_to_transform", "megatron_config", "megatron_core",   "peft_version",
    "lora_ga_config", "velora_config", "qalora_group_size",
};
/// And those that change it, unless they are null, false or empty.
inline constexpr std::array telling_keys{
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
};
/// Written where nothing else was read: what PEFT has written for years, so that no version finds a key unknown.
inline constexpr std::array null_keys{"auto_mapping", "layers_pattern", "layers_to_transform", "modules_to_save",
                                      "revision"};
/// Starts that leave the base as it was.
inline constexpr std::array harmless_starts{"true", "false", "gaussian", "eva", "orthogonal"};

}  // namespace lora::detail

namespace lora::peft {

inline AdapterConfig AdapterConfig::parse(std::string_view text, const std::string& where) {
  std::map<std::string, std::vector<std::string>> order;
  detail::ConfigReader reader(detail::parse_config(text, where, order), where);
  const auto shown = [](const auto& value) { return detail::ConfigReader::shown(value); };
  AdapterConfig config;

  const auto kind = reader.take("peft_type");
  reader.check(kind && *kind == "LORA", "peft_type", " must be \"LORA\", got ", shown(kind));
  const auto bias = reader.take("bias");
  reader.check(!bias || *bias == "none", "bias", " must be \"none\", got ", shown(bias));
  for (const char* key : detail::telling_keys) {
    const auto position = reader.rest().find(key);
    if (position == reader.rest().end()) continue;
    const bool silent = position->is_null() || *position == false || (position->is_structured() && position->empty());
    reader.check(silent, key, " must be null, false or empty: only plain LoRA on linear layers is read, got ",
                 shown(std::optional<nlohmann::json>(*position)));
  }
  const auto start = reader.take("init_lora_weights");
  if (start) {
    reader.check(start->is_boolean() || start->is_string(), "init_lora_weights",
                 " must be true, false or a string, got ", shown(start));
    config.init_lora_weights = start->is_boolean() ? start->dump() : start->get<std::string>();
  }
  const auto& harmless = detail::harmless_starts;
  reader.check(std::find(harmless.begin(), harmless.end(), config.init_lora_weights) != harmless.end(),
               "init_lora_weights",
               " must leave the base as it was (true, false, gaussian, eva, orthogonal; save others converted), got ",
               shown(start));

  if (const auto value = reader.take("r")) config.r = reader.rank(value, "r");
  if (const auto value = reader.take("lora_alpha")) config.lora_alpha = reader.real(value, "lora_alpha");
  if (const auto value = reader.take("lora_dropout")) config.lora_dropout = reader.real(value, "lora_dropout");
  reader.check(config.lora_dropout >= 0 && config.lora_dropout < 1, "lora_dropout", " must lie in [0, 1), got ",
               config.lora_dropout);
  config.scaling = reader.flag("use_rslora") ? Scaling::RankStabilized : Scaling::Standard;
  config.fan_in_fan_out = reader.flag("fan_in_fan_out");
  config.base_model_name_or_path = reader.text("base_model_name_or_path");
  config.task_type = reader.text("task_type");
  config.rank_pattern =
      reader.pattern<Index>("rank_pattern", order["rank_pattern"],
                            [&](const auto& value, const auto& key) { return reader.rank(value, key); });
  config.alpha_pattern =
      reader.pattern<double>("alpha_pattern", order["alpha_pattern"],
                             [&](const auto& value, const auto& key) { return reader.real(value, key); });

  const auto targets = reader.take("target_modules");
  const bool list = targets && targets->is_array();
  reader.check(!targets || list || targets->is_string(), "target_modules", " must be strings or a string, got ",
               shown(targets));
  if (list) {
    for (const auto& name : *targets) {
      reader.check(name.is_string(), "target_modules", " must be strings or a string, got ",
                   shown(std::optional(name)));
      config.target_modules.push_back(name.get<std::string>());
    }
  } else if (targets) {
    config.target_pattern = targets->get<std::string>();
  }
  reader.take("inference_mode");
  config.other = std::move(reader.rest());
  return config;
}

inline std::string AdapterConfig::to_json() const {
  nlohmann::json object = nlohmann::json::object();
  for (const char* key : detail::null_keys) object[key] = nullptr;
  object["use_dora"] = false;
  object.update(other);
  const auto text = [](const std::string& value) { return value.empty() ? nlohmann::json() : nlohmann::json(value); };
  object["peft_type"] = "LORA";
  object["bias"] = "none";
  object["inference_mode"] = true;
  object["r"] = r;
  object["lora_alpha"] = detail::json_number(lora_alpha);
  object["lora_dropout"] = lora_dropout;
  object["use_rslora"] = scaling == Scaling::RankStabilized;
  object["fan_in_fan_out"] = fan_in_fan_out;
  object["base_model_name_or_path"] = text(base_model_name_or_path);
  object["task_type"] = text(task_type);
  const bool boolean = init_lora_weights == "true" || init_lora_weights == "false";
  object["init_lora_weights"] =
      boolean ? nlohmann::json(init_lora_weights == "true") : nlohmann::json(init_lora_weights);
  object["rank_pattern"] = nlohmann::json::object();
  for (const auto& [pattern, rank] : rank_pattern) object["rank_pattern"][pattern] = rank;
  object["alpha_pattern"] = nlohmann::json::object();
  for (const auto& [pattern, alpha] : alpha_pattern) object["alpha_pattern"][pattern] = detail::json_number(alpha);
  object["target_modules"] = target_pattern.empty() ? nlohmann::json(target_modules) : nlohmann::json(target_pattern);
  try {
    return object.dump(2, ' ', true);
  } catch (const nlohmann::json::type_error&) {
    throw FormatError("AdapterConfig::to_json: texts must be UTF-8, got other bytes");
  }
}

inline std::vector<std::string> AdapterConfig::unknown_keys() const {
  const auto in = [](const auto& keys, const std::string& key) {
    return std::find(keys.begin(), keys.end(), key) != keys.end();
  };
  std::vector<std::string> keys;
  for (const auto& [key, value] : other.items()) {
    if (!in(detail::silent_keys, key) && !in(detail::telling_keys, key)) keys.push_back(key);
  }
  return keys;
}

}  // namespace lora::peft
