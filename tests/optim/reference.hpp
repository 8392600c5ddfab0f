// SPDX-License-Identifier: MIT
// Runs an update rule beside its formula, one long double at a time.
#pragma once

#include "support/matrices.hpp"

#include <lora/optim/update_rule.hpp>

#include <vector>

namespace lora::test {

/// Steps `size` random parameters `steps` times with random gradients and a falling rate, and returns how far the
/// rule's parameters lie from the formula's, relative in norm. `Formula` is an aggregate {p, ...} with step(rule, g,
/// rate).
template <class Formula, Real Scalar, class Rule>
double distance_from_formula(const Rule& rule, Index size, int steps) {
  Random random{1};
  auto p = random_columns<Scalar>(size, 1, random);
  auto state = rule.template init<Scalar>(size, 1);
  std::vector<Formula> formulas;
  for (const Scalar value : p.reshaped()) formulas.push_back({.p = value});
  for (int t = 0; t < steps; ++t) {
    const auto g = random_columns<Scalar>(size, 1, random);
    const double rate = 1 - 0.5 * t / steps;
    rule.step(state, p, g, rate);
    for (Index i = 0; i < size; ++i) formulas[static_cast<std::size_t>(i)].step(rule, g(i), rate);
  }
  Wide expected(size, 1);
  for (Index i = 0; i < size; ++i) expected(i) = formulas[static_cast<std::size_t>(i)].p;
  return relative_error(wide(p), expected);
}

}  // namespace lora::test
