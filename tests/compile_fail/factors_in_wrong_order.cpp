// expect: wrong storage order; activations and B are row-major
// SPDX-License-Identifier: MIT
#include <lora/core/factors.hpp>

#ifdef MUST_NOT_COMPILE
using OutputSide = lora::ColMatrix<float>;
#else
using OutputSide = lora::RowMatrix<float>;
#endif

// B of the pair; PyTorch's [m, r] tensor is its transpose.
lora::FactorsView<float> pair(lora::ColMatrix<float>& A, OutputSide& B) { return {A, B}; }
