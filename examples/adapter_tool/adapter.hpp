// SPDX-License-Identifier: MIT
// Adapters from either kind of file, as one value; and what a GGUF file needs to know of its base model.
#pragma once

#include "commands.hpp"

#include <lora/io/gguf_adapter.hpp>
#include <lora/io/peft.hpp>
#include <lora/io/safetensors_header.hpp>

#include <filesystem>
#include <optional>
#include <set>
#include <string>

namespace adapter_tool {

/// llama.cpp keeps the outputs of llama's q_proj and k_proj in an order that depends on the head counts. Norms and
/// shapes are the same in any order.
enum class Order { Matters, DoesNotMatter };

struct LoadedAdapter {
  lora::peft::Adapter<float> adapter;  ///< of a GGUF file: with Hugging Face's names, and what the file says
  std::string kind;                    ///< "PEFT", "GGUF of llama", "GGUF of gpt2"
  std::set<std::string> types;         ///< of the stored numbers
  bool is_gguf = false;
};

/// Reads a PEFT directory or an adapter GGUF, strictly.
/// \throws UsageError  the order matters, and no base tells the head counts. \throws lora::Error  see the library.
LoadedAdapter load(const std::filesystem::path& path, const BaseOptions& base, Order order);

/// None where the options are empty. \throws lora::Error  the file cannot be read, or describes another architecture.
std::optional<lora::gguf::BaseModel> base_model(const BaseOptions& options);

/// f32, f16, bf16.
lora::safetensors::Type stored_type(const std::string& name);

}  // namespace adapter_tool
