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

/// `Gram` keeps six r x r matrices, four vectors of r and five of r - 1, and inverts in about 5 r^3 flops; this is for
/// a matrix of which no eigenvalue is cut.
inline OptimizerCost gram_cost(double r, double times) {
  return {.doubles = 6 * r * r + 9 * r - 5 + (r == 1 ? 2 : 0), .flops = times * 5 * r * r * r};
}
/// K = L R with L r x depth, by blocks of 12 rows from the diagonal on.
inline double symmetric_product_flops(double r, double depth) {
  double elements = 0;
  for (double rest = r; rest > 0; rest -= 12) elements += std::min(12.0, rest) * rest;
  return 2 * depth * elements;
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
  const double plain = (2 * n + 6 * m) * r2, last = plain + (has_C ? 2 * n * r2 : 0);
  const double grams = detail::symmetric_product_flops(r, n) + detail::symmetric_product_flops(r, m);
  const OptimizerCost direction{.scratch = pair + 4 * r2,
                                .doubles = (method.freedom == Freedom::ReleasedSymmetric ? 7 : 6) * r2,
                                .flops = grams + last};
  OptimizerCost nearest = direction + detail::gram_cost(r, 1) + detail::gram_cost(r, 1);
  if (method.freedom == Freedom::Sylvester) nearest.flops += 7 * r * r2;  // the eigenvalues and vectors of B B^T
  switch (method.mode) {
    case LoraPro::Mode::Sgd:
      break;
    case LoraPro::Mode::Efficient:
      return nearest + optimizer_cost(PerFactor<AdamW>{}, n, m, r);
    case LoraPro::Mode::Full:  // Gt, and Adam's step of it, by blocks of 48 columns; 64 bytes between columns of [H_A
                               // A]
      return nearest + optimizer_cost(AdamW{}, n, m) +
             OptimizerCost{.scratch = 3 * pair + 48 * n, .doubles = 16 * r, .flops = plain + 8 * n * m * r};
    case LoraPro::Mode::Factored:
      return nearest + OptimizerCost{.state = 2 * pair + n + m,
                                     .scratch = 2 * pair + n + m + 2 * r2,
                                     .doubles = 6 * r2,
                                     .flops = 2 * grams + (20 * n + 24 * m) * r2};
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
