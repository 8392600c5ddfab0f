// SPDX-License-Identifier: MIT
// One layer of a model, whatever its base: what a set of adapters asks of it, none of it in the hot path.
#pragma once

#include <lora/adapter/adapter_state.hpp>
#include <lora/adapter/anchor.hpp>
#include <lora/adapter/lora_linear.hpp>
#include <lora/base/frozen_base.hpp>
#include <lora/core/factors.hpp>

#include <utility>

namespace lora::detail {

template <Real Scalar>
class LayerHandle {
 public:
  explicit LayerHandle(Anchor& anchor) : link_(anchor) {}
  LayerHandle(const LayerHandle&) = delete;
  LayerHandle& operator=(const LayerHandle&) = delete;
  virtual ~LayerHandle() = default;

  /// Is the layer still where it was? Nothing else may be asked where it is not.
  bool alive() const { return link_.holds(); }

  virtual Index in_features() const = 0;
  virtual Index out_features() const = 0;
  virtual const LoraConfig& config() const = 0;
  virtual double scale() const = 0;
  virtual FactorsView<Scalar> factors() = 0;
  virtual const Factors<Scalar>& frozen_factors() const = 0;
  virtual AdapterState<Scalar> adapter() const = 0;
  virtual void swap(AdapterState<Scalar>& other) = 0;

  virtual bool enabled() const = 0;
  virtual bool merged() const = 0;
  virtual bool baked() const = 0;
  virtual bool mergeable() const = 0;  ///< does the base own its weight?
  virtual void enable() = 0;
  virtual void disable() = 0;
  virtual void merge() = 0;
  virtual void unmerge() = 0;

 private:
  AnchorLink link_;
};

template <FrozenBase Base>
class LayerOn final : public LayerHandle<typename Base::Scalar> {
 public:
  using Scalar = typename Base::Scalar;

  explicit LayerOn(LoraLinear<Base>& layer) : LayerHandle<Scalar>(layer.anchor()), layer_(&layer) {}

  Index in_features() const override { return layer_->in_features(); }
  Index out_features() const override { return layer_->out_features(); }
  const LoraConfig& config() const override { return layer_->config(); }
  double scale() const override { return layer_->scale(); }
  FactorsView<Scalar> factors() override { return layer_->factors(); }
  const Factors<Scalar>& frozen_factors() const override { return std::as_const(*layer_).factors(); }
  AdapterState<Scalar> adapter() const override { return layer_->adapter(); }
  void swap(AdapterState<Scalar>& other) override { layer_->swap(other); }

  bool enabled() const override { return layer_->enabled(); }
  bool merged() const override { return layer_->merged(); }
  bool baked() const override { return layer_->baked(); }
  bool mergeable() const override { return MergeableBase<Base>; }
  void enable() override { layer_->enable(); }
  void disable() override { layer_->disable(); }
  void merge() override {
    if constexpr (MergeableBase<Base>) layer_->merge();
  }
  void unmerge() override {
    if constexpr (MergeableBase<Base>) layer_->unmerge();
  }

 private:
  LoraLinear<Base>* layer_;
};

}  // namespace lora::detail
