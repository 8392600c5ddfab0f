// SPDX-License-Identifier: MIT
// What one adapter is on one layer, as a value: hyper-parameters, scale and factors.
#pragma once

#include <lora/adapter/lora_config.hpp>
#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/scaling.hpp>

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

  bool has_offset() const { return initial.rank() > 0; }
  /// A B - A0 B0 as one pair, of rank r or 2r; W is W0 + scale times its product.
  Factors<Scalar> delta() const { return has_offset() ? difference(factors, initial) : factors; }
  /// r (n + m): how many numbers are trained.
  Index parameters() const { return factors.parameters(); }

  /// For a weight of n x m; `name` begins the messages. O(1), so the factors are not searched for NaN.
  /// \throws ConfigError  a field of `config` out of range; scale not finite. \throws ShapeError  factors or initial
  /// factors are unfit.
  template <class... Name>
  void check(Index n, Index m, const Name&... name) const {
    config.check(n, m, name...);
    detail::require<ConfigError>(std::isfinite(static_cast<Scalar>(scale)), name..., ": scale must be finite, got ",
                                 scale);
    detail::require_factors(ConstFactorsView<Scalar>(factors), n, m, config.rank, name..., ":");
    if (!has_offset()) return;
    detail::require_factors(ConstFactorsView<Scalar>(initial), n, m, config.rank, name..., ": initial");
  }
  /// \throws NumericalError  NaN or infinity in a factor.
  template <class... Name>
  void check_finite(const Name&... name) const {
    detail::require_finite(ConstFactorsView<Scalar>(factors), name..., ":");
    detail::require_finite(ConstFactorsView<Scalar>(initial), name..., ": initial");
  }

  bool operator==(const AdapterState&) const = default;
  static void fields(auto& self, const auto& visit) {
    visit("config", self.config);
    visit("scale", self.scale);
    visit("factors", self.factors);
    visit("initial", self.initial);
  }
};

/// What training and switching have made of a LoRA layer: all but the frozen, base and bias.
template <Real Scalar>
struct LoraState {
  AdapterState<Scalar> adapter;
  bool enabled = true;
  bool baked = false;  ///< the base holds the offset

  bool operator==(const LoraState&) const = default;
  /// In one list with those of the adapter, as files have them.
  static void fields(auto& self, const auto& visit) {
    AdapterState<Scalar>::fields(self.adapter, visit);
    visit("enabled", self.enabled);
    visit("baked", self.baked);
  }

  /// For a layer of that config on a weight of n x m; `name` begins the messages. \throws ConfigError  of another
  /// config; and as `AdapterState::check`. \throws NumericalError  factors not finite. \throws StateError  baked, but
  /// off or without an offset.
  void check(const LoraConfig& config, Index n, Index m, const char* name) const {
    const auto& own = adapter.config;
    detail::require<ConfigError>(own == config, name, ": config must be the layer's, of rank ", config.rank, ", alpha ",
                                 config.alpha, ", dropout ", config.dropout, ", got rank ", own.rank, ", alpha ",
                                 own.alpha, ", dropout ", own.dropout,
                                 own.scaling == config.scaling ? "" : " and the other scaling");
    adapter.check(n, m, name);
    adapter.check_finite(name);
    detail::require<StateError>(!baked || (enabled && adapter.has_offset()), name,
                                ": a baked state must be enabled and have an offset, got one ",
                                enabled ? "without an offset" : "that is switched off");
  }
};

}  // namespace lora
