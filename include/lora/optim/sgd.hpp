// SPDX-License-Identifier: MIT
// Stochastic gradient descent with momentum and Nesterov's look-ahead (Sutskever et al., ICML 2013).
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/fields.hpp>
#include <lora/optim/update_rule.hpp>

#include <Eigen/Core>

#include <cmath>
#include <cstdint>
#include <type_traits>

namespace lora {

/// d = g + decay p;  u <- momentum u + d (u = d at first);  p <- p - rate lr (u, or d + momentum u with Nesterov).
///
/// State: as many scalars as the parameter with momentum, none without. PyTorch's `torch.optim.SGD` at dampening 0.
struct Sgd {
  static constexpr const char* name = "Sgd";
  enum class Momentum { Heavy, Nesterov };

  double learning_rate = 1e-2;  ///< >= 0
  double momentum = 0;          ///< in [0, 1)
  Momentum kind = Momentum::Heavy;
  double weight_decay = 0;  ///< >= 0; an L2 term in the gradient, so it passes through the momentum

  bool operator==(const Sgd&) const = default;
  static void fields(auto& self, const auto& visit) {
    visit("learning_rate", self.learning_rate);
    visit("momentum", self.momentum);
    visit("kind", self.kind);
    visit("weight_decay", self.weight_decay);
  }
  friend constexpr const char* name_of(Momentum value) {
    switch (value) {
      case Momentum::Heavy:
        return "Heavy";
      case Momentum::Nesterov:
        return "Nesterov";
    }
    return "unknown";
  }

  template <Real Scalar>
  struct State {
    ColMatrix<Scalar> velocity;  ///< empty without momentum
    std::int64_t steps = 0;
    friend bool operator==(const State& left, const State& right) {
      return left.steps == right.steps && detail::same_values(left.velocity, right.velocity);
    }
    static void fields(auto& self, const auto& visit) {
      visit("velocity", self.velocity);
      visit("steps", self.steps);
    }
  };

  void check() const {
    detail::require<ConfigError>(std::isfinite(learning_rate) && learning_rate >= 0,
                                 "Sgd: learning_rate must be finite and not negative, got ", learning_rate);
    detail::require<ConfigError>(momentum >= 0 && momentum < 1, "Sgd: momentum must lie in [0, 1), got ", momentum);
    detail::require<ConfigError>(kind == Momentum::Heavy || momentum > 0,
                                 "Sgd: Nesterov needs a momentum above 0, got ", momentum);
    detail::require<ConfigError>(std::isfinite(weight_decay) && weight_decay >= 0,
                                 "Sgd: weight_decay must be finite and not negative, got ", weight_decay);
  }

  template <Real Scalar>
  void check_state(const State<Scalar>& state, Index rows, Index cols) const {
    if (momentum == 0) return;
    detail::require<ConfigError>(state.velocity.size() > 0,
                                 "Sgd: momentum must stay 0 with a state that was made without it, got ", momentum);
    detail::require_shape(state.velocity, rows, cols, "Sgd: velocity of the state");
  }

  template <Real Scalar>
  State<Scalar> init(Index rows, Index cols) const {
    State<Scalar> state;
    if (momentum > 0) state.velocity = ColMatrix<Scalar>::Zero(rows, cols);
    return state;
  }

  template <Real Scalar>
  void step(State<Scalar>& state, const std::type_identity_t<Columns<Scalar>>& parameter,
            const std::type_identity_t<ConstColumns<Scalar>>& gradient, double rate) const {
    using Lanes = detail::Lanes<Scalar>;
    const auto minus_lr = Lanes::all(-rate * learning_rate);
    const auto mu = Lanes::all(momentum), decay = Lanes::all(weight_decay);
    const bool first = state.steps++ == 0;
    detail::for_each_lanes(parameter, gradient, [&](Scalar* to, const Scalar* from, Index offset, auto count) {
      const auto p = Lanes::load(to, count);
      const auto d = multiply_add(decay, p, Lanes::load(from, count));
      if (momentum == 0) return multiply_add(minus_lr, d, p).store(to, count);
      Scalar* velocity = state.velocity.data() + offset;
      const auto u = first ? d : multiply_add(mu, Lanes::load(velocity, count), d);
      u.store(velocity, count);
      multiply_add(minus_lr, kind == Momentum::Nesterov ? multiply_add(mu, u, d) : u, p).store(to, count);
    });
  }
};

static_assert(UpdateRule<Sgd, float> && UpdateRule<Sgd, double>);

}  // namespace lora
