// SPDX-License-Identifier: MIT
// What one adapter is on one layer, as a value: hyper-parameters, scale and factors.
#pragma once

#include <lora/adapter/lora_config.hpp>
#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/scaling.hpp>

#include <algorithm>
#include <cmath>
#include <utility>

namespace lora {

/// All that tells two adapters of one weight W0 (n x m) apart: W = W0 + s (A B - A0 B0). Made by `LoraLinear::adapter`,
/// put into a layer by `LoraLinear::swap`, and what files and sets of adapters hold.
template <Real RealScalar>
struct AdapterState {
  using Scalar = RealScalar;

  LoraConfig config;
  double scale = 0;           ///< s; of `config`, unless it was set at run time
  Factors<Scalar> factors;    ///< A (n x r), B (r x m)
  Factors<Scalar> initial{};  ///< A0, B0 of an offset start (LoRA-GA, PiSSA); of rank 0 where there is none

  /// Factors from anywhere, without an offset, at the scale of `config`.
  /// \throws ConfigError  config.rank < 1; alpha not positive or not finite.
  static AdapterState of(const LoraConfig& config, Factors<Scalar> factors) {
    return {config, lora::scale(config.alpha, config.rank, config.scaling), std::move(factors), {}};
  }
  /// A = B = 0, as a new layer has it. \throws ConfigError  as above.
  static AdapterState zero(Index n, Index m, const LoraConfig& config) {
    const double s = lora::scale(config.alpha, config.rank, config.scaling);
    return {config, s, Factors<Scalar>::zero(n, m, config.rank), {}};
  }

  /// A B - A0 B0 as one pair, of rank r or 2r; W is W0 + scale times its product.
  Factors<Scalar> delta() const { return initial.rank() == 0 ? factors : difference(factors, initial); }
  /// r (n + m): how many numbers are trained.
  Index parameters() const { return factors.parameters(); }

  bool operator==(const AdapterState&) const = default;
  static void fields(auto& self, const auto& visit) {
    visit("config", self.config);
    visit("scale", self.scale);
    visit("factors", self.factors);
    visit("initial", self.initial);
  }
};

/// What training and switching have made of a LoRA layer: all but the frozen (base and bias) and the configuration.
template <Real Scalar>
struct LoraState {
  Factors<Scalar> factors;  ///< A and B
  Factors<Scalar> initial;  ///< A0 and B0 of an offset start; of rank 0 where there is none
  double scale = 1;         ///< s, with what `set_scale` made of it
  bool enabled = true;
  bool baked = false;  ///< the base holds the offset

  bool operator==(const LoraState&) const = default;
  static void fields(auto& self, const auto& visit) {
    visit("factors", self.factors);
    visit("initial", self.initial);
    visit("scale", self.scale);
    visit("enabled", self.enabled);
    visit("baked", self.baked);
  }

  bool has_offset() const { return initial.rank() > 0; }
  /// For a weight of n x m at rank r; `name` begins the messages. \throws ShapeError, NumericalError  factors or
  /// initial factors are unfit. \throws ConfigError  scale not finite. \throws StateError  baked, but off or without an
  /// offset.
  void check(Index n, Index m, Index r, const char* name) const {
    const ConstFactorsView<Scalar> pair(factors), start(initial);
    detail::require_factors(pair, n, m, r, name, ": factors");
    detail::require_finite(pair, name, ": factors");
    if (has_offset()) detail::require_factors(start, n, m, r, name, ": initial");
    detail::require_finite(start, name, ": initial");
    detail::require<ConfigError>(std::isfinite(static_cast<Scalar>(scale)), name, ": scale must be finite, got ",
                                 scale);
    detail::require<StateError>(!baked || (enabled && has_offset()), name,
                                ": a baked state must be enabled and have an offset, got one ",
                                enabled ? "without an offset" : "that is switched off");
  }
};

namespace detail {

/// Throws unless the adapter fits a layer of n x m; O(1), so the factors are not searched for NaN.
template <Real Scalar, class... Name>
void require_adapter(const AdapterState<Scalar>& state, Index n, Index m, const Name&... name) {
  state.config.check(n, m, name...);
  require<ConfigError>(std::isfinite(static_cast<Scalar>(state.scale)), name..., ": scale must be finite, got ",
                       state.scale);
  require_factors(ConstFactorsView<Scalar>(state.factors), n, m, state.config.rank, name..., ":");
  if (state.initial.rank() > 0) {
    require_factors(ConstFactorsView<Scalar>(state.initial), n, m, state.config.rank, name..., ": initial");
  }
}

}  // namespace detail
}  // namespace lora
