// SPDX-License-Identifier: MIT
// Clipping by the global norm over the gradients of several layers (Pascanu et al., arXiv:1211.5063).
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>

#include <cmath>
#include <iterator>
#include <type_traits>

namespace lora {

/// Scales all gradients by max_norm / norm where their joint Frobenius norm exceeds `max_norm`; returns the norm
/// before.
///
/// `gradients` is any range of `Factors` or `FactorsView`, one a layer: a vector, an array, a span. Sums in double.
/// All or nothing: with a gradient that is not finite it throws and no gradient has changed, so calling it before the
/// steps of a model keeps every layer as it was.
/// \throws ConfigError  max_norm not positive. \throws NumericalError  NaN or infinity in a gradient, or a norm above
/// 1e154.
/// \note PyTorch divides by norm + 1e-6; we do not.
template <class Gradients>
double clip_global_norm(Gradients&& gradients, double max_norm) {
  using Scalar = typename std::remove_cvref_t<decltype(std::begin(gradients)->A)>::Scalar;
  detail::require<ConfigError>(max_norm > 0, "clip_global_norm: max_norm must be positive, got ", max_norm);
  double sum = 0;
  for (const auto& gradient : gradients) {
    const ConstFactorsView<Scalar> view(gradient);
    detail::require_finite(view, "clip_global_norm: gradient");
    sum += view.A.template cast<double>().squaredNorm() + view.B.template cast<double>().squaredNorm();
  }
  const double norm = std::sqrt(sum);
  detail::require<NumericalError>(std::isfinite(norm), "clip_global_norm: norm must be finite, got ", norm);
  if (norm > max_norm) {
    for (auto&& gradient : gradients) {
      FactorsView<Scalar> view(gradient);
      view.A *= static_cast<Scalar>(max_norm / norm);
      view.B *= static_cast<Scalar>(max_norm / norm);
    }
  }
  return norm;
}

}  // namespace lora
