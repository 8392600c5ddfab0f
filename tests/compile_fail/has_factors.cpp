// expect: HasFactors.*scale\(\).*invalid
// SPDX-License-Identifier: MIT
#include <lora/optim/optimizer.hpp>

struct Layer {
  using Scalar = float;
  lora::FactorsView<float> factors();
  lora::ConstFactorsView<float> factors() const;
#ifndef MUST_NOT_COMPILE
  double scale() const;
#endif
};
static_assert(lora::HasFactors<Layer>);
