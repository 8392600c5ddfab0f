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
#include <optional>
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

/// The block of a GPT-2, "transformer.h.0", whose Conv1D the name is by its words; else nothing. Others use the names
/// for ordinary linear layers (GPT-Neo, StarCoder), so the words alone prove nothing.
inline std::optional<std::string> conv1d_block(std::string_view module) {
  constexpr std::array<std::string_view, 7> ends{
      ".attn.c_attn",           ".attn.c_proj",          ".mlp.c_fc", ".mlp.c_proj", ".crossattention.c_attn",
      ".crossattention.c_proj", ".crossattention.q_attn"};
  const auto end = std::find_if(ends.begin(), ends.end(), [&](auto words) { return module.ends_with(words); });
  if (end == ends.end()) return {};
  const auto block = module.substr(0, module.size() - end->size());
  const auto dot = block.rfind('.');  // before the number
  const bool number = dot != std::string_view::npos && dot + 1 < block.size() &&
                      block.find_first_not_of("0123456789", dot + 1) == std::string_view::npos;
  const auto before = block.substr(0, number ? dot : 0);
  if (before != "h" && !before.ends_with(".h")) return {};
  return std::string(block);
}

/// Whether the weights of a block are [in, out], by one of them that has more outputs than inputs or fewer; nothing
/// where there is none. `find` gives the weight of a module or null.
template <class Find>
std::optional<bool> block_by_inputs(const std::string& block, const Find& find) {
  for (const std::string_view end : {".attn.c_attn", ".mlp.c_fc", ".mlp.c_proj"}) {
    const lora::safetensors::Tensor* const weight = find(block + std::string(end));
    if (weight == nullptr || weight->shape.size() != 2 || weight->shape[0] == weight->shape[1]) continue;
    const bool widens = end != ".mlp.c_proj";
    return (weight->shape[0] < weight->shape[1]) == widens;
  }
  return {};
}

/// Whether a weight whose shape does not tell is [in, out]. PEFT asks the model for the type of the layer and corrects
/// `fan_in_fan_out`, which is often wrong in files; here the rest of the block decides, or name and flag together.
/// Nothing where these disagree. The head of a GPT-2 is an ordinary linear layer.
template <class Find>
std::optional<bool> stored_by_inputs(std::string_view module, bool fan_in_fan_out, const Find& find) {
  if (module == "lm_head") return false;
  const auto block = conv1d_block(module);
  if (block) {
    const auto found = block_by_inputs(*block, find);
    if (found) return found;
  }
  if (block.has_value() == fan_in_fan_out) return fan_in_fan_out;
  return {};
}

/// The weights of a model by the names that an adapter gives them.
///
/// Files of a bare model leave out the first part of these names: GPT-2's on the hub have "h.0.attn.c_attn.weight"
/// where PEFT has "transformer.h.0.attn.c_attn". That part counts as left out where the adapter has it and no tensor
/// does.
class Weights {
 public:
  static constexpr std::string_view suffix = ".weight";

  /// \pre the files and the adapter outlive this.
  Weights(const std::vector<lora::safetensors::File>& files, const lora::peft::Adapter<float>& adapter)
      : adapter_(adapter) {
    const std::filesystem::path first = files.empty() ? "" : files.front().name();
    model_ = (files.size() == 1 ? first : first.parent_path()).string();
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

  /// The weight is [n, m] in the file, W0 row by row, as GPT-2's Conv1D keeps it; else [m, n]. What fits the factors
  /// one way only lies that way, whatever `fan_in_fan_out` says. \throws FormatError  nothing tells.
  bool by_inputs(const std::string& module, const lora::safetensors::Tensor& weight) const {
    const bool flag = adapter_.config.fan_in_fan_out;
    const auto position = adapter_.modules.find(module);
    const auto rows = static_cast<lora::Index>(weight.shape[0]), cols = static_cast<lora::Index>(weight.shape[1]);
    if (position == adapter_.modules.end()) return flag && module != "lm_head";
    if (rows != cols) {
      const auto& factors = position->second.factors;
      if (rows == factors.in_features() && cols == factors.out_features()) return true;
      if (cols == factors.in_features() && rows == factors.out_features()) return false;
    }
    const auto found = stored_by_inputs(module, flag, [&](const std::string& name) { return find(name); });
    if (found || rows != cols) return found.value_or(flag);
    throw lora::FormatError(model_ + ": the square weight of " + lora::detail::quoted(module) +
                            " must be [in, out] or [out, in]: " +
                            (flag ? "fan_in_fan_out is true, its name is none of GPT-2's Conv1D; set it to false if "
                                    "the model is no GPT-2"
                                  : "its name is one of GPT-2's Conv1D, fan_in_fan_out is false; set it to true if the "
                                    "model is a GPT-2"));
  }

  /// Weights of two dimensions, but for embeddings.
  std::vector<lora::ModuleShape> linear_layers() const {
    std::vector<lora::ModuleShape> layers;
    for (const auto& [name, tensor] : tensors_) {
      if (!name.ends_with(suffix) || name.size() == suffix.size() || tensor->shape.size() != 2) continue;
      if (tensor->bytes.empty()) continue;
      const std::string module = left_out_ + name.substr(0, name.size() - suffix.size());
      if (is_embedding(module)) continue;
      const auto rows = static_cast<lora::Index>(tensor->shape[0]), cols = static_cast<lora::Index>(tensor->shape[1]);
      const bool turned = !by_inputs(module, *tensor);
      layers.push_back({module, turned ? cols : rows, turned ? rows : cols});
    }
    return layers;
  }

 private:
  std::map<std::string, const lora::safetensors::Tensor*, std::less<>> tensors_;
  std::string left_out_, model_;
  const lora::peft::Adapter<float>& adapter_;
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
