// SPDX-License-Identifier: MIT
// Gradients by central differences in double, the reference for every backward.
#pragma once

#include "support/tolerances.hpp"

#include <lora/core/matrix.hpp>

namespace lora::test {

/// The derivative of `loss()` as `parameter` moves along `direction`, from the central differences at h and 2h, so that
/// the h^2 term of their error cancels. `loss` reads the parameter where it lies; it is put back bit for bit.
template <class Parameter, class Direction, class Loss>
double central_difference(Parameter&& parameter, const Direction& direction, const Loss& loss) {
  const ColMatrix<double> start = parameter;
  const auto loss_at = [&](double step) {
    parameter = start + step * direction;
    return loss();
  };
  constexpr double h = difference_step;
  const double near = (loss_at(h) - loss_at(-h)) / (2 * h);
  const double far = (loss_at(2 * h) - loss_at(-2 * h)) / (4 * h);
  parameter = start;
  return (4 * near - far) / 3;
}

/// The whole gradient, one element at a time.
template <class Parameter, class Loss>
ColMatrix<double> numerical_gradient(Parameter&& parameter, const Loss& loss) {
  ColMatrix<double> gradient(parameter.rows(), parameter.cols());
  for (Index i = 0; i < gradient.rows(); ++i) {
    for (Index j = 0; j < gradient.cols(); ++j) {
      ColMatrix<double> unit = ColMatrix<double>::Zero(gradient.rows(), gradient.cols());
      unit(i, j) = 1;
      gradient(i, j) = central_difference(parameter, unit, loss);
    }
  }
  return gradient;
}

}  // namespace lora::test
