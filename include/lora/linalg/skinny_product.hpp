// SPDX-License-Identifier: MIT
// Products with one small dimension, the rank: straight from the operands, without packing the large one.
#pragma once

#include <lora/core/matrix.hpp>
#include <lora/core/threads.hpp>
#include <lora/core/views.hpp>
#include <lora/kernel/tile.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cstdint>

namespace lora::detail {

/// The sums of RowCount x ColCount products of rows of L and rows of R, both contiguous along the sum.
template <Real Scalar, int RowCount, int ColCount>
void dot_tile(Index depth, const Scalar* L, Index left_stride, const Scalar* R, Index right_stride, Scalar* sums) {
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
  unrolled<RowCount * ColCount>([&](auto i) { sums[i] = predux(sum[i]); });
  for (; k < depth; ++k) {
    for (Index i = 0; i < RowCount; ++i) {
      for (Index j = 0; j < ColCount; ++j) sums[i * ColCount + j] += L[i * left_stride + k] * R[j * right_stride + k];
    }
  }
}

/// C (b x r) += alpha L R^T with L (b x n) and R (r x n) by rows, r small: s X A, s dY B^T. Threads share the rows of
/// C.
template <Real Scalar, int Order>
void add_dots(View<Scalar, Order> C, Scalar alpha, const ConstRows<Scalar>& L, const ConstRows<Scalar>& R) {
  constexpr int height = kernel::TileShape<Scalar>::rows / 2, width = 4;
  const Index l = L.outerStride(), r = R.outerStride();
  const auto add = [&](Index i, Index j, auto rows, auto cols) {
    Scalar sums[rows * cols];
    dot_tile<Scalar, rows, cols>(L.cols(), L.data() + i * l, l, R.data() + j * r, r, sums);
    for (Index k = 0; k < rows * cols; ++k) C(i + k / cols, j + k % cols) += alpha * sums[k];
  };
  constexpr std::integral_constant<int, 1> one;
  constexpr std::integral_constant<int, height> all_rows;
  constexpr std::integral_constant<int, width> all_cols;
  const auto add_rows = [&](Index i, auto rows) {
    Index j = 0;
    for (; j + width <= C.cols(); j += width) add(i, j, rows, all_cols);
    for (; j < C.cols(); ++j) add(i, j, rows, one);
  };
  const double flops = 2.0 * static_cast<double>(C.size() * L.cols());
  parallel_for((C.rows() + height - 1) / height, flops, [&](Index first, Index last) {
    Index i = first * height;
    for (; i + height <= std::min(C.rows(), last * height); i += height) add_rows(i, all_rows);
    for (; i < std::min(C.rows(), last * height); ++i) add_rows(i, one);
  });
}

/// C (r x m) += alpha L^T R with L (b x r), R (b x m) and C by rows, r small: s (X A)^T dY, and (X^T Q)^T = Q^T X. L is
/// packed, 256 rows at a time, with alpha in it. Threads share the columns.
template <Real Scalar>
void add_outer(Rows<Scalar> C, Scalar alpha, const ConstRows<Scalar>& L, const ConstRows<Scalar>& R) {
  using Tile = kernel::TileShape<Scalar>;
  constexpr Index width = Tile::cols, rows_at_once = 256;
  thread_local Eigen::VectorX<Scalar> memory;
  const Index r = C.rows(), tiles = (r + Tile::rows - 1) / Tile::rows;
  for (Index first = 0; first < L.rows(); first += rows_at_once) {
    const Index depth = std::min(rows_at_once, L.rows() - first);
    if (memory.size() < r * depth) memory.resize(r * depth);
    Scalar* const packed = memory.data();  // the calling thread's
    for (Index t = 0; t < tiles; ++t) {
      const kernel::Part rows(r, tiles, t);
      Scalar* to = packed + rows.first * depth;
      for (Index k = first; k < first + depth; ++k) {
        for (Index i = rows.first; i < rows.last; ++i) *to++ = alpha * L.data()[k * L.outerStride() + i];
      }
    }
    const double flops = 2.0 * static_cast<double>(C.size() * depth);
    parallel_for((C.cols() + width - 1) / width, flops, [&](Index begin, Index end) {
      for (Index p = begin; p < end; ++p) {
        const Scalar* right = R.data() + first * R.outerStride() + p * width;
        const Index cols = std::min(width, C.cols() - p * width);
        for (Index t = 0; t < tiles; ++t) {  // what a panel reads of R stays near for all of them
          const kernel::Part rows(r, tiles, t);
          const Scalar* left = packed + rows.first * depth;
          Scalar* to = C.data() + rows.first * C.outerStride() + p * width;
          if (cols == width) {
            const kernel::Ahead ahead{reinterpret_cast<std::uintptr_t>(right + width),
                                      R.outerStride() * Index{sizeof(Scalar)}};
            kernel::tile_of_rows<kernel::DenseWeights<Scalar>>(rows.size())(depth, left, right, R.outerStride(),
                                                                            {to, C.outerStride(), width, true}, ahead);
          } else {  // a whole tile would read beyond R
            for (Index k = 0; k < depth; ++k) {
              for (Index i = 0; i < rows.size(); ++i) {
                const Scalar x = left[k * rows.size() + i];
                for (Index j = 0; j < cols; ++j) to[i * C.outerStride() + j] += x * right[k * R.outerStride() + j];
              }
            }
          }
        }
      }
    });
  }
}

}  // namespace lora::detail
