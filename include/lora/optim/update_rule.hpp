// SPDX-License-Identifier: MIT
// `UpdateRule`, how one matrix moves along its gradient.
#pragma once

#include <lora/core/matrix.hpp>
#include <lora/core/views.hpp>
#include <lora/optim/lanes.hpp>

#include <concepts>
#include <type_traits>

namespace lora {

/// An update rule for one matrix: hyper-parameters are the rule itself (an aggregate), state stands apart.
///
/// - `check()`: throws ConfigError where a hyper-parameter is out of range.
/// - `init<Scalar>(rows, cols)`: the state for a parameter of that shape, before the first step.
/// - `check_state(state, rows, cols)`, optional: throws where a state (from a file, say) does not fit such a parameter.
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

template <class Rule, class State>
void check_state(const Rule& rule, const State& state, Index rows, Index cols) {
  if constexpr (requires { rule.check_state(state, rows, cols); }) rule.check_state(state, rows, cols);
}

/// Calls `visit(parameter, gradient, offset, count)` for every run of at most `Lanes<Scalar>::size` adjacent elements,
/// with a count known at compile time for the full ones; `offset` counts into a state without gaps.
template <Real Scalar, class Visit>
void for_each_lanes(const Columns<Scalar>& parameter, const ConstColumns<Scalar>& gradient, const Visit& visit) {
  constexpr std::integral_constant<Index, Lanes<Scalar>::size> full;
  const bool gaps = parameter.outerStride() != parameter.rows() || gradient.outerStride() != parameter.rows();
  const Index columns = gaps ? parameter.cols() : 1, length = gaps ? parameter.rows() : parameter.size();
  for (Index j = 0; j < columns; ++j) {
    auto* p = const_cast<Scalar*>(parameter.data()) + j * parameter.outerStride();
    const Scalar* g = gradient.data() + j * gradient.outerStride();
    Index i = 0;
    for (; i + full <= length; i += full) visit(p + i, g + i, j * length + i, full);
    if (i < length) visit(p + i, g + i, j * length + i, length - i);
  }
}

/// y <- a y + b x, with the same bits wherever y lies.
template <Real Scalar>
void blend(const Columns<Scalar>& y, double a, const ConstColumns<Scalar>& x, double b) {
  const auto keep = Lanes<Scalar>::all(a), take = Lanes<Scalar>::all(b);
  for_each_lanes<Scalar>(y, x, [&](Scalar* to, const Scalar* from, Index /*offset*/, auto count) {
    multiply_add(take, Lanes<Scalar>::load(from, count), keep * Lanes<Scalar>::load(to, count)).store(to, count);
  });
}

}  // namespace detail
}  // namespace lora
