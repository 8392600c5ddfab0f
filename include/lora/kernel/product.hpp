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
/// all of them, while the next one is on its way. Threads share the panels. An element of Y is the same sum in the same
/// order whatever the number of threads.
template <class Kernel>
void multiply(const ConstRows<typename Kernel::Scalar>& X, const typename Kernel::Panels& W,
              Rows<typename Kernel::Scalar> Y) {
  using Scalar = typename Kernel::Scalar;
  using Panels = typename Kernel::Panels;
  constexpr Index rows_at_once = 192, stretch_bytes = 8192, unit = 32;
  constexpr Index row_bytes = Panels::width * Index{sizeof(typename Panels::Element)};
  constexpr Index group_bytes = row_bytes * Kernel::group;
  thread_local Eigen::VectorX<typename Kernel::Left> memory;

  const Index b = X.rows(), depth = W.padded_rows(), blocks = (b + rows_at_once - 1) / rows_at_once;
  for (Index block = 0; block < blocks; ++block) {
    const Part rows(b, blocks, block);
    const Index tiles = (rows.size() + Kernel::rows - 1) / Kernel::rows;
    const Index tile_size = Kernel::left_size((rows.size() + tiles - 1) / tiles, depth);
    if (memory.size() < tiles * tile_size) memory.resize(tiles * tile_size);
    auto* const packed = memory.data();  // the calling thread's, whoever fills it

    lora::detail::parallel_for(tiles, static_cast<double>(rows.size() * depth), [&](Index first, Index last) {
      for (Index t = first; t < last; ++t) {
        const Part part(rows.size(), tiles, t);
        const auto* from = X.data() + (rows.first + part.first) * X.outerStride();
        Kernel::pack({from, part.size(), X.cols(), X.outerStride()}, depth, packed + t * tile_size);
      }
    });

    const double flops = 2.0 * static_cast<double>(rows.size() * depth * W.cols());
    lora::detail::parallel_for(W.count(), flops, [&](Index first, Index last) {
      [[maybe_unused]] const typename Kernel::Session session;
      // With a tile or two the result stays in registers for the whole sum, and W streams past.
      const Index stretches = tiles <= 2 ? 1 : (depth * Index{sizeof(Scalar)} + stretch_bytes - 1) / stretch_bytes;
      for (Index stretch = 0; stretch < stretches; ++stretch) {
        const Part steps(depth, stretches, stretch, unit);
        for (Index p = first; p < last; ++p) {
          const auto* panel = W.panel(p, steps.first);
          const auto* next = p + 1 < last ? W.panel(p + 1, steps.first) : W.panel(first, steps.last);
          for (Index t = 0; t < tiles; ++t) {
            const Part part(rows.size(), tiles, t);
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
  }
}

/// Y (b x n) = X (b x m) W^T from panels of W (n x m), for those who keep only these: the batch in the lanes, 12 rows
/// of W in the register tile. Batches are filled up to the width of a tile, so few rows cost as much as 32.
template <Real Scalar>
void multiply_transposed(const ConstRows<Scalar>& X, const typename TileKernel<DenseWeights<Scalar>>::Panels& W,
                         Rows<Scalar> Y) {
  using Shape = TileShape<Scalar>;
  constexpr int width = Shape::cols;
  constexpr Index rows_at_once = 8 * width;
  thread_local Eigen::VectorX<Scalar> memory;

  const Index b = X.rows(), depth = W.count() * width, blocks = (b + rows_at_once - 1) / rows_at_once;
  for (Index block = 0; block < blocks; ++block) {
    const Part rows(b, blocks, block);
    const Index lanes = (rows.size() + width - 1) / width;  // groups of rows of X
    const Index tile_size = width * depth;
    if (memory.size() < lanes * tile_size) memory.resize(lanes * tile_size);
    Scalar* const packed = memory.data();
    for (Index q = 0; q < lanes; ++q) {  // X^T, zeros beyond m and b
      for (Index j = 0; j < depth; ++j) {
        for (Index i = 0; i < width; ++i) {
          const Index row = q * width + i;
          packed[q * tile_size + j * width + i] =
              row < rows.size() && j < X.cols() ? X.data()[(rows.first + row) * X.outerStride() + j] : Scalar{0};
        }
      }
    }
    // Rows of W that fit no whole tile are done once more with those before them, or one by one.
    const Index height = W.rows() < Shape::rows ? 1 : Shape::rows, tiles = (W.rows() + height - 1) / height;
    const auto call =
        height == 1 ? &tile<DenseWeights<Scalar>, 1, width, 1> : &tile<DenseWeights<Scalar>, Shape::rows, width, 1>;
    const double flops = 2.0 * static_cast<double>(lanes * width * depth * W.rows());
    lora::detail::parallel_for(tiles, flops, [&](Index first, Index last) {
      Scalar result[Shape::rows * width];
      for (Index t = first; t < last; ++t) {
        const Index top = std::min(t * height, W.rows() - height);
        for (Index q = 0; q < lanes; ++q) {
          for (Index p = 0; p < W.count(); ++p) {
            const Scalar* left = W.panel(p, top);
            const Ahead ahead{reinterpret_cast<std::uintptr_t>(W.panel(std::min(p + 1, W.count() - 1), top)),
                              Shape::rows * Index{sizeof(Scalar)}};
            const Scalar* right = packed + q * tile_size + p * width * width;
            call(width, left, right, width, {result, width, width, p > 0}, ahead);
          }
          for (Index i = 0; i < std::min<Index>(width, rows.size() - q * width); ++i) {
            Scalar* to = Y.data() + (rows.first + q * width + i) * Y.outerStride() + top;
            for (Index r = 0; r < height; ++r) to[r] = result[r * width + i];
          }
        }
      }
    });
  }
}

}  // namespace lora::kernel
