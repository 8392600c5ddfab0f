// SPDX-License-Identifier: MIT
// The weights of a model: a Hugging Face folder or a GGUF file, opened, checked as a whole and read tensor by tensor.
#pragma once

#include "config.hpp"
#include "config_gguf.hpp"
#include "config_json.hpp"
#include "llama_tensors.hpp"
#include "stored_tensor.hpp"

#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>
#include <lora/io/config_json.hpp>
#include <lora/io/file.hpp>
#include <lora/io/gguf.hpp>
#include <lora/io/safetensors.hpp>

#include <Eigen/Core>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llm {

/// An opened model. Its files are mapped; numbers become float as they are asked for.
///
/// Names and order of rows are those of transformers, whatever the file: "model.layers.0.self_attn.q_proj.weight".
/// Moves, does not copy.
class Weights {
 public:
  /// `path`: a folder with config.json and model.safetensors (or model.safetensors.index.json and its parts; F64, F32,
  /// F16, BF16), or a .gguf file (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K).
  ///
  /// Every tensor of the Llama must be there, of the right shape and a type that is read; no others may, but
  /// `rotary_emb.inv_freq`, which old files keep and nobody reads, and the copy of a tied embedding. Looks at headers
  /// only.
  /// \throws IoError      a file cannot be opened, or the folder has none of the model.
  /// \throws FormatError  a rule is broken; the message names file, field or tensor, and what was expected.
  static Weights open(const std::filesystem::path& path) {
    Weights weights;
    weights.name_ = path.string();
    if (std::filesystem::is_directory(path)) {
      weights.open_folder(path);
    } else {
      weights.open_gguf(path);
    }
    return weights;
  }

  const LlamaConfig& config() const { return config_; }
  /// The path as it was given.
  const std::string& name() const { return name_; }
  /// Of a GGUF file, which has the tokenizer too; else null.
  const lora::gguf::Metadata* metadata() const { return gguf_ ? &gguf_->metadata() : nullptr; }

  bool has(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }

  /// A matrix [rows, cols], for a linear layer [out, in]. Its bytes in the file leave the memory again.
  /// \throws FormatError  no tensor of that name; another shape; a number that is not finite.
  lora::RowMatrix<float> matrix(std::string_view name, Index rows, Index cols) const {
    const StoredTensor& tensor = find(name);
    tensor.require({static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(cols)});
    lora::RowMatrix<float> matrix(rows, cols);
    for (Index i = 0; i < rows; ++i) {
      tensor.read_row(i, {matrix.data() + i * cols, static_cast<std::size_t>(cols)});
    }
    tensor.release();
    return matrix;
  }

  /// \throws FormatError  as `matrix`.
  Eigen::RowVectorXf vector(std::string_view name, Index size) const {
    const StoredTensor& tensor = find(name);
    tensor.require({static_cast<std::uint64_t>(size)});
    Eigen::RowVectorXf vector(size);
    tensor.read_row(0, {vector.data(), static_cast<std::size_t>(size)});
    return vector;
  }

  /// One row of a matrix alone, as the embedding of a token; reads only that row.
  /// \throws FormatError  as `matrix`. \throws ShapeError  no such row; `row` not as long as one.
  void row(std::string_view name, Index i, std::span<float> row) const { find(name).read_row(i, row); }

 private:
  Weights() = default;

  const StoredTensor& find(std::string_view name) const {
    const auto position = tensors_.find(name);
    lora::detail::require<lora::FormatError>(position != tensors_.end(), name_, ": must hold the tensor ",
                                             lora::detail::quoted(name), ", got none of that name");
    return position->second;
  }

  // ---- GGUF

  void open_gguf(const std::filesystem::path& path) {
    lora::detail::require<lora::FormatError>(path.extension() != ".safetensors", name_,
                                             ": must be a folder with config.json and model.safetensors, or a .gguf "
                                             "file, got a .safetensors file");
    gguf_ = std::make_unique<lora::gguf::File>(path);
    config_ = config_from_gguf(gguf_->contents());
    gather(name_, gguf_tensor_name, [&](const std::string& name, const std::string& stored) {
      const auto* tensor = gguf_->contents().find(stored);
      if (tensor == nullptr) return std::optional<StoredTensor>();
      return std::optional<StoredTensor>(std::in_place, *gguf_, *tensor, rotary_head_dim(name, config_));
    });
    if (gguf_->tensors().size() == tensors_.size()) return;
    std::set<std::string_view> known;
    for (const auto& [name, tensor] : tensors_) known.insert(tensor.name());
    for (const auto& tensor : gguf_->tensors()) {
      if (!known.contains(tensor.name)) refuse(StoredTensor(*gguf_, tensor, 0));
    }
  }

  // ---- Hugging Face

  void open_folder(const std::filesystem::path& folder) {
    const auto config = folder / "config.json", single = folder / "model.safetensors";
    lora::detail::require<lora::IoError>(std::filesystem::exists(config), folder.string(),
                                         ": must hold config.json, got none (a .gguf file is named by its own path)");
    config_ = config_from_json(config);
    const auto index = folder / "model.safetensors.index.json";
    Files of_tensor;
    std::filesystem::path source = single;
    if (std::filesystem::exists(single)) {
      files_.push_back(lora::safetensors::File::open(single));
      for (const auto& [name, tensor] : files_.front().tensors()) of_tensor.emplace(name, &files_.front());
    } else {
      lora::detail::require<lora::IoError>(
          std::filesystem::exists(index), folder.string(),
          ": must hold model.safetensors or model.safetensors.index.json, got neither");
      of_tensor = open_parts(folder, index);
      source = index;
    }
    const auto same = [](const std::string& name) { return name; };
    gather(source.string(), same, [&](const std::string& name, const std::string& /*stored*/) {
      const auto position = of_tensor.find(name);
      if (position == of_tensor.end()) return std::optional<StoredTensor>();
      return std::optional(stored(*position));
    });
    for (const auto& item : of_tensor) {
      if (!has(item.first) && !item.first.ends_with(".rotary_emb.inv_freq")) require_copy(stored(item));
    }
  }

  using Files = std::map<std::string, const lora::safetensors::File*, std::less<>>;

  static StoredTensor stored(const Files::value_type& item) {
    return {*item.second, item.first, item.second->at(item.first)};
  }

  /// The files of an index, each opened once, and the tensors in them.
  Files open_parts(const std::filesystem::path& folder, const std::filesystem::path& index) {
    constexpr std::uint64_t longest = 1 << 24;
    const std::string where = index.string();
    const auto bytes = lora::io::read_file(index, longest);
    std::map<std::string, std::vector<std::string>> order;  // not needed here
    const auto json =
        lora::detail::parse_config({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, where, order);
    const auto check = [&](bool rule, const auto&... parts) {
      lora::detail::require<lora::FormatError>(rule, where, ": ", parts...);
    };
    check(json.contains("weight_map") && json.at("weight_map").is_object(),
          "weight_map must be an object of tensor and file names, got none");
    std::map<std::string, std::size_t> parts;
    for (const auto& [tensor, file] : json.at("weight_map").items()) {
      const auto name = file.is_string() ? file.get<std::string>() : std::string();
      const bool plain = name.ends_with(".safetensors") && name.find_first_of("/\\") == std::string::npos;
      check(plain, "the file of tensor ", lora::detail::quoted(tensor),
            " must be a .safetensors file of this folder, got ", lora::detail::ConfigReader::shown(file));
      parts.emplace(name, parts.size());
    }
    std::vector<const std::string*> names(parts.size());
    for (const auto& [name, number] : parts) names[number] = &name;
    files_.reserve(parts.size());
    for (const auto* name : names) files_.push_back(lora::safetensors::File::open(folder / *name));
    Files of_tensor;
    for (const auto& [tensor, file] : json.at("weight_map").items()) {
      const auto& part = files_[parts.at(file.get_ref<const std::string&>())];
      part.at(tensor);
      of_tensor.emplace(tensor, &part);
    }
    for (const auto& part : files_) {
      for (const auto& [tensor, content] : part.tensors()) {
        const auto position = of_tensor.find(tensor);
        check(position != of_tensor.end() && position->second == &part, "weight_map must say that ", part.name(),
              " holds tensor ", lora::detail::quoted(tensor), ", got ",
              position == of_tensor.end() ? "nothing" : "another file");
      }
    }
    return of_tensor;
  }

  /// A tied head may stand in the file a second time, if it is the same.
  void require_copy(const StoredTensor& extra) const {
    if (extra.name() != "lm_head.weight" || !config_.tie_word_embeddings) refuse(extra);
    lora::detail::require<lora::FormatError>(extra == find("model.embed_tokens.weight"), extra.where(),
                                             " must equal model.embed_tokens.weight, for tie_word_embeddings is true, "
                                             "got other numbers");
  }

  // ---- both

  /// Fills `tensors_` with all that a Llama of this configuration has. \param source  where messages say one is
  /// missing.
  template <class StoredName, class Find>
  void gather(const std::string& source, const StoredName& stored_name, const Find& find) {
    for_each_tensor(config_, [&](const std::string& name, const StoredTensor::Shape& shape) {
      const std::string stored = stored_name(name);
      auto tensor = find(name, stored);
      lora::detail::require<lora::FormatError>(tensor.has_value(), source, ": tensor ", lora::detail::quoted(stored),
                                               " must be there with shape ", lora::detail::shape_text(shape),
                                               ", got no such tensor");
      tensor->require(shape);
      tensors_.emplace(name, std::move(*tensor));
    });
  }

  [[noreturn]] void refuse(const StoredTensor& unknown) const {
    throw lora::FormatError(unknown.where() + " must be one of a Llama of " +
                            std::to_string(config_.num_hidden_layers) +
                            " layers without biases or scaled rotations, got another");
  }

  std::string name_;
  LlamaConfig config_;
  std::vector<lora::safetensors::File> files_;
  std::unique_ptr<lora::gguf::File> gguf_;
  std::map<std::string, StoredTensor, std::less<>> tensors_;
};

}  // namespace llm
