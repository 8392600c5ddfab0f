// SPDX-License-Identifier: MIT
// What PEFT's configs say about targets: on adapters that PEFT wrote, and key by key.
#include "support/catch.hpp"
#include "support/message.hpp"

#include <lora/io/model_files.hpp>
#include <lora/io/peft.hpp>
#include <lora/io/peft_targets.hpp>
#include <lora/model/targets.hpp>

#include <nlohmann/json.hpp>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

using Names = std::vector<std::string>;

/// The modules that a config of these other keys adapts in a small model.
Names adapted(peft::AdapterConfig config, const std::string& other = "{}") {
  config.r = 1;
  config.other = nlohmann::json::parse(other);
  std::vector<ModuleShape> modules;
  for (const char* name : {"layers.0.q_proj", "layers.0.up", "layers.1.q_proj", "layers.1.up", "score", "lm_head"}) {
    modules.push_back({name, 4, 4});
  }
  Names names;
  for (const auto& layer : plan(modules, peft::targets(config)).layers) names.push_back(layer.name);
  return names;
}
Names adapted(const Names& targets, const std::string& other = "{}") {
  peft::AdapterConfig config;
  config.target_modules = targets;
  return adapted(config, other);
}

}  // namespace

TEST_CASE("an adapter of PEFT has factors where its config says, at its ranks and alphas", "[io][peft][targets]") {
  const std::filesystem::path folder(LORA_IO_DATA "/peft");
  for (const char* kind : {"lora", "rslora", "patterns", "lora_ga", "pissa", "conv1d", "bf16"}) {
    CAPTURE(kind);
    const auto adapter = peft::load<float>(folder / kind);
    std::vector<ModuleShape> modules;
    for (const auto& [name, module] : adapter.modules) {
      modules.push_back({name, module.factors.in_features(), module.factors.out_features()});
      modules.push_back({name + "_other", 4, 4});
    }
    std::map<std::string, LoraConfig> planned, loaded;
    for (const auto& layer : plan(modules, peft::targets(adapter.config)).layers) planned[layer.name] = layer.config;
    for (const auto& [name, state] : peft::model_adapter(adapter)) loaded[name] = state.config;
    CHECK(planned == loaded);
  }
}

TEST_CASE("exceptions and layers of a config count as in PEFT", "[io][peft][targets]") {
  CHECK(adapted({"q_proj"}) == Names{"layers.0.q_proj", "layers.1.q_proj"});
  CHECK(adapted({"q_proj", "up"}, R"({"exclude_modules": ["0.up", "1.q_proj"]})") ==
        Names{"layers.0.q_proj", "layers.1.up"});
  CHECK(adapted({"q_proj", "up"}, R"({"exclude_modules": ".*1.*"})") == Names{"layers.0.q_proj", "layers.0.up"});
  for (const char* none : {"null", "[]", "\"\""}) {
    CHECK(adapted({"up"}, std::string(R"({"exclude_modules": )") + none + "}") == Names{"layers.0.up", "layers.1.up"});
  }
  CHECK(adapted({"up", "q_proj"}, R"({"layers_to_transform": 1, "layers_pattern": "layers"})") ==
        Names{"layers.1.q_proj", "layers.1.up"});
  CHECK(adapted({"up"}, R"({"layers_to_transform": [0, 1], "layers_pattern": ["layers"]})") ==
        Names{"layers.0.up", "layers.1.up"});

  peft::AdapterConfig config;
  config.target_pattern = ".*0.*";
  CHECK(adapted(config) == Names{"layers.0.q_proj", "layers.0.up"});
  config.target_pattern = "All-Linear";
  CHECK(adapted(config) == Names{"layers.0.q_proj", "layers.0.up", "layers.1.q_proj", "layers.1.up", "score"});
  config.task_type = "SEQ_CLS";
  CHECK(adapted(config, R"({"exclude_modules": "layers.*"})") == Names{"lm_head"});
}

TEST_CASE("a config whose targets cannot be read is refused by the key", "[io][peft][targets]") {
  const auto message = [](const std::string& other) {
    return message_of<FormatError>([&] { adapted({"up"}, other); });
  };
  CHECK(message(R"({"exclude_modules": 3})") ==
        "adapter_config.json: exclude_modules must be strings or a string, got 3");
  CHECK(message(R"({"exclude_modules": ["up", ["q"]]})") ==
        "adapter_config.json: exclude_modules must be strings or a string, got an array");
  CHECK(message(R"({"layers_pattern": [null]})") ==
        "adapter_config.json: layers_pattern must be strings or a string, got null");
  for (const std::string number : {"-1", "0.5", "true", "\"1\"", "4294967296"}) {
    CHECK(message(R"({"layers_to_transform": [)" + number + "]}") ==
          "adapter_config.json: layers_to_transform must be whole numbers or one, got " + number);
  }
  CHECK(message_of<ConfigError>([] { adapted(Names{}); }) == "plan: needs either targets or a pattern, got neither");
}
