// SPDX-License-Identifier: MIT
// Riemannian preconditioning of the factors (Zhang and Pilanci, arXiv:2402.02347, "scaled" GD and AdamW).
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/fields.hpp>
#include <lora/linalg/gram.hpp>
#include <lora/linalg/product.hpp>
#include <lora/optim/adamw.hpp>
#include <lora/optim/factor_optimizer.hpp>
#include <lora/optim/per_factor.hpp>
#include <lora/optim/update_rule.hpp>

#include <cmath>
#include <type_traits>

namespace lora {

/// G_A <- G_A (B B^T + rho I)^-1, G_B <- (A^T A + rho I)^-1 G_B, then the rule on each factor.
///
/// The metric makes the step of the product independent of how it is split into A and B (for `Sgd` and rho = 0). Cost
/// over the rule 4 (n + m) r^2 flops and two r x r inverses, about 5 r^3 each; no state of its own.
/// \see docs/methods/riemannian.md
template <class Rule = AdamW>
struct Riemannian {
  static constexpr const char* name = "Riemannian";
  Rule rule{};
  double rho = 1e-2;  ///< > 0, absolute: where factors are smaller than its root, it leads

  bool operator==(const Riemannian&) const = default;
  static void fields(auto& self, const auto& visit) {
    visit("rule", self.rule);
    visit("rho", self.rho);
  }

  template <Real Scalar>
  struct State {
    detail::PairState<Rule, Scalar> pair;
    friend bool operator==(const State& left, const State& right) { return left.pair == right.pair; }
    static void fields(auto& self, const auto& visit) { visit("pair", self.pair); }

   private:
    friend Riemannian;
    Gram<Scalar> gram_;  // scratch, like all that follows
    ColMatrix<Scalar> small_;
    Factors<Scalar> direction_;
  };

  template <Real Scalar>
  State<Scalar> init(Index n, Index m, Index r) const {
    check();
    State<Scalar> state;
    state.pair = detail::init_pair<Scalar>(rule, n, m, r, "Riemannian");
    return state;
  }

  template <Real Scalar>
  void step(State<Scalar>& state, const std::type_identity_t<FactorsView<Scalar>>& factors,
            const std::type_identity_t<ConstFactorsView<Scalar>>& gradient, double /*scale*/, double rate) const {
    check();
    detail::require_factors(ConstFactorsView<Scalar>(factors), state.pair.n, state.pair.m, state.pair.r,
                            "Riemannian::step: factors");
    detail::require_step(factors, gradient, rate, "Riemannian::step");
    detail::require_finite(ConstFactorsView<Scalar>(factors), "Riemannian::step: factors");
    auto& [A, B] = state.direction_;
    A.resize(gradient.A.rows(), gradient.A.cols());
    B.resize(gradient.B.rows(), gradient.B.cols());
    invert(state, factors.B, factors.B.transpose());
    set_product(A, 1, gradient.A, state.small_);
    invert(state, factors.A.transpose(), factors.A);
    set_product(B, 1, state.small_, gradient.B);
    const ConstFactorsView<Scalar> direction(state.direction_);
    detail::step_pair(rule, 1, state.pair, factors, direction, rate, "Riemannian::step");
  }

 private:
  void check() const {
    detail::require<ConfigError>(std::isfinite(rho) && rho > 0, "Riemannian: rho must be positive and finite, got ",
                                 rho);
  }
  /// small <- (left right + rho I)^-1
  template <Real Scalar, class Left, class Right>
  void invert(State<Scalar>& state, const Left& left, const Right& right) const {
    state.small_.resize(left.rows(), left.rows());
    set_product(state.small_, 1, left, right);
    state.gram_.compute(state.small_, {.cut = 0, .shift = rho});  // rho is what keeps small eigenvalues in check
    state.small_ = state.gram_.pseudo_inverse().template cast<Scalar>();
  }
};
template <class Rule>
Riemannian(Rule) -> Riemannian<Rule>;
template <class Rule>
Riemannian(Rule, double) -> Riemannian<Rule>;

static_assert(FactorOptimizer<Riemannian<>, float> && FactorOptimizer<Riemannian<>, double>);

}  // namespace lora
