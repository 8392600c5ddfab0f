// SPDX-License-Identifier: MIT
// Where the modules of an adapter have their weights in the safetensors of a model, and which way round.
#pragma once

#include <lora/io/peft.hpp>
#include <lora/io/safetensors.hpp>
#include <lora/model/targets.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace adapter_tool {

/// Modules whose weight has two dimensions and is no linear layer: no factors of ours go there.
inline bool is_embedding(std::string_view module) {
  constexpr std::array<std::string_view, 6> names{
      "embed_tokens", "wte", "wpe", "word_embeddings", "position_embeddings", "token_type_embeddings"};
  const auto last = module.substr(module.rfind('.') + 1);  // all of it where there is no dot
  return std::find(names.begin(), names.end(), last) != names.end();
}

/// The weight is [n, m] in the file, W0 row by row, as GPT-2's Conv1D keeps it; else [m, n]. The head of a GPT-2 is an
/// ordinary linear layer.
inline bool stored_by_inputs(std::string_view module, bool fan_in_fan_out) {
  return fan_in_fan_out && module != "lm_head";
}

inline lora::ModuleShape shape_of(const std::string& module, const lora::safetensors::Tensor& weight,
                                  bool fan_in_fan_out) {
  const auto rows = static_cast<lora::Index>(weight.shape[0]), cols = static_cast<lora::Index>(weight.shape[1]);
  if (stored_by_inputs(module, fan_in_fan_out)) return {module, rows, cols};
  return {module, cols, rows};
}

/// The weights of a model by the names that an adapter gives them.
///
/// Files of a bare model leave out the first part of these names: GPT-2's on the hub have "h.0.attn.c_attn.weight"
/// where PEFT has "transformer.h.0.attn.c_attn". That part counts as left out where the adapter has it and no tensor
/// does.
class Weights {
 public:
  static constexpr std::string_view suffix = ".weight";

  /// \pre the files outlive this.
  Weights(const std::vector<lora::safetensors::File>& files, const lora::peft::Adapter<float>& adapter)
      : fan_in_fan_out_(adapter.config.fan_in_fan_out) {
    for (const auto& file : files) {
      for (const auto& [name, tensor] : file.tensors()) {
        const bool is_new = tensors_.emplace(name, &tensor).second;
        if (!is_new)
          throw lora::FormatError(file.name() + ": tensor " + lora::detail::quoted(name) +
                                  ": must stand in one file of the model, got a second one");
      }
    }
    for (const std::string_view part : {"transformer.", "model."}) {
      const auto begins = [&](const auto& item) { return item.first.starts_with(part); };
      if (std::any_of(adapter.modules.begin(), adapter.modules.end(), begins) &&
          std::none_of(tensors_.begin(), tensors_.end(), begins))
        left_out_ = part;
    }
  }

  /// Null where the model has no such weight.
  const lora::safetensors::Tensor* find(std::string_view module) const {
    if (!left_out_.empty() && module.starts_with(left_out_)) module.remove_prefix(left_out_.size());
    const auto position = tensors_.find(std::string(module).append(suffix));
    return position == tensors_.end() ? nullptr : position->second;
  }

  /// Weights of two dimensions, but for embeddings.
  std::vector<lora::ModuleShape> linear_layers() const {
    std::vector<lora::ModuleShape> layers;
    for (const auto& [name, tensor] : tensors_) {
      if (!name.ends_with(suffix) || name.size() == suffix.size() || tensor->shape.size() != 2) continue;
      if (tensor->bytes.empty()) continue;
      const std::string module = left_out_ + name.substr(0, name.size() - suffix.size());
      if (!is_embedding(module)) layers.push_back(shape_of(module, *tensor, fan_in_fan_out_));
    }
    return layers;
  }

 private:
  std::map<std::string, const lora::safetensors::Tensor*, std::less<>> tensors_;
  std::string left_out_;
  bool fan_in_fan_out_;
};

/// A safetensors file; of a directory model.safetensors, or else all (a model in several files).
inline std::vector<lora::safetensors::File> open_model(const std::filesystem::path& path) {
  std::vector<lora::safetensors::File> files;
  const auto single = path / "model.safetensors";
  const bool directory = std::filesystem::is_directory(path);
  if (!directory || std::filesystem::exists(single)) {
    files.push_back(lora::safetensors::File::open(directory ? single : path));
    return files;
  }
  std::vector<std::filesystem::path> found;
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    const bool adapter = entry.path().filename() == "adapter_model.safetensors";
    if (entry.path().extension() == ".safetensors" && !adapter) found.push_back(entry.path());
  }
  if (found.empty()) throw lora::IoError(path.string() + ": must hold safetensors files of a model, got none");
  std::sort(found.begin(), found.end());
  for (const auto& one : found) files.push_back(lora::safetensors::File::open(one));
  return files;
}

}  // namespace adapter_tool
