// SPDX-License-Identifier: MIT
// User-written initializers for tests.
#pragma once

#include "support/matrices.hpp"

#include <lora/init/initializer.hpp>

namespace lora::test {

/// A0 and B0 both random, subtracted again so that the layer starts at the base.
struct RandomOffset {
  template <FrozenBase Base>
  Start<typename Base::Scalar> operator()(const Base& base, Index rank, double /*scale*/, Random& random) const {
    return {random_factors<typename Base::Scalar>(base.rows(), base.cols(), rank, random), Offset::SubtractInitial};
  }
};

/// Hands over whatever it is given.
template <Real Scalar>
struct Given {
  Factors<Scalar> factors;
  Offset offset = Offset::None;

  template <FrozenBase Base>
  Start<Scalar> operator()(const Base& /*base*/, Index /*rank*/, double /*scale*/, Random& /*random*/) const {
    return {factors, offset};
  }
};

}  // namespace lora::test
