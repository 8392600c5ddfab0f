// SPDX-License-Identifier: MIT
// CRC-64/XZ, the checksum of checkpoints: against accidents, not against attackers.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace lora::detail {

using CrcTables = std::array<std::array<std::uint64_t, 256>, 8>;

/// tables[k][b]: what the byte b does to the state when k zero bytes follow it.
constexpr CrcTables make_crc_tables() {
  CrcTables tables{};
  for (std::size_t b = 0; b < 256; ++b) {
    std::uint64_t state = b;
    for (int bit = 0; bit < 8; ++bit) state = (state >> 1) ^ ((state & 1) != 0 ? 0xC96C5795D7870F42ULL : 0);
    tables[0][b] = state;
  }
  for (std::size_t k = 1; k < 8; ++k) {
    for (std::size_t b = 0; b < 256; ++b) tables[k][b] = (tables[k - 1][b] >> 8) ^ tables[0][tables[k - 1][b] & 0xFF];
  }
  return tables;
}
inline constexpr CrcTables crc_tables = make_crc_tables();

}  // namespace lora::detail

namespace lora::io {

/// The CRC of ECMA-182 as `xz` computes it: reflected, all ones before and after; of "123456789" 0x995DC9BBDF1939FA.
///
/// Finds for certain every change that lies within 64 adjacent bits (so every flipped bit), and any other one but with
/// probability 2^-64. Whoever forges a file can forge its checksum. Eight bytes a step.
class Crc64 {
 public:
  void update(std::span<const std::byte> bytes) {
    static_assert(std::endian::native == std::endian::little);
    const std::byte* at = bytes.data();
    std::size_t left = bytes.size();
    for (; left >= 8; left -= 8, at += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, at, sizeof word);
      word ^= state_;
      state_ = 0;
      for (std::size_t i = 0; i < 8; ++i) state_ ^= detail::crc_tables[7 - i][(word >> (8 * i)) & 0xFF];
    }
    for (; left > 0; --left, ++at) {
      state_ = (state_ >> 8) ^ detail::crc_tables[0][(state_ ^ std::to_integer<std::uint64_t>(*at)) & 0xFF];
    }
  }
  std::uint64_t value() const { return ~state_; }

 private:
  std::uint64_t state_ = ~std::uint64_t{0};
};

}  // namespace lora::io
