// SPDX-License-Identifier: MIT
// GGUF files written by hand, right or wrong, and the numbers that make_gguf.py writes as well.
#pragma once

#include <lora/core/factors.hpp>
#include <lora/core/matrix.hpp>
#include <lora/io/file.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lora::test {

/// Appends numbers and strings as the format has them.
class GgufBytes {
 public:
  template <class Number>
  GgufBytes& number(Number value) {
    const auto bytes = std::as_bytes(std::span(&value, 1));
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  GgufBytes& u32(std::uint64_t value) { return number(static_cast<std::uint32_t>(value)); }
  GgufBytes& u64(std::uint64_t value) { return number(value); }
  GgufBytes& raw(std::string_view text) {
    const auto bytes = std::as_bytes(std::span(text));
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  GgufBytes& string(std::string_view text) { return u64(text.size()).raw(text); }
  /// Magic number, version, counts.
  GgufBytes& start(std::uint64_t tensors, std::uint64_t keys, std::uint32_t version = 3) {
    return raw("GGUF").number(version).u64(tensors).u64(keys);
  }
  GgufBytes& tensor(std::string_view name, const std::vector<std::uint64_t>& ne, std::uint32_t type,
                    std::uint64_t offset) {
    string(name).u32(ne.size());
    for (const auto size : ne) u64(size);
    return u32(type).u64(offset);
  }
  GgufBytes& zeros(std::size_t count) {
    bytes_.resize(bytes_.size() + count);
    return *this;
  }
  GgufBytes& pad(std::size_t alignment) {
    while (bytes_.size() % alignment != 0) zeros(1);
    return *this;
  }

  operator std::span<const std::byte>() const { return bytes_; }
  std::size_t size() const { return bytes_.size(); }

 private:
  std::vector<std::byte> bytes_;
};

inline std::string gguf_data(const std::string& name) {
  return (std::filesystem::path(LORA_IO_DATA) / "gguf" / name).string();
}

/// Element (i, j) of the matrix `seed`: eighths between -1 and 1, exact in half precision.
inline float gguf_number(Index seed, Index i, Index j) {
  return static_cast<float>((7 * i + 3 * j + 11 * seed) % 17 - 8) / 8;
}
inline RowMatrix<float> gguf_numbers(Index seed, Index rows, Index cols) {
  RowMatrix<float> matrix(rows, cols);
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < cols; ++j) matrix(i, j) = gguf_number(seed, i, j);
  }
  return matrix;
}
/// A from the matrix 2 seed, B from 2 seed + 1.
inline Factors<float> gguf_factors(Index seed, Index n, Index m, Index r) {
  return {gguf_numbers(2 * seed, n, r), gguf_numbers(2 * seed + 1, r, m)};
}

}  // namespace lora::test
