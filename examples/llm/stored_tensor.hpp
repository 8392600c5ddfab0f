// SPDX-License-Identifier: MIT
// One tensor of a model's file, whatever the kind of file: its shape, and its numbers in float.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/finite.hpp>
#include <lora/core/matrix.hpp>
#include <lora/io/gguf.hpp>
#include <lora/io/gguf_names.hpp>
#include <lora/io/quantised_blocks.hpp>
#include <lora/io/safetensors.hpp>
#include <lora/io/safetensors_matrix.hpp>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <variant>

namespace llm {

using lora::Index;

/// Borrows the file. Rows are in transformers' order and columns its own, [out, in] for a linear layer.
class StoredTensor {
 public:
  using Shape = lora::safetensors::Shape;

  StoredTensor(const lora::safetensors::File& file, std::string_view name, const lora::safetensors::Tensor& tensor)
      : file_name_(&file.name()), name_(name), source_(HuggingFace{&file, &tensor}) {}

  /// `rotary_head_dim`: the outputs of a head where llama.cpp has them in another order, else 0.
  StoredTensor(const lora::gguf::File& file, const lora::gguf::Tensor& tensor, Index rotary_head_dim)
      : file_name_(&file.contents().file()), name_(tensor.name), source_(Gguf{&file, &tensor, rotary_head_dim}) {}

  const std::string& name() const { return name_; }  ///< in the file
  /// Begins the messages.
  std::string where() const { return *file_name_ + ": tensor " + lora::detail::quoted(name_); }

  Shape shape() const {
    if (const auto* hugging_face = std::get_if<HuggingFace>(&source_)) return hugging_face->tensor->shape;
    const lora::gguf::Tensor& tensor = *std::get<Gguf>(source_).tensor;
    const auto sizes = std::span(tensor.ne).first(static_cast<std::size_t>(tensor.dims));
    return {sizes.rbegin(), sizes.rend()};
  }

  /// \throws FormatError  another shape, or a type whose numbers are not read.
  void require(const Shape& expected) const {
    lora::detail::require<lora::FormatError>(shape() == expected, where(), " must have shape ",
                                             lora::detail::shape_text(expected), ", got ",
                                             lora::detail::shape_text(shape()));
    if (const auto* hugging_face = std::get_if<HuggingFace>(&source_)) {
      using lora::safetensors::Type;
      const Type type = hugging_face->tensor->type;
      lora::detail::require<lora::FormatError>(
          type == Type::F32 || type == Type::F16 || type == Type::BF16 || type == Type::F64, where(),
          " must have type F32, F16, BF16 or F64, got ", lora::safetensors::type_name(type));
    } else {
      const auto type = std::get<Gguf>(source_).tensor->type;
      lora::detail::require<lora::FormatError>(lora::gguf::can_dequantise(type), where(),
                                               " must have type F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, "
                                               "Q5_K or Q6_K, got ",
                                               lora::gguf::type_name(type));
    }
  }

  /// Row i of a matrix, or a vector as row 0. \pre `require` with a shape that has this row, as long as `numbers`.
  /// \throws FormatError  a number that is NaN or infinite.
  void read_row(Index i, std::span<float> numbers) const {
    if (const auto* hugging_face = std::get_if<HuggingFace>(&source_)) {
      lora::safetensors::copy_row(*hugging_face->tensor, i, numbers);
    } else {
      const auto& [file, tensor, head_dim] = std::get<Gguf>(source_);
      lora::gguf::dequantise_row(*tensor, head_dim == 0 ? i : lora::detail::rotary_place(i, head_dim), numbers);
    }
    if (!lora::all_finite(lora::ConstRows<float>(numbers.data(), 1, std::ssize(numbers)))) {
      throw lora::FormatError(where() + " must hold finite numbers, got another in row " + std::to_string(i));
    }
  }

  /// The file's bytes behind it may leave the memory.
  void release() const {
    std::visit([](const auto& source) { source.file->release(*source.tensor); }, source_);
  }

  /// Same type, shape and bytes.
  friend bool operator==(const StoredTensor& left, const StoredTensor& right) {
    const auto *one = std::get_if<HuggingFace>(&left.source_), *other = std::get_if<HuggingFace>(&right.source_);
    return one != nullptr && other != nullptr && one->tensor->type == other->tensor->type &&
           one->tensor->shape == other->tensor->shape &&
           std::equal(one->tensor->bytes.begin(), one->tensor->bytes.end(), other->tensor->bytes.begin());
  }

 private:
  struct HuggingFace {
    const lora::safetensors::File* file;
    const lora::safetensors::Tensor* tensor;
  };
  struct Gguf {
    const lora::gguf::File* file;
    const lora::gguf::Tensor* tensor;
    Index rotary_head_dim;
  };

  const std::string* file_name_;
  std::string name_;
  std::variant<HuggingFace, Gguf> source_;
};

}  // namespace llm
