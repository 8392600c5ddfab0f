// expect: MergeableBase.*base\.unmerge\(\).*invalid
// SPDX-License-Identifier: MIT
#include <lora/base/view_base.hpp>

struct Base : lora::ViewBase<float> {
  void merge(const lora::ConstFactorsView<float>& factors, double scale);
  bool merged() const;
#ifndef MUST_NOT_COMPILE
  void unmerge();
#endif
};
static_assert(lora::MergeableBase<Base>);
