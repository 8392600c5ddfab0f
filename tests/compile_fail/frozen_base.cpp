// expect: FrozenBase.*base\.describe\(\).*invalid
// SPDX-License-Identifier: MIT
#include <lora/base/frozen_base.hpp>

struct Base {
  using Scalar = float;
  lora::Index rows() const { return 3; }
  lora::Index cols() const { return 3; }
  void multiply(const lora::ConstRows<float>& in, lora::Rows<float> out) const { out = in; }
  void multiply_transposed(const lora::ConstRows<float>& in, lora::Rows<float> out) const { out = in; }
#ifndef MUST_NOT_COMPILE
  std::string describe() const { return "identity"; }
#endif
};
static_assert(lora::FrozenBase<Base>);
