// SPDX-License-Identifier: MIT
#include "llm/weights.hpp"
#include "llm/tiny_files.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"

#include <lora/io/safetensors_matrix.hpp>

#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

using namespace lora;
using namespace lora::test;
using llm::Weights;
using safetensors::Shape;

namespace {

/// A matrix, or a vector as one row.
RowMatrix<float> numbers_of(const Weights& weights, const std::string& name, const Shape& shape) {
  if (shape.size() == 1) return weights.vector(name, static_cast<Index>(shape[0]));
  return weights.matrix(name, static_cast<Index>(shape[0]), static_cast<Index>(shape[1]));
}

/// All tensors of both, bit for bit.
void check_same(const Weights& left, const Weights& right) {
  REQUIRE(left.config() == right.config());
  int count = 0;
  llm::for_each_tensor(left.config(), [&](const std::string& name, const Shape& shape) {
    INFO(name);
    ++count;
    CHECK(same_bits(numbers_of(left, name, shape), numbers_of(right, name, shape)));
  });
  CHECK(count == 2 + 9 * left.config().num_hidden_layers + (left.config().tie_word_embeddings ? 0 : 1));
}

std::string refusal(const std::filesystem::path& path) {
  return message_of<FormatError>([&] { Weights::open(path); });
}

/// Tensors of another type, in memory of their own.
struct Converted {
  Converted(const safetensors::Tensors& source, safetensors::Type type) {
    for (const auto& [name, tensor] : source) {
      const auto numbers = safetensors::to_matrix<double>(tensor);
      const auto& own = bytes[name] = safetensors::encode(ConstRows<double>(numbers), type);
      tensors[name] = {type, tensor.shape, own};
    }
  }
  std::map<std::string, std::vector<std::byte>> bytes;
  safetensors::Tensors tensors;
};

}  // namespace

TEST_CASE("a Hugging Face folder and a GGUF file of one model hold the same numbers", "[llm][weights]") {
  const auto folder = Weights::open(llm_data("tiny")), file = Weights::open(llm_data("tiny.f32.gguf"));
  check_same(folder, file);
  CHECK(folder.metadata() == nullptr);
  REQUIRE(file.metadata() != nullptr);
  CHECK(file.metadata()->get<std::string>("general.architecture") == "llama");
  CHECK(folder.name() == llm_data("tiny").string());
  CHECK(folder.has("model.layers.1.mlp.down_proj.weight"));
  CHECK_FALSE(folder.has("blk.1.ffn_down.weight"));
  CHECK_FALSE(file.has("lm_head.weight"));
}

TEST_CASE("quantised matrices are those of the Python package, rows in transformers' order", "[llm][weights]") {
  const auto weights = Weights::open(llm_data("tiny.q8_0.gguf"));
  const auto reference = safetensors::File::open(llm_data("reference.safetensors"));
  const std::string prefix = "q8_0.";
  int compared = 0;
  for (const auto& [key, tensor] : reference.tensors()) {
    if (!key.starts_with(prefix)) continue;
    const auto name = key.substr(prefix.size());
    INFO(name);
    ++compared;
    const auto expected = safetensors::to_matrix<float>(tensor);
    if (name != "model.embed_tokens.weight") {
      CHECK(same_bits(weights.matrix(name, expected.rows(), expected.cols()), expected));
    }
    std::vector<float> row(static_cast<std::size_t>(expected.cols()));
    for (Index i = 0; i < expected.rows(); ++i) {
      weights.row(name, i, row);
      CHECK(std::memcmp(row.data(), expected.row(i).data(), row.size() * sizeof(float)) == 0);
    }
  }
  CHECK(compared == 4);
}

TEST_CASE("a row alone is that of the matrix", "[llm][weights]") {
  const auto name = GENERATE("tiny", "untied", "tiny.f32.gguf", "tiny.q8_0.gguf");
  const auto weights = Weights::open(llm_data(name));
  llm::for_each_tensor(weights.config(), [&](const std::string& tensor, const Shape& shape) {
    const auto matrix = numbers_of(weights, tensor, shape);
    std::vector<float> row(static_cast<std::size_t>(matrix.cols()));
    for (Index i = 0; i < matrix.rows(); ++i) {
      weights.row(tensor, i, row);
      REQUIRE(std::memcmp(row.data(), matrix.row(i).data(), row.size() * sizeof(float)) == 0);
    }
  });
}

TEST_CASE("an untied model has a head of its own, and heads narrower than its rows", "[llm][weights]") {
  const auto weights = Weights::open(llm_data("untied"));
  const auto file = safetensors::File::open(llm_data("untied") / "model.safetensors");
  llm::for_each_tensor(weights.config(), [&](const std::string& name, const Shape& shape) {
    CHECK(file.at(name).type == safetensors::Type::BF16);
    CHECK(same_bits(numbers_of(weights, name, shape), safetensors::to_matrix<float>(file.at(name))));
  });
  CHECK(weights.has("lm_head.weight"));
  CHECK(weights.matrix("model.layers.0.self_attn.q_proj.weight", 16, 32).size() == 512);
  CHECK(weights.matrix("model.layers.0.self_attn.k_proj.weight", 8, 32).size() == 256);
}

TEST_CASE("an untied model in GGUF names the size of its heads", "[llm][weights]") {
  const auto weights = Weights::open(llm_data("untied"));
  GgufCopy copy;
  const auto set = [&](const char* key, std::uint32_t value) { copy.metadata.set(key, value); };
  set("llama.block_count", 1);
  set("llama.feed_forward_length", 32);
  set("llama.attention.head_count", 2);
  set("llama.attention.head_count_kv", 1);
  set("llama.attention.key_length", 8);
  set("llama.attention.value_length", 8);
  copy.metadata.set("llama.rope.freq_base", 500.0F);
  std::vector<RowMatrix<float>> memory;
  memory.reserve(16);
  copy.tensors.clear();
  llm::for_each_tensor(weights.config(), [&](const std::string& name, const Shape& shape) {
    const auto numbers = numbers_of(weights, name, shape);
    auto& stored = memory.emplace_back(numbers);
    const Index head_dim = llm::rotary_head_dim(name, weights.config());
    for (Index i = 0; head_dim > 0 && i < numbers.rows(); ++i) {
      stored.row(i) = numbers.row(detail::rotary_source(i, head_dim));
    }
    copy.tensors.push_back({llm::gguf_tensor_name(name),
                            gguf::Type::F32,
                            static_cast<int>(shape.size()),
                            {numbers.cols(), shape.size() == 1 ? 1 : numbers.rows(), 1, 1},
                            std::as_bytes(std::span(stored.data(), static_cast<std::size_t>(stored.size())))});
  });
  check_same(weights, Weights::open(copy.write()));
}

TEST_CASE("every type of a safetensors file is read", "[llm][weights]") {
  using safetensors::Type;
  const auto original = Weights::open(llm_data("tiny"));
  for (const Type type : {Type::F32, Type::F64, Type::F16}) {  // BF16 would round
    FolderCopy copy;
    const Converted converted(copy.tensors, type);
    copy.tensors = converted.tensors;
    check_same(original, Weights::open(copy.write()));
  }
  FolderCopy copy;
  const Converted converted(copy.tensors, Type::F32);
  copy.tensors["model.norm.weight"] = {Type::I32, {32}, converted.tensors.at("model.norm.weight").bytes};
  CHECK(refusal(copy.write()) ==
        copy.path() +
            "/model.safetensors: tensor \"model.norm.weight\" must have type F32, F16, BF16 or "
            "F64, got I32");
}

TEST_CASE("an opened model can be moved", "[llm][weights]") {
  for (const char* name : {"tiny", "tiny.q8_0.gguf"}) {
    auto first = Weights::open(llm_data(name));
    const auto* metadata = first.metadata();
    auto second = Weights::open(llm_data("untied"));
    second = std::move(first);
    CHECK(second.metadata() == metadata);
    check_same(second, Weights::open(llm_data(name)));
  }
}

TEST_CASE("a model in several files is read by its index", "[llm][weights]") {
  FolderCopy copy;
  safetensors::Tensors parts[2];
  nlohmann::json map;
  const std::string names[] = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"};
  std::size_t i = 0;
  for (const auto& [name, tensor] : copy.tensors) {
    parts[i % 2].emplace(name, tensor);
    map[name] = names[i % 2];
    ++i;
  }
  const auto index = (copy.folder / "model.safetensors.index.json").string();
  const auto write = [&](const nlohmann::json& weight_map) {
    write_text(index, nlohmann::json{{"metadata", {{"total_size", 1}}}, {"weight_map", weight_map}}.dump());
    return copy.path();
  };
  const auto write_parts = [&] {
    for (const int part : {0, 1}) safetensors::write(copy.folder / names[part], parts[part]);
  };
  write_text(copy.folder / "config.json", copy.config.dump());
  write_parts();
  check_same(Weights::open(llm_data("tiny")), Weights::open(write(map)));

  auto bad = map;
  bad["model.norm.weight"] = "../" + names[0];
  CHECK(refusal(write(bad)) ==
        index +
            ": the file of tensor \"model.norm.weight\" must be a .safetensors file of this folder, "
            "got \"../model-00001-of-00002.safetensors\"");
  bad["model.norm.weight"] = 3;
  CHECK(refusal(write(bad)) ==
        index + ": the file of tensor \"model.norm.weight\" must be a .safetensors file of this folder, got 3");
  bad = map;
  bad.erase("model.norm.weight");
  const auto holder = (copy.folder / map.at("model.norm.weight").get<std::string>()).string();
  CHECK(refusal(write(bad)) ==
        index + ": weight_map must say that " + holder + " holds tensor \"model.norm.weight\", got nothing");
  bad["model.norm.weight"] = names[holder.find("00001-of") == std::string::npos ? 0 : 1];
  const auto other = (copy.folder / bad.at("model.norm.weight").get<std::string>()).string();
  CHECK(refusal(write(bad)) == other + ": must hold the tensor \"model.norm.weight\", got none of that name");
  write_text(index, "{}");
  CHECK(refusal(copy.path()) == index + ": weight_map must be an object of tensor and file names, got none");

  auto& first = parts[0].contains("model.norm.weight") ? parts[0] : parts[1];
  auto& second = &first == parts ? parts[1] : parts[0];
  second.emplace("model.norm.weight", first.at("model.norm.weight"));
  write_parts();
  CHECK(refusal(write(map)) ==
        index + ": weight_map must say that " + other + " holds tensor \"model.norm.weight\", got another file");
  for (auto* part : {&first, &second}) part->erase("model.norm.weight");
  map.erase("model.norm.weight");
  write_parts();
  CHECK(refusal(write(map)) ==
        index + ": tensor \"model.norm.weight\" must be there with shape [32], got no such tensor");
  std::filesystem::remove(copy.folder / names[1]);
  CHECK(message_of<IoError>([&] { Weights::open(copy.path()); }) ==
        (copy.folder / names[1]).string() + ": must open for reading, got No such file or directory");
}

TEST_CASE("a path that is no model says what one is", "[llm][weights]") {
  FolderCopy copy;
  const auto message = [](const std::filesystem::path& path) {
    return message_of<IoError>([&] { Weights::open(path); });
  };
  CHECK(message(copy.folder / "none") == copy.path() + "/none: must open for reading, got No such file or directory");
  CHECK(message(copy.folder.path()) ==
        copy.path() + ": must hold config.json, got none (a .gguf file is named by its own path)");
  copy.write();
  std::filesystem::rename(copy.folder / "model.safetensors", copy.folder / "pytorch_model.bin");
  CHECK(message(copy.folder.path()) ==
        copy.path() + ": must hold model.safetensors or model.safetensors.index.json, got neither");
  CHECK(refusal(llm_data("tiny") / "model.safetensors") ==
        (llm_data("tiny") / "model.safetensors").string() +
            ": must be a folder with config.json and model.safetensors, or a .gguf file, got a .safetensors file");
  CHECK(refusal(llm_data("tiny") / "config.json").starts_with((llm_data("tiny") / "config.json").string() + ": "));
}

TEST_CASE("a tensor that is missing, of another shape or not of a Llama is refused", "[llm][weights]") {
  const auto refused = [](const auto& change) {
    FolderCopy copy;
    change(copy);
    const auto text = refusal(copy.write()), where = copy.path() + "/model.safetensors: tensor ";
    return text.starts_with(where) ? text.substr(where.size()) : text;
  };
  const std::string unknown = " must be one of a Llama of 2 layers without biases or scaled rotations, got another";
  const std::string key = "model.layers.1.self_attn.k_proj.weight";
  CHECK(refused([&](FolderCopy& copy) { copy.tensors.erase(key); }) ==
        "\"" + key + "\" must be there with shape [16, 32], got no such tensor");
  CHECK(refused([&](FolderCopy& copy) {
          copy.tensors[key].shape = {32, 16};
        }) == "\"" + key + "\" must have shape [16, 32], got [32, 16]");
  CHECK(refused([&](FolderCopy& copy) { copy.config["num_key_value_heads"] = 4; }) ==
        "\"model.layers.0.self_attn.k_proj.weight\" must have shape [32, 32], got [16, 32]");
  CHECK(refused([&](FolderCopy& copy) { copy.config["num_hidden_layers"] = 16777216; }) ==
        "\"model.layers.2.input_layernorm.weight\" must be there with shape [32], got no such tensor");
  CHECK(refused([&](FolderCopy& copy) { copy.config["tie_word_embeddings"] = false; }) ==
        "\"lm_head.weight\" must be there with shape [128, 32], got no such tensor");
  CHECK(refused([&](FolderCopy& copy) {
          copy.tensors["model.layers.0.self_attn.q_proj.bias"] = copy.tensors["model.norm.weight"];
        }) == "\"model.layers.0.self_attn.q_proj.bias\"" + unknown);
  CHECK(refused([&](FolderCopy& copy) { copy.config["num_hidden_layers"] = 1; }) ==
        "\"model.layers.1.input_layernorm.weight\" must be one of a Llama of 1 layers without biases or scaled "
        "rotations, got another");
  CHECK(refused([&](FolderCopy& copy) {
          copy.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = copy.tensors["model.norm.weight"];
        }) == "[no error]");
  CHECK(refused([&](FolderCopy& copy) {
          copy.tensors["lm_head.weight"] = copy.tensors["model.embed_tokens.weight"];
        }) == "[no error]");
  CHECK(refused([&](FolderCopy& copy) {
          copy.tensors["lm_head.weight"] = copy.tensors["model.embed_tokens.weight"];
          copy.tensors["lm_head.weight"].bytes = copy.source.at("model.layers.0.mlp.up_proj.weight").bytes;
          copy.tensors["lm_head.weight"].shape = {64, 32};
        }) ==
        "\"lm_head.weight\" must equal model.embed_tokens.weight, for tie_word_embeddings is true, got other numbers");
}

TEST_CASE("the same of GGUF, by its own names", "[llm][weights]") {
  const auto refused = [](const auto& change) {
    GgufCopy copy;
    change(copy);
    const auto text = refusal(copy.write()), where = copy.path() + ": tensor ";
    return text.starts_with(where) ? text.substr(where.size()) : text;
  };
  const std::string unknown = " must be one of a Llama of 2 layers without biases or scaled rotations, got another";
  const auto add = [](GgufCopy& copy, const std::string& name) {
    copy.tensors.push_back(copy.tensor("output_norm.weight"));
    copy.tensors.back().name = name;
  };
  CHECK(refused([&](GgufCopy& copy) { copy.tensor("blk.1.ffn_norm.weight").name = "other"; }) ==
        "\"blk.1.ffn_norm.weight\" must be there with shape [32], got no such tensor");
  CHECK(refused([&](GgufCopy& copy) { copy.metadata.set("llama.vocab_size", 129U); }) ==
        "\"token_embd.weight\" must have shape [129, 32], got [128, 32]");
  CHECK(refused([&](GgufCopy& copy) { add(copy, "rope_freqs.weight"); }) == "\"rope_freqs.weight\"" + unknown);
  CHECK(refused([&](GgufCopy& copy) { add(copy, "blk.0.attn_q.bias"); }) == "\"blk.0.attn_q.bias\"" + unknown);
  CHECK(refused([&](GgufCopy& copy) { add(copy, "output.weight"); }) ==
        "\"output.weight\" must have shape [128, 32], got [32]");
  CHECK(refused([&](GgufCopy& copy) { copy.tensor("output_norm.weight").type = gguf::Type::I32; }) ==
        "\"output_norm.weight\" must have type F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K, got "
        "I32");
}

TEST_CASE("a number that is not finite is refused where it is read", "[llm][weights]") {
  FolderCopy copy;
  const Converted converted(copy.tensors, safetensors::Type::F32);
  copy.tensors = converted.tensors;
  auto bytes = converted.bytes.at("model.norm.weight");
  const std::uint32_t infinite = 0x7F800000;
  std::memcpy(bytes.data() + 8, &infinite, sizeof infinite);
  copy.tensors["model.norm.weight"].bytes = bytes;
  const auto weights = Weights::open(copy.write());
  CHECK(message_of<FormatError>([&] { weights.vector("model.norm.weight", 32); }) ==
        copy.path() +
            "/model.safetensors: tensor \"model.norm.weight\" must hold finite numbers, got another in row 0");
}

TEST_CASE("asking for what is not there is refused", "[llm][weights]") {
  const auto weights = Weights::open(llm_data("tiny.q8_0.gguf"));
  const auto where = llm_data("tiny.q8_0.gguf").string();
  CHECK(message_of<FormatError>([&] { weights.matrix("lm_head.weight", 128, 32); }) ==
        where + ": must hold the tensor \"lm_head.weight\", got none of that name");
  CHECK(message_of<FormatError>([&] { weights.matrix("model.embed_tokens.weight", 32, 128); }) ==
        where + ": tensor \"token_embd.weight\" must have shape [32, 128], got [128, 32]");
  CHECK(message_of<FormatError>([&] { weights.vector("model.embed_tokens.weight", 32); }) ==
        where + ": tensor \"token_embd.weight\" must have shape [32], got [128, 32]");
  std::vector<float> row(32);
  CHECK(message_of<ShapeError>([&] { weights.row("model.embed_tokens.weight", 128, row); }) ==
        "dequantise_row: row of tensor \"token_embd.weight\" must lie in [0, 128), got 128");
  row.resize(31);
  CHECK(message_of<ShapeError>([&] { weights.row("model.embed_tokens.weight", 5, row); }) ==
        "dequantise_row: row of tensor \"token_embd.weight\" must have 32 numbers, got room for 31");
}

TEST_CASE("a file cut off anywhere is refused", "[llm][weights]") {
  FolderCopy copy;
  copy.write();
  const auto cut = [&](const std::filesystem::path& path, const std::filesystem::path& model) {
    const auto text = text_of(path);
    Index accepted = 0;
    for (std::size_t size = 0; size < text.size(); size += size < 4096 ? 61 : 4099) {
      write_text(path, std::string_view(text).substr(0, size));
      const auto message = refusal(model);
      if (!message.starts_with(copy.path())) ++accepted;
    }
    write_text(path, text);
    CHECK(accepted == 0);
  };
  cut(copy.folder / "model.safetensors", copy.path());
  cut(copy.folder / "config.json", copy.path());
  for (const char* name : {"tiny.f32.gguf", "tiny.q8_0.gguf"}) {
    const auto path = copy.folder / "cut.gguf";
    write_text(path, text_of(llm_data(name)));
    cut(path, path);
  }
}
