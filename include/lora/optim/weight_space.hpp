// SPDX-License-Identifier: MIT
// LoRA seen as an optimizer (Su 2023, "LoRA from the gradient perspective"): the trainer owns W and hands over dL/dW.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/fields.hpp>
#include <lora/core/finite.hpp>
#include <lora/core/views.hpp>
#include <lora/linalg/product.hpp>
#include <lora/optim/factor_optimizer.hpp>

#include <Eigen/Core>

#include <concepts>
#include <utility>

namespace lora {

/// A dense weight W (n x m) trained through a pair (A, B) that the network knows nothing of.
///
/// Each step, from G = dL/dW: G_A = s G B^T, G_B = s A^T G; any factor optimizer moves (A, B) to (A', B'); then
/// W += s (A' B' - A B) in place, as s ((A' - A) B' + A (B' - B)), a product of rank 2r. Cost 8 n m r flops beside the
/// network's own; memory 4 (n + m) r and the optimizer's state; no allocation after the first step. `delta` is an
/// ordinary adapter for the W of the beginning.
/// \note W gathers the roundings of its updates, at most about u max |W| a step: after k steps it is
/// W0 + s (A B - A0 B0) up to k of them.
/// \see docs/methods/weight_space.md
template <class Method, Real RealScalar>
requires FactorOptimizer<Method, RealScalar>
class WeightSpace {
 public:
  using Scalar = RealScalar;

  /// What outlives a step, but for W itself.
  struct State {
    Factors<Scalar> factors;                         ///< A and B
    Factors<Scalar> initial;                         ///< A0 and B0
    typename Method::template State<Scalar> method;  ///< as the optimizer inside keeps it

    bool operator==(const State&) const = default;
    static void fields(auto& self, const auto& visit) {
      visit("factors", self.factors);
      visit("initial", self.initial);
      visit("method", self.method);
    }
  };

  /// Starts from A0 and B0, those of any initializer: `KaimingUniform{}(ViewBase(W), r, s, random).factors`. W stays as
  /// it is, whatever their product.
  /// \throws ConfigError  scale not finite or zero; the method's own. \throws NumericalError  start not finite.
  /// \throws ShapeError  an empty start.
  WeightSpace(const Method& method, Factors<Scalar> start, double scale)
      : WeightSpace(method, begin(method, std::move(start)), scale) {}

  /// Goes on from a state that `state()` gave, with the W of that time and the same scale.
  /// \throws as above, and ShapeError  initial factors of other shapes; the method's state is checked by a step.
  WeightSpace(Method method, State state, double scale)
      : method_(std::move(method)), state_(std::move(state)), scale_(scale) {
    detail::require_scale(scale, "WeightSpace");
    const ConstFactorsView<Scalar> factors(state_.factors), initial(state_.initial);
    detail::require_finite(factors, "WeightSpace: start");
    detail::require_factors(initial, factors.in_features(), factors.out_features(), factors.rank(),
                            "WeightSpace: initial");
    detail::require_finite(initial, "WeightSpace: initial");
    gradient_ = previous_ = state_.factors;
  }

  /// One step of W against G at `rate` times the learning rate. W (n x m) and G (n x m) lie in memory of either storage
  /// order, strided or not, apart from each other.
  /// \throws ShapeError, ConfigError, NumericalError  and then W, factors and state are as they were.
  template <class Weight, class Gradient>
  void step(Weight&& W, const Gradient& G, double rate = 1) {
    const View<Scalar, detail::order_of<Weight>> weight(W);
    const View<const Scalar, detail::order_of<Gradient>> gradient(G);
    require_weight(weight, "WeightSpace::step: W");
    require_weight(gradient, "WeightSpace::step: gradient");
    detail::require<ShapeError>(!detail::overlap(weight, gradient),
                                "WeightSpace::step: W and gradient must lie apart, got overlapping memory");
    detail::require<NumericalError>(all_finite(gradient),
                                    "WeightSpace::step: gradient must be finite, got NaN or infinity");
    set_product(gradient_.A, scale_, gradient, state_.factors.B.transpose());
    set_product(gradient_.B, scale_, state_.factors.A.transpose(), gradient);
    previous_ = state_.factors;
    method_.step(state_.method, state_.factors, gradient_, scale_, rate);
    gradient_.A = state_.factors.A - previous_.A;
    gradient_.B = state_.factors.B - previous_.B;
    add_product(weight, scale_, gradient_.A, state_.factors.B);
    add_product(weight, scale_, previous_.A, gradient_.B);
  }

  /// What training added, for the W of the beginning: W = W0 + scale() A B of this pair, an ordinary adapter to save;
  /// of rank r where the start's product was zero (B0 = 0), otherwise of rank 2r.
  Factors<Scalar> delta() const {
    return (state_.initial.A.array() == 0).all() || (state_.initial.B.array() == 0).all()
               ? state_.factors
               : difference(state_.factors, state_.initial);
  }
  /// Takes the adapter out of W again, up to rounding. \throws ShapeError  W not n x m.
  template <class Weight>
  void subtract_from(Weight&& W) const {
    const View<Scalar, detail::order_of<Weight>> weight(W);
    require_weight(weight, "WeightSpace::subtract_from: W");
    const auto change = delta();
    add_product(weight, -scale_, change.A, change.B);
  }

  /// Copy it for a snapshot, compare it for bit-exact resume.
  friend bool operator==(const WeightSpace& left, const WeightSpace& right) requires std::equality_comparable<Method> {
    return left.method_ == right.method_ && left.scale_ == right.scale_ && left.state_ == right.state_;
  }

  double scale() const { return scale_; }
  const Factors<Scalar>& factors() const { return state_.factors; }
  const Factors<Scalar>& initial_factors() const { return state_.initial; }
  const State& state() const { return state_; }
  Method& method() { return method_; }
  const Method& method() const { return method_; }

 private:
  friend Fields;
  static void fields(auto& self, const auto& visit) {
    visit("method", fixed(self.method_));
    visit("scale", fixed(self.scale_));
    visit("state", self.state_);
  }

  static State begin(const Method& method, Factors<Scalar> start) {
    auto state = method.template init<Scalar>(start.in_features(), start.out_features(), start.rank());
    Factors<Scalar> initial = start;
    return {std::move(start), std::move(initial), std::move(state)};
  }
  template <class Matrix>
  void require_weight(const Matrix& matrix, const char* name) const {
    detail::require_shape(matrix, state_.factors.in_features(), state_.factors.out_features(), name);
  }

  Method method_;
  State state_;
  double scale_;
  Factors<Scalar> gradient_, previous_;  // scratch
};

template <class Method, Real Scalar>
WeightSpace(Method, Factors<Scalar>, double) -> WeightSpace<Method, Scalar>;

}  // namespace lora
