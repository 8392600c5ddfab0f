// expect: merge needs a base that can be written and restored
// SPDX-License-Identifier: MIT
#include <lora/adapter/lora_linear.hpp>

#ifdef MUST_NOT_COMPILE
using Base = lora::ViewBase<float>;
#else
using Base = lora::OwnedBase<float>;
#endif

void call(lora::LoraLinear<Base>& layer) { layer.merge(); }
