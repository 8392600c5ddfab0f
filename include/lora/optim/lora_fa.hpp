// SPDX-License-Identifier: MIT
// LoRA-FA (Zhang et al., arXiv:2308.03303): A stays as it started, B moves along the projected gradient.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/fields.hpp>
#include <lora/core/finite.hpp>
#include <lora/linalg/gram.hpp>
#include <lora/linalg/product.hpp>
#include <lora/optim/adamw.hpp>
#include <lora/optim/factor_optimizer.hpp>
#include <lora/optim/update_rule.hpp>

#include <cmath>
#include <type_traits>

namespace lora {

/// G_B <- (1/s^2) (A^T A)^+ G_B, then the rule on B; A never moves.
///
/// With `Sgd` the product steps by P_A G, the gradient on A's column space. Needs no gradient of A: hand over a view
/// with an A of 0 x r, and a layer's backward given the same does not read X (b x n) again, only P = X A (b x r).
/// State: the rule's of B. Cost over the rule 2 n r^2 + 2 m r^2 flops. \see PEFT, optimizers/lorafa.py;
/// docs/methods/lora_fa.md
template <class Rule = AdamW>
struct LoraFa {
  static constexpr const char* name = "LoraFa";
  Rule rule{};

  bool operator==(const LoraFa&) const = default;
  static void fields(auto& self, const auto& visit) { visit("rule", self.rule); }

  template <Real Scalar>
  struct State {
    typename Rule::template State<Scalar> B;  ///< for B^T, the columns of which are B's rows
    Index n = 0, m = 0, r = 0;
    friend bool operator==(const State& left, const State& right) {
      return left.n == right.n && left.m == right.m && left.r == right.r && left.B == right.B;
    }
    static void fields(auto& self, const auto& visit) {
      visit("B", self.B);
      visit("n", fixed(self.n));
      visit("m", fixed(self.m));
      visit("r", fixed(self.r));
    }

   private:
    friend LoraFa;
    Gram<Scalar> gram_;  // scratch, like all that follows
    ColMatrix<Scalar> small_;
    RowMatrix<Scalar> direction_;
  };

  template <Real Scalar>
  State<Scalar> init(Index n, Index m, Index r) const {
    rule.check();
    detail::require<ShapeError>(n >= 1 && m >= 1 && r >= 1, "LoraFa::init: n, m and r must be at least 1, got ", n,
                                ", ", m, ", ", r);
    State<Scalar> state;
    state.B = rule.template init<Scalar>(m, r);
    state.n = n;
    state.m = m;
    state.r = r;
    return state;
  }

  template <Real Scalar>
  void step(State<Scalar>& state, const std::type_identity_t<FactorsView<Scalar>>& factors,
            const std::type_identity_t<ConstFactorsView<Scalar>>& gradient, double scale, double rate) const {
    rule.check();
    detail::require_factors(ConstFactorsView<Scalar>(factors), state.n, state.m, state.r, "LoraFa::step: factors");
    detail::require_shape(gradient.B, state.r, state.m, "LoraFa::step: gradient B");
    detail::require_rate(rate, "LoraFa::step");
    detail::require_scale(scale, "LoraFa::step");
    detail::require<NumericalError>(all_finite(gradient.B),
                                    "LoraFa::step: gradient B must be finite, got NaN or infinity");
    detail::require_finite(ConstFactorsView<Scalar>(factors), "LoraFa::step: factors");
    detail::check_state(rule, state.B, state.m, state.r);
    state.small_.resize(state.r, state.r);
    set_product(state.small_, 1, factors.A.transpose(), factors.A);
    state.gram_.compute(state.small_, {});
    state.small_ = (1 / (scale * scale) * state.gram_.pseudo_inverse()).template cast<Scalar>();
    state.direction_.resize(state.r, state.m);
    set_product(state.direction_, 1, state.small_, gradient.B);
    detail::require<NumericalError>(all_finite(ConstRows<Scalar>(state.direction_)),
                                    "LoraFa::step: adjusted gradient B must be finite, got NaN or infinity");
    rule.step(state.B, transposed(factors.B), transposed(ConstRows<Scalar>(state.direction_)), rate);
  }
};
template <class Rule>
LoraFa(Rule) -> LoraFa<Rule>;

static_assert(FactorOptimizer<LoraFa<>, float> && FactorOptimizer<LoraFa<>, double>);

}  // namespace lora
