// SPDX-License-Identifier: MIT
#include "llm/config_gguf.hpp"
#include "llm/config_json.hpp"
#include "llm/tiny_files.hpp"
#include "support/catch.hpp"
#include "support/message.hpp"

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

using namespace lora;
using namespace lora::test;
using Json = nlohmann::json;

namespace {

llm::LlamaConfig tiny_config() {
  llm::LlamaConfig config;
  config.hidden_size = 32;
  config.intermediate_size = 64;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 8;
  config.vocab_size = 128;
  config.max_position_embeddings = 64;
  config.rms_norm_eps = 1e-5;
  config.rope_theta = 1000;
  config.tie_word_embeddings = true;
  return config;
}

llm::LlamaConfig read(const FolderCopy& copy) {
  write_text(copy.folder / "config.json", copy.config.dump());
  return llm::config_from_json(copy.folder / "config.json");
}
llm::LlamaConfig read(const GgufCopy& copy) {
  const auto bytes = gguf::to_bytes(copy.metadata, copy.tensors);
  return llm::config_from_gguf(gguf::Contents::parse(bytes, "model.gguf"));
}

/// The rest of the message, after the file.
std::string message_for(const FolderCopy& copy) {
  const auto text = message_of<FormatError>([&] { read(copy); });
  const std::string where = (copy.folder / "config.json").string() + ": ";
  return text.starts_with(where) ? text.substr(where.size()) : "[no file] " + text;
}
std::string message_for(const GgufCopy& copy) {
  const auto text = message_of<FormatError>([&] { read(copy); });
  const std::string where = "model.gguf: ";
  return text.starts_with(where) ? text.substr(where.size()) : "[no file] " + text;
}

}  // namespace

TEST_CASE("config.json and GGUF metadata of one model give the same sizes", "[llm][config]") {
  CHECK(llm::config_from_json(llm_data("tiny") / "config.json") == tiny_config());
  for (const char* name : {"tiny.f32.gguf", "tiny.q8_0.gguf"}) {
    CHECK(llm::config_from_gguf(gguf::open(llm_data(name)).contents()) == tiny_config());
  }
  const auto untied = llm::config_from_json(llm_data("untied") / "config.json");
  CHECK(untied.head_dim == 8);
  CHECK(untied.num_attention_heads == 2);
  CHECK_FALSE(untied.tie_word_embeddings);
  CHECK(untied.rope_theta == 500);
}

TEST_CASE("what a config.json may leave out has transformers' meaning", "[llm][config]") {
  FolderCopy copy;
  for (const char* key : {"head_dim", "rope_parameters", "num_key_value_heads", "tie_word_embeddings", "hidden_act",
                          "architectures", "attention_bias", "mlp_bias", "attention_dropout"}) {
    copy.config.erase(key);
  }
  auto expected = tiny_config();
  expected.num_key_value_heads = 4;
  expected.rope_theta = 10000;
  expected.tie_word_embeddings = false;
  CHECK(read(copy) == expected);
  for (const char* key : {"head_dim", "num_key_value_heads", "rope_parameters", "rope_scaling"}) {
    copy.config[key] = nullptr;
  }
  CHECK(read(copy) == expected);
}

TEST_CASE("the base of the rotations is found where any version of transformers puts it", "[llm][config]") {
  FolderCopy copy;
  copy.config.erase("rope_parameters");
  copy.config["rope_theta"] = 100000;
  CHECK(read(copy).rope_theta == 100000);
  copy.config["rope_scaling"] = {{"type", "default"}};
  CHECK(read(copy).rope_theta == 100000);
  copy.config["rope_parameters"] = {{"rope_theta", 100000.0}, {"rope_type", "default"}, {"factor", nullptr}};
  CHECK(read(copy).rope_theta == 100000);
  copy.config.erase("rope_theta");
  CHECK(read(copy).rope_theta == 100000);
  copy.config["rope_theta"] = 500000.0;
  CHECK(message_for(copy) == "rope_parameters.rope_theta must be the same as rope_theta = 5e+05, got 1e+05");
}

TEST_CASE("a config.json of what this Llama does not compute is refused", "[llm][config]") {
  struct Case {
    const char* key;
    Json value;
    std::string message;
  };
  const std::string only = " (nothing else is supported), got ", no_model = " (no other model is supported), got ";
  const std::vector<Case> cases{
      {"model_type", "qwen2", "model_type must be \"llama\"" + no_model + "\"qwen2\""},
      {"model_type", nullptr, "model_type must be \"llama\"" + no_model + "null"},
      {"architectures", Json::array({"LlamaForSequenceClassification"}),
       "architectures must be [\"LlamaForCausalLM\"]" + no_model + "[\"LlamaForSequenceClassification\"]"},
      {"architectures", "LlamaForCausalLM",
       "architectures must be [\"LlamaForCausalLM\"]" + no_model + "\"LlamaForCausalLM\""},
      {"hidden_act", "gelu", "hidden_act must be \"silu\"" + only + "\"gelu\""},
      {"attention_bias", true, "attention_bias must be false" + only + "true"},
      {"mlp_bias", true, "mlp_bias must be false" + only + "true"},
      {"attention_dropout", 0.1, "attention_dropout must be 0" + only + "0.1"},
      {"sliding_window", 4096, "sliding_window must be null" + only + "4096"},
      {"partial_rotary_factor", 0.5, "partial_rotary_factor must be 1" + only + "0.5"},
      {"rope_interleaved", true, "rope_interleaved must be false" + only + "true"},
      {"quantization_config", {{"bits", 4}}, "quantization_config must be null" + only + "an object"},
      {"rope_scaling",
       {{"factor", 2.0}, {"type", "linear"}},
       "rope_scaling.type must be \"default\" (no scaling is supported), got \"linear\""},
      {"rope_parameters",
       {{"rope_theta", 1e4}, {"rope_type", "llama3"}},
       "rope_parameters.rope_type must be \"default\" (no scaling is supported), got \"llama3\""},
      {"rope_parameters",
       {{"rope_theta", 1e4}, {"factor", 8}},
       "rope_parameters.factor must be null (no scaling is supported), got 8"},
      {"rope_parameters", 5, "rope_parameters must be an object or null, got 5"},
      {"rope_theta", "big", "rope_theta must be a number, got \"big\""},
      {"rope_parameters", {{"rope_theta", -1}}, "rope_theta must be positive, got -1"},
      {"rms_norm_eps", nullptr, "rms_norm_eps must be a number, got null"},
      {"rms_norm_eps", 0, "rms_norm_eps must lie between 0 and 1, got 0"},
      {"hidden_size", nullptr, "hidden_size must be a whole number in [1, 16777216], got null"},
      {"hidden_size", 0, "hidden_size must be a whole number in [1, 16777216], got 0"},
      {"intermediate_size", -64, "intermediate_size must be a whole number in [1, 16777216], got -64"},
      {"num_hidden_layers", 2.5, "num_hidden_layers must be a whole number in [1, 16777216], got 2.5"},
      {"num_attention_heads", "4", "num_attention_heads must be a whole number in [1, 16777216], got \"4\""},
      {"vocab_size", 16777217, "vocab_size must be a whole number in [1, 16777216], got 16777217"},
      {"max_position_embeddings", 1e30, "max_position_embeddings must be a whole number in [1, 16777216], got 1e+30"},
      {"num_key_value_heads", 3, "num_attention_heads must be a multiple of num_key_value_heads = 3, got 4"},
      {"head_dim", 7, "head_dim must be even, for rotations turn pairs of numbers, got 7"},
      {"head_dim", 16777216, "num_attention_heads times head_dim must be at most 16777216, got 4 times 16777216"},
      {"tie_word_embeddings", 1, "tie_word_embeddings must be true or false, got 1"},
  };
  for (const auto& [key, value, message] : cases) {
    FolderCopy copy;
    copy.config[key] = value;
    CHECK(message_for(copy) == message);
  }
  FolderCopy copy;
  copy.config.erase("head_dim");
  copy.config["hidden_size"] = 30;
  CHECK(message_for(copy) ==
        "hidden_size must be a multiple of num_attention_heads = 4 where there is no head_dim, got 30");
}

TEST_CASE("a file that is no configuration is refused", "[llm][config]") {
  const TemporaryFolder folder;
  const auto path = folder / "config.json";
  const auto message = [&](const std::string& text) {
    write_text(path, text);
    return message_of<FormatError>([&] { llm::config_from_json(path); });
  };
  CHECK(message("[]") == path.string() + ": must be a JSON object, got something else");
  CHECK(message(R"({"hidden_size": 32, "hidden_size": 64})") ==
        path.string() + ": \"hidden_size\" must stand once, got a second one");
  CHECK(message(R"({"hidden_size": 32)") == path.string() + ": must be UTF-8 JSON, got a fault at byte 19");
  write_text(path, std::string((1 << 20) + 1, ' '));
  CHECK(message_of<IoError>([&] { llm::config_from_json(path); }) ==
        path.string() + ": must hold at most 1048576 bytes, got 1048577");
}

TEST_CASE("what GGUF metadata may leave out has llama.cpp's meaning", "[llm][config][gguf]") {
  GgufCopy copy;
  for (const char* key : {"llama.attention.head_count_kv", "llama.rope.freq_base", "llama.rope.dimension_count",
                          "llama.vocab_size", "general.type"}) {
    copy.drop(key);
  }
  auto expected = tiny_config();
  expected.num_key_value_heads = 4;
  expected.rope_theta = 10000;
  CHECK(read(copy) == expected);
  copy.metadata.set("llama.attention.key_length", 16U);
  copy.metadata.set("llama.attention.value_length", 16U);
  copy.metadata.set("llama.rope.scaling.type", std::string("none"));
  copy.metadata.set("llama.expert_count", 0U);
  copy.metadata.set("split.count", std::uint16_t{1});
  copy.tensors.push_back(copy.tensor("token_embd.weight"));
  copy.tensors.back().name = "output.weight";
  expected.head_dim = 16;
  expected.tie_word_embeddings = false;
  CHECK(read(copy) == expected);
}

TEST_CASE("GGUF metadata of what this Llama does not compute is refused", "[llm][config][gguf]") {
  struct Case {
    std::string key;
    gguf::Value value;
    std::string message;
  };
  const std::string only = " (nothing else is supported), got ", no_model = " (no other model is supported), got ";
  const std::vector<Case> cases{
      {"general.architecture", std::string("qwen2"), "be \"llama\"" + no_model + "\"qwen2\""},
      {"general.architecture", 7U, "be string, got u32"},
      {"general.type", std::string("adapter"), "be \"model\", got \"adapter\""},
      {"split.count", std::uint16_t{3}, "be 1: join the files of the model with llama.cpp's gguf-split --merge, got 3"},
      {"llama.rope.scaling.type", std::string("yarn"), "be \"none\"" + only + "\"yarn\""},
      {"llama.rope.scaling.factor", 4.0F, "be 1" + only + "4"},
      {"llama.attention.sliding_window", 4096U, "be 0" + only + "4096"},
      {"llama.use_parallel_residual", true, "be false" + only + "true"},
      {"llama.expert_count", 8U, "be 0" + only + "8"},
      {"llama.logit_scale", 0.5F, "not be there: this Llama does not know what it asks for, got 0.5"},
      {"llama.rope.dimension_sections", gguf::Array{std::vector<std::int32_t>{1}},
       "not be there: this Llama does not know what it asks for, got an array"},
      {"llama.rope.dimension_count", 4U, "be 8, the size of a head" + only + "4"},
      {"llama.attention.value_length", 16U, "be 8, the size of a head" + only + "16"},
      {"llama.embedding_length", 0U, "lie in [1, 16777216], got 0"},
      {"llama.embedding_length", 30U, "be a multiple of the 4 heads, got 30"},
      {"llama.vocab_size", 4294967295U, "lie in [1, 16777216], got 4294967295"},
      {"llama.block_count", std::uint64_t{2}, "be u32, got u64"},
      {"llama.attention.head_count_kv", gguf::Array{std::vector<std::uint32_t>{2, 2}}, "be u32, got array of u32"},
      {"llama.rope.freq_base", 1000.0, "be f32, got f64"},
  };
  for (const auto& [key, value, message] : cases) {
    GgufCopy copy;
    copy.metadata.set(key, value);
    CHECK(message_for(copy) == "key \"" + key + "\" must " + message);
  }
  for (const char* key : {"general.architecture", "llama.block_count", "llama.context_length",
                          "llama.feed_forward_length", "llama.attention.head_count"}) {
    GgufCopy copy;
    copy.drop(key);
    const std::string type = std::string_view(key) == "general.architecture" ? "string" : "u32";
    CHECK(message_for(copy) == "key \"" + std::string(key) + "\" must be " + type + ", got no such key");
  }
  const auto relation = [](const char* key, const gguf::Value& value) {
    GgufCopy copy;
    copy.metadata.set(key, value);
    return message_for(copy);
  };
  CHECK(relation("llama.attention.head_count_kv", 3U) ==
        "llama.attention.head_count must be a multiple of llama.attention.head_count_kv = 3, got 4");
  CHECK(relation("llama.rope.freq_base", 0.0F) == "llama.rope.freq_base must be positive, got 0");
  CHECK(relation("llama.attention.layer_norm_rms_epsilon", std::numeric_limits<float>::quiet_NaN()) ==
        "llama.attention.layer_norm_rms_epsilon must lie between 0 and 1, got nan");
}
