// SPDX-License-Identifier: MIT
// The register tile: a few rows of the result times two vectors, kept in registers for the whole sum.
#pragma once

#include <lora/core/matrix.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

// What a tile is made of must become one loop: an array stays in registers only where every index is known.
#ifdef __GNUC__
#define LORA_KERNEL_INLINE __attribute__((always_inline))
#else
#define LORA_KERNEL_INLINE
#endif

namespace lora::kernel {

/// Calls `call(0)`, ..., `call(Count - 1)` with compile-time arguments: the indices of an array in registers.
template <int Count, class Call>
EIGEN_ALWAYS_INLINE void unrolled(const Call& call) {
  [&]<int... i>(std::integer_sequence<int, i...>) LORA_KERNEL_INLINE { (call(std::integral_constant<int, i>{}), ...); }
  (std::make_integer_sequence<int, Count>{});
}

/// The shape that fills the registers of this processor: 12 x 32 float with AVX-512, 6 x 16 with AVX2, 6 x 8 with SSE2,
/// 12 x 8 with NEON.
template <Real Scalar>
struct TileShape {
  using Packet = typename Eigen::internal::packet_traits<Scalar>::type;
  static constexpr int lanes = Eigen::internal::packet_traits<Scalar>::size;
  static constexpr int vectors = 2;
  static constexpr int cols = vectors * lanes;
  static constexpr int rows = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32 ? 12 : 6;
};

/// Where a tile's result goes: `cols` of a row-major matrix, or fewer at its right edge.
template <Real Scalar>
struct Target {
  Scalar* data;
  Index stride, cols;
  bool accumulate;  ///< add to what is there
};

/// What to bring into the second-level cache meanwhile: a cache line or two from `address` + step x `stride` on. W0
/// comes from far; left to the processor's own guesses one core reads it at half of the rate that memory has.
struct Ahead {
  std::uintptr_t address;
  Index stride;

  /// Inlined by force: g++ takes a function that only prefetches for one without effect, and drops the call.
  EIGEN_ALWAYS_INLINE void fetch(Index step, std::uintptr_t lines) const {
#ifdef __GNUC__
    const std::uintptr_t line = address + static_cast<std::uintptr_t>(step * stride);
    for (std::uintptr_t i = 0; i < lines; ++i) {
      // An integer until here: the last addresses lie beyond the array, where pointers may not go.
      __builtin_prefetch(reinterpret_cast<const void*>(line + 64 * i), 0, 2);  // NOLINT(performance-no-int-to-ptr)
    }
#endif
  }
};

/// Weights as they are: a step of the sum takes one row of W.
template <Real RealScalar>
struct DenseWeights {
  using Scalar = RealScalar;
  using Left = Scalar;     ///< an element of X
  using Element = Scalar;  ///< an element of W
  using Packet = typename TileShape<Scalar>::Packet;
  static constexpr int group = 1;   ///< rows of W in one step
  static constexpr int halves = 1;  ///< multiply-adds in one step, each with an element of X of its own

  static Left left(const Scalar* x, Index /*remaining*/) { return *x; }
  template <int Half>
  static Packet load(const Element* w) {
    return Eigen::internal::ploadu<Packet>(w);
  }
  static Packet multiply_add(const Left& x, const Packet& w, const Packet& sum) {
    return Eigen::internal::pmadd(Eigen::internal::pset1<Packet>(x), w, sum);
  }
};

/// C (Rows x cols) = or += L W over `steps` groups of rows of W, `stride` elements apart. The element of L for row r
/// and multiply-add k stands at left[k Rows + r]. With few rows several sums run side by side, which hides
/// the latency of the additions.
template <class Weights, int Rows>
void tile(Index steps, const typename Weights::Left* left, const typename Weights::Element* panel, Index stride,
          const Target<typename Weights::Scalar>& C, const Ahead& ahead) {
  using Scalar = typename Weights::Scalar;
  using Tile = TileShape<Scalar>;
  using Sum = typename Tile::Packet;
  using Eigen::internal::padd, Eigen::internal::ploadu, Eigen::internal::pset1, Eigen::internal::pstoreu;
  constexpr int vectors = Tile::vectors, lanes = Tile::lanes, cols = Tile::cols, halves = Weights::halves;
  constexpr int sums = Rows * vectors, chains = sums >= 8 ? 1 : sums >= 4 ? 2 : 4;
  constexpr int at_once = std::max(chains, 2);  // steps, which share the cost of the loop and of the fetches
  constexpr std::uintptr_t lines = std::max(1, Weights::group * cols * int{sizeof(typename Weights::Element)} / 64);

  // AVX-512 multiplies by an element of memory in one instruction, but compilers use that only for an element with one
  // use: so three rows of four read theirs again, by another name. Four of four would be too much for the load ports.
  const typename Weights::Left* again = left;
#if defined(__GNUC__) && defined(EIGEN_VECTORIZE_AVX512)
  asm("" : "+r"(again));
#endif

  Sum sum[chains * sums];
  unrolled<chains * sums>([&](auto i) { sum[i] = pset1<Sum>(Scalar{0}); });
  const auto step = [&](Index k, auto chain) LORA_KERNEL_INLINE {
    unrolled<halves>([&](auto half) LORA_KERNEL_INLINE {
      typename Weights::Packet w[vectors];
      unrolled<vectors>([&](auto v) LORA_KERNEL_INLINE {
        w[v] = Weights::template load<half>(panel + k * stride + v * lanes * Weights::group);
      });
      unrolled<Rows>([&](auto r) LORA_KERNEL_INLINE {
        unrolled<vectors>([&](auto v) LORA_KERNEL_INLINE {
          const auto& x = (v == 0 || r % 4 == 3 ? left : again)[(k * halves + half) * Rows + r];
          auto& s = sum[(chain * Rows + r) * vectors + v];
          s = Weights::multiply_add(x, w[v], s);
        });
      });
    });
  };
  const bool in_one_line = at_once * ahead.stride <= 64;
  Index k = 0;
  for (; k + at_once <= steps; k += at_once) {
    if (in_one_line) ahead.fetch(k, 1);
    unrolled<at_once>([&](auto i) LORA_KERNEL_INLINE {
      if (!in_one_line) ahead.fetch(k + i, lines);
      step(k + i, std::integral_constant<int, i % chains>{});
    });
  }
  for (; k < steps; ++k) step(k, std::integral_constant<int, 0>{});
  unrolled<chains - 1>(
      [&](auto chain) { unrolled<sums>([&](auto i) { sum[i] = padd(sum[i], sum[(chain + 1) * sums + i]); }); });

  if (C.cols == cols) {
    unrolled<sums>([&](auto i) {
      Scalar* to = C.data + (i / vectors) * C.stride + (i % vectors) * lanes;
      pstoreu(to, C.accumulate ? padd(ploadu<Sum>(to), sum[i]) : sum[i]);
    });
  } else {
    Scalar edge[Rows * cols];
    unrolled<sums>([&](auto i) { pstoreu(edge + i * lanes, sum[i]); });
    for (Index r = 0; r < Rows; ++r) {
      for (Index j = 0; j < C.cols; ++j) {
        Scalar& to = C.data[r * C.stride + j];
        to = C.accumulate ? to + edge[r * cols + j] : edge[r * cols + j];
      }
    }
  }
}

/// The tile of `rows` rows, 1 to `TileShape::rows`, for a left factor that is packed column after column.
template <class Weights>
auto tile_of_rows(Index rows) {
  constexpr int most = TileShape<typename Weights::Scalar>::rows;
  static constexpr auto tiles = []<int... r>(std::integer_sequence<int, r...>) {
    return std::array{&tile<Weights, r + 1>...};
  }
  (std::make_integer_sequence<int, most>{});
  return tiles[static_cast<std::size_t>(rows - 1)];
}

}  // namespace lora::kernel

#undef LORA_KERNEL_INLINE
