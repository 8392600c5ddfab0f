// expect: UpdateRule.*rule\.check\(\).*invalid
// SPDX-License-Identifier: MIT
#include <lora/optim/update_rule.hpp>

struct Rule {
  double learning_rate;
  template <lora::Real Scalar>
  struct State {};
  template <lora::Real Scalar>
  State<Scalar> init(lora::Index rows, lora::Index cols) const;
  void step(State<float>&, const lora::Columns<float>&, const lora::ConstColumns<float>&, double rate) const;
#ifndef MUST_NOT_COMPILE
  void check() const;
#endif
};
static_assert(lora::UpdateRule<Rule, float>);
