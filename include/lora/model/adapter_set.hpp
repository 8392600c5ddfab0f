// SPDX-License-Identifier: MIT
// The adapters of a whole model by name: trained together, merged together, exchanged for one another.
#pragma once

#include <lora/adapter/adapter_state.hpp>
#include <lora/adapter/lora_linear.hpp>
#include <lora/base/frozen_base.hpp>
#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/model/layer_handle.hpp>
#include <lora/model/model_adapter.hpp>
#include <lora/model/table.hpp>
#include <lora/optim/clip.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lora {

/// Named layers that somebody else owns, and named adapters for them, one of which is active.
///
///     lora::AdapterSet<float> set{"german"};
///     set.add_layer("blocks.0.q_proj", q);                // its adapter becomes part of "german"
///     lora::ModelOptimizer optimizer{lora::LoraPlus{lora::AdamW{}}, set};
///     set.zero_gradients();
///     q.forward(X, Y, saved);                             // directly on the layer: the set is not in the way
///     q.backward(dY, saved, set.gradient("blocks.0.q_proj"));
///     set.clip(1.0);
///     optimizer.step(set, rate);
///
/// The active adapter lies in the layers, the others in the set; an adapter need not be on all layers, and where the
/// active one is not, the base runs alone. A layer must stay where it was added; one that was moved or destroyed is
/// noticed, and named in a StateError by every function that needs it. A layer belongs to one set. The set may be
/// moved and is not copied: what can be copied, compared and saved is `adapter(name)`.
///
/// Threads: one at a time in the functions of the set, and none in a layer while the set changes it (all that is not
/// const, but for `gradient` and `zero_gradients`). In between, layers run in as many threads as they like.
template <Real RealScalar>
class AdapterSet {
 public:
  using Scalar = RealScalar;

  /// \param adapter  the name of the adapter that the layers have. \throws ConfigError  empty.
  explicit AdapterSet(std::string adapter = "default") {
    require_name(adapter, "AdapterSet");
    adapters_.push_back(std::make_unique<Named>(Named{std::move(adapter), {}}));
    active_ = adapters_.front().get();
  }
  AdapterSet(AdapterSet&&) noexcept = default;
  AdapterSet& operator=(AdapterSet&&) noexcept = default;

  // ---- layers ----

  /// Takes up a layer; what it has becomes the active adapter's part there. \throws ConfigError  an empty name, or one
  /// that another layer has. \throws StateError  the layer is in a set already.
  template <FrozenBase Base>
  requires std::same_as<typename Base::Scalar, Scalar>
  void add_layer(std::string name, LoraLinear<Base>& layer) {
    require_name(name, "AdapterSet::add_layer");
    detail::require<ConfigError>(!index_.contains(name),
                                 "AdapterSet::add_layer: names must differ, got a second layer ", name);
    detail::require<StateError>(!layer.anchor().linked(), "AdapterSet::add_layer: layer ", name,
                                " must not be in a set already, got one that is");
    auto added = std::make_unique<Layer>();
    added->name = name;
    added->handle = std::make_unique<detail::LayerOn<Base>>(layer);
    added->resident = active_;
    const std::size_t i = layers_.size();
    layers_.reserve(i + 1);
    active_->parts.resize(i + 1);
    index_.emplace(std::move(name), i);
    active_->parts[i].emplace();
    layers_.push_back(std::move(added));
  }
  std::vector<std::string> layer_names() const {  ///< as they were added
    std::vector<std::string> names;
    for (const auto& layer : layers_) names.push_back(layer->name);
    return names;
  }
  /// The layers that the active adapter is on, with its config on each.
  std::vector<AdaptedLayer> layers() const {
    std::vector<AdaptedLayer> result;
    for_each_covered("layers", [&](const Layer& layer) {
      const auto& handle = *layer.handle;
      result.push_back({layer.name, handle.in_features(), handle.out_features(), handle.config()});
    });
    return result;
  }
  /// Numbers that the active adapter trains: sum of r (n + m).
  Index parameters() const {
    Index sum = 0;
    for_each_covered("parameters", [&](const Layer& layer) { sum += layer.handle->frozen_factors().parameters(); });
    return sum;
  }

  // ---- adapters ----

  const std::string& active() const { return active_->name; }
  std::vector<std::string> adapter_names() const {  ///< as they were added
    std::vector<std::string> names;
    for (const auto& adapter : adapters_) names.push_back(adapter->name);
    return names;
  }
  /// A copy of an adapter, active or not. \throws ConfigError  unknown name.
  ModelAdapter<Scalar> adapter(std::string_view name) const {
    Named& named = find_adapter(name, "adapter");
    ModelAdapter<Scalar> result;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const Part* part = named.part(i);
      if (part == nullptr) continue;
      const bool in_layer = layers_[i]->resident == &named;
      if (in_layer) require_alive(*layers_[i], "adapter");
      result.emplace(layers_[i]->name, in_layer ? layers_[i]->handle->adapter() : part->state);
    }
    return result;
  }
  /// Takes up another adapter, not active. \throws ConfigError  an empty name or one that another adapter has, no
  /// layers, an unknown layer, a config or scale that does not fit. \throws ShapeError  factors that do not fit.
  /// \throws NumericalError  factors that are not finite.
  void add(std::string name, ModelAdapter<Scalar> states) {
    require_name(name, "AdapterSet::add");
    detail::require<ConfigError>(std::ranges::find(adapters_, name, name_of) == adapters_.end(),
                                 "AdapterSet::add: names must differ, got a second adapter ", name);
    adapters_.push_back(make(std::move(name), std::move(states), "add"));
  }
  /// Gives an adapter, active or not, another value (from a file, a checkpoint); its gradients are gone.
  /// \throws ConfigError, ShapeError, NumericalError, StateError  as `add` and `activate`.
  void replace(std::string_view name, ModelAdapter<Scalar> states) {
    Named* const old = &find_adapter(name, "replace");
    auto made = make(old->name, std::move(states), "replace");
    if (old == active_) put_in(*made, "replace");
    for (auto& layer : layers_) {
      if (layer->resident == old) layer->resident = nullptr;
    }
    *std::ranges::find(adapters_, name, name_of) = std::move(made);
  }
  /// Puts an adapter into the layers and the one that was there back into the set, in O(1) a layer: no factor is copied
  /// and nothing allocated, but for the gradients of an adapter that was never in training. Gradients go with their
  /// adapter. The layers' switches follow the set's. What was saved by a forward before does not fit a backward after.
  /// \throws ConfigError  unknown name. \throws StateError  a layer is merged or baked.
  void activate(std::string_view name) {
    Named& next = find_adapter(name, "activate");
    if (&next != active_) put_in(next, "activate");
  }
  /// Drops an adapter. \throws ConfigError  unknown name. \throws StateError  it is active.
  void remove(std::string_view name) {
    const Named& named = find_adapter(name, "remove");
    detail::require<StateError>(&named != active_, "AdapterSet::remove: activate another adapter first, got ", name);
    for (auto& layer : layers_) {
      if (layer->resident == &named) layer->resident = nullptr;  // switched off; its factors go with the next exchange
    }
    std::erase_if(adapters_, [&](const auto& adapter) { return adapter.get() == &named; });
  }

  // ---- training ----

  /// The gradient of the active adapter on a layer, for the layer's backward to add to; zeros at first. The reference
  /// holds as long as the set; what it shows changes with `activate`. For LoRA-FA give its A a shape of 0 x r.
  /// \throws ConfigError  unknown name. \throws StateError  the active adapter is not on this layer.
  Factors<Scalar>& gradient(std::string_view layer_name) {
    const std::size_t i = find_layer(layer_name, "gradient");
    detail::require<StateError>(active_->part(i) != nullptr, "AdapterSet::gradient: adapter ", active(),
                                " must be on the layer, got ", layer_name);
    require_alive(*layers_[i], "gradient");
    return fitted_gradient(*layers_[i]);
  }
  /// Clears the gradients of the active adapter; makes those that are missing.
  void zero_gradients() {
    for_each_covered("zero_gradients", [&](Layer& layer) { fitted_gradient(layer).set_zero(); });
  }
  /// `clip_global_norm` over all gradients of the active adapter. \throws ConfigError, NumericalError.
  double clip(double max_norm) { return clip(max_norm, std::span<const std::span<Scalar>>()); }
  /// The same, jointly with dense gradients: any range of what converts to `std::span<Scalar>`.
  template <class Dense>
  double clip(double max_norm, Dense&& dense) {
    views_.clear();  // keeps its memory
    for_each_covered("clip", [&](Layer& layer) {
      if (fits(layer)) views_.push_back(layer.gradient);
    });
    return clip_global_norm(views_, dense, max_norm);
  }
  /// Calls `visit(name, factors, gradient, scale)` for the layers that the active adapter is on: what an optimizer
  /// needs. \throws StateError  before the first call, a layer is merged or its gradient was never made.
  template <class Visit>
  void for_each_trained(const Visit& visit) {
    for_each_covered("for_each_trained", [&](const Layer& layer) {
      detail::require<StateError>(!layer.handle->merged(), "AdapterSet: unmerge before training, got the merged layer ",
                                  layer.name);
      detail::require<StateError>(fits(layer), "AdapterSet: layer ", layer.name,
                                  " needs a gradient (zero_gradients makes them), got none");
    });
    for_each_covered("for_each_trained", [&](Layer& layer) {
      visit(std::as_const(layer.name), layer.handle->factors(), ConstFactorsView<Scalar>(layer.gradient),
            layer.handle->scale());
    });
  }

  // ---- switch and merge ----

  /// Merges the active adapter into the bases, all or nothing. \throws StateError  a layer is merged, switched off, or
  /// has a base that does not own its weight.
  void merge() {
    for_each_covered("merge", [&](const Layer& layer) {
      const auto& handle = *layer.handle;
      detail::require<StateError>(handle.mergeable(), "AdapterSet::merge: needs bases that own their weights, got ",
                                  layer.name, " on another");
      detail::require<StateError>(!handle.merged(), "AdapterSet::merge: unmerge first, got the merged layer ",
                                  layer.name);
      detail::require<StateError>(handle.enabled(), "AdapterSet::merge: enable first, got the layer ", layer.name,
                                  " switched off");
    });
    std::vector<Layer*> done;
    done.reserve(layers_.size());
    try {
      for_each_covered("merge", [&](Layer& layer) {
        layer.handle->merge();
        done.push_back(&layer);
      });
    } catch (...) {  // out of memory: as it was, bit for bit
      for (Layer* layer : done) layer->handle->unmerge();
      throw;
    }
  }
  /// Restores all bases bit for bit. \throws StateError  a layer is not merged; then none was changed.
  void unmerge() {
    for_each_covered("unmerge", [&](const Layer& layer) {
      detail::require<StateError>(layer.handle->merged(), "AdapterSet::unmerge: all layers must be merged, got ",
                                  layer.name, " unmerged");
    });
    for_each_covered("unmerge", [&](Layer& layer) { layer.handle->unmerge(); });
  }
  /// Is there a merged layer?
  bool merged() const {
    bool any = false;
    for_each_covered("merged", [&](const Layer& layer) { any = any || layer.handle->merged(); });
    return any;
  }
  void enable() {
    for_each_covered("enable", [](const Layer&) {});
    for_each_covered("enable", [](Layer& layer) { layer.handle->enable(); });
    enabled_ = true;
  }
  /// From now on the bases alone. \throws StateError  a layer is merged or baked; then none was changed.
  void disable() {
    for_each_covered("disable", [&](const Layer& layer) { require_changeable(layer, "disable"); });
    for_each_covered("disable", [](Layer& layer) { layer.handle->disable(); });
    enabled_ = false;
  }
  bool enabled() const { return enabled_; }

  /// The layers as a table, with n, m, r, scale and parameters of the active adapter.
  std::string describe() const {
    detail::Table table;
    table.add("layer", "n", "m", "r", "scale", "parameters");
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      require_alive(*layers_[i], "describe");
      const auto& handle = *layers_[i]->handle;
      const Index n = handle.in_features(), m = handle.out_features();
      if (active_->part(i) == nullptr) {
        table.add(layers_[i]->name, n, m, "-", "-", 0);
      } else {
        table.add(layers_[i]->name, n, m, handle.config().rank, handle.scale(), handle.frozen_factors().parameters());
      }
    }
    return "adapter " + active() + ", parameters " + std::to_string(parameters()) + "\n" + table.text();
  }

 private:
  /// An adapter on a layer while it is not in the layer, with its gradient if it was in training.
  struct Part {
    AdapterState<Scalar> state;
    Factors<Scalar> gradient;
  };
  struct Named {
    std::string name;
    std::vector<std::optional<Part>> parts;  ///< by layer; shorter where layers came later

    Part* part(std::size_t i) { return i < parts.size() && parts[i] ? &*parts[i] : nullptr; }
  };
  struct Layer {
    std::string name;
    std::unique_ptr<detail::LayerHandle<Scalar>> handle;
    Named* resident = nullptr;  ///< whose part lies in the layer; the part itself is then empty
    Factors<Scalar> gradient;   ///< the resident's
  };

  static void require_name(std::string_view name, const char* function) {
    detail::require<ConfigError>(!name.empty(), function, ": a name must not be empty, got none");
  }
  static void require_alive(const Layer& layer, const char* function) {
    detail::require<StateError>(layer.handle->alive(), "AdapterSet::", function,
                                ": layers must stay where they were added, got a moved or destroyed ", layer.name);
  }
  static void require_changeable(const Layer& layer, const char* function) {
    require_alive(layer, function);
    detail::require<StateError>(!layer.handle->merged(), "AdapterSet::", function,
                                ": unmerge first, got the merged layer ", layer.name);
    detail::require<StateError>(!layer.handle->baked(), "AdapterSet::", function,
                                ": needs the bases as they were given, got an offset baked into ", layer.name);
  }
  std::size_t find_layer(std::string_view name, const char* function) const {
    const auto found = index_.find(name);
    detail::require<ConfigError>(found != index_.end(), "AdapterSet::", function,
                                 ": a layer must have been added, got ", name);
    return found->second;
  }
  static const std::string& name_of(const std::unique_ptr<Named>& adapter) { return adapter->name; }
  Named& find_adapter(std::string_view name, const char* function) const {
    const auto found = std::ranges::find(adapters_, name, name_of);
    detail::require<ConfigError>(found != adapters_.end(), "AdapterSet::", function,
                                 ": an adapter must have been added, got ", name);
    return **found;
  }

  /// Visits the layers that the active adapter is on, in their order.
  template <class Visit>
  void for_each_covered(const char* function, const Visit& visit) const {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      if (active_->part(i) == nullptr) continue;
      require_alive(*layers_[i], function);
      visit(*layers_[i]);
    }
  }
  static bool fits(const Layer& layer) {
    const auto& factors = layer.handle->frozen_factors();
    const auto& [A, B] = layer.gradient;
    return B.rows() == factors.B.rows() && B.cols() == factors.B.cols() && A.cols() == factors.A.cols() &&
           (A.rows() == factors.A.rows() || A.rows() == 0);
  }
  static Factors<Scalar>& fitted_gradient(Layer& layer) {
    const auto& factors = layer.handle->frozen_factors();
    if (!fits(layer)) {
      layer.gradient = Factors<Scalar>::zero(factors.in_features(), factors.out_features(), factors.rank());
    }
    return layer.gradient;
  }
  /// An adapter of these values, checked against the layers.
  std::unique_ptr<Named> make(std::string name, ModelAdapter<Scalar> states, const char* function) const {
    detail::require<ConfigError>(!states.empty(), "AdapterSet::", function,
                                 ": an adapter needs at least one layer, got none");
    auto made = std::make_unique<Named>(Named{std::move(name), std::vector<std::optional<Part>>(layers_.size())});
    for (auto& [layer_name, state] : states) {
      const std::size_t i = find_layer(layer_name, function);
      require_alive(*layers_[i], function);
      const auto& handle = *layers_[i]->handle;
      const std::string where = std::string("AdapterSet::") + function + ": layer " + layer_name;
      state.check(handle.in_features(), handle.out_features(), where);
      state.check_finite(where);
      made->parts[i].emplace(Part{std::move(state), {}});
    }
    return made;
  }
  /// Makes `next` the active adapter.
  void put_in(Named& next, const char* function) {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const Layer& layer = *layers_[i];
      require_changeable(layer, function);
      Part* part = next.part(i);
      if (part == nullptr || layer.resident == &next) continue;
      const Index n = layer.handle->in_features(), m = layer.handle->out_features();
      part->state.check(n, m, "AdapterSet::", function, ": layer ", layer.name);
      if (layer.gradient.parameters() > 0 && part->gradient.parameters() == 0) {
        part->gradient = Factors<Scalar>::zero(n, m, part->state.config.rank);
      }
    }
    active_ = &next;  // from here on nothing throws
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      Layer& layer = *layers_[i];
      Part* part = next.part(i);
      if (part != nullptr && layer.resident != &next) {
        layer.handle->swap(part->state);
        std::swap(layer.gradient, part->gradient);
        Part previous = std::exchange(*part, Part());
        if (layer.resident != nullptr) *layer.resident->part(i) = std::move(previous);
        layer.resident = &next;
      }
      part != nullptr&& enabled_ ? layer.handle->enable() : layer.handle->disable();
    }
  }

  std::vector<std::unique_ptr<Layer>> layers_;
  std::map<std::string, std::size_t, std::less<>> index_;
  std::vector<std::unique_ptr<Named>> adapters_;
  Named* active_ = nullptr;
  bool enabled_ = true;
  std::vector<FactorsView<Scalar>> views_;  // scratch of `clip`
};

}  // namespace lora
