// SPDX-License-Identifier: MIT
// Scratch memory that only grows, so that the steady state of training allocates nothing.
#pragma once

#include <lora/core/matrix.hpp>
#include <lora/core/views.hpp>

#include <Eigen/Core>

namespace lora {

/// A row-major matrix whose memory outlives its shape: a smaller last batch and the next full one reuse it.
///
/// (`Eigen::Matrix::resize` frees and allocates whenever the number of elements changes.)
template <Real Scalar>
class Buffer {
 public:
  /// Gives the buffer a shape; allocates only where it was never that large. The contents are then unspecified.
  Rows<Scalar> reshape(Index rows, Index cols) {
    if (rows * cols > storage_.size()) storage_.resize(rows * cols);
    rows_ = rows;
    cols_ = cols;
    return view();
  }
  Rows<Scalar> view() { return {storage_.data(), rows_, cols_}; }
  ConstRows<Scalar> view() const { return {storage_.data(), rows_, cols_}; }

 private:
  Eigen::VectorX<Scalar> storage_;
  Index rows_ = 0, cols_ = 0;
};

}  // namespace lora
