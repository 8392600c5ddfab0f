// SPDX-License-Identifier: MIT
// Torch's tensors as the library's views: the same memory, strides checked, a copy only where a view cannot be had.
#pragma once

#include <lora/core/factors.hpp>
#include <lora/core/views.hpp>

#include <torch/torch.h>

#include <cstdint>

namespace lora_torch {

/// How many tensors had to be copied for their strides; a training loop with nothing odd in it has none.
inline std::int64_t copies = 0;

/// Are the elements of a row adjacent, and do rows lie apart? Not so in a transposed tensor, and not in an expanded one
/// (stride 0), as the gradient of a sum is.
inline bool has_rows(const torch::Tensor& matrix) {
  return (matrix.size(1) < 2 || matrix.stride(1) == 1) && (matrix.size(0) < 2 || matrix.stride(0) >= matrix.size(1));
}

// [rows]
/// [..., n] as [b, n] with a row after another: the same memory where strides allow it, otherwise a counted copy.
inline torch::Tensor as_rows(const torch::Tensor& tensor) {
  auto matrix = tensor.reshape({-1, tensor.size(-1)});
  if (!has_rows(matrix)) matrix = matrix.contiguous();
  if (matrix.data_ptr() != tensor.data_ptr()) ++copies;
  return matrix;
}

/// A float matrix [b, n] on the CPU as our b x n view. Four words; the tensor must outlive them.
inline lora::Rows<float> rows(const torch::Tensor& matrix) {
  TORCH_CHECK(matrix.device().is_cpu() && matrix.scalar_type() == torch::kFloat && matrix.dim() == 2,
              "lora: needs a float matrix on the CPU, got ", matrix.toString(), " of shape ", matrix.sizes());
  TORCH_CHECK(has_rows(matrix), "lora: needs rows of adjacent elements that lie apart, got strides ", matrix.strides());
  return {matrix.data_ptr<float>(), matrix.size(0), matrix.size(1), matrix.stride(0)};
}
inline lora::ConstRows<float> const_rows(const torch::Tensor& matrix) { return rows(matrix); }

/// nn.Linear's weight [m, n] is our n x m column by column: the same bytes.
inline lora::Columns<float> columns(const torch::Tensor& weight) { return lora::transposed(rows(weight)); }

/// PEFT's shapes as our pair: lora_A [r, n] is A (n x r) column by column; lora_B [m, r] must have strides (1, m), then
/// it is B (r x m) row by row.
inline lora::FactorsView<float> factors(const torch::Tensor& lora_A, const torch::Tensor& lora_B) {
  return {columns(lora_A), rows(lora_B.t())};
}
// [/rows]

/// After a write that torch did not see: a backward that still needs the old values then refuses to run.
inline void mark_changed(const torch::Tensor& tensor) { tensor.unsafeGetTensorImpl()->bump_version(); }

}  // namespace lora_torch
