// SPDX-License-Identifier: MIT
// Turns the stored rows of a GGUF tensor into float: plain types and ggml's quantised blocks.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>
#include <lora/io/gguf_tensor.hpp>

#include <Eigen/Core>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <span>
#include <string>

namespace lora::detail {

/// A half d times a few small integers has at most 24 significant bits, so each product below is exact in float and the
/// one rounding is that of a sum. Hence the same bits whatever the order, with or without fused multiply-add.
struct BlockDecoder {
  static unsigned byte(const std::byte* at) { return std::to_integer<unsigned>(*at); }
  static int signed_byte(const std::byte* at) { return std::to_integer<std::int8_t>(*at); }
  template <class Number>
  static Number number(const std::byte* at) {
    Number value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  static float half(const std::byte* at) {
    return Eigen::half_impl::half_to_float(Eigen::half_impl::raw_uint16_to_half(number<std::uint16_t>(at)));
  }
  /// The four bits of element j: of `at[j]` the low ones for j < half, of `at[j - half]` the high ones beyond.
  static int nibble(const std::byte* at, int j, int half) {
    return static_cast<int>(j < half ? byte(at + j) & 15U : byte(at + j - half) >> 4);
  }

  static void f32(const std::byte* at, float* x) { *x = number<float>(at); }
  static void f16(const std::byte* at, float* x) { *x = half(at); }
  static void bf16(const std::byte* at, float* x) {
    *x = std::bit_cast<float>(std::uint32_t{number<std::uint16_t>(at)} << 16);
  }

  static void q4_0(const std::byte* at, float* x) {
    const float d = half(at);
    for (int j = 0; j < 32; ++j) x[j] = d * static_cast<float>(nibble(at + 2, j, 16) - 8);
  }
  static void q4_1(const std::byte* at, float* x) {
    const float d = half(at), m = half(at + 2);
    for (int j = 0; j < 32; ++j) x[j] = d * static_cast<float>(nibble(at + 4, j, 16)) + m;
  }
  static int fifth_bit(const std::byte* at, int j) {
    return static_cast<int>(number<std::uint32_t>(at) >> j & 1U) << 4;
  }
  static void q5_0(const std::byte* at, float* x) {
    const float d = half(at);
    for (int j = 0; j < 32; ++j) x[j] = d * static_cast<float>((nibble(at + 6, j, 16) | fifth_bit(at + 2, j)) - 16);
  }
  static void q5_1(const std::byte* at, float* x) {
    const float d = half(at), m = half(at + 2);
    for (int j = 0; j < 32; ++j) x[j] = d * static_cast<float>(nibble(at + 8, j, 16) | fifth_bit(at + 4, j)) + m;
  }
  static void q8_0(const std::byte* at, float* x) {
    const float d = half(at);
    for (int j = 0; j < 32; ++j) x[j] = d * static_cast<float>(signed_byte(at + 2 + j));
  }

  /// Scale and minimum of one of eight sub-blocks, six bits each in twelve bytes s: of the first four they are the low
  /// six bits of s[j] and s[j + 4]; of the others four bits stand in s[j + 4] and two above those six.
  struct ScaleAndMinimum {
    unsigned scale, minimum;
  };
  static ScaleAndMinimum scale_and_minimum(const std::byte* s, Index j) {
    if (j < 4) return {byte(s + j) & 63U, byte(s + j + 4) & 63U};
    return {(byte(s + j + 4) & 15U) | byte(s + j - 4) >> 6 << 4, byte(s + j + 4) >> 4 | byte(s + j) >> 6 << 4};
  }
  /// x = d scale q - dmin minimum, sub-block after sub-block; the fifth bits of Q5_K in `high`, none of Q4_K.
  static void q4_or_q5_k(const std::byte* at, const std::byte* high, const std::byte* low, float* x) {
    const float d = half(at), dmin = half(at + 2);
    for (Index j = 0; j < 8; ++j, x += 32) {
      const auto [scale, minimum] = scale_and_minimum(at + 4, j);
      const float step = d * static_cast<float>(scale), shift = dmin * static_cast<float>(minimum);
      for (Index l = 0; l < 32; ++l) {
        const unsigned four = byte(low + j / 2 * 32 + l) >> j % 2 * 4 & 15U;
        const unsigned fifth = high == nullptr ? 0U : byte(high + l) >> j & 1U;
        x[l] = step * static_cast<float>(four | fifth << 4) - shift;
      }
    }
  }
  static void q4_k(const std::byte* at, float* x) { q4_or_q5_k(at, nullptr, at + 16, x); }
  static void q5_k(const std::byte* at, float* x) { q4_or_q5_k(at, at + 16, at + 48, x); }

  /// x = d scale (q - 32), scales of 16 elements; 128 elements share 64 bytes of low and 32 bytes of high bits.
  static void q6_k(const std::byte* at, float* x) {
    const std::byte *low = at, *high = at + 128, *scales = at + 192;
    const float d = half(at + 208);
    for (Index j = 0; j < 256; ++j) {
      const Index in_half = j % 128, quarter = in_half / 32;
      const unsigned four = byte(low + j / 128 * 64 + in_half % 64) >> quarter / 2 * 4 & 15U;
      const unsigned two = byte(high + j / 128 * 32 + in_half % 32) >> quarter * 2 & 3U;
      const float step = d * static_cast<float>(signed_byte(scales + j / 16));
      x[j] = step * static_cast<float>(static_cast<int>(four | two << 4) - 32);
    }
  }

  using Decode = void (*)(const std::byte* block, float* x);
  static Decode of(gguf::Type type) {
    using gguf::Type;
    switch (type) {
      case Type::F32:
        return f32;
      case Type::F16:
        return f16;
      case Type::BF16:
        return bf16;
      case Type::Q4_0:
        return q4_0;
      case Type::Q4_1:
        return q4_1;
      case Type::Q5_0:
        return q5_0;
      case Type::Q5_1:
        return q5_1;
      case Type::Q8_0:
        return q8_0;
      case Type::Q4_K:
        return q4_k;
      case Type::Q5_K:
        return q5_k;
      case Type::Q6_K:
        return q6_k;
      default:
        return nullptr;
    }
  }
};

}  // namespace lora::detail

namespace lora::gguf {

/// F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K.
inline bool can_dequantise(Type type) { return detail::BlockDecoder::of(type) != nullptr; }

/// The numbers of whole blocks, bit for bit those that the Python package `gguf` computes (NaN stays some NaN).
/// \throws FormatError  a type that is not of the list above.
/// \throws ShapeError   `bytes` not a whole number of blocks; `numbers` not as many as they hold.
inline void dequantise(Type type, std::span<const std::byte> bytes, std::span<float> numbers) {
  const auto decode = detail::BlockDecoder::of(type);
  if (decode == nullptr) {
    throw FormatError(
        "dequantise: type must be F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K, got " +
        type_name(type));
  }
  const BlockLayout& layout = *block_layout(type);
  const auto block = static_cast<std::size_t>(layout.bytes), elements = static_cast<std::size_t>(layout.elements);
  detail::require<ShapeError>(bytes.size() % block == 0 && numbers.size() == bytes.size() / block * elements,
                              "dequantise: ", layout.name, " must have ", block, " bytes for each ", elements,
                              " numbers, got ", bytes.size(), " bytes for ", numbers.size());
  for (std::size_t i = 0; i < bytes.size() / block; ++i) {
    decode(bytes.data() + i * block, numbers.data() + i * elements);
  }
}

/// One row alone, the ne[0] numbers that lie together: blocks never run over its end. Costs that row's share of the
/// whole, as for the embedding of one token.
/// \throws FormatError  a type that is not of the list above.
/// \throws ShapeError   `row` not in [0, ne[1] ne[2] ne[3]), of which there is none where ne[0] = 0; `numbers` not
/// ne[0].
inline void dequantise_row(const Tensor& tensor, Index row, std::span<float> numbers) {
  // A file bounds the product of all sizes: with ne[0] = 0 it says nothing of the others'.
  const Index rows = tensor.ne[0] == 0 ? 0 : tensor.ne[1] * tensor.ne[2] * tensor.ne[3];
  detail::require<ShapeError>(row >= 0 && row < rows, "dequantise_row: row of tensor \"",
                              detail::Printable{tensor.name}, "\" must lie in [0, ", rows, "), got ", row);
  detail::require<ShapeError>(std::ssize(numbers) == tensor.ne[0], "dequantise_row: row of tensor \"",
                              detail::Printable{tensor.name}, "\" must have ", tensor.ne[0], " numbers, got room for ",
                              numbers.size());
  const std::size_t bytes = tensor.bytes.size() / static_cast<std::size_t>(rows);
  dequantise(tensor.type, tensor.bytes.subspan(static_cast<std::size_t>(row) * bytes, bytes), numbers);
}

/// A tensor of two dimensions (or fewer) as W0 (n x m), n = ne[0] inputs, m = ne[1] outputs: Y = X W0.
/// \throws FormatError  more than two dimensions, or a type that is not of the list above; names the tensor.
/// \note As it stands: the outputs of llama's attn_q and attn_k are in llama.cpp's order, see `rotary_source`.
inline ColMatrix<float> dequantised(const Tensor& tensor) {
  detail::require<FormatError>(tensor.ne[2] == 1 && tensor.ne[3] == 1, "dequantised: tensor \"",
                               detail::Printable{tensor.name}, "\" must be a matrix, got ", sizes(tensor));
  detail::require<FormatError>(can_dequantise(tensor.type), "dequantised: tensor \"", detail::Printable{tensor.name},
                               "\" must have a type that can be dequantised, got ", type_name(tensor.type));
  ColMatrix<float> weight(tensor.ne[0], tensor.ne[1]);
  dequantise(tensor.type, tensor.bytes, {weight.data(), static_cast<std::size_t>(weight.size())});
  return weight;
}

}  // namespace lora::gguf
