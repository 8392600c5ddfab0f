// SPDX-License-Identifier: MIT
// What PEFT's writers keep, leave out and refuse: targets and exceptions, patterns, starts, scales, the old files.
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/temporary_folder.hpp"

#include <lora/io/peft.hpp>
#include <lora/io/peft_targets.hpp>
#include <lora/model/targets.hpp>

#include <nlohmann/json.hpp>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

using namespace lora;
using namespace lora::test;
using peft::Adapter;

namespace {

std::filesystem::path golden(const std::string& name) { return std::string(LORA_IO_DATA) + "/peft/" + name; }

/// Two modules in each of two layers.
template <Real Scalar = float>
Adapter<Scalar> small(const std::string& other = "{}") {
  Random random{5};
  Adapter<Scalar> adapter;
  adapter.config.r = 2;
  adapter.config.other = nlohmann::json::parse(other);
  for (const char* name : {"layers.0.k_proj", "layers.0.q_proj", "layers.1.k_proj", "layers.1.q_proj"}) {
    adapter.modules.emplace(name, peft::Module<Scalar>{random_factors<Scalar>(6, 4, 2, random), 4, 8, {}});
  }
  return adapter;
}
Adapter<float> small(const std::vector<std::string>& targets, const std::string& other) {
  auto adapter = small(other);
  adapter.config.target_modules = targets;
  return adapter;
}

std::string save_message(const Adapter<float>& adapter) {
  const TemporaryFolder folder;
  const auto message = message_of<FormatError>([&] { peft::save(folder.path(), adapter); });
  CHECK((message == "[no error]") == (folder.entries() == 2));
  return message;
}

/// The files of `replace_both`, with a fault.
struct FaultyFile {
  enum class Fault { None, Rename, Flush };

  io::AtomicFile file;
  Fault fault = Fault::None;

  FaultyFile(const std::filesystem::path& path, const std::string& text, Fault what = Fault::None)
      : file(path), fault(what) {
    file.write(text);
    file.prepare();
  }
  bool in_place() const { return file.in_place(); }
  void commit() {
    if (fault == Fault::Rename) throw IoError("the fault");
    file.commit();
    if (fault == Fault::Flush) throw IoError("the fault");
  }
};

}  // namespace

TEST_CASE("factors that PEFT would drop are refused, whatever keeps their module out", "[io][peft]") {
  const std::string left_out = "peft::save: targets and exceptions must let in the module ",
                    end = ", got a config that leaves it out";
  auto adapter = small();
  adapter.config.target_pattern = R"(.*layers\.1\..*)";
  CHECK(save_message(adapter) == left_out + "\"layers.0.k_proj\"" + end);
  adapter.config.target_pattern = R"(layers\.\d\.[qk]_proj)";
  CHECK(save_message(adapter) == "[no error]");
  adapter.config.target_pattern = "all-linear";
  CHECK(save_message(adapter) == "[no error]");
  adapter.modules.emplace("lm_head", adapter.modules.begin()->second);
  CHECK(save_message(adapter) == left_out + "\"lm_head\"" + end);

  const std::vector<std::string> both{"q_proj", "k_proj"};
  CHECK(save_message(small(both, R"({"exclude_modules": ["1.k_proj"]})")) == left_out + "\"layers.1.k_proj\"" + end);
  CHECK(save_message(small(both, R"({"exclude_modules": ".*0.q.*"})")) == left_out + "\"layers.0.q_proj\"" + end);
  CHECK(save_message(small(both, R"({"exclude_modules": ["v_proj"]})")) == "[no error]");
  CHECK(save_message(small(both, R"({"exclude_modules": null, "layers_to_transform": []})")) == "[no error]");
  const std::string in = R"(, "layers_pattern": "layers"})";
  CHECK(save_message(small(both, R"({"layers_to_transform": 1)" + in)) == left_out + "\"layers.0.k_proj\"" + end);
  CHECK(save_message(small(both, R"({"layers_to_transform": [0, 1])" + in)) == "[no error]");
  CHECK(save_message(small({"k_proj"}, R"({"layers_to_transform": [0, 1])" + in)) ==
        left_out + "\"layers.0.q_proj\"" + end);

  // What cannot be read cannot be checked.
  CHECK(save_message(small(both, R"({"exclude_modules": 3})")) ==
        "peft::save: exclude_modules must be strings or a string, got 3");
  CHECK(save_message(small(both, R"({"layers_pattern": "layers"})")) ==
        "peft::save: plan: layers_pattern goes with layers_to_transform, got it alone");
  adapter.config.target_pattern = "(?<=x)y";
  CHECK(save_message(adapter).starts_with("peft::save: plan: pattern must be a regular expression, got (?<=x)y"));
}

TEST_CASE("the portable adapter of a config with exceptions means the same modules", "[io][peft]") {
  for (const char* other : {R"({"exclude_modules": ["1.k_proj", "v_proj"]})",
                            R"({"layers_to_transform": [0], "layers_pattern": "layers"})"}) {
    auto adapter = small({"k_proj", "q_proj", "v_proj"}, other);
    std::vector<ModuleShape> model;
    for (const auto& [name, module] : adapter.modules) model.push_back({name, 6, 4});
    model.push_back({"layers.1.v_proj", 6, 4});
    const auto names = [&](const peft::AdapterConfig& config) {
      auto rules = peft::targets(config);
      rules.unmatched = Unmatched::Report;
      std::vector<std::string> result;
      for (const auto& layer : plan(model, rules).layers) result.push_back(layer.name);
      return result;
    };
    const auto meant = names(adapter.config);
    std::erase_if(adapter.modules,
                  [&](const auto& item) { return std::find(meant.begin(), meant.end(), item.first) == meant.end(); });
    REQUIRE(adapter.modules.size() == meant.size());
    const TemporaryFolder folder;
    peft::save_portable(folder.path(), adapter);
    CHECK(names(peft::load<float>(folder.path()).config) == meant);
  }
  auto plain = small({"k_proj", "q_proj"}, R"({"exclude_modules": null, "layers_pattern": []})");
  CHECK(peft::to_portable(plain).config.target_modules == plain.config.target_modules);
}

TEST_CASE("entries of a pattern that match no module are not written", "[io][peft]") {
  auto adapter = small();
  adapter.config.rank_pattern = {{"v_proj", 4}, {"k_proj", 2}};
  adapter.config.alpha_pattern = {{"^layers.2.*", 3}, {"nothing", 8}};
  const TemporaryFolder folder;
  peft::save(folder.path(), adapter);
  const auto back = peft::load<float>(folder.path());
  CHECK(back.modules == adapter.modules);
  CHECK(back.config.rank_pattern == peft::Pattern<Index>{{"k_proj", 2}});
  CHECK(back.config.alpha_pattern.empty());

  auto part = peft::load<float>(golden("patterns"));
  std::erase_if(part.modules, [](const auto& item) { return !item.first.ends_with("up"); });
  peft::save(folder.path(), part);
  CHECK(peft::load<float>(folder.path()).modules == part.modules);
}

TEST_CASE("a start that leaves the base as it was is written back, byte for byte", "[io][peft]") {
  const std::string config = text_of(golden("lora") / "adapter_config.json"), key = "\"init_lora_weights\": ";
  const TemporaryFolder folder;
  for (const char* start : {"true", "false", "\"gaussian\"", "\"eva\""}) {
    auto text = config;
    text.replace(text.find(key), key.size() + 4, key + start);
    std::filesystem::create_directories(folder / "read");
    write_text(folder / "read" / "adapter_config.json", text);
    std::filesystem::copy_file(golden("lora") / "adapter_model.safetensors", folder / "read/adapter_model.safetensors",
                               std::filesystem::copy_options::overwrite_existing);
    peft::save(folder / "written", peft::load<float>(folder / "read"));
    CHECK(text_of(folder / "written" / "adapter_config.json") == text);
  }
  auto adapter = small();
  adapter.config.init_lora_weights = "orthogonal";
  peft::save(folder.path(), adapter);
  CHECK(peft::load<float>(folder.path()).config.init_lora_weights == "orthogonal");
  // PEFT refuses it at an odd rank, before it loads factors.
  adapter.modules.at("layers.0.q_proj").factors = Factors<float>::zero(6, 4, 3);
  peft::save(folder.path(), adapter);
  CHECK(peft::load<float>(folder.path()).config.init_lora_weights == "true");
  adapter.config.init_lora_weights = "gaussian";
  CHECK(peft::to_plain(adapter).config.init_lora_weights == "gaussian");
  auto& offset = adapter.modules.at("layers.0.q_proj");
  offset.initial = offset.factors;
  CHECK(peft::to_plain(adapter).config.init_lora_weights == "true");
}

TEST_CASE("the portable writer rounds s B once", "[io][peft]") {
  auto adapter = small();
  for (auto& [name, module] : adapter.modules) module.scale = 0.1;
  const auto portable = peft::to_portable(adapter);
  for (const auto& [name, module] : adapter.modules) {
    const auto& B = portable.modules.at(name).factors.B;
    for (Index i = 0; i < B.rows(); ++i) {
      for (Index j = 0; j < B.cols(); ++j) {
        CHECK(B(i, j) == static_cast<float>(0.1 * static_cast<double>(module.factors.B(i, j))));
      }
    }
  }
}

TEST_CASE("an error while the files are replaced leaves the old config, or none beside new tensors", "[io][peft]") {
  using Fault = FaultyFile::Fault;
  const TemporaryFolder folder;
  const auto config = folder / "adapter_config.json", tensors = folder / "adapter_model.safetensors";
  const auto attempt = [&](Fault fault) {
    write_text(config, "old config");
    write_text(tensors, "old tensors");
    FaultyFile tensor_file(tensors, "new tensors", fault), config_file(config, "new config");
    std::optional<FaultyFile> old_config;
    old_config.emplace(config, "old config");
    return message_of<IoError>([&] { detail::replace_both(config, tensor_file, config_file, old_config); });
  };
  CHECK(attempt(Fault::None) == "[no error]");
  CHECK(text_of(config) == "new config");
  CHECK(text_of(tensors) == "new tensors");
  CHECK(folder.entries() == 2);
  CHECK(attempt(Fault::Rename) == "the fault");
  CHECK(text_of(config) == "old config");
  CHECK(text_of(tensors) == "old tensors");
  CHECK(folder.entries() == 2);
  CHECK(attempt(Fault::Flush) == "the fault");
  CHECK_FALSE(std::filesystem::exists(config));
  CHECK(text_of(tensors) == "new tensors");
  CHECK(folder.entries() == 1);
}

TEST_CASE("a directory in the place of a file stops a save, and the other file stays", "[io][peft]") {
  const TemporaryFolder folder;
  peft::save(folder.path(), small());
  const auto config = text_of(folder / "adapter_config.json");
  std::filesystem::remove(folder / "adapter_model.safetensors");
  std::filesystem::create_directories(folder / "adapter_model.safetensors");
  auto changed = small();
  changed.config.task_type = "CAUSAL_LM";
  CHECK(message_of<IoError>([&] {
          peft::save(folder.path(), changed);
        }).ends_with("adapter_model.safetensors: must be new or a regular file, got a directory"));
  CHECK(text_of(folder / "adapter_config.json") == config);
  CHECK(folder.entries() == 2);
}
