// expect: (use of deleted function|call to deleted constructor).*ViewBase
// SPDX-License-Identifier: MIT
#include <lora/base/view_base.hpp>

#include <utility>

#ifdef MUST_NOT_COMPILE
lora::ViewBase<float> base(lora::ColMatrix<float> weight) { return {std::move(weight)}; }
#else
lora::ViewBase<float> base(const lora::ColMatrix<float>& weight) { return {weight}; }
#endif
