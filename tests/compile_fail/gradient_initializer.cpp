// expect: GradientInitializer.*init\(base, gradient, rank, scale, random\).*invalid
// SPDX-License-Identifier: MIT
#include <lora/base/view_base.hpp>
#include <lora/init/initializer.hpp>

using Base = lora::ViewBase<float>;
using Gradient = lora::ViewBase<float, Eigen::RowMajor>;

struct Start {
#ifndef MUST_NOT_COMPILE
  lora::Start<float> operator()(const Base& base, const Gradient& gradient, lora::Index rank, double scale,
                                lora::Random& random) const;
#endif
};
static_assert(lora::GradientInitializer<Start, Base, Gradient>);
