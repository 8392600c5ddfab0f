// SPDX-License-Identifier: MIT
// A tensor of a GGUF file: its name, type, sizes and bytes; the types that ggml stores, with their blocks.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace lora::gguf {

// NOLINTBEGIN(readability-identifier-naming): ggml's names, for they stand in every model's file name
/// The number of a type is that in the file.
enum class Type : std::uint32_t {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q2_K = 10,
  Q3_K = 11,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  Q8_K = 15,
  IQ2_XXS = 16,
  IQ2_XS = 17,
  IQ3_XXS = 18,
  IQ1_S = 19,
  IQ4_NL = 20,
  IQ3_S = 21,
  IQ2_S = 22,
  IQ4_XS = 23,
  I8 = 24,
  I16 = 25,
  I32 = 26,
  I64 = 27,
  F64 = 28,
  IQ1_M = 29,
  BF16 = 30,
  TQ1_0 = 34,
  TQ2_0 = 35,
  MXFP4 = 39,
  NVFP4 = 40,
  Q1_0 = 41,
};
// NOLINTEND(readability-identifier-naming)

/// How a type is stored: `bytes` bytes hold `elements` numbers of one row.
struct BlockLayout {
  Type type;
  std::string_view name;
  Index elements, bytes;
};

/// The layout of a type, or null for a number that no stored tensor has (retired types; Q8_1, which only lives within
/// ggml's products).
inline const BlockLayout* block_layout(Type type) {
  static constexpr BlockLayout layouts[] = {
      {Type::F32, "F32", 1, 4},           {Type::F16, "F16", 1, 2},
      {Type::Q4_0, "Q4_0", 32, 18},       {Type::Q4_1, "Q4_1", 32, 20},
      {Type::Q5_0, "Q5_0", 32, 22},       {Type::Q5_1, "Q5_1", 32, 24},
      {Type::Q8_0, "Q8_0", 32, 34},       {Type::Q2_K, "Q2_K", 256, 84},
      {Type::Q3_K, "Q3_K", 256, 110},     {Type::Q4_K, "Q4_K", 256, 144},
      {Type::Q5_K, "Q5_K", 256, 176},     {Type::Q6_K, "Q6_K", 256, 210},
      {Type::Q8_K, "Q8_K", 256, 292},     {Type::IQ2_XXS, "IQ2_XXS", 256, 66},
      {Type::IQ2_XS, "IQ2_XS", 256, 74},  {Type::IQ3_XXS, "IQ3_XXS", 256, 98},
      {Type::IQ1_S, "IQ1_S", 256, 50},    {Type::IQ4_NL, "IQ4_NL", 32, 18},
      {Type::IQ3_S, "IQ3_S", 256, 110},   {Type::IQ2_S, "IQ2_S", 256, 82},
      {Type::IQ4_XS, "IQ4_XS", 256, 136}, {Type::I8, "I8", 1, 1},
      {Type::I16, "I16", 1, 2},           {Type::I32, "I32", 1, 4},
      {Type::I64, "I64", 1, 8},           {Type::F64, "F64", 1, 8},
      {Type::IQ1_M, "IQ1_M", 256, 56},    {Type::BF16, "BF16", 1, 2},
      {Type::TQ1_0, "TQ1_0", 256, 54},    {Type::TQ2_0, "TQ2_0", 256, 66},
      {Type::MXFP4, "MXFP4", 32, 17},     {Type::NVFP4, "NVFP4", 64, 36},
      {Type::Q1_0, "Q1_0", 128, 18},
  };
  const auto layout =
      std::find_if(std::begin(layouts), std::end(layouts), [&](const BlockLayout& each) { return each.type == type; });
  return layout == std::end(layouts) ? nullptr : layout;
}
/// "Q4_K"; "type 77" for an unknown number.
inline std::string type_name(Type type) {
  const auto* layout = block_layout(type);
  return layout == nullptr ? "type " + std::to_string(static_cast<std::uint32_t>(type)) : std::string(layout->name);
}

/// Up to four sizes; the first is of what lies together in memory. A weight of a linear layer has ne = {n, m}, inputs
/// and outputs, so its bytes are those of W0 (n x m) in columns. The bytes are borrowed.
struct Tensor {
  static constexpr int max_dims = 4;

  std::string name;
  Type type = Type::F32;
  int dims = 2;                                ///< how many of the sizes stand in the file; the others are 1
  std::array<Index, max_dims> ne{1, 1, 1, 1};  ///< ggml's order: the reverse of the shape in numpy or PyTorch
  std::span<const std::byte> bytes;            ///< aligned like the file in memory, so no pointer to float may be made

  Index elements() const { return ne[0] * ne[1] * ne[2] * ne[3]; }
};

/// "64 x 8 x 1", as many sizes as stand in the file.
inline std::string sizes(const Tensor& tensor) {
  std::string text;
  for (int i = 0; i < tensor.dims; ++i) {
    text += (i == 0 ? "" : " x ") + std::to_string(tensor.ne[static_cast<std::size_t>(i)]);
  }
  return tensor.dims == 0 ? "a scalar" : text;
}

}  // namespace lora::gguf

namespace lora::detail {

/// The bytes of sizes that are not negative and whole blocks in `ne[0]`, or nothing where a number or a byte count does
/// not fit 63 bits.
inline std::optional<std::uint64_t> gguf_bytes(const gguf::BlockLayout& layout,
                                               const std::array<Index, gguf::Tensor::max_dims>& ne) {
  constexpr std::uint64_t most = std::numeric_limits<std::int64_t>::max();
  std::uint64_t elements = 1;
  for (const Index size : ne) {
    const auto factor = static_cast<std::uint64_t>(size);
    if (factor != 0 && elements > most / factor) return std::nullopt;
    elements *= factor;
  }
  const auto blocks = elements / static_cast<std::uint64_t>(layout.elements);
  const auto bytes = static_cast<std::uint64_t>(layout.bytes);
  if (blocks > most / bytes) return std::nullopt;
  return blocks * bytes;
}

}  // namespace lora::detail
