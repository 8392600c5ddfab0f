// expect: bake needs a base that owns its weight
// SPDX-License-Identifier: MIT
#include <lora/adapter/lora_linear.hpp>

#ifdef MUST_NOT_COMPILE
using Base = lora::ViewBase<float>;
#else
using Base = lora::OwnedBase<float>;
#endif

void call(lora::LoraLinear<Base>& layer) { layer.bake(); }
