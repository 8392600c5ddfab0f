// SPDX-License-Identifier: MIT
// PEFT's default start: A kaiming-uniform with a = sqrt 5, B = 0 (He et al., arXiv:1502.01852).
#pragma once

#include <lora/init/initializer.hpp>

#include <cmath>
#include <utility>

namespace lora {

/// A ~ U(-1/sqrt n, 1/sqrt n), B = 0, so training starts at the base and the first step moves B alone.
/// \see PEFT, tuners/lora/layer.py, `reset_lora_parameters` (the same distribution, another generator).
struct KaimingUniform {
  template <FrozenBase Base>
  Start<typename Base::Scalar> operator()(const Base& base, Index rank, double /*scale*/, Random& random) const {
    using Scalar = typename Base::Scalar;
    auto factors = Factors<Scalar>::zero(base.rows(), base.cols(), rank);
    const double bound = 1 / std::sqrt(static_cast<double>(base.rows()));
    for (Scalar& a : factors.A.reshaped()) a = static_cast<Scalar>(bound * (2 * random.uniform() - 1));
    return {std::move(factors)};
  }
};

}  // namespace lora
