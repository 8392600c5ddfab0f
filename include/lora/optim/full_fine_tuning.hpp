// SPDX-License-Identifier: MIT
// Full fine-tuning, the baseline that adapters are measured against: an update rule on a dense weight.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/fields.hpp>
#include <lora/core/finite.hpp>
#include <lora/core/views.hpp>
#include <lora/optim/adamw.hpp>
#include <lora/optim/update_rule.hpp>

#include <cmath>
#include <type_traits>

namespace lora {

/// Steps any dense matrix (a weight, a bias as one column) by the rule, with its own checks.
template <class Rule = AdamW>
struct FullFineTuning {
  static constexpr const char* name = "FullFineTuning";
  Rule rule{};

  bool operator==(const FullFineTuning&) const = default;
  static void fields(auto& self, const auto& visit) { visit("rule", self.rule); }

  template <Real Scalar>
  struct State {
    typename Rule::template State<Scalar> rule;
    Index rows = 0, cols = 0;  ///< of the weight as it lies in memory, by contiguous columns
    bool operator==(const State&) const = default;
    static void fields(auto& self, const auto& visit) {
      visit("rule", self.rule);
      visit("rows", fixed(self.rows));
      visit("cols", fixed(self.cols));
    }
  };

  /// The state for `weight`, of either storage order. \throws ConfigError  the rule's hyper-parameters.
  template <class Weight>
  auto init(const Weight& weight) const {
    rule.check();
    const auto columns = by_columns<const typename Weight::Scalar>(weight);
    return State<typename Weight::Scalar>{rule.template init<typename Weight::Scalar>(columns.rows(), columns.cols()),
                                          columns.rows(), columns.cols()};
  }

  /// One step; weight and gradient share shape and storage order, and do not overlap.
  /// \throws ShapeError, ConfigError, NumericalError  and then nothing has changed.
  template <class Weight, class Gradient, Real Scalar>
  void step(State<Scalar>& state, Weight& weight, const Gradient& gradient, double rate = 1) const {
    static_assert(bool(Weight::IsRowMajor) == bool(Gradient::IsRowMajor),
                  "lora: weight and gradient share one storage order");
    rule.check();
    const auto W = by_columns<Scalar>(weight);
    const auto G = by_columns<const Scalar>(gradient);
    const Index rows = Weight::IsRowMajor ? state.cols : state.rows,
                cols = Weight::IsRowMajor ? state.rows : state.cols;
    detail::require_shape(weight, rows, cols, "FullFineTuning::step: weight");
    detail::require_shape(gradient, rows, cols, "FullFineTuning::step: gradient");
    detail::require<ShapeError>(!detail::overlap(W, G),
                                "FullFineTuning::step: weight and gradient must lie apart, got overlapping memory");
    detail::require<ConfigError>(std::isfinite(rate) && rate >= 0,
                                 "FullFineTuning::step: rate must be finite and not negative, got ", rate);
    detail::require<NumericalError>(all_finite(G),
                                    "FullFineTuning::step: gradient must be finite, got NaN or infinity");
    detail::check_state(rule, state.rule, state.rows, state.cols);
    rule.step(state.rule, W, G, rate);
  }

 private:
  template <class Element, class Matrix>
  static View<Element, Eigen::ColMajor> by_columns(Matrix& matrix) {
    if constexpr (bool(std::remove_const_t<Matrix>::IsRowMajor)) {
      return transposed(View<Element, Eigen::RowMajor>(matrix));
    } else {
      return View<Element, Eigen::ColMajor>(matrix);
    }
  }
};
template <class Rule>
FullFineTuning(Rule) -> FullFineTuning<Rule>;

}  // namespace lora
