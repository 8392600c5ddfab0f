// SPDX-License-Identifier: MIT
// Both factors at work from the first step although their product is zero.
#pragma once

#include <lora/core/error.hpp>
#include <lora/init/initializer.hpp>
#include <lora/linalg/product.hpp>
#include <lora/linalg/thin_qr.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <utility>

namespace lora {

/// A0 = N_1 P / 10, B0 = Q N_2 / 10 with normal N_1 (n x r/2), N_2 (r/2 x m); the rows of P and the columns of Q (r/2
/// each) are orthonormal and orthogonal to each other, so A0 B0 = 0 up to rounding and no offset is needed.
///
/// \throws ConfigError  an odd rank.
/// \see PEFT, tuners/lora/layer.py, `orthogonal_init` (the same distribution, another generator).
struct Orthogonal {
  bool operator==(const Orthogonal&) const = default;

  template <FrozenBase Base>
  Start<typename Base::Scalar> operator()(const Base& base, Index rank, double /*scale*/, Random& random) const {
    using Scalar = typename Base::Scalar;
    detail::require<ConfigError>(rank % 2 == 0, "Orthogonal: rank must be even, got ", rank);
    const Index half = rank / 2;
    const auto normal = [&](Index rows, Index cols, double size) {
      ColMatrix<Scalar> matrix(rows, cols);
      for (Scalar& x : matrix.reshaped()) x = static_cast<Scalar>(size * random.normal());
      return matrix;
    };
    const auto Q = thin_qr<Scalar>(normal(rank, rank, 1)).Q;
    const auto input = normal(base.rows(), half, 0.1), output = normal(half, base.cols(), 0.1);
    auto factors = Factors<Scalar>::zero(base.rows(), base.cols(), rank);
    set_product(factors.A, 1, input, Q.leftCols(half).transpose());
    set_product(factors.B, 1, Q.rightCols(half), output);
    return {std::move(factors)};
  }
};

}  // namespace lora
