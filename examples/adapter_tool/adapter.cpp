// SPDX-License-Identifier: MIT
// Adapters from either kind of file, as one value; and what a GGUF file needs to know of its base model.
#include "adapter.hpp"

#include <lora/io/config_json.hpp>
#include <lora/io/file.hpp>
#include <lora/io/gguf.hpp>
#include <lora/io/safetensors.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace adapter_tool {
namespace {

namespace fs = std::filesystem;
using lora::FormatError;
using lora::gguf::Architecture;

LoadedAdapter load_peft(const fs::path& path) {
  LoadedAdapter loaded{lora::peft::load<float>(path), "PEFT", {}, false};
  const auto file = lora::safetensors::File::open(path / "adapter_model.safetensors");
  for (const auto& [name, tensor] : file.tensors()) loaded.types.emplace(lora::safetensors::type_name(tensor.type));
  return loaded;
}

Architecture architecture_of(const lora::gguf::File& file) {
  const auto& name = file.metadata().get<std::string>("general.architecture");
  for (const auto architecture : {Architecture::Llama, Architecture::Gpt2}) {
    if (name == lora::gguf::name(architecture)) return architecture;
  }
  throw FormatError(file.contents().file() + ": key \"general.architecture\" must be \"llama\" or \"gpt2\", got " +
                    lora::detail::quoted(name));
}

LoadedAdapter load_gguf(const fs::path& path, const BaseOptions& options, Order order) {
  const lora::gguf::File file(path);
  auto base = base_model(options);
  if (!base) {
    const auto architecture = architecture_of(file);
    const auto rotates = [](const lora::gguf::Tensor& tensor) {
      return tensor.name.find(".attn_q.") != std::string::npos || tensor.name.find(".attn_k.") != std::string::npos;
    };
    const auto& tensors = file.tensors();
    if (order == Order::Matters && architecture == Architecture::Llama &&
        std::any_of(tensors.begin(), tensors.end(), rotates))
      throw UsageError("--base or --config must be given: the order of outputs in " + path.string() +
                       " depends on the head counts of the model");
    base = lora::gguf::BaseModel{architecture, 1, 1, true};
  }
  LoadedAdapter loaded;
  loaded.kind = "GGUF of " + std::string(lora::gguf::name(base->architecture));
  loaded.is_gguf = true;
  for (auto& [name, factors, scale] : lora::gguf::read_adapter(file.contents(), *base)) {
    const double alpha = scale * static_cast<double>(factors.rank());
    loaded.adapter.modules.emplace(name, lora::peft::Module<float>{std::move(factors), scale, alpha, {}});
  }
  for (const auto& tensor : file.tensors()) loaded.types.insert(lora::gguf::type_name(tensor.type));
  loaded.adapter.config.fan_in_fan_out = base->architecture == Architecture::Gpt2;
  loaded.adapter.config.task_type = "CAUSAL_LM";
  return loaded;
}

lora::Index head_count(const nlohmann::json& config, const char* key, lora::Index otherwise, const std::string& file) {
  const auto position = config.find(key);
  if (otherwise > 0 && (position == config.end() || position->is_null())) return otherwise;
  constexpr std::uint64_t most = 1 << 20;
  const bool fits = position != config.end() && position->is_number_unsigned() && position->get<std::uint64_t>() >= 1 &&
                    position->get<std::uint64_t>() <= most;
  if (!fits) throw FormatError(file + ": " + key + " must be a whole number of at least 1");
  return static_cast<lora::Index>(position->get<std::uint64_t>());
}

lora::gguf::BaseModel read_config(const fs::path& given) {
  const fs::path path = fs::is_directory(given) ? given / "config.json" : given;
  const std::string file = path.string();
  const auto bytes = lora::io::read_file(path, std::uint64_t{1} << 22);
  std::map<std::string, std::vector<std::string>> order;  // not needed here
  const auto config =
      lora::detail::parse_config({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, file, order);
  const auto kind = config.find("model_type");
  const bool llama = kind != config.end() && *kind == "llama";
  if (!llama && (kind == config.end() || *kind != "gpt2"))
    throw FormatError(file + ": model_type must be \"llama\" or \"gpt2\", got " +
                      (kind != config.end() && kind->is_string()
                           ? lora::detail::quoted(kind->get_ref<const std::string&>())
                           : "no such text"));
  const auto tied = config.find("tie_word_embeddings");
  if (tied != config.end() && !tied->is_boolean())
    throw FormatError(file + ": tie_word_embeddings must be true or false");
  lora::gguf::BaseModel base;
  base.architecture = llama ? Architecture::Llama : Architecture::Gpt2;
  base.has_output_weight = tied != config.end() ? !tied->get<bool>() : llama;  // what transformers takes it for
  if (llama) {
    base.head_count = head_count(config, "num_attention_heads", 0, file);
    base.head_count_kv = head_count(config, "num_key_value_heads", base.head_count, file);
  }
  return base;
}

}  // namespace

LoadedAdapter load(const fs::path& path, const BaseOptions& base, Order order) {
  std::error_code failure;
  const auto status = fs::status(path, failure);
  if (!fs::exists(status))
    throw lora::IoError(path.string() + ": must exist, got " + (failure ? failure.message() : "nothing"));
  if (fs::is_directory(status)) return load_peft(path);
  const lora::io::MappedFile file(path);
  const auto start = file.bytes().first(std::min<std::size_t>(4, file.bytes().size()));
  if (std::string(reinterpret_cast<const char*>(start.data()), start.size()) != "GGUF")
    throw FormatError(path.string() + ": must be the directory of a PEFT adapter or an adapter GGUF, got another file");
  return load_gguf(path, base, order);
}

std::optional<lora::gguf::BaseModel> base_model(const BaseOptions& options) {
  if (!options.gguf.empty()) return lora::gguf::describe(lora::gguf::open(options.gguf).contents());
  if (!options.config.empty()) return read_config(options.config);
  return std::nullopt;
}

lora::safetensors::Type stored_type(const std::string& name) {
  using lora::safetensors::Type;
  return name == "f16" ? Type::F16 : name == "bf16" ? Type::BF16 : Type::F32;
}

}  // namespace adapter_tool
