// SPDX-License-Identifier: MIT
// Plain LoRA and LoRA+ (Hayou et al., arXiv:2402.12354): one update rule for each factor.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/fields.hpp>
#include <lora/optim/adamw.hpp>
#include <lora/optim/factor_optimizer.hpp>
#include <lora/optim/update_rule.hpp>

#include <cmath>
#include <type_traits>

namespace lora {

namespace detail {

/// The same rule on both factors, B at `ratio` times A's learning rate.
template <class Rule, Real Scalar>
struct PairState {
  typename Rule::template State<Scalar> A;  ///< as the rule keeps it for A
  typename Rule::template State<Scalar> B;  ///< for B^T, the columns of which are B's rows
  Index n = 0, m = 0, r = 0;
  bool operator==(const PairState&) const = default;
  static void fields(auto& self, const auto& visit) {
    visit("A", self.A);
    visit("B", self.B);
    visit("n", fixed(self.n));
    visit("m", fixed(self.m));
    visit("r", fixed(self.r));
  }
};

template <Real Scalar, class Rule>
PairState<Rule, Scalar> init_pair(const Rule& rule, Index n, Index m, Index r, const char* name) {
  rule.check();
  require<ShapeError>(n >= 1 && m >= 1 && r >= 1, name, "::init: n, m and r must be at least 1, got ", n, ", ", m, ", ",
                      r);
  return {rule.template init<Scalar>(n, r), rule.template init<Scalar>(m, r), n, m, r};
}

template <Real Scalar, class Rule>
void step_pair(const Rule& rule, double ratio, PairState<Rule, Scalar>& state, const FactorsView<Scalar>& factors,
               const ConstFactorsView<Scalar>& gradient, double rate, const char* name) {
  rule.check();
  require_factors(ConstFactorsView<Scalar>(factors), state.n, state.m, state.r, name, ": factors");
  require_step(factors, gradient, rate, name);
  check_state(rule, state.A, state.n, state.r);
  check_state(rule, state.B, state.m, state.r);
  rule.step(state.A, factors.A, gradient.A, rate);
  rule.step(state.B, transposed(factors.B), transposed(gradient.B), rate * ratio);
}

}  // namespace detail

/// Plain LoRA: both factors by the same rule at the same learning rate.
template <class Rule = AdamW>
struct PerFactor {
  static constexpr const char* name = "PerFactor";
  Rule rule{};

  bool operator==(const PerFactor&) const = default;
  static void fields(auto& self, const auto& visit) { visit("rule", self.rule); }

  template <Real Scalar>
  using State = detail::PairState<Rule, Scalar>;

  template <Real Scalar>
  State<Scalar> init(Index n, Index m, Index r) const {
    return detail::init_pair<Scalar>(rule, n, m, r, "PerFactor");
  }
  template <Real Scalar>
  void step(State<Scalar>& state, const std::type_identity_t<FactorsView<Scalar>>& factors,
            const std::type_identity_t<ConstFactorsView<Scalar>>& gradient, double /*scale*/, double rate) const {
    detail::step_pair(rule, 1, state, factors, gradient, rate, "PerFactor::step");
  }
};
template <class Rule>
PerFactor(Rule) -> PerFactor<Rule>;

/// LoRA+: B learns `ratio` times as fast as A.
///
/// The rule's learning rate is A's. With decoupled weight decay, which multiplies the learning rate, B decays `ratio`
/// times as fast as well. The theory assumes B = 0 at the start: after LoRA-GA or PiSSA tune the ratio anew.
/// \throws ConfigError  ratio not positive or not finite.
/// \see PEFT, optimizers/loraplus.py, `create_loraplus_optimizer` (the same two groups).
template <class Rule = AdamW>
struct LoraPlus {
  static_assert(UpdateRule<Rule, float>,
                "lora: LoRA+ needs an update rule of one matrix; an optimizer of the pair (LoRA-Pro) balances A and B "
                "itself, and a ratio would correct twice");
  static constexpr const char* name = "LoraPlus";
  Rule rule{};
  double ratio = 16;  ///< lambda; the paper's 16, > 1 in its theory

  bool operator==(const LoraPlus&) const = default;
  static void fields(auto& self, const auto& visit) {
    visit("rule", self.rule);
    visit("ratio", self.ratio);
  }

  template <Real Scalar>
  using State = detail::PairState<Rule, Scalar>;

  template <Real Scalar>
  State<Scalar> init(Index n, Index m, Index r) const {
    check();
    return detail::init_pair<Scalar>(rule, n, m, r, "LoraPlus");
  }
  template <Real Scalar>
  void step(State<Scalar>& state, const std::type_identity_t<FactorsView<Scalar>>& factors,
            const std::type_identity_t<ConstFactorsView<Scalar>>& gradient, double /*scale*/, double rate) const {
    check();
    detail::step_pair(rule, ratio, state, factors, gradient, rate, "LoraPlus::step");
  }

 private:
  void check() const {
    detail::require<ConfigError>(std::isfinite(ratio) && ratio > 0, "LoraPlus: ratio must be positive and finite, got ",
                                 ratio);
  }
};
template <class Rule>
LoraPlus(Rule) -> LoraPlus<Rule>;
template <class Rule>
LoraPlus(Rule, double) -> LoraPlus<Rule>;

static_assert(FactorOptimizer<PerFactor<>, float> && FactorOptimizer<LoraPlus<>, double>);

}  // namespace lora
