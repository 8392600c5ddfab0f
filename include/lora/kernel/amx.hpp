// SPDX-License-Identifier: MIT
// Weights in bfloat16 on the matrix units of Intel's processors (AMX): chosen at run time, on Linux.
#pragma once

#include <lora/core/matrix.hpp>
#include <lora/core/views.hpp>
#include <lora/kernel/bf16.hpp>
#include <lora/kernel/panels.hpp>
#include <lora/kernel/tile.hpp>

#include <algorithm>
#include <array>
#include <cstdint>

// A panel must be a tile register wide at least: with AVX, that is.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && defined(__AVX__)
#define LORA_KERNEL_AMX 1
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace lora::kernel {

/// Has the processor matrix units for bfloat16, and does the system let this process use them? Asked once.
inline bool amx_works() {
  static const bool works = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
    constexpr unsigned tiles = 1U << 24, bf16 = 1U << 22;
    if ((d & tiles) == 0 || (d & bf16) == 0) return false;
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  }();
  return works;
}

/// The kernel of matrix units, with the interface of `TileKernel`. X is rounded to bfloat16. A tile register holds 16
/// rows of 64 bytes: 16 x 32 of X, 32 x 16 of W as pairs of rows, or 16 x 16 sums in float.
struct AmxKernel {
  using Scalar = float;
  using Left = Bf16Pair;
  using Panels = kernel::Panels<Bf16, TileShape<float>::cols, 2, 32>;
  static constexpr Index rows = 32, group = 2, height = 16, depth_at_once = 32;

  /// The tile registers of a thread, for the time of its work.
  struct Session {
    __attribute__((target("amx-tile"))) Session() {
      // Constant data: g++ 12 reads the first eight bytes of a local variable for all that the instruction needs.
      static constexpr Config config;
      _tile_loadconfig(&config);
    }
    __attribute__((target("amx-tile"))) ~Session() { _tile_release(); }
    Session(const Session&) = delete;

   private:
    struct alignas(64) Config {
      std::uint8_t palette = 1, start_row = 0;
      std::array<std::uint8_t, 14> reserved{};
      std::array<std::uint16_t, 16> row_bytes{64, 64, 64, 64, 64, 64, 64, 64};
      std::array<std::uint8_t, 16> rows{16, 16, 16, 16, 16, 16, 16, 16};
    };
  };

  /// Blocks of 32 columns of X one after the other, each by rows, filled with zeros to 16 or 32 rows.
  static Index left_size(Index count, Index depth) { return padded(count) * depth / 2; }
  static void pack(const ConstRows<float>& X, Index depth, Left* to) {
    const Index count = padded(X.rows());
    std::fill_n(to, left_size(X.rows(), depth), Left{});
    for (Index r = 0; r < X.rows(); ++r) {
      const float* x = X.data() + r * X.outerStride();
      for (Index block = 0; block * depth_at_once < X.cols(); ++block) {
        Left* line = to + (block * count + r) * (depth_at_once / 2);
        const Index left = std::min(depth_at_once, X.cols() - block * depth_at_once);
        for (Index k = 0; k + 1 < left; k += 2) {
          line[k / 2] = bf16_pair(x[block * depth_at_once + k], x[block * depth_at_once + k + 1]);
        }
        if (left % 2 != 0) line[left / 2] = bf16_pair(x[block * depth_at_once + left - 1], 0.0F);
      }
    }
  }

  static void multiply(Index count, Index first, Index depth, const Left* left, const Bf16* panel,
                       const Target<float>& C, const Ahead& ahead) {
    alignas(64) std::array<float, rows * Panels::width> sums;
    constexpr bool wide = Panels::width >= 32;
    const auto products = count > height ? &add_products<true, wide> : &add_products<false, wide>;
    products(depth / depth_at_once, left + left_size(count, first), panel, sums.data(), ahead);
    for (Index r = 0; r < count; ++r) {
      float* to = C.data + r * C.stride;
      const float* sum = sums.data() + r * Panels::width;
      for (Index j = 0; j < C.cols; ++j) to[j] = C.accumulate ? to[j] + sum[j] : sum[j];
    }
  }

 private:
  static Index padded(Index count) { return (count + height - 1) / height * height; }

  /// sums = X W over blocks of 32 rows of W. Tile registers 0 to 3 hold sums, 4 and 5 X, 6 and 7 W.
  template <bool TwoRows, bool TwoCols>
  __attribute__((target("amx-tile,amx-bf16"))) static void add_products(Index blocks, const Left* X, const Bf16* W,
                                                                        float* sums, const Ahead& ahead) {
    constexpr Index line = 4 * Panels::width, rows_held = TwoRows ? 32 : 16;  // bytes from row to row of W and of sums
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (Index block = 0; block < blocks; ++block) {
      for (Index pair = 0; pair < 16; ++pair) ahead.fetch(16 * block + pair, line / 64);
      _tile_loadd(4, X, 64);
      _tile_loadd(6, W, line);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (TwoCols) {
        _tile_loadd(7, W + 32, line);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (TwoRows) {
        _tile_loadd(5, X + Index{16} * 16, 64);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (TwoCols) _tile_dpbf16ps(3, 5, 7);
      }
      X += rows_held * Index{16};
      W += 32 * Panels::width;
    }
    _tile_stored(0, sums, line);
    if constexpr (TwoCols) _tile_stored(1, sums + 16, line);
    if constexpr (TwoRows) {
      _tile_stored(2, sums + 16 * Panels::width, line);
      if constexpr (TwoCols) _tile_stored(3, sums + 16 * Panels::width + 16, line);
    }
  }
};

static_assert(AmxKernel::Panels::width <= 32, "lora: a panel is one or two tile registers wide");

}  // namespace lora::kernel
#endif
