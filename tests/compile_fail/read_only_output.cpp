// expect: a read-only matrix cannot be written to
// SPDX-License-Identifier: MIT
#include <lora/core/views.hpp>

void forward(lora::Rows<float> Y);

#ifdef MUST_NOT_COMPILE
using Output = const lora::RowMatrix<float>;
#else
using Output = lora::RowMatrix<float>;
#endif

void call(Output& Y) { forward(Y); }
