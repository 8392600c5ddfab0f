// SPDX-License-Identifier: MIT
// The start of the LoRA paper as PEFT has it: A normal, B = 0 (arXiv:2106.09685).
#pragma once

#include <lora/init/initializer.hpp>

#include <utility>

namespace lora {

/// A ~ N(0, 1/r^2), that is a standard deviation of 1/r; B = 0.
/// \see PEFT, `init_lora_weights="gaussian"`.
struct Gaussian {
  template <FrozenBase Base>
  Start<typename Base::Scalar> operator()(const Base& base, Index rank, double /*scale*/, Random& random) const {
    using Scalar = typename Base::Scalar;
    auto factors = Factors<Scalar>::zero(base.rows(), base.cols(), rank);
    const double deviation = 1 / static_cast<double>(rank);
    for (Scalar& a : factors.A.reshaped()) a = static_cast<Scalar>(deviation * random.normal());
    return {std::move(factors)};
  }
};

}  // namespace lora
