// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/temporary_folder.hpp"
#include "support/tolerances.hpp"

#include <lora/io/peft.hpp>
#include <lora/io/peft_match.hpp>

#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <string>
#include <utility>
#include <vector>

using namespace lora;
using namespace lora::test;
using peft::Adapter;
using peft::AdapterConfig;
using peft::Module;
using safetensors::Type;

namespace {

std::filesystem::path golden(const std::string& name) { return std::string(LORA_IO_DATA) + "/peft/" + name; }

/// s (A B - A0 B0) in long double.
template <Real Scalar>
Wide delta(const Module<Scalar>& module) {
  Wide result = product(wide(module.factors.A), wide(module.factors.B));
  if (module.initial.rank() > 0) result -= product(wide(module.initial.A), wide(module.initial.B));
  return result * static_cast<long double>(module.scale);
}
/// The largest relative difference between what two adapters do.
template <Real Left, Real Right>
double difference_between(const Adapter<Left>& left, const Adapter<Right>& right) {
  REQUIRE(left.modules.size() == right.modules.size());
  double worst = 0;
  for (const auto& [name, module] : left.modules) {
    worst = std::max(worst, relative_error(delta(module), delta(right.modules.at(name))));
  }
  return worst;
}

/// Modules of several ranks and scales, one with initial factors if asked.
template <Real Scalar>
Adapter<Scalar> mixed(bool with_initial = false, Scaling scaling = Scaling::Standard) {
  Random random{11};
  Adapter<Scalar> adapter;
  adapter.config.scaling = scaling;
  adapter.config.base_model_name_or_path = "some/base";
  const auto add = [&](const std::string& name, Index n, Index m, Index r, double alpha) {
    Module<Scalar> module;
    module.factors = random_factors<Scalar>(n, m, r, random);
    module.alpha = alpha;
    module.scale = alpha / (scaling == Scaling::Standard ? static_cast<double>(r) : std::sqrt(static_cast<double>(r)));
    adapter.modules.emplace(name, std::move(module));
  };
  add("layers.0.q_proj", 6, 4, 2, 16);
  add("layers.0.k_proj", 6, 4, 3, 5);
  add("layers.1.q_proj", 6, 4, 3, 16);
  add("q_proj", 5, 7, 1, 16);
  add("odd-name (x)+.y", 3, 3, 2, 16);
  if (with_initial) {
    auto& module = adapter.modules.at("layers.0.k_proj");
    module.initial = random_factors<Scalar>(6, 4, 3, random);
  }
  return adapter;
}

std::string parse_message(const std::string& text) {
  return message_of<FormatError>([&] { AdapterConfig::parse(text); });
}
std::string with(const std::string& entry) { return R"({"peft_type":"LORA",)" + entry + "}"; }

/// An adapter directory of given tensors.
void write_adapter(const std::filesystem::path& folder, const std::string& config,
                   const std::vector<std::pair<std::string, safetensors::Shape>>& shapes, float value = 1) {
  safetensors::Tensors tensors;
  const std::vector<float> ones(1000, value);
  for (const auto& [name, shape] : shapes) {
    std::size_t size = 4;
    for (const auto length : shape) size *= length;
    tensors.emplace(name, safetensors::Tensor{Type::F32, shape, std::as_bytes(std::span(ones)).first(size)});
  }
  std::filesystem::create_directories(folder);
  safetensors::write(folder / "adapter_model.safetensors", tensors);
  write_text(folder / "adapter_config.json", config);
}

}  // namespace

TEMPLATE_TEST_CASE("adapters that PEFT wrote change the base as PEFT does", "[io][peft]", float, double) {
  for (const std::string name : {"lora", "rslora", "patterns", "lora_ga", "pissa", "conv1d", "bf16", "named"}) {
    const auto adapter = peft::load<TestType>(golden(name), name == "named" ? "second" : "default");
    const auto expected = safetensors::File::open(golden(name) / "delta.safetensors");
    CHECK(adapter.modules.size() == expected.tensors().size());
    double worst = 0;
    for (const auto& [module_name, module] : adapter.modules) {
      const auto W = safetensors::to_matrix<double>(expected.at(module_name));
      worst = std::max(worst, relative_error(delta(module), wide(W)));
    }
    INFO(name << ": largest relative difference " << worst);
    CHECK(worst < (name == "lora_ga" || name == "pissa" ? converted_adapter : stored_adapter));
  }
}

TEST_CASE("what PEFT's config says arrives", "[io][peft]") {
  const auto patterns = peft::load<float>(golden("patterns"));
  CHECK(patterns.modules.at("layers.0.q_proj").factors.rank() == 2);
  CHECK(patterns.modules.at("layers.0.q_proj").alpha == 1);
  CHECK(patterns.modules.at("layers.1.q_proj").alpha == 6);
  CHECK(patterns.modules.at("layers.1.up").factors.rank() == 4);
  CHECK(patterns.modules.at("layers.1.up").scale == 2.5 / 4);
  CHECK(peft::load<float>(golden("conv1d")).config.fan_in_fan_out);
  CHECK(peft::load<float>(golden("lora")).config.task_type == "FEATURE_EXTRACTION");
  CHECK(peft::load<float>(golden("lora")).config.unknown_keys().empty());
  CHECK(peft::load<float>(golden("pissa")).modules.at("layers.0.up").factors.rank() == 4);
  CHECK(peft::load<float>(golden("named"), "second").config.target_pattern == "layers.*q_proj");
}

TEST_CASE("an adapter of PEFT is written back byte for byte, tensors and config", "[io][peft]") {
  for (const std::string name : {"lora", "rslora", "patterns", "lora_ga", "pissa", "conv1d", "named"}) {
    const TemporaryFolder folder;
    const std::string adapter_name = name == "named" ? "second" : "default";
    peft::save(folder.path(), peft::load<float>(golden(name), adapter_name), {.adapter_name = adapter_name});
    const std::string inside = name == "named" ? "second/" : "";
    for (const char* file : {"adapter_model.safetensors", "adapter_config.json"}) {
      INFO(name << " " << file);
      CHECK(text_of(folder / (inside + file)) == text_of(golden(name) / (inside + file)));
    }
  }
  const TemporaryFolder folder;
  peft::save(folder.path(), peft::load<float>(golden("bf16")), {.type = Type::BF16});
  CHECK(text_of(folder / "adapter_model.safetensors") == text_of(golden("bf16") / "adapter_model.safetensors"));
}

TEMPLATE_TEST_CASE("the faithful writer keeps factors, alphas and scales, and folds in initial factors", "[io][peft]",
                   float, double) {
  for (const Scaling scaling : {Scaling::Standard, Scaling::RankStabilized}) {
    for (const bool with_initial : {false, true}) {
      const TemporaryFolder folder;
      const auto adapter = mixed<TestType>(with_initial, scaling);
      peft::save(folder / "new" / "adapter", adapter);
      const auto back = peft::load<TestType>(folder / "new" / "adapter");
      CHECK(back.config.scaling == scaling);
      CHECK(back.config.base_model_name_or_path == "some/base");
      CHECK(difference_between(back, adapter) < stored_adapter);
      for (const auto& [name, module] : adapter.modules) {
        const auto& read = back.modules.at(name);
        CHECK(same_bits(read.factors,
                        module.initial.rank() > 0 ? difference(module.factors, module.initial) : module.factors));
        if (module.initial.rank() == 0) CHECK(read.alpha == module.alpha);
      }
    }
  }
}

TEST_CASE("a scale that was set at run time is written as the alpha that gives it", "[io][peft]") {
  const TemporaryFolder folder;
  auto adapter = mixed<double>();
  adapter.modules.at("q_proj").scale = -0.25;
  adapter.modules.at("layers.0.k_proj").scale = 0;
  peft::save(folder.path(), adapter);
  const auto back = peft::load<double>(folder.path());
  CHECK(back.modules.at("q_proj").scale == -0.25);
  CHECK(back.modules.at("layers.0.k_proj").scale == 0);
  CHECK(back.modules.at("layers.1.q_proj").alpha == 16);
}

TEMPLATE_TEST_CASE("the portable writer's adapter has one rank, scale 1 and the same effect", "[io][peft]", float,
                   double) {
  const TemporaryFolder folder;
  const auto adapter = mixed<TestType>(true, Scaling::RankStabilized);
  peft::save_portable(folder.path(), adapter);
  const auto back = peft::load<double>(folder.path());
  CHECK(back.config.r == 6);
  CHECK(back.config.lora_alpha == 6);
  CHECK(back.config.rank_pattern.empty());
  CHECK(back.config.alpha_pattern.empty());
  CHECK(back.config.scaling == Scaling::Standard);
  for (const auto& [name, module] : back.modules) {
    CHECK(module.factors.rank() == 6);
    CHECK(module.scale == 1);
  }
  CHECK(difference_between(back, adapter) < stored_adapter);
  CHECK(safetensors::File::open(folder / "adapter_model.safetensors").tensors().begin()->second.type == Type::F32);
}

TEST_CASE("patterns that are written match their module and no other", "[io][peft]") {
  const TemporaryFolder folder;
  peft::save(folder.path(), mixed<float>());
  const auto config = AdapterConfig::parse(text_of(folder / "adapter_config.json"));
  CHECK(config.r == 2);
  CHECK(config.rank_pattern == peft::Pattern<Index>{{"^q_proj", 1}, {"layers.0.k_proj", 3}, {"layers.1.q_proj", 3}});
  CHECK(config.lora_alpha == 16);
  CHECK(config.alpha_pattern == peft::Pattern<double>{{"layers.0.k_proj", 5}});
  auto odd = mixed<float>();
  odd.modules.at("odd-name (x)+.y").scale = 1;
  peft::save(folder.path(), odd);
  CHECK(peft::load<float>(folder.path()).modules.at("odd-name (x)+.y").scale == 1);
  CHECK(AdapterConfig::parse(text_of(folder / "adapter_config.json")).alpha_pattern[0].first ==
        "^odd\\-name \\(x\\)\\+\\.y");
}

TEST_CASE("patterns match as in PEFT: at the end of a name, from a dot on, the first one counts", "[io][peft]") {
  const auto matches = [](const std::string& pattern, const std::string& name) {
    return detail::EndPattern(pattern, "here").matches(name);
  };
  CHECK(matches("q_proj", "q_proj"));
  CHECK(matches("q_proj", "a.b.q_proj"));
  CHECK_FALSE(matches("q_proj", "a.bq_proj"));
  CHECK_FALSE(matches("q_proj", "q_proj.a"));
  CHECK(matches("0.q", "a.0xq"));  // a dot is any letter
  CHECK_FALSE(matches("0\\.q", "a.0xq"));
  CHECK(matches("^a.q", "a.q"));
  CHECK_FALSE(matches("^a.q", "b.a.q"));
  CHECK(matches(".*", "anything"));
  CHECK(matches("layers\\.[0-3]\\..*", "model.layers.2.mlp.up"));
  CHECK_FALSE(matches("layers\\.[0-3]\\..*", "model.layers.4.mlp.up"));
  CHECK(matches("(k|v)_proj", "a.v_proj"));
  CHECK_FALSE(matches("(k|v)_proj", "a.q_proj"));
  CHECK(message_of<FormatError>([] {
          detail::EndPattern("(", "here");
        }).starts_with("here must be a regular expression, got ("));
  CHECK(message_of<FormatError>([] { detail::EndPattern("a)|(b", "here"); }).starts_with("here must be a regular"));
  CHECK(matches("(?!k)._proj", "a.q_proj"));
  CHECK_FALSE(matches("(?!k)._proj", "a.k_proj"));
  CHECK(message_of<FormatError>([] { detail::EndPattern("(?=.*(?=.*(?!x))).*", "here"); }) ==
        "here must not look ahead more than twice, got (?=.*(?=.*(?!x))).*");
  const peft::Pattern<Index> entries{{"b.q", 1}, {"q", 2}};
  const detail::PatternTable<Index> table(entries, "here");
  CHECK(table.of("a.b.q", 9) == 1);
  CHECK(table.of("a.c.q", 9) == 2);
  CHECK(table.of("a.c.k", 9) == 9);
}

TEST_CASE("a config keeps keys that nobody knows, and reports them", "[io][peft]") {
  const auto config = AdapterConfig::parse(with(R"("new_key":{"b":[1,2.5,null]},"peft_version":"1","r":4)"));
  CHECK(config.unknown_keys() == std::vector<std::string>{"new_key"});
  const auto again = AdapterConfig::parse(config.to_json());
  CHECK(again.other.at("new_key") == config.other.at("new_key"));
  CHECK(again.r == 4);
  CHECK(again.to_json() == config.to_json());
}

TEST_CASE("a config is refused by the key that does not fit", "[io][peft]") {
  const std::string file = "adapter_config.json: ";
  CHECK(parse_message("") == file + "must be a JSON object, got something else");
  CHECK(parse_message("[]") == file + "must be a JSON object, got something else");
  CHECK(parse_message("\xEF\xBB\xBF{}") == file + "must be a JSON object, got something else");
  CHECK(parse_message("{\"a\":}") == file + "must be UTF-8 JSON, got a fault at byte 6");
  CHECK(parse_message("{\"a\":\"\xFF\"}").starts_with(file + "must be UTF-8 JSON, got a fault at byte "));
  CHECK(parse_message(std::string("{}\0", 3)) == file + "must be JSON, got a zero byte");
  CHECK(parse_message("{\"a\":1e999}") == file + "must hold numbers that fit 64 bits, got a larger one");
  CHECK(parse_message("{\"a\":NaN}").starts_with(file + "must be UTF-8 JSON, got a fault"));
  CHECK(parse_message(R"({"r":1,"r":1})") == file + "\"r\" must stand once, got a second one");
  CHECK(parse_message(R"({"x":{"y":1,"y":1}})") == file + "\"y\" must stand once, got a second one");
  CHECK(parse_message("{\"a\":" + std::string(40, '[') + std::string(40, ']') + "}") ==
        file + "must not be nested deeper than 32, got more");

  CHECK(parse_message("{}") == file + "peft_type must be \"LORA\", got null");
  CHECK(parse_message(R"({"peft_type":"ADALORA"})") == file + "peft_type must be \"LORA\", got \"ADALORA\"");
  CHECK(parse_message(with(R"("bias":"all")")) == file + "bias must be \"none\", got \"all\"");
  const std::string plain = " must be null, false or empty: only plain LoRA on linear layers is read, got ";
  CHECK(parse_message(with(R"("use_dora":true)")) == file + "use_dora" + plain + "true");
  CHECK(parse_message(with(R"("lora_bias":true)")) == file + "lora_bias" + plain + "true");
  CHECK(parse_message(with(R"("modules_to_save":["head"])")) == file + "modules_to_save" + plain + "an array");
  CHECK(parse_message(with(R"("layer_replication":[[0,1]])")) == file + "layer_replication" + plain + "an array");
  CHECK(parse_message(with(R"("modules_to_save":[],"use_dora":false,"kasa_config":null)")) == "[no error]");
  const std::string start =
      "init_lora_weights must leave the base as it was (true, false, gaussian, eva, orthogonal; save others converted)"
      ", got ";
  for (const std::string name : {"pissa", "pissa_niter_16", "olora", "lora_ga", "corda", "loftq"}) {
    CHECK(parse_message(with(R"("init_lora_weights":")" + name + "\"")) == file + start + "\"" + name + "\"");
  }
  CHECK(parse_message(with(R"("init_lora_weights":1)")) ==
        file + "init_lora_weights must be true, false or a string, got 1");
  for (const std::string value : {"0", "-1", "2.0", "\"8\"", "true", "4294967296"}) {
    CHECK(parse_message(with("\"r\":" + value)) == file + "r must be a whole number of at least 1, got " + value);
  }
  CHECK(parse_message(with(R"("lora_alpha":"16")")) == file + "lora_alpha must be a number, got \"16\"");
  CHECK(parse_message(with(R"("lora_dropout":1)")) == file + "lora_dropout must lie in [0, 1), got 1");
  CHECK(parse_message(with(R"("use_rslora":1)")) == file + "use_rslora must be true or false, got 1");
  CHECK(parse_message(with(R"("task_type":1)")) == file + "task_type must be a string or null, got 1");
  CHECK(parse_message(with(R"("rank_pattern":[])")) == file + "rank_pattern must be an object, got an array");
  CHECK(parse_message(with(R"("rank_pattern":{"q":0})")) ==
        file + "rank_pattern \"q\" must be a whole number of at least 1, got 0");
  CHECK(parse_message(with(R"("alpha_pattern":{"q":null})")) ==
        file + "alpha_pattern \"q\" must be a number, got null");
  CHECK(parse_message(with(R"("target_modules":7)")) == file + "target_modules must be strings or a string, got 7");
  CHECK(parse_message(with(R"("target_modules":["a",7])")) ==
        file + "target_modules must be strings or a string, got 7");
}

TEST_CASE("tensors are refused by their key", "[io][peft]") {
  const TemporaryFolder folder;
  const std::string file = (folder / "adapter_model.safetensors").string() + ": ", prefix = "base_model.model.";
  const std::string A = prefix + "x.lora_A.weight", B = prefix + "x.lora_B.weight";
  const auto refused = [&](const std::vector<std::pair<std::string, safetensors::Shape>>& shapes,
                           const std::string& config = with("\"r\":2"), float value = 1) {
    write_adapter(folder.path(), config, shapes, value);
    return message_of<FormatError>([&] { peft::load<float>(folder.path()); });
  };
  CHECK(refused({{A, {2, 3}}, {B, {4, 2}}}) == "[no error]");
  CHECK(refused({}) == file + "must hold an adapter, got no tensor");
  const std::string half = "module \"x\": must have lora_A.weight and lora_B.weight, got only ";
  CHECK(refused({{A, {2, 3}}}) == file + half + "lora_A");
  CHECK(refused({{B, {4, 2}}}) == file + half + "lora_B");
  const auto extra = [&](const std::string& key) {
    const auto text = refused({{A, {2, 3}}, {B, {4, 2}}, {key, {1}}});
    const std::string begin = file + "tensor \"" + key + "\": ";
    return text.starts_with(begin) ? text.substr(begin.size()) : text;
  };
  CHECK(extra("x.lora_A.weight") == "must begin with base_model.model., got another name");
  CHECK(extra(prefix + "x.lora_magnitude_vector") == "must be plain LoRA, got DoRA's magnitudes");
  CHECK(extra(prefix + "x.lora_embedding_A") == "must be on a linear layer, got an embedding");
  CHECK(extra(prefix + "x.lora_E") == "must be plain LoRA, got AdaLoRA");
  CHECK(extra(prefix + "x.lora_A") == "must be plain LoRA, got AdaLoRA");
  CHECK(extra(prefix + "x.lora_B.bias") == "must have no bias of its own, got one");
  CHECK(extra(prefix + "x.base_layer.weight") == "must be a factor, got a weight of the base");
  CHECK(extra(prefix + "x.lora_A.default.weight") ==
        "must end with lora_A.weight or lora_B.weight, got an adapter's name between");
  CHECK(extra(prefix + ".lora_A.weight") == "must name a module, got none");
  CHECK(extra(prefix + "score.weight") == "must be lora_A.weight or lora_B.weight of a module, got another tensor");
  const std::string shapes = "module \"x\": factors must be [r, in] and [out, r] ";
  CHECK(refused({{A, {3, 3}}, {B, {4, 3}}}) == file + shapes + "at the r = 2 of the config, got [3, 3] and [4, 3]");
  CHECK(refused({{A, {2, 3}}, {B, {4, 3}}}) == file + shapes + "at the r = 2 of the config, got [2, 3] and [4, 3]");
  CHECK(refused({{A, {2, 0}}, {B, {4, 2}}}) == file + shapes + "at the r = 2 of the config, got [2, 0] and [4, 2]");
  CHECK(refused({{A, {2, 3, 1, 1}}, {B, {4, 2, 1, 1}}}) ==
        file + shapes + "of a linear layer, got [2, 3, 1, 1] and [4, 2, 1, 1]");
  CHECK(refused({{A, {2, 3}}, {B, {4, 2}}}, with("\"r\":2"), std::numeric_limits<float>::quiet_NaN()) ==
        file + "module \"x\": factors must be finite, got NaN or infinity");
  const std::string config = (folder / "adapter_config.json").string() + ": ";
  CHECK(refused({{A, {2, 3}}, {B, {4, 2}}}, with(R"("r":2,"rank_pattern":{"y":3})")) ==
        config + "rank_pattern must match a module of the adapter, got none for \"y\"");
  CHECK(refused({{A, {2, 3}}, {B, {4, 2}}}, with(R"("r":2,"alpha_pattern":{"y":3})")) ==
        config + "alpha_pattern must match a module of the adapter, got none for \"y\"");
  CHECK(refused({{A, {2, 3}}, {B, {4, 2}}}, with(R"("r":2,"alpha_pattern":{"(\u001b[31m\nx":3})"))
            .starts_with(config + "alpha_pattern \"(?[31m?x\" must be a regular expression, got (?[31m?x ("));
  CHECK(refused({{A, {2, 3}}, {B, {4, 2}}}, with(R"("r":2,"alpha_pattern":{"[":3})"))
            .starts_with(config + "alpha_pattern \"[\" must be a regular expression, got ["));
}

TEST_CASE("factors are floating numbers, packed and whole ones are refused by their key", "[io][peft]") {
  const TemporaryFolder folder;
  write_text(folder / "adapter_config.json", with("\"r\":1"));
  const std::string A = "base_model.model.x.lora_A.weight", B = "base_model.model.x.lora_B.weight";
  const std::vector<std::byte> zeros(64);
  for (const auto type : {Type::U8, Type::I8, Type::U16, Type::I16, Type::U32, Type::I32, Type::U64, Type::I64,
                          Type::Bool, Type::F8E4M3, Type::F64, Type::F32, Type::F16, Type::BF16}) {
    const auto bytes = std::span(zeros).first(3 * safetensors::bits(type) / 8);
    safetensors::write(folder / "adapter_model.safetensors",
                       {{A, {Type::F32, {1, 2}, std::span(zeros).first(8)}}, {B, {type, {3, 1}, bytes}}});
    const auto message = message_of<FormatError>([&] { peft::load<float>(folder.path()); });
    CHECK(message == (safetensors::is_floating(type) ? "[no error]"
                                                     : (folder / "adapter_model.safetensors").string() + ": tensor \"" +
                                                           B + "\": type must be F64, F32, F16 or BF16, got " +
                                                           std::string(safetensors::type_name(type))));
  }
}

TEST_CASE("patterns of a small config take little memory, or are refused", "[io][peft]") {
  const TemporaryFolder folder;
  const auto load = [&](const std::string& key, int entries) {
    std::string patterns;
    for (int i = 0; i < entries; ++i) {
      patterns += (i == 0 ? "\"[ab]{900}" : ",\"[ab]{900}") + std::to_string(i) + "\":1";
    }
    write_adapter(folder.path(), with("\"r\":1,\"" + key + "\":{" + patterns + "}"),
                  {{"base_model.model.x.lora_A.weight", {1, 3}}, {"base_model.model.x.lora_B.weight", {4, 1}}});
    return message_of<FormatError>([&] { peft::load<float>(folder.path()); });
  };
  for (const std::string key : {"rank_pattern", "alpha_pattern"}) {
    const std::string place = (folder / "adapter_config.json").string() + ": " + key;
    CHECK(load(key, 600) == place +
                                " must have patterns of at most 200000 letters, counted as often as they repeat, "
                                "got more by \"[ab]{900}21\"");
    CHECK(load(key, 15) == place + " must match a module of the adapter, got none for \"[ab]{900}0\"");
  }
}

TEST_CASE("a missing file is named", "[io][peft]") {
  const TemporaryFolder folder;
  const auto load = [&] { return message_of<IoError>([&] { peft::load<float>(folder.path()); }); };
  const std::string words = ": must open for reading, got No such file or directory";
  CHECK(load() == (folder / "adapter_config.json").string() + words);
  write_text(folder / "adapter_config.json", with("\"r\":2"));
  CHECK(load() == (folder / "adapter_model.safetensors").string() + words);
}

TEST_CASE("an adapter's name is one component of a path", "[io][peft]") {
  const TemporaryFolder folder;
  for (const std::string name : {"", ".", "..", "a/b", "../a", "/a", "a\\b", "a\n"}) {
    const auto text = message_of<FormatError>([&] { peft::load<float>(folder.path(), name); });
    CHECK(text.starts_with("peft: adapter name must be one component of a path, got \""));
    CHECK(message_of<FormatError>([&] { peft::save(folder.path(), mixed<float>(), {.adapter_name = name}); }) == text);
  }
  peft::save(folder.path(), mixed<float>(), {.adapter_name = "second"});
  CHECK(std::filesystem::exists(folder / "second" / "adapter_config.json"));
  CHECK(peft::load<float>(folder.path(), "second").modules.size() == 5);
}

TEST_CASE("what cannot be written is refused, and the old adapter stays", "[io][peft]") {
  const TemporaryFolder folder;
  peft::save(folder.path(), mixed<float>());
  const auto old = peft::load<float>(folder.path());
  const auto check_old = [&] {
    CHECK(peft::load<float>(folder.path()) == old);
    CHECK(folder.entries() == 2);
  };
  auto bad = mixed<float>();
  bad.config.target_modules = {"k_proj", "1.q_proj"};
  CHECK(message_of<FormatError>([&] { peft::save(folder.path(), bad); }) ==
        "peft::save: target_modules must name the module \"layers.0.q_proj\", got none that does");
  bad = mixed<float>();
  bad.modules.at("q_proj").factors.A(0, 0) = std::numeric_limits<float>::infinity();
  CHECK(message_of<NumericalError>([&] { peft::save(folder.path(), bad); }) ==
        "peft::save: module \"q_proj\": factor A must be finite, got NaN or infinity");
  bad.modules.at("q_proj").factors.A(0, 0) = 70000;
  CHECK(message_of<FormatError>([&] { peft::save(folder.path(), bad, {.type = Type::F16}); }) ==
        "peft::save: module \"q_proj\".lora_A.weight: values must fit F16, got 70000");
  auto steep = mixed<float>();
  steep.modules.at("layers.0.k_proj").scale = 1e308;  // alpha is three times that
  CHECK(message_of<NumericalError>([&] { peft::save(folder.path(), steep); }) ==
        "peft::save: module \"layers.0.k_proj\": alpha must be finite, got inf");
  bad.modules.at("q_proj").factors.B.resize(3, 7);
  CHECK(message_of<ShapeError>([&] { peft::save(folder.path(), bad); }) ==
        "peft::save: module \"q_proj\": factors must be n x r and r x m, got 5 x 1 and 3 x 7");
  CHECK(message_of<FormatError>([&] { peft::save(folder.path(), Adapter<float>{}); }) ==
        "peft::save: adapter must have a module, got none");
  check_old();

  auto changed = mixed<float>();
  changed.config.base_model_name_or_path = "another/base";
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  ::getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit small{700, limit.rlim_max};  // room for the tensors or the config, not for both or larger
  ::setrlimit(RLIMIT_FSIZE, &small);
  const auto full = message_of<IoError>([&] { peft::save(folder.path(), changed); });
  const auto fresh = message_of<IoError>([&] { peft::save(folder / "fresh", changed); });
  ::setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, handler);
  CHECK(full.ends_with(": must take all its bytes, got File too large"));
  CHECK(fresh.ends_with(": must take all its bytes, got File too large"));
  check_old();
}

TEST_CASE("a save over another adapter replaces both files, and leaves other files alone", "[io][peft]") {
  const TemporaryFolder folder;
  peft::save(folder.path(), mixed<float>());
  write_text(folder / "README.md", "mine");
  auto changed = mixed<float>(true, Scaling::RankStabilized);
  peft::save(folder.path(), changed);
  CHECK(difference_between(peft::load<float>(folder.path()), changed) < stored_adapter);
  for (auto& [name, module] : changed.modules) module.factors.A *= 2;
  peft::save(folder.path(), changed);  // the same config
  CHECK(difference_between(peft::load<float>(folder.path()), changed) < stored_adapter);
  CHECK(text_of(folder / "README.md") == "mine");
  CHECK(folder.entries() == 3);
}

TEST_CASE("the report says which modules and layers do not match", "[io][peft]") {
  struct Layer {
    std::string name;
    Index in_features, out_features;
  };
  const auto adapter = mixed<float>();
  std::vector<Layer> layers{{"layers.0.q_proj", 6, 4},
                            {"layers.0.k_proj", 6, 4},
                            {"layers.1.q_proj", 6, 4},
                            {"q_proj", 5, 7},
                            {"odd-name (x)+.y", 3, 3}};
  auto report = peft::require_match(adapter, layers);
  CHECK(report.complete());
  CHECK(report.describe() == "5 matched, 0 missing, 0 unexpected, 0 of a wrong shape");
  layers[0] = {"layers.0.q_proj", 4, 6};
  layers[1].name = "layers.0.v_proj";
  report = peft::match(adapter, layers);
  CHECK(report.matched == std::vector<std::string>{"layers.1.q_proj", "q_proj", "odd-name (x)+.y"});
  CHECK(report.missing == std::vector<std::string>{"layers.0.v_proj"});
  CHECK(report.unexpected == std::vector<std::string>{"layers.0.k_proj"});
  const std::string text =
      "3 matched, 1 missing, 1 unexpected, 1 of a wrong shape\nmissing: \"layers.0.v_proj\"\nunexpected: "
      "\"layers.0.k_proj\"\nof a wrong shape: \"layers.0.q_proj\" (adapter 6 x 4, layer 4 x 6)";
  CHECK(report.describe() == text);
  CHECK(message_of<FormatError>([&] { peft::require_match(adapter, layers); }) ==
        "peft::require_match: every module must find its layer, got " + text);
  layers.clear();
  for (int i = 0; i < 12; ++i) layers.push_back({"l" + std::to_string(i), 1, 1});
  CHECK(peft::match(adapter, layers)
            .describe()
            .find("missing: \"l0\", \"l1\", \"l2\", \"l3\", \"l4\", \"l5\", \"l6\", "
                  "\"l7\", \"l8\", \"l9\" and 2 more\n") != std::string::npos);
  const peft::MatchReport hostile{{}, {}, {"a\n\x1b[2J" + std::string(300, 'x')}, {}};
  CHECK(hostile.describe() == "0 matched, 0 missing, 1 unexpected, 0 of a wrong shape\nunexpected: \"a??[2J" +
                                  std::string(194, 'x') + "...\"");
}

TEST_CASE("a cut or flipped file of an adapter gives an error or a whole adapter", "[io][peft]") {
  const TemporaryFolder folder;
  const std::string config = text_of(golden("patterns") / "adapter_config.json");
  const std::string tensors = text_of(golden("patterns") / "adapter_model.safetensors");
  int refused = 0, read = 0;
  const auto attempt = [&](const std::string& text) {
    try {
      AdapterConfig::parse(text).to_json();
      ++read;
    } catch (const FormatError&) {
      ++refused;
    }
  };
  for (std::size_t length = 0; length < config.size(); ++length) attempt(config.substr(0, length));
  CHECK(read == 0);
  for (std::size_t bit = 0; bit < 8 * config.size(); ++bit) {
    std::string flipped = config;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    attempt(flipped);
  }
  CHECK(refused + read == static_cast<int>(9 * config.size()));
  const auto good = AdapterConfig::parse(config);
  const std::size_t header = 8 + detail::load<std::uint64_t>(bytes_of(tensors).data());
  for (std::size_t bit = 0; bit < 8 * header; ++bit) {
    std::string flipped = tensors;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    try {
      const auto adapter = peft::read<float>(good, safetensors::File::parse(bytes_of(flipped)), "config");
      CHECK(adapter.modules.size() == 6);
    } catch (const FormatError&) {
      continue;
    }
  }
}

// Writes adapters and what they must do, for peft_check.py to open in the real PEFT.
TEST_CASE("adapters for the live check are written to LORA_PEFT_LIVE", "[.live]") {
  const char* const folder = std::getenv("LORA_PEFT_LIVE");
  REQUIRE(folder != nullptr);
  const auto write = [&](const std::string& name, const Adapter<float>& adapter, bool portable,
                         const peft::SaveOptions& options = {}) {
    const auto path = std::filesystem::path(folder) / name;
    portable ? peft::save_portable(path, adapter, options) : peft::save(path, adapter, options);
    // In bf16, what was stored counts.
    const auto stored = options.type ? peft::load<float>(path, options.adapter_name) : adapter;
    std::vector<RowMatrix<double>> memory;
    memory.reserve(stored.modules.size());
    safetensors::Tensors tensors;
    for (const auto& [module_name, module] : stored.modules) {
      memory.emplace_back(delta(module).template cast<double>());
      tensors.emplace(module_name, safetensors::as_tensor(memory.back()));
    }
    safetensors::write(path / "delta.safetensors", tensors);
  };
  for (const bool portable : {false, true}) {
    const std::string kind = portable ? "portable" : "faithful";
    write(kind, mixed<float>(), portable);
    write(kind + "_rslora", mixed<float>(false, Scaling::RankStabilized), portable);
    write(kind + "_initial", mixed<float>(true), portable);
    write(kind + "_rslora_initial", mixed<float>(true, Scaling::RankStabilized), portable);
    write(kind + "_bf16", mixed<float>(), portable, {.type = Type::BF16});
    write(kind + "_second", mixed<float>(), portable, {.adapter_name = "second"});
    auto conv = mixed<float>();
    conv.config.fan_in_fan_out = true;
    write(kind + "_conv1d", conv, portable);
  }
}
