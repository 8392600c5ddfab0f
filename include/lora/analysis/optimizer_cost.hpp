// SPDX-License-Identifier: MIT
// What the optimizers keep and do: scalars of state and scratch, flops of a step.
#pragma once

#include <lora/optim/adamw.hpp>
#include <lora/optim/equivalent_gradient.hpp>
#include <lora/optim/full_fine_tuning.hpp>
#include <lora/optim/lora_fa.hpp>
#include <lora/optim/lora_pro.hpp>
#include <lora/optim/per_factor.hpp>
#include <lora/optim/riemannian.hpp>
#include <lora/optim/sgd.hpp>

namespace lora {

/// Counted in double, where products do not wrap around; whole numbers are exact up to 2^53.
struct OptimizerCost {
  enum class Trains { Pair, B, Weight };

  double state = 0;    ///< scalars that outlive a step
  double scratch = 0;  ///< scalars besides
  double doubles = 0;  ///< scratch in double, whatever the scalar: decompositions of r x r
  double flops = 0;    ///< of a step
  Trains trains = Trains::Pair;

  friend OptimizerCost operator+(const OptimizerCost& left, const OptimizerCost& right) {
    return {left.state + right.state, left.scratch + right.scratch, left.doubles + right.doubles,
            left.flops + right.flops, left.trains};
  }
};

// optimizer_cost(rule, rows, cols) for a rule of one matrix, optimizer_cost(method, n, m, r) for an optimizer of the
// pair. A rule or method of your own brings one, in its own namespace. Rules: an element's operations in `step`, the
// square root and the division as one each.

inline OptimizerCost optimizer_cost(const AdamW& rule, double rows, double cols) {
  rule.check();
  return {.state = 2 * rows * cols, .flops = 14 * rows * cols};
}
inline OptimizerCost optimizer_cost(const Sgd& rule, double rows, double cols) {
  rule.check();
  if (rule.momentum == 0) return {.flops = 4 * rows * cols};
  return {.state = rows * cols, .flops = (rule.kind == Sgd::Momentum::Nesterov ? 8 : 6) * rows * cols};
}
template <class Rule>
OptimizerCost optimizer_cost(const PerFactor<Rule>& method, double n, double m, double r) {
  return optimizer_cost(method.rule, n, r) + optimizer_cost(method.rule, m, r);
}
template <class Rule>
OptimizerCost optimizer_cost(const LoraPlus<Rule>& method, double n, double m, double r) {
  return optimizer_cost(PerFactor<Rule>{method.rule}, n, m, r);
}

namespace detail {

/// `Gram` keeps five r x r matrices, four vectors of r and four of r - 1, and decomposes in about 11 r^3 flops.
inline OptimizerCost gram_cost(double r, double times) {
  return {.doubles = 5 * r * r + 8 * r - 4, .flops = times * 11 * r * r * r};
}

}  // namespace detail

template <class Rule>
OptimizerCost optimizer_cost(const Riemannian<Rule>& method, double n, double m, double r) {
  return optimizer_cost(PerFactor<Rule>{method.rule}, n, m, r) + detail::gram_cost(r, 2) +
         OptimizerCost{.scratch = (n + m) * r + r * r, .flops = 4 * (n + m) * r * r};
}
template <class Rule>
OptimizerCost optimizer_cost(const LoraFa<Rule>& method, double n, double m, double r) {
  const OptimizerCost own{.scratch = m * r + r * r, .flops = 2 * (n + m) * r * r, .trains = OptimizerCost::Trains::B};
  return own + detail::gram_cost(r, 1) + optimizer_cost(method.rule, m, r);
}
inline OptimizerCost optimizer_cost(const LoraPro& method, double n, double m, double r) {
  method.check();
  const double r2 = r * r, pair = (n + m) * r;
  // A direction of `EquivalentGradient` with C = 0, and the last one of a step, with the C of `freedom`.
  const bool has_C = method.freedom != Freedom::Zero;
  const double plain = (2 * n + 6 * m) * r2;
  double last = has_C ? (6 * n + 8 * m) * r2 : plain;
  if (method.freedom == Freedom::ReleasedSymmetric) last += 2 * n * r2;
  const OptimizerCost direction{
      .scratch = pair + m * r + r2, .doubles = (has_C ? 3 : 2) * r2, .flops = 2 * (n + m) * r2 + last};
  const OptimizerCost nearest = direction + detail::gram_cost(r, 1) + detail::gram_cost(r, 1);
  switch (method.mode) {
    case LoraPro::Mode::Sgd:
      break;
    case LoraPro::Mode::Efficient:
      return nearest + optimizer_cost(PerFactor<AdamW>{}, n, m, r);
    case LoraPro::Mode::Full:  // Gt, and Adam's step of it, by blocks of 32 columns
      return nearest + optimizer_cost(AdamW{}, n, m) +
             OptimizerCost{.scratch = pair + 2 * 32 * n, .flops = plain + 8 * n * m * r};
    case LoraPro::Mode::Factored:
      return nearest + OptimizerCost{.state = 2 * pair + n + m,
                                     .scratch = 2 * pair + n + m + r2,
                                     .flops = 2 * plain + 28 * (n + m) * r2};
  }
  return nearest;
}

template <class Rule>
OptimizerCost optimizer_cost(const FullFineTuning<Rule>& method, double n, double m, double /*r*/) {
  return OptimizerCost{.trains = OptimizerCost::Trains::Weight} + optimizer_cost(method.rule, n, m);
}
/// Stands for `WeightSpace`, which begins with factors that exist: `InWeightSpace{LoraPro{}}`.
template <class Method>
struct InWeightSpace {
  Method method{};
};
template <class Method>
InWeightSpace(Method) -> InWeightSpace<Method>;
template <class Method>
OptimizerCost optimizer_cost(const InWeightSpace<Method>& method, double n, double m, double r) {
  const double pair = (n + m) * r;
  const OptimizerCost own{
      .state = 2 * pair, .scratch = 2 * pair, .flops = 8 * n * m * r, .trains = OptimizerCost::Trains::Weight};
  return own + optimizer_cost(method.method, n, m, r);
}

}  // namespace lora
