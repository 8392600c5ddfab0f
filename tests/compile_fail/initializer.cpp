// expect: lora::Initializer.*init\(base, rank, scale, random\).*invalid
// SPDX-License-Identifier: MIT
#include <lora/base/view_base.hpp>
#include <lora/init/initializer.hpp>

using Base = lora::ViewBase<float>;

struct Start {
#ifndef MUST_NOT_COMPILE
  lora::Start<float> operator()(const Base& base, lora::Index rank, double scale, lora::Random& random) const;
#endif
};
static_assert(lora::Initializer<Start, Base>);
