// SPDX-License-Identifier: MIT
// How near an adapter's steps come to those of full fine-tuning, measured on the weight.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/linalg/dense.hpp>
#include <lora/linalg/linear_operator.hpp>
#include <lora/linalg/product.hpp>
#include <lora/optim/equivalent_gradient.hpp>
#include <lora/optim/factor_optimizer.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace lora {

/// An adapter's step D of the weight beside the step F that full fine-tuning would take.
struct Alignment {
  double cosine = 0;          ///< <D, F> / (||D|| ||F||); 0 where D is zero
  double relative_error = 1;  ///< ||D - F|| / ||F||; resolved down to about the square root of the unit roundoff
};

/// Compares D = scale U V, the pair `step` (U n x k, V k x m), with F = factor M, M any linear operator (n x m): a
/// dense full step, or the gradient that nobody formed with factor -learning rate.
///
/// Cost: one product of M with k rows, 2 (n + m) k^2 flops, and `squared_norm(M)`. Never forms D.
/// \throws ShapeError  M is not n x m. \throws NumericalError  D is not finite; F is zero or not finite.
template <Real Scalar, LinearOperator Step>
Alignment alignment(const Factors<Scalar>& step, double scale, const Step& full, double factor = 1) {
  detail::require_shape(full, step.in_features(), step.out_features(), "alignment: full step");
  detail::require_finite(ConstFactorsView<Scalar>(step), "alignment: step");
  RowMatrix<Scalar> seen(step.rank(), full.cols());
  const RowMatrix<Scalar> rows = step.A.transpose();
  full.multiply(rows, seen);  // U^T M
  const Eigen::MatrixXd U = step.A.template cast<double>(), V = step.B.template cast<double>();
  const double inner = scale * factor * seen.template cast<double>().cwiseProduct(V).sum();
  const double own = scale * scale * (U.transpose() * U).cwiseProduct(V * V.transpose()).sum();
  const double other = factor * factor * squared_norm(full);
  detail::require<NumericalError>(std::isfinite(other) && other > 0,
                                  "alignment: the full step must be finite and not zero, got a squared norm of ",
                                  other);
  return {own > 0 ? inner / std::sqrt(own * other) : 0, std::sqrt(std::max(0.0, own - 2 * inner + other) / other)};
}

/// Follows one layer: `begin` before a step (or before k of them), `measure` after.
///
/// Keeps (n + m) r scalars; `measure` allocates a pair of rank 2r and its copy in double. Over k steps the full step is
/// what full fine-tuning, run beside it, added to the weight.
template <Real Scalar>
class AlignmentMeter {
 public:
  /// Keeps a copy of the factors.
  void begin(const ConstFactorsView<Scalar>& factors) {
    before_.A = factors.A;
    before_.B = factors.B;
  }

  /// s (A' B' - A B) since `begin`, as s ((A' - A) B' + A (B' - B)), against F = factor M; see `alignment`.
  /// \throws StateError  before `begin`. \throws ShapeError  other shapes than at `begin`.
  template <LinearOperator Step>
  Alignment measure(const ConstFactorsView<Scalar>& factors, double scale, const Step& full, double factor = 1) const {
    detail::require<StateError>(before_.rank() > 0, "AlignmentMeter::measure: begin first, got no factors yet");
    detail::require_factors(factors, before_.in_features(), before_.out_features(), before_.rank(),
                            "AlignmentMeter::measure: factors");
    auto step = Factors<Scalar>::zero(before_.in_features(), before_.out_features(), 2 * before_.rank());
    step.A << factors.A - before_.A, before_.A;
    step.B << factors.B, factors.B - before_.B;
    return alignment(step, scale, full, factor);
  }

 private:
  Factors<Scalar> before_;
};

/// ||Gt||^2 / ||G||^2 in [0, 1], the share of the gradient G that a pair (A, B) can follow to first order: Gt is the
/// projection G P_B + P_A G (I - P_B), and ||Gt||^2 = <G_A, H_A> + <G_B, H_B>, so the factor gradients are enough.
///
/// Both pairs are `Factors` or views of them; `squared_norm_of_G` is ||G||_F^2 (`squared_norm` of any operator). Cost:
/// 4 n r^2 + 8 m r^2 flops at most, and two r x r inverses, about 5 r^3 each. \throws ConfigError  scale zero; squared
/// norm not positive. \throws NumericalError  factors or gradient not finite.
template <class Pair, class Gradient>
double captured_share(const Pair& factors, const Gradient& gradient, double scale, double squared_norm_of_G) {
  using Scalar = typename std::remove_cvref_t<decltype(factors.A)>::Scalar;
  const ConstFactorsView<Scalar> pair(factors), raw(gradient);
  detail::require_factors(raw, pair.in_features(), pair.out_features(), pair.rank(), "captured_share: gradient");
  detail::require_finite(pair, "captured_share: factors");
  detail::require_finite(raw, "captured_share: gradient");
  detail::require_scale(scale, "captured_share");
  detail::require<ConfigError>(std::isfinite(squared_norm_of_G) && squared_norm_of_G > 0,
                               "captured_share: squared norm of G must be positive and finite, got ",
                               squared_norm_of_G);
  EquivalentGradient<Scalar> nearest;
  Factors<Scalar> H;
  nearest.at(pair);
  nearest.direction(pair, raw, scale, Freedom::Zero, H);
  const double followed = raw.A.template cast<double>().cwiseProduct(H.A.template cast<double>()).sum() +
                          raw.B.template cast<double>().cwiseProduct(H.B.template cast<double>()).sum();
  return followed / squared_norm_of_G;
}

}  // namespace lora
