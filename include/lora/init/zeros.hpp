// SPDX-License-Identifier: MIT
// Both factors zero: a place to put factors that come from elsewhere.
#pragma once

#include <lora/init/initializer.hpp>

namespace lora {

/// A = 0, B = 0.
/// \note A saddle point: both gradients are zero there, so training would never leave it. Use it for factors that are
/// overwritten at once (`set_factors`), not as a start.
struct Zeros {
  template <FrozenBase Base>
  Start<typename Base::Scalar> operator()(const Base& base, Index rank, double /*scale*/, Random& /*random*/) const {
    return {Factors<typename Base::Scalar>::zero(base.rows(), base.cols(), rank)};
  }
};

}  // namespace lora
