// SPDX-License-Identifier: MIT
// The tiny models that make_tiny.py made, and changed copies of them.
#pragma once

#include "support/temporary_folder.hpp"

#include <lora/io/gguf.hpp>
#include <lora/io/safetensors.hpp>

#include <nlohmann/json.hpp>

#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace lora::test {

inline std::filesystem::path llm_data(std::string_view name) { return std::filesystem::path(LORA_LLM_DATA) / name; }

/// A copy of a Hugging Face folder whose config and tensors a test changes before it is written.
struct FolderCopy {
  explicit FolderCopy(std::string_view name = "tiny")
      : config(nlohmann::json::parse(text_of(llm_data(name) / "config.json"))),
        source(safetensors::File::open(llm_data(name) / "model.safetensors")),
        tensors(source.tensors()) {}

  std::string path() const { return folder.path().string(); }
  /// The path of a model.
  std::string write() const {
    write_text(folder / "config.json", config.dump());
    safetensors::write(folder / "model.safetensors", tensors);
    return path();
  }

  TemporaryFolder folder;
  nlohmann::json config;
  safetensors::File source;
  safetensors::Tensors tensors;
};

/// The same of a GGUF file.
struct GgufCopy {
  explicit GgufCopy(std::string_view name = "tiny.f32.gguf")
      : source(llm_data(name)), metadata(source.metadata()), tensors(source.tensors()) {}

  std::string path() const { return (folder / "model.gguf").string(); }
  std::string write() const {
    gguf::write(path(), metadata, tensors);
    return path();
  }
  /// The metadata but for a key.
  void drop(std::string_view key) {
    std::vector<gguf::Metadata::Item> items;
    for (const auto& item : metadata.items()) {
      if (item.first != key) items.push_back(item);
    }
    metadata = gguf::Metadata("gguf", items);
  }
  gguf::Tensor& tensor(std::string_view name) {
    for (auto& each : tensors) {
      if (each.name == name) return each;
    }
    throw std::logic_error("no such tensor");
  }

  TemporaryFolder folder;
  gguf::File source;
  gguf::Metadata metadata;
  std::vector<gguf::Tensor> tensors;
};

}  // namespace lora::test
