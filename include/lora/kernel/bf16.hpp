// SPDX-License-Identifier: MIT
// Weights in bfloat16, sums in float: by widening anywhere, by the dot-product instruction where it is compiled in.
#pragma once

#include <lora/core/matrix.hpp>
#include <lora/kernel/tile.hpp>

#include <Eigen/Core>

#include <bit>
#include <cstdint>
#include <cstring>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace lora::kernel {

/// The upper half of a float. Rows of W come in pairs, so that 32 bits of memory hold the two that a step multiplies.
using Bf16 = Eigen::bfloat16;

/// Two elements of X rounded to bfloat16, the first in the low half.
enum class Bf16Pair : std::uint32_t {};

/// To the nearest, ties to even; NaN stays NaN. Written out because compilers vectorise it.
inline std::uint32_t bf16_bits(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t rounded = (bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16;
  return (bits & 0x7FFFFFFFU) > 0x7F800000U ? bits >> 16 | 0x40U : rounded;
}

inline Bf16Pair bf16_pair(float low, float high) { return Bf16Pair{bf16_bits(low) | bf16_bits(high) << 16}; }

/// W widened to float in registers, X as it is.
struct WideningWeights {
  using Scalar = float;
  using Left = float;
  using Element = Bf16;
  using Packet = TileShape<float>::Packet;
  static constexpr int group = 2, halves = 2;

  static Left left(const float* x, Index /*remaining*/) { return *x; }
  template <int Half,
            class Floats = Packet>  // a parameter only because g++ warns of the attributes of __m512 elsewhere
  static Floats load(const Element* w) {
    using Bits = typename Eigen::internal::unpacket_traits<Floats>::integer_packet;
    using Eigen::internal::pand, Eigen::internal::plogical_shift_left, Eigen::internal::preinterpret;
    const Bits pairs = preinterpret<Bits>(Eigen::internal::ploadu<Floats>(reinterpret_cast<const float*>(w)));
    if constexpr (Half == 0) {
      return preinterpret<Floats>(plogical_shift_left<16>(pairs));
    } else {
      return preinterpret<Floats>(pand(pairs, Eigen::internal::pset1<Bits>(-0x10000)));
    }
  }
  static Packet multiply_add(const Left& x, const Packet& w, const Packet& sum) {
    return Eigen::internal::pmadd(Eigen::internal::pset1<Packet>(x), w, sum);
  }
};

#ifdef __AVX512BF16__
/// X rounded to bfloat16 as well, two products added in one instruction.
struct DotWeights {
  using Scalar = float;
  using Left = Bf16Pair;
  using Element = Bf16;
  using Packet = __m512bh;
  static constexpr int group = 2, halves = 1;

  static Left left(const float* x, Index remaining) { return bf16_pair(x[0], remaining > 1 ? x[1] : 0.0F); }
  template <int Half>
  static Packet load(const Element* w) {
    __m512bh packet;
    std::memcpy(&packet, w, sizeof packet);
    return packet;
  }
  static __m512 multiply_add(const Left& x, const Packet& w, const __m512& sum) {
    return _mm512_dpbf16_ps(sum, std::bit_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(x))), w);
  }
};
#endif

}  // namespace lora::kernel
