// SPDX-License-Identifier: MIT
// A factor optimizer together with its state, for one pair of factors.
#pragma once

#include <lora/core/factors.hpp>
#include <lora/core/fields.hpp>
#include <lora/optim/factor_optimizer.hpp>

#include <concepts>
#include <utility>

namespace lora {

/// Any layer whose factors can be stepped; optimizers need not know more of it.
template <class Layer>
concept HasFactors = Real<typename Layer::Scalar> && requires(Layer& layer, const Layer& frozen) {
  { layer.factors() } -> std::convertible_to<FactorsView<typename Layer::Scalar>>;
  { frozen.factors() } -> std::convertible_to<ConstFactorsView<typename Layer::Scalar>>;
  { frozen.scale() } -> std::convertible_to<double>;
};

/// Method and state in one value, one for each layer: `Optimizer optimizer{LoraPlus{AdamW{.learning_rate = 2e-4}},
/// layer};`
///
/// Copy it for a snapshot, compare it for bit-exact resume. `method()` may be changed between steps (a new rate).
template <class Method, Real RealScalar>
requires FactorOptimizer<Method, RealScalar>
class Optimizer {
 public:
  using Scalar = RealScalar;
  using State = typename Method::template State<Scalar>;

  /// For factors n x r and r x m, the trainer's own included.
  /// \throws ConfigError  the method's hyper-parameters. \throws ShapeError  a size below 1.
  Optimizer(Method method, Index n, Index m, Index r)
      : method_(std::move(method)), state_(method_.template init<Scalar>(n, m, r)) {}
  template <HasFactors Layer>
  Optimizer(Method method, const Layer& layer)
      : Optimizer(std::move(method), ConstFactorsView<Scalar>(layer.factors())) {}

  /// Goes on from a state that `state()` gave; a state of other shapes is refused by the first step.
  Optimizer(Method method, State state) : method_(std::move(method)), state_(std::move(state)) {}

  bool operator==(const Optimizer&) const = default;

  /// One step of `rate` times the learning rate; `scale` is the s before A B. (Neither has a default: they are easily
  /// taken for each other.)
  /// \throws ShapeError, ConfigError, NumericalError  and then nothing has changed.
  void step(const FactorsView<Scalar>& factors, const ConstFactorsView<Scalar>& gradient, double scale, double rate) {
    method_.step(state_, factors, gradient, scale, rate);
  }
  template <HasFactors Layer>
  void step(Layer& layer, const ConstFactorsView<Scalar>& gradient, double rate = 1) {
    step(layer.factors(), gradient, std::as_const(layer).scale(), rate);
  }

  Method& method() { return method_; }
  const Method& method() const { return method_; }
  const State& state() const { return state_; }

 private:
  Optimizer(Method method, const ConstFactorsView<Scalar>& factors)
      : Optimizer(std::move(method), factors.in_features(), factors.out_features(), factors.rank()) {}

  friend Fields;
  static void fields(auto& self, const auto& visit) {
    visit("method", fixed(self.method_));
    visit("state", self.state_);
  }

  Method method_;
  State state_;
};

template <class Method, HasFactors Layer>
Optimizer(Method, const Layer&) -> Optimizer<Method, typename Layer::Scalar>;

}  // namespace lora
