// SPDX-License-Identifier: MIT
// Products with one small dimension, the rank: straight from the operands, without packing the large one.
#pragma once

#include <lora/core/matrix.hpp>
#include <lora/core/threads.hpp>
#include <lora/core/views.hpp>
#include <lora/kernel/tile.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace lora::detail {

/// C += alpha times the RowCount x ColCount products of rows of L and rows of R, all contiguous along the sum.
template <class Scalar, int RowCount, int ColCount>
void dot_tile(Index depth, const Scalar* L, Index left_stride, const Scalar* R, Index right_stride, Scalar alpha,
              Scalar* C, Index row_stride, Index col_stride) {
  using Packet = typename kernel::TileShape<Scalar>::Packet;
  using Eigen::internal::ploadu, Eigen::internal::pmadd, Eigen::internal::predux, Eigen::internal::pset1;
  using kernel::unrolled;
  constexpr Index lanes = kernel::TileShape<Scalar>::lanes;
  Packet sum[RowCount * ColCount];
  unrolled<RowCount * ColCount>([&](auto i) { sum[i] = pset1<Packet>(Scalar{0}); });
  Index k = 0;
  for (; k + lanes <= depth; k += lanes) {
    Packet r[ColCount];
    unrolled<ColCount>([&](auto j) { r[j] = ploadu<Packet>(R + j * right_stride + k); });
    unrolled<RowCount>([&](auto i) {
      const Packet l = ploadu<Packet>(L + i * left_stride + k);
      unrolled<ColCount>([&](auto j) { sum[i * ColCount + j] = pmadd(l, r[j], sum[i * ColCount + j]); });
    });
  }
  unrolled<RowCount * ColCount>([&](auto i) {
    constexpr Index row = i / ColCount, col = i % ColCount;
    Scalar total = predux(sum[i]);
    for (Index rest = k; rest < depth; ++rest) total += L[row * left_stride + rest] * R[col * right_stride + rest];
    C[row * row_stride + col * col_stride] += alpha * total;
  });
}

/// `dot_tile` for `rows` rows of L and `four` rows of R, or one.
template <class Scalar>
auto dot_tile_of(Index rows, bool four) {
  constexpr int most = kernel::TileShape<Scalar>::rows / 2;
  static constexpr auto tiles = []<int... i>(std::integer_sequence<int, i...>) {
    return std::array{&dot_tile<Scalar, i + 1, 4>..., &dot_tile<Scalar, i + 1, 1>...};
  }
  (std::make_integer_sequence<int, most>{});
  return tiles[static_cast<std::size_t>(rows - 1 + (four ? 0 : most))];
}

/// C (b x r) += alpha L R^T with L (b x n) and R (r x n) by rows, r small: s X A, s dY B^T. Threads share the rows of
/// C.
template <Real Scalar, int Order>
void add_dots(View<Scalar, Order> C, Scalar alpha, const ConstRows<Scalar>& L, const ConstRows<Scalar>& R) {
  constexpr Index height = kernel::TileShape<Scalar>::rows / 2;
  const Index tiles = (C.rows() + height - 1) / height;
  const Index down = Order == Eigen::RowMajor ? C.outerStride() : 1,
              right = Order == Eigen::RowMajor ? 1 : C.outerStride();
  const double flops = 2.0 * static_cast<double>(C.size() * L.cols());
  parallel_for(tiles, flops, [&](Index first, Index last) {
    for (Index t = first; t < last; ++t) {
      const Part rows(C.rows(), tiles, t);
      for (Index j = 0; j < C.cols();) {
        const bool four = j + 4 <= C.cols();
        dot_tile_of<Scalar>(rows.size(), four)(L.cols(), L.data() + rows.first * L.outerStride(), L.outerStride(),
                                               R.data() + j * R.outerStride(), R.outerStride(), alpha,
                                               C.data() + rows.first * down + j * right, down, right);
        j += four ? 4 : 1;
      }
    }
  });
}

/// C (b x m) += alpha L R with C and R (k x m) by rows, L (b x k) in either order, b or k small: s (X A) B, Q A^T,
/// s (X A)^T dY, and (X^T Q)^T = Q^T X. L is packed, 256 terms of the sum at a time, with alpha in it; of R one panel
/// at a time where it serves several tiles: its rows are far apart, often at distances that share a few sets of the
/// first-level cache. Threads share the columns.
template <Real Scalar, int Order>
void add_panels(Rows<Scalar> C, Scalar alpha, const View<const Scalar, Order>& L, const ConstRows<Scalar>& R) {
  using Tile = kernel::TileShape<Scalar>;
  constexpr Index width = Tile::cols, terms_at_once = 256;
  thread_local Eigen::VectorX<Scalar> left_memory, right_memory;
  const Index tiles = (C.rows() + Tile::rows - 1) / Tile::rows;
  for (Index first = 0; first < L.cols(); first += terms_at_once) {
    const Index depth = std::min(terms_at_once, L.cols() - first);
    if (left_memory.size() < C.rows() * depth) left_memory.resize(C.rows() * depth);
    Scalar* const packed = left_memory.data();  // the calling thread's
    for (Index t = 0; t < tiles; ++t) {
      const Part rows(C.rows(), tiles, t);
      Scalar* to = packed + rows.first * depth;
      for (Index k = first; k < first + depth; ++k) {
        for (Index i = rows.first; i < rows.last; ++i) *to++ = alpha * L(i, k);
      }
    }
    const double flops = 2.0 * static_cast<double>(C.size() * depth);
    parallel_for((C.cols() + width - 1) / width, flops, [&](Index begin, Index end) {
      if (right_memory.size() < depth * width) right_memory.resize(depth * width);
      for (Index p = begin; p < end; ++p) {
        const Index cols = std::min(width, C.cols() - p * width);
        const Scalar* right = R.data() + first * R.outerStride() + p * width;
        Index stride = R.outerStride();
        kernel::Ahead ahead{reinterpret_cast<std::uintptr_t>(right + width), stride * Index{sizeof(Scalar)}};
        if (tiles > 1 || cols < width) {  // a whole tile would read beyond R
          Scalar* const panel = right_memory.data();
          for (Index k = 0; k < depth; ++k) {
            std::fill(std::copy_n(right + k * stride, cols, panel + k * width), panel + (k + 1) * width, Scalar{0});
          }
          right = panel;
          stride = width;
        }
        for (Index t = 0; t < tiles; ++t) {
          const Part rows(C.rows(), tiles, t);
          Scalar* to = C.data() + rows.first * C.outerStride() + p * width;
          kernel::tile_of_rows<kernel::DenseWeights<Scalar>>(rows.size())(
              depth, packed + rows.first * depth, right, stride, {to, C.outerStride(), cols, true}, ahead);
        }
      }
    });
  }
}

}  // namespace lora::detail
