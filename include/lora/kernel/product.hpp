// SPDX-License-Identifier: MIT
// The product of activations and a packed matrix: packs rows of X, walks the panels, shares them among threads.
#pragma once

#include <lora/core/matrix.hpp>
#include <lora/core/threads.hpp>
#include <lora/core/views.hpp>
#include <lora/kernel/panels.hpp>
#include <lora/kernel/tile.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cstdint>

namespace lora::kernel {

/// The kernel of register tiles: `pack` lays out up to `rows` rows of X, `multiply` multiplies them with a stretch of
/// one panel. `Session` stands for what a thread has to set up before.
template <class RealWeights, int Padding = RealWeights::group>
struct TileKernel {
  using Weights = RealWeights;
  using Scalar = typename Weights::Scalar;
  using Left = typename Weights::Left;
  using Panels = kernel::Panels<typename Weights::Element, TileShape<Scalar>::cols, Weights::group, Padding>;
  struct Session {};
  static constexpr Index rows = TileShape<Scalar>::rows, group = Weights::group;

  /// Elements of memory for `count` rows of X, `depth` long.
  static Index left_size(Index count, Index depth) { return count * (depth / Weights::group * Weights::halves); }

  /// X (count x n) by columns, then zeros up to `depth`.
  static void pack(const ConstRows<Scalar>& X, Index depth, Left* to) {
    constexpr Index at_once = Weights::group / Weights::halves;  // elements of X in one of L
    Left* const end = to + left_size(X.rows(), depth);
    for (Index k = 0; k < X.cols(); k += at_once) {
      for (Index r = 0; r < X.rows(); ++r) {
        *to++ = Weights::left(X.data() + r * X.outerStride() + k, X.cols() - k);
      }
    }
    std::fill(to, end, Left{0});
  }

  /// C (count x cols) = or += rows [first, first + depth) of a panel, multiplied from the left.
  static void multiply(Index count, Index first, Index depth, const Left* left, const typename Panels::Element* panel,
                       const Target<Scalar>& C, const Ahead& ahead) {
    tile_of_rows<Weights>(count)(depth / Weights::group, left + left_size(count, first), panel,
                                 Weights::group * Panels::width, C, ahead);
  }
};

/// Y (b x m) = X (b x n) W, from panels of W.
///
/// Some 192 rows of X at a time are packed and stay in the second-level cache; each stretch of a panel is read once for
/// all of them, while the next one is on its way. Threads share such blocks of rows, where there are enough rows, and
/// else the panels. An element of Y is the same sum in the same order whatever the number of threads.
template <class Kernel>
void multiply(const ConstRows<typename Kernel::Scalar>& X, const typename Kernel::Panels& W,
              Rows<typename Kernel::Scalar> Y) {
  using Scalar = typename Kernel::Scalar;
  using Panels = typename Kernel::Panels;
  constexpr Index rows_at_once = 192, rows_of_a_thread = 96, stretch_bytes = 8192, unit = 32;
  constexpr Index row_bytes = Panels::width * Index{sizeof(typename Panels::Element)};
  constexpr Index group_bytes = row_bytes * Kernel::group;

  const Index b = X.rows(), depth = W.padded_rows(), pool = lora::threads();
  const bool share_rows = b >= pool * rows_of_a_thread;
  const Index unit_of_blocks = share_rows ? pool : 1;
  const Index blocks = (b + rows_at_once * unit_of_blocks - 1) / (rows_at_once * unit_of_blocks) * unit_of_blocks;
  const auto flops = [&](Index rows) { return 2.0 * static_cast<double>(rows * depth * W.cols()); };

  const auto block_product = [&](Index block) {
    thread_local Eigen::VectorX<typename Kernel::Left> memory;
    const detail::Part rows(b, blocks, block);
    const Index tiles = (rows.size() + Kernel::rows - 1) / Kernel::rows;
    const Index tile_size = Kernel::left_size((rows.size() + tiles - 1) / tiles, depth);
    if (memory.size() < tiles * tile_size) memory.resize(tiles * tile_size);
    auto* const packed = memory.data();  // the calling thread's, whoever fills it

    lora::parallel_for(tiles, static_cast<double>(rows.size() * depth), [&](Index first, Index last) {
      for (Index t = first; t < last; ++t) {
        const detail::Part part(rows.size(), tiles, t);
        const auto* from = X.data() + (rows.first + part.first) * X.outerStride();
        Kernel::pack({from, part.size(), X.cols(), X.outerStride()}, depth, packed + t * tile_size);
      }
    });

    lora::parallel_for(W.count(), flops(rows.size()), [&](Index first, Index last) {
      [[maybe_unused]] const typename Kernel::Session session;
      // With a tile or two the result stays in registers for the whole sum, and W streams past.
      const Index whole = depth * Index{sizeof(Scalar)};
      const Index stretches = tiles <= 2 ? 1 : std::max<Index>(1, (whole + stretch_bytes - 1) / stretch_bytes);
      for (Index stretch = 0; stretch < stretches; ++stretch) {
        const detail::Part steps(depth, stretches, stretch, unit);
        for (Index p = first; p < last; ++p) {
          const auto* panel = W.panel(p, steps.first);
          const auto* next = p + 1 < last ? W.panel(p + 1, steps.first) : W.panel(first, steps.last);
          for (Index t = 0; t < tiles; ++t) {
            const detail::Part part(rows.size(), tiles, t);
            // One tile: some 8 KiB ahead of itself. More: each brings its share of the next stretch.
            const Index stride = tiles == 1 ? group_bytes : std::max<Index>(1, group_bytes / tiles);
            const Ahead ahead{tiles == 1 ? reinterpret_cast<std::uintptr_t>(panel) + 8192
                                         : reinterpret_cast<std::uintptr_t>(next) +
                                               static_cast<std::uintptr_t>(t * (steps.size() / Kernel::group) * stride),
                              stride};
            Scalar* to = Y.data() + (rows.first + part.first) * Y.outerStride() + p * Panels::width;
            Kernel::multiply(part.size(), steps.first, steps.size(), packed + t * tile_size, panel,
                             {to, Y.outerStride(), W.cols_of(p), stretch > 0}, ahead);
          }
        }
      }
    });
  };
  const auto block_products = [&](Index first, Index last) {
    for (Index block = first; block < last; ++block) block_product(block);
  };
  if (share_rows) {
    lora::parallel_for(blocks, flops(b), block_products);  // what is inside then stays in its thread
  } else {
    block_products(0, blocks);
  }
}

}  // namespace lora::kernel
