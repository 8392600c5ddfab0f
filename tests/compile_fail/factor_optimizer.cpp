// expect: FactorOptimizer.*method\.step\(state, factors, gradient, scale, rate\).*invalid
// SPDX-License-Identifier: MIT
#include <lora/optim/factor_optimizer.hpp>

struct Method {
  template <lora::Real Scalar>
  struct State {};
  template <lora::Real Scalar>
  State<Scalar> init(lora::Index n, lora::Index m, lora::Index r) const;
#ifndef MUST_NOT_COMPILE
  void step(State<float>& state, const lora::FactorsView<float>& factors, const lora::ConstFactorsView<float>& gradient,
            double scale, double rate) const;
#endif
};
static_assert(lora::FactorOptimizer<Method, float>);
