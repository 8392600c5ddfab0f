// expect: wrong storage order; activations and B are row-major
// SPDX-License-Identifier: MIT
#include <lora/core/views.hpp>

void forward(const lora::ConstRows<float>& X);

#ifdef MUST_NOT_COMPILE
using Activations = lora::ColMatrix<float>;
#else
using Activations = lora::RowMatrix<float>;
#endif

void call(const Activations& X) { forward(X); }
