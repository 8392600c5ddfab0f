// SPDX-License-Identifier: MIT
// LoRA seen as an optimizer (Su 2023, "LoRA from the gradient perspective"): the trainer owns W and hands over dL/dW.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
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
  using State = typename Method::template State<Scalar>;

  /// Starts from A0 and B0, those of any initializer: `KaimingUniform{}(ViewBase(W), r, s, random).factors`. W stays as
  /// it is, whatever their product.
  /// \throws ConfigError  scale not finite or zero; the method's own. \throws NumericalError  start not finite.
  /// \throws ShapeError  an empty start.
  WeightSpace(Method method, Factors<Scalar> start, double scale)
      : method_(std::move(method)),
        factors_(std::move(start)),
        initial_(factors_),
        scale_(scale),
        state_(method_.template init<Scalar>(factors_.in_features(), factors_.out_features(), factors_.rank())) {
    detail::require_scale(scale, "WeightSpace");
    const ConstFactorsView<Scalar> view(factors_);
    detail::require_finite(view, "WeightSpace: start");
    gradient_ = previous_ = factors_;
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
    set_product(gradient_.A, scale_, gradient, factors_.B.transpose());
    set_product(gradient_.B, scale_, factors_.A.transpose(), gradient);
    previous_ = factors_;
    method_.step(state_, factors_, gradient_, scale_, rate);
    gradient_.A = factors_.A - previous_.A;
    gradient_.B = factors_.B - previous_.B;
    add_product(weight, scale_, gradient_.A, factors_.B);
    add_product(weight, scale_, previous_.A, gradient_.B);
  }

  /// What training added, for the W of the beginning: W = W0 + scale() A B of this pair, an ordinary adapter to save;
  /// of rank r where the start's product was zero (B0 = 0), otherwise of rank 2r.
  Factors<Scalar> delta() const {
    return (initial_.A.array() == 0).all() || (initial_.B.array() == 0).all() ? factors_
                                                                              : difference(factors_, initial_);
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
    return left.method_ == right.method_ && left.factors_ == right.factors_ && left.initial_ == right.initial_ &&
           left.scale_ == right.scale_ && left.state_ == right.state_;
  }

  double scale() const { return scale_; }
  const Factors<Scalar>& factors() const { return factors_; }
  const Factors<Scalar>& initial_factors() const { return initial_; }
  const State& state() const { return state_; }
  Method& method() { return method_; }
  const Method& method() const { return method_; }

 private:
  template <class Matrix>
  void require_weight(const Matrix& matrix, const char* name) const {
    detail::require_shape(matrix, factors_.in_features(), factors_.out_features(), name);
  }

  Method method_;
  Factors<Scalar> factors_, initial_;
  double scale_;
  State state_;
  Factors<Scalar> gradient_, previous_;  // scratch
};

template <class Method, Real Scalar>
WeightSpace(Method, Factors<Scalar>, double) -> WeightSpace<Method, Scalar>;

}  // namespace lora
