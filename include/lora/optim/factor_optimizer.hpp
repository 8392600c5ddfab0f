// SPDX-License-Identifier: MIT
// `FactorOptimizer`, how a pair (A, B) moves along its gradients.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>

#include <cmath>
#include <concepts>

namespace lora {

/// An optimizer of the pair. The pair is the unit: LoRA+ (two rates), LoRA-Pro, Riemannian preconditioning and LoRA-FA
/// cannot be written over a flat list of parameters.
///
/// - `init<Scalar>(n, m, r)`: the state for factors n x r and r x m, before the first step.
/// - `step(state, factors, gradient, scale, rate)`: one step; `scale` is the s before the product A B, `rate` the
///   schedule's multiplier of every learning rate. Throws before it changes anything: ShapeError, ConfigError,
///   NumericalError for a gradient that is not finite.
///
/// Factors and gradients are views, so a trainer's own buffers are stepped in place. Hyper-parameters are the optimizer
/// itself; `Optimizer` keeps one together with its state.
template <class Method, class Scalar>
concept FactorOptimizer = Real<Scalar> && std::copyable<Method> &&
    std::copyable<typename Method::template State<Scalar>> &&
    requires(const Method& method, typename Method::template State<Scalar>& state, FactorsView<Scalar> factors,
             ConstFactorsView<Scalar> gradient, double scale, double rate) {
  { method.template init<Scalar>(Index{}, Index{}, Index{}) } -> std::same_as<typename Method::template State<Scalar>>;
  { method.step(state, factors, gradient, scale, rate) } -> std::same_as<void>;
};

namespace detail {

inline void require_rate(double rate, const char* name) {
  require<ConfigError>(std::isfinite(rate) && rate >= 0, name, ": rate must be finite and not negative, got ", rate);
}

/// The checks that every factor optimizer makes before a step; `name` as in "LoraPlus::step".
template <Real Scalar>
void require_step(const FactorsView<Scalar>& factors, const ConstFactorsView<Scalar>& gradient, double rate,
                  const char* name) {
  require_factors(gradient, factors.in_features(), factors.out_features(), factors.rank(), name, ": gradient");
  require_rate(rate, name);
  require_finite(gradient, name, ": gradient");
}

/// For optimizers that divide by the s before A B.
inline void require_scale(double scale, const char* name) {
  require<ConfigError>(std::isfinite(scale) && scale != 0, name, ": scale must be finite and not zero, got ", scale);
}

}  // namespace detail
}  // namespace lora
