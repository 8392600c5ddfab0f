// expect: an expression has no memory to view
// SPDX-License-Identifier: MIT
#include <lora/core/views.hpp>

void forward(const lora::ConstRows<float>& X);

void call(const lora::RowMatrix<float>& X) {
#ifdef MUST_NOT_COMPILE
  forward(2 * X);
#else
  const lora::RowMatrix<float> doubled = 2 * X;
  forward(doubled);
#endif
}
