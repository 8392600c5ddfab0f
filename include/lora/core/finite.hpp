// SPDX-License-Identifier: MIT
// Is every element finite? Answered from the bits, so that -ffast-math cannot optimise the question away.
#pragma once

#include <lora/core/views.hpp>

#include <bit>
#include <cstdint>
#include <type_traits>

namespace lora {

/// True where no element is NaN or infinite. One pass; b x n elements, no allocation.
template <class Element, int Order>
bool all_finite(const View<Element, Order>& view) {
  using Scalar = std::remove_const_t<Element>;
  using Bits = std::conditional_t<sizeof(Scalar) == 4, std::uint32_t, std::uint64_t>;
  constexpr Bits exponent = sizeof(Scalar) == 4 ? Bits{0x7F800000U} : static_cast<Bits>(0x7FF0000000000000ULL);
  if (view.size() == 0) return true;  // the pointer may be null
  for (Index outer = 0; outer < view.outerSize(); ++outer) {
    const Scalar* line = view.data() + outer * view.outerStride();
    Bits bad = 0;  // no early exit inside a line: the loop stays one that compilers vectorise
    for (Index i = 0; i < view.innerSize(); ++i) bad |= Bits{(std::bit_cast<Bits>(line[i]) & exponent) == exponent};
    if (bad != 0) return false;
  }
  return true;
}

}  // namespace lora
