// SPDX-License-Identifier: MIT
// A frozen matrix laid out once in the order in which its product reads it.
#pragma once

#include <lora/core/matrix.hpp>
#include <lora/core/threads.hpp>

#include <Eigen/Core>

#include <algorithm>

namespace lora::kernel {

/// W (rows x cols) in panels of as many adjacent columns as a register tile is wide. A panel lies in memory row after
/// row, the last one is filled up with zeros. Rows come in groups of `Group`, interleaved, and their number is rounded
/// up to a multiple of `Padding`: bf16 products take two rows, or thirty-two, at once.
template <class RealElement, int PanelCols, int Group = 1, int Padding = Group>
class Panels {
 public:
  using Element = RealElement;
  static constexpr Index width = PanelCols;

  Panels() = default;
  /// From any matrix of elements that convert. One pass, `rows` x `cols` rounded up elements of memory.
  template <class Matrix>
  explicit Panels(const Matrix& W)
      : rows_(W.rows()),
        cols_(W.cols()),
        padded_((rows_ + Padding - 1) / Padding * Padding),
        elements_(Eigen::VectorX<Element>::Zero(count() * padded_ * width)) {
    const double cost = 10.0 * static_cast<double>(elements_.size());  // a copy counts as some flops
    lora::parallel_for(count(), cost, [&](Index first, Index last) {
      // A few rows at a time, so that column-major memory comes by whole cache lines; row-major memory row by row.
      constexpr Index patch = Matrix::IsRowMajor ? 1 : 16;
      for (Index p = first; p < last; ++p) {
        for (Index top = 0; top < rows_; top += patch) {
          for (Index j = p * width; j < p * width + cols_of(p); ++j) {
            for (Index k = top; k < std::min(top + patch, rows_); ++k) {
              elements_[index(k, j)] = static_cast<Element>(W(k, j));
            }
          }
        }
      }
    });
  }

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Index padded_rows() const { return padded_; }
  Index count() const { return (cols_ + width - 1) / width; }
  /// How many columns of panel p are the matrix's.
  Index cols_of(Index p) const { return std::min(width, cols_ - p * width); }
  /// Panel p from row k on (a multiple of `Group`).
  const Element* panel(Index p, Index k = 0) const { return elements_.data() + (p * padded_ + k) * width; }
  Element* panel(Index p, Index k = 0) { return elements_.data() + (p * padded_ + k) * width; }
  const Element& operator()(Index k, Index j) const { return elements_[index(k, j)]; }

  bool operator==(const Panels& other) const = default;

 private:
  Index index(Index k, Index j) const {
    return ((j / width * padded_ + k / Group * Group) * width) + j % width * Group + k % Group;
  }

  Index rows_ = 0, cols_ = 0, padded_ = 0;
  Eigen::VectorX<Element> elements_;
};

}  // namespace lora::kernel
