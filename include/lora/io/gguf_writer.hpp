// SPDX-License-Identifier: MIT
// Writes the container of a GGUF file, version 3, under the rules of the reader.
#pragma once

#include <lora/core/error.hpp>
#include <lora/io/gguf_metadata.hpp>
#include <lora/io/gguf_reader.hpp>
#include <lora/io/gguf_tensor.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace lora::detail {

/// The bytes before the data: magic number to padding.
class GgufHeader {
 public:
  GgufHeader(const gguf::Metadata& metadata, std::span<const gguf::Tensor> tensors, const std::string& file) {
    const std::uint64_t alignment = metadata.get_or<std::uint32_t>(gguf_alignment_key, gguf_default_alignment);
    raw(gguf_magic);
    number(std::uint32_t{3});
    number(std::uint64_t{tensors.size()});
    number(std::uint64_t{metadata.items().size()});
    for (const auto& [key, value] : metadata.items()) {
      write(key);
      number(static_cast<std::uint32_t>(value.index()));
      std::visit([this](const auto& alternative) { write(alternative); }, value);
    }
    std::uint64_t end = 0;
    for (const gguf::Tensor& tensor : tensors) {
      describe(tensor, end, file);
      end = align_up(end + tensor.bytes.size(), alignment);
    }
    const std::uint64_t data = align_up(bytes_.size(), alignment);
    // The reader is the one judge of what a file may hold.
    GgufParser(bytes_, data + end, file).parse();
    bytes_.resize(data);
  }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  void raw(std::string_view text) {
    const auto bytes = std::as_bytes(std::span(text));
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  template <class Number>
  void number(Number value) {
    const auto bytes = std::as_bytes(std::span(&value, 1));
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }

  template <class Number>
  requires(std::integral<Number> || std::floating_point<Number>) void write(Number value) { number(value); }
  void write(const std::string& text) {
    number(std::uint64_t{text.size()});
    raw(text);
  }
  void write(const gguf::Array& array) {
    number(static_cast<std::uint32_t>(array.elements.index()));
    std::visit([this](const auto& elements) { write(elements); }, array.elements);
  }
  template <class Element>
  void write(const std::vector<Element>& elements) {
    number(std::uint64_t{elements.size()});
    for (const auto& element : elements) write(static_cast<const Element&>(element));
  }
  void write(gguf::Array::Nested) {}  // the reader refuses the type

  void describe(const gguf::Tensor& tensor, std::uint64_t offset, const std::string& file) {
    const auto* layout = gguf::block_layout(tensor.type);
    const auto require_tensor = [&](bool rule, const auto&... parts) {
      require<FormatError>(rule, file, ": tensor ", Quoted{tensor.name}, " must ", parts...);
    };
    require_tensor(layout != nullptr, "have a stored type of ggml, got ", gguf::type_name(tensor.type));
    require_tensor(tensor.dims >= 0 && tensor.dims <= gguf::Tensor::max_dims, "have 0 to 4 dimensions, got ",
                   tensor.dims);
    for (int i = 0; i < gguf::Tensor::max_dims; ++i) {
      const Index size = tensor.ne[static_cast<std::size_t>(i)];
      require_tensor(i < tensor.dims ? size >= 0 : size == 1,
                     "have no negative size, and 1 beyond its dimensions, got ", size, " as size ", i);
    }
    const auto bytes = gguf_bytes(*layout, tensor.ne);
    require_tensor(bytes.has_value() && *bytes == tensor.bytes.size(), "have the bytes of ", sizes(tensor), " ",
                   layout->name, ", got ", tensor.bytes.size());

    write(tensor.name);
    number(static_cast<std::uint32_t>(tensor.dims));
    for (int i = 0; i < tensor.dims; ++i) number(static_cast<std::uint64_t>(tensor.ne[static_cast<std::size_t>(i)]));
    number(static_cast<std::uint32_t>(tensor.type));
    number(offset);
  }

  std::vector<std::byte> bytes_;
};

}  // namespace lora::detail

namespace lora::gguf {

/// Gives the bytes of a file of version 3 to `sink(std::span<const std::byte>)`, piece by piece; every tensor is padded
/// to the alignment, the last one too. All rules of `Contents::parse` are checked before the first byte goes out.
/// \throws FormatError  a rule is broken (also: a tensor without all of its bytes); what `sink` throws.
template <class Sink>
void write_to(Sink&& sink, const Metadata& metadata, std::span<const Tensor> tensors, const std::string& file) {
  const detail::GgufHeader header(metadata, tensors, file);
  sink(header.bytes());
  const std::size_t alignment =
      metadata.get_or<std::uint32_t>(detail::gguf_alignment_key, detail::gguf_default_alignment);
  static constexpr std::array<std::byte, 4096> zeros{};
  for (const Tensor& tensor : tensors) {
    sink(tensor.bytes);
    auto padding = detail::align_up(tensor.bytes.size(), alignment) - tensor.bytes.size();
    for (; padding > 0; padding -= std::min(padding, zeros.size())) {
      sink(std::span<const std::byte>(zeros).first(std::min(padding, zeros.size())));
    }
  }
}

/// The bytes of a file, see `write_to`.
inline std::vector<std::byte> to_bytes(const Metadata& metadata, std::span<const Tensor> tensors,
                                       const std::string& file = "gguf") {
  std::vector<std::byte> bytes;
  write_to([&](std::span<const std::byte> part) { bytes.insert(bytes.end(), part.begin(), part.end()); }, metadata,
           tensors, file);
  return bytes;
}

}  // namespace lora::gguf
