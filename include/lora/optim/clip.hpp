// SPDX-License-Identifier: MIT
// Clipping by the global norm over the gradients of several layers (Pascanu et al., arXiv:1211.5063).
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/finite.hpp>
#include <lora/core/views.hpp>

#include <cmath>
#include <iterator>
#include <span>
#include <type_traits>

namespace lora {

/// Scales all gradients by max_norm / norm where their joint Frobenius norm exceeds `max_norm`; returns the norm
/// before.
///
/// `gradients` is any range of `Factors` or `FactorsView`, one a layer: a vector, an array, a span. `dense` is any
/// range of what converts to a `std::span` of the same scalar: the gradients of what is trained besides, a head or a
/// bias, as the numbers that they are. Sums in double. All or nothing: with a gradient that is not finite it throws and
/// no gradient has changed, so calling it before the steps of a model keeps every layer as it was. \throws ConfigError
/// max_norm not positive. \throws NumericalError  NaN or infinity in a gradient, or a norm above 1e154. \note PyTorch
/// divides by norm + 1e-6; we do not.
template <class Gradients, class Dense>
double clip_global_norm(Gradients&& gradients, Dense&& dense, double max_norm) {
  using Scalar = typename std::remove_cvref_t<decltype(std::begin(gradients)->A)>::Scalar;
  detail::require<ConfigError>(max_norm > 0, "clip_global_norm: max_norm must be positive, got ", max_norm);
  double sum = 0;
  for (const auto& gradient : gradients) {
    const ConstFactorsView<Scalar> view(gradient);
    detail::require_finite(view, "clip_global_norm: gradient");
    sum += view.A.template cast<double>().squaredNorm() + view.B.template cast<double>().squaredNorm();
  }
  for (auto&& gradient : dense) {
    const std::span<const Scalar> numbers(gradient);
    const ConstRows<Scalar> row(numbers.data(), 1, std::ssize(numbers));
    detail::require<NumericalError>(all_finite(row),
                                    "clip_global_norm: dense gradient must be finite, got NaN or infinity");
    sum += row.template cast<double>().squaredNorm();
  }
  const double norm = std::sqrt(sum);
  detail::require<NumericalError>(std::isfinite(norm), "clip_global_norm: norm must be finite, got ", norm);
  if (norm > max_norm) {
    const auto factor = static_cast<Scalar>(max_norm / norm);
    for (auto&& gradient : gradients) {
      FactorsView<Scalar> view(gradient);
      view.A *= factor;
      view.B *= factor;
    }
    for (auto&& gradient : dense) {
      for (Scalar& number : std::span<Scalar>(gradient)) number *= factor;
    }
  }
  return norm;
}
/// The same where nothing is trained but factors.
template <class Gradients>
double clip_global_norm(Gradients&& gradients, double max_norm) {
  using Scalar = typename std::remove_cvref_t<decltype(std::begin(gradients)->A)>::Scalar;
  return clip_global_norm(gradients, std::span<const std::span<Scalar>>(), max_norm);
}

}  // namespace lora
