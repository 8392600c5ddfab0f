// expect: float and double are never mixed
// SPDX-License-Identifier: MIT
#include <lora/core/views.hpp>

void forward(const lora::ConstRows<float>& X);

#ifdef MUST_NOT_COMPILE
using Activations = lora::RowMatrix<double>;
#else
using Activations = lora::RowMatrix<float>;
#endif

void call(const Activations& X) { forward(X); }
