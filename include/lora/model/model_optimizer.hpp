// SPDX-License-Identifier: MIT
// One optimizer for all layers of a set, with a state for each adapter and layer.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/model/adapter_set.hpp>
#include <lora/optim/factor_optimizer.hpp>

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>

namespace lora {

/// A method and its states, by adapter and by layer: `ModelOptimizer optimizer{LoraPlus{AdamW{}}, set};`
///
/// A value: copy it for a snapshot, compare it, save `states()`. An adapter that is activated goes on with the moments
/// that it had.
template <class Method, Real RealScalar>
requires FactorOptimizer<Method, RealScalar>
class ModelOptimizer {
 public:
  using Scalar = RealScalar;
  using State = typename Method::template State<Scalar>;
  using LayerStates = std::map<std::string, State, std::less<>>;   ///< by layer
  using States = std::map<std::string, LayerStates, std::less<>>;  ///< by adapter

  /// Makes the states of the active adapter; those of others come with their first step.
  /// \throws ConfigError  the method's hyper-parameters.
  ModelOptimizer(Method method, const AdapterSet<Scalar>& set) : method_(std::move(method)) { prepare(set); }
  /// Goes on from what `states()` gave.
  ModelOptimizer(Method method, States states) : method_(std::move(method)), states_(std::move(states)) {}

  bool operator==(const ModelOptimizer&) const = default;

  /// One step of `rate` times the learning rate on each layer that the active adapter is on. Allocates nothing after an
  /// adapter's first step.
  ///
  /// Looked at before any layer moves: the rate, that no layer is merged, that each has a gradient, that all are
  /// finite, that the states fit. What a method finds only on the way (a product that overflows) stops at a layer,
  /// which the message names; the layers before it have then moved.
  /// \throws StateError, ConfigError, ShapeError, NumericalError.
  void step(AdapterSet<Scalar>& set, double rate = 1) {
    detail::require_rate(rate, "ModelOptimizer::step");
    LayerStates& states = states_of(set);
    set.for_each_trained([&](const std::string& name, const FactorsView<Scalar>& factors,
                             const ConstFactorsView<Scalar>& gradient, double scale) {
      try {
        method_.step(states.find(name)->second, factors, gradient, scale, rate);
      } catch (const NumericalError& error) {
        throw NumericalError("ModelOptimizer::step: layer " + name + ": " + error.what());
      } catch (const ShapeError& error) {
        throw ShapeError("ModelOptimizer::step: layer " + name + ": " + error.what());
      }
    });
  }

  /// Makes the states that the active adapter lacks, as its first step would: for whoever restores them from a file.
  void prepare(const AdapterSet<Scalar>& set) {
    const auto known = states_.find(set.active());
    LayerStates made;
    for (const auto& [name, n, m, config] : set.layers()) {
      if (known != states_.end() && known->second.contains(name)) continue;
      made.emplace(name, method_.template init<Scalar>(n, m, config.rank));
    }
    states_[set.active()].merge(made);
  }
  /// Drops the states of an adapter, for one that was removed or starts anew.
  void forget(std::string_view adapter) {
    const auto found = states_.find(adapter);
    if (found != states_.end()) states_.erase(found);
  }

  Method& method() { return method_; }
  const Method& method() const { return method_; }
  const States& states() const { return states_; }
  /// The state of one adapter on one layer, as a part of a checkpoint, say; stays where it is until `forget`.
  /// \throws ConfigError  none was made, see `prepare`.
  State& state(std::string_view adapter, std::string_view layer) {
    const auto states = states_.find(adapter);
    const bool known = states != states_.end() && states->second.contains(layer);
    detail::require<ConfigError>(known,
                                 "ModelOptimizer::state: an adapter must have a state on the layer, got none of ",
                                 adapter, " on ", layer);
    return states->second.find(layer)->second;
  }

 private:
  /// Checks the layers, and makes the states that are missing.
  LayerStates& states_of(AdapterSet<Scalar>& set) {
    const auto known = states_.find(set.active());
    LayerStates missing;
    set.for_each_trained([&](const std::string& name, const FactorsView<Scalar>& factors,
                             const ConstFactorsView<Scalar>& gradient, double /*scale*/) {
      detail::require_finite(gradient, "ModelOptimizer::step: layer ", name, ": gradient");
      const Index n = factors.in_features(), m = factors.out_features(), r = factors.rank();
      const auto state = known == states_.end() ? typename LayerStates::iterator() : known->second.find(name);
      if (known == states_.end() || state == known->second.end()) {
        missing.emplace(name, method_.template init<Scalar>(n, m, r));
      } else if constexpr (requires(const State& any) { any.n + any.m + any.r; }) {
        const State& kept = state->second;
        detail::require<ShapeError>(kept.n == n && kept.m == m && kept.r == r, "ModelOptimizer::step: layer ", name,
                                    ": the state must be for n, m, r = ", n, ", ", m, ", ", r, ", got ", kept.n, ", ",
                                    kept.m, ", ", kept.r);
      }
    });
    LayerStates& states = known == states_.end() ? states_[set.active()] : known->second;
    states.merge(missing);
    return states;
  }

  Method method_;
  States states_;
};

template <class Method, Real Scalar>
ModelOptimizer(Method, const AdapterSet<Scalar>&) -> ModelOptimizer<Method, Scalar>;

}  // namespace lora
