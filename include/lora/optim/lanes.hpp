// SPDX-License-Identifier: MIT
// Elementwise arithmetic that gives an element the same bits wherever it stands.
#pragma once

#include <lora/core/matrix.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

namespace lora::detail {

/// Brings what lies 2 KiB after `memory` on its way. A moment is read and written once in a step, and comes from far:
/// left to the processor's own guesses, AdamW on 4096 x 4096 takes half as long again. Inlined by force, or g++ takes
/// it for a function without effect and drops the call; an integer, for pointers may not go beyond an array.
EIGEN_ALWAYS_INLINE void fetch_ahead([[maybe_unused]] const void* memory) {
#ifdef __GNUC__
  const auto address = reinterpret_cast<std::uintptr_t>(memory) + 2048;
  __builtin_prefetch(reinterpret_cast<const void*>(address), 1);  // NOLINT(performance-no-int-to-ptr)
#endif
}

/// Correctly rounded square roots. Eigen's own of a vector may be an estimate of 1-2 ulp, which differs between
/// processors and makes NaN of infinity (the square of a large gradient).
template <class Packet>
Packet exact_sqrt(const Packet& packet) {
  using Scalar = typename Eigen::internal::unpacket_traits<Packet>::type;
  std::array<Scalar, Eigen::internal::unpacket_traits<Packet>::size> elements;
  Eigen::internal::pstoreu(elements.data(), packet);
  for (Scalar& element : elements) element = std::sqrt(element);
  return Eigen::internal::ploadu<Packet>(elements.data());
}
#ifdef EIGEN_VECTORIZE_SSE2
inline __m128 exact_sqrt(__m128 x) { return _mm_sqrt_ps(x); }
inline __m128d exact_sqrt(__m128d x) { return _mm_sqrt_pd(x); }
#endif
#ifdef EIGEN_VECTORIZE_AVX
inline __m256 exact_sqrt(__m256 x) { return _mm256_sqrt_ps(x); }
inline __m256d exact_sqrt(__m256d x) { return _mm256_sqrt_pd(x); }
#endif
#ifdef EIGEN_VECTORIZE_AVX512
// The forms without a mask make g++ 12 warn of an uninitialised variable in its own header.
inline __m512 exact_sqrt(__m512 x) { return _mm512_maskz_sqrt_ps(0xFFFF, x); }
inline __m512d exact_sqrt(__m512d x) { return _mm512_maskz_sqrt_pd(0xFF, x); }
#endif

/// As many elements as one vector register holds, with the arithmetic of update rules. The last ones of a column are
/// padded with zeros.
///
/// An Eigen array expression computes the elements before the first aligned one and after the last whole vector by
/// other instructions, with other last bits: a column in a trainer's memory would not step as the same column in ours
/// does.
template <Real Scalar>
struct Lanes {
  using Packet = typename Eigen::internal::packet_traits<Scalar>::type;
  static constexpr Index size = Eigen::internal::unpacket_traits<Packet>::size;
  using Elements = std::array<Scalar, size>;

  Packet packet;

  static Lanes all(double value) { return {Eigen::internal::pset1<Packet>(static_cast<Scalar>(value))}; }
  /// `count` elements, at most `size`.
  static Lanes load(const Scalar* from, Index count) {
    if (count == size) return {Eigen::internal::ploadu<Packet>(from)};
    Elements padded{};
    std::copy_n(from, count, padded.data());
    return {Eigen::internal::ploadu<Packet>(padded.data())};
  }
  void store(Scalar* to, Index count) const {
    if (count == size) return Eigen::internal::pstoreu(to, packet);
    Elements padded;
    Eigen::internal::pstoreu(padded.data(), packet);
    std::copy_n(padded.data(), count, to);
  }

  friend Lanes operator*(Lanes x, Lanes y) { return {Eigen::internal::pmul(x.packet, y.packet)}; }
  friend Lanes operator/(Lanes x, Lanes y) { return {Eigen::internal::pdiv(x.packet, y.packet)}; }

  /// x y + z, in one rounding where the processor can. Of two products in a sum it says which one is fused: compilers
  /// may choose either, and another one in the next line.
  friend Lanes multiply_add(Lanes x, Lanes y, Lanes z) {
    return {Eigen::internal::pmadd(x.packet, y.packet, z.packet)};
  }
  /// Correctly rounded.
  friend Lanes sqrt(Lanes x) { return {exact_sqrt(x.packet)}; }
};

}  // namespace lora::detail
