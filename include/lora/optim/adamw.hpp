// SPDX-License-Identifier: MIT
// AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/fields.hpp>
#include <lora/optim/update_rule.hpp>

#include <Eigen/Core>

#include <cmath>
#include <cstdint>
#include <type_traits>

namespace lora {

/// m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;
/// p <- (1 - rate lr decay) p - rate lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + epsilon),  t = 1, 2, ...
///
/// State: two scalars a parameter. One pass: each array is read and written once. Follows `torch.optim.AdamW` (parity
/// in tests/parity). \note The default decay is 0, the custom for adapters; PyTorch's default is 0.01. It
/// acts on A and B, not on the product.
struct AdamW {
  static constexpr const char* name = "AdamW";

  double learning_rate = 1e-3;  ///< >= 0
  double beta1 = 0.9;           ///< in [0, 1)
  double beta2 = 0.999;         ///< in [0, 1)
  double epsilon = 1e-8;        ///< > 0, also once it is rounded to float
  double weight_decay = 0;      ///< >= 0, decoupled: multiplies the learning rate

  bool operator==(const AdamW&) const = default;
  static void fields(auto& self, const auto& visit) {
    visit("learning_rate", self.learning_rate);
    visit("beta1", self.beta1);
    visit("beta2", self.beta2);
    visit("epsilon", self.epsilon);
    visit("weight_decay", self.weight_decay);
  }

  template <Real Scalar>
  struct State {
    ColMatrix<Scalar> mean, square;  ///< m and v, not corrected
    std::int64_t steps = 0;          ///< t
    friend bool operator==(const State& left, const State& right) {
      return left.steps == right.steps && detail::same_values(left.mean, right.mean) &&
             detail::same_values(left.square, right.square);
    }
    static void fields(auto& self, const auto& visit) {
      visit("mean", self.mean);
      visit("square", self.square);
      visit("steps", self.steps);
    }
  };

  void check() const {
    detail::require<ConfigError>(std::isfinite(learning_rate) && learning_rate >= 0,
                                 "AdamW: learning_rate must be finite and not negative, got ", learning_rate);
    detail::require<ConfigError>(beta1 >= 0 && beta1 < 1, "AdamW: beta1 must lie in [0, 1), got ", beta1);
    detail::require<ConfigError>(beta2 >= 0 && beta2 < 1, "AdamW: beta2 must lie in [0, 1), got ", beta2);
    detail::require<ConfigError>(std::isfinite(epsilon) && static_cast<float>(epsilon) > 0,
                                 "AdamW: epsilon must be positive, in float too, and finite, got ", epsilon);
    detail::require<ConfigError>(std::isfinite(weight_decay) && weight_decay >= 0,
                                 "AdamW: weight_decay must be finite and not negative, got ", weight_decay);
  }

  template <Real Scalar>
  void check_state(const State<Scalar>& state, Index rows, Index cols) const {
    detail::require_shape(state.mean, rows, cols, "AdamW: mean of the state");
    detail::require_shape(state.square, rows, cols, "AdamW: square of the state");
  }

  template <Real Scalar>
  State<Scalar> init(Index rows, Index cols) const {
    return {ColMatrix<Scalar>::Zero(rows, cols), ColMatrix<Scalar>::Zero(rows, cols)};
  }

  template <Real Scalar>
  void step(State<Scalar>& state, const std::type_identity_t<Columns<Scalar>>& parameter,
            const std::type_identity_t<ConstColumns<Scalar>>& gradient, double rate) const {
    using Lanes = detail::Lanes<Scalar>;
    const auto t = static_cast<double>(++state.steps);
    const double lr = rate * learning_rate;
    const auto b1 = Lanes::all(beta1), one_b1 = Lanes::all(1 - beta1);
    const auto b2 = Lanes::all(beta2), one_b2 = Lanes::all(1 - beta2);
    const auto minus_size = Lanes::all(-lr / (1 - std::pow(beta1, t)));
    const auto correction = Lanes::all(1 / std::sqrt(1 - std::pow(beta2, t)));
    const auto eps = Lanes::all(epsilon), keep = Lanes::all(1 - lr * weight_decay);
    detail::for_each_lanes(parameter, gradient, [&](Scalar* to, const Scalar* from, Index offset, auto count) {
      Scalar *mean = state.mean.data() + offset, *square = state.square.data() + offset;
      detail::fetch_ahead(mean);
      detail::fetch_ahead(square);
      const auto g = Lanes::load(from, count);
      const auto m = multiply_add(b1, Lanes::load(mean, count), one_b1 * g);
      const auto v = multiply_add(b2, Lanes::load(square, count), one_b2 * (g * g));
      const auto root = multiply_add(correction, sqrt(v), eps);
      const auto p = multiply_add(minus_size, m / root, keep * Lanes::load(to, count));
      m.store(mean, count);
      v.store(square, count);
      p.store(to, count);
    });
  }
};

static_assert(UpdateRule<AdamW, float> && UpdateRule<AdamW, double>);

}  // namespace lora
