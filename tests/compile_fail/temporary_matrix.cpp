// expect: a temporary matrix would be gone
// SPDX-License-Identifier: MIT
#include <lora/core/views.hpp>

lora::RowMatrix<float> make();
void forward(const lora::ConstRows<float>& X);

void call() {
#ifdef MUST_NOT_COMPILE
  forward(make());
#else
  const auto X = make();
  forward(X);
#endif
}
