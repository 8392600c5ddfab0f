// SPDX-License-Identifier: MIT
// `UpdateRule`, how one matrix moves along its gradient.
#pragma once

#include <lora/core/matrix.hpp>
#include <lora/core/views.hpp>
#include <lora/optim/lanes.hpp>

#include <algorithm>
#include <concepts>

namespace lora {

/// An update rule for one matrix: hyper-parameters are the rule itself (an aggregate), state stands apart.
///
/// - `check()`: throws ConfigError where a hyper-parameter is out of range.
/// - `init<Scalar>(rows, cols)`: the state for a parameter of that shape, before the first step.
/// - `step(state, parameter, gradient, rate)`: one step at `rate` times the rule's learning rate.
///
/// The matrix comes by contiguous columns; a row-major matrix (B) is handed over as its transpose. Rules do arithmetic
/// only: the optimizers that call them have checked shapes and that the gradient is finite.
template <class Rule, class Scalar>
concept UpdateRule = Real<Scalar> && std::copyable<Rule> && std::copyable<typename Rule::template State<Scalar>> &&
    requires(const Rule& rule, typename Rule::template State<Scalar>& state, Columns<Scalar> parameter,
             ConstColumns<Scalar> gradient, double rate) {
  { rule.learning_rate } -> std::convertible_to<double>;
  { rule.check() } -> std::same_as<void>;
  { rule.template init<Scalar>(Index{}, Index{}) } -> std::same_as<typename Rule::template State<Scalar>>;
  { rule.step(state, parameter, gradient, rate) } -> std::same_as<void>;
};

namespace detail {

/// Calls `visit(parameter, gradient, offset, count)` for every run of at most `lane_count` adjacent elements; `offset`
/// counts into a state without gaps.
template <Real Scalar, class Visit>
void for_each_lanes(const Columns<Scalar>& parameter, const ConstColumns<Scalar>& gradient, const Visit& visit) {
  const auto walk = [&visit](Scalar* p, const Scalar* g, Index offset, Index length) {
    for (Index i = 0; i < length; i += lane_count) visit(p + i, g + i, offset + i, std::min(lane_count, length - i));
  };
  auto* p = const_cast<Scalar*>(parameter.data());
  const Scalar* g = gradient.data();
  const Index rows = parameter.rows();
  if (parameter.outerStride() == rows && gradient.outerStride() == rows) {
    walk(p, g, 0, parameter.size());
  } else {
    for (Index j = 0; j < parameter.cols(); ++j) {
      walk(p + j * parameter.outerStride(), g + j * gradient.outerStride(), j * rows, rows);
    }
  }
}

}  // namespace detail
}  // namespace lora
