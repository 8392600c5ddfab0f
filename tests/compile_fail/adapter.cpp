// expect: Adapter.*frozen\.backward\(in, saved, gradient, out\).*invalid
// SPDX-License-Identifier: MIT
#include <lora/adapter/adapter.hpp>
#include <lora/base/view_base.hpp>

struct Layer : lora::ViewBase<float> {
  struct Saved {};
  lora::FactorsView<float> factors();
  const lora::Factors<float>& factors() const;
  double scale() const;
  void forward(const lora::ConstRows<float>&, lora::Rows<float>, Saved&) const;
  void backward(const lora::ConstRows<float>&, Saved&, lora::FactorsView<float>) const;
#ifndef MUST_NOT_COMPILE
  void backward(const lora::ConstRows<float>&, Saved&, lora::FactorsView<float>, lora::Rows<float>) const;
#endif
};
static_assert(lora::Adapter<Layer>);
