// expect: LinearOperator.*op\.multiply_transposed\(in, out\).*invalid
// SPDX-License-Identifier: MIT
#include <lora/linalg/linear_operator.hpp>

struct Identity {
  using Scalar = float;
  lora::Index rows() const { return 3; }
  lora::Index cols() const { return 3; }
  void multiply(const lora::ConstRows<float>& in, lora::Rows<float> out) const { out = in; }
#ifndef MUST_NOT_COMPILE
  void multiply_transposed(const lora::ConstRows<float>& in, lora::Rows<float> out) const { out = in; }
#endif
};
static_assert(lora::LinearOperator<Identity>);
