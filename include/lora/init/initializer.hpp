// SPDX-License-Identifier: MIT
// How factors start: the concepts `Initializer` and `GradientInitializer`, and `Start`, what both hand over.
#pragma once

#include <lora/base/frozen_base.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/random.hpp>
#include <lora/linalg/linear_operator.hpp>

#include <concepts>

namespace lora {

/// Whether an initial product s A0 B0 counts.
enum class Offset {
  None,             ///< Y = X W0 + s (X A) B
  SubtractInitial,  ///< Y = X W0 + s ((X A) B - (X A0) B0): starts at the base although A0 B0 is not zero
};

/// Where training starts. The base itself is never written to; an offset is carried by the layer.
template <Real Scalar>
struct Start {
  Factors<Scalar> factors;  ///< A0 (n x r), B0 (r x m)
  Offset offset = Offset::None;
};

/// A start made from the base, the rank r and the scale s: `init(base, rank, scale, random)`.
///
/// Draw from `random` alone, one draw a statement: then the same seed gives the same bits on every platform, up to what
/// products and decompositions round.
template <class Init, class Base>
concept Initializer = FrozenBase<Base> &&
    requires(const Init& init, const Base& base, Index rank, double scale, Random& random) {
  { init(base, rank, scale, random) } -> std::same_as<Start<typename Base::Scalar>>;
};

/// A start that also needs the gradient G (n x m) of the loss with respect to the weight, itself any linear operator:
/// a dense one, a batch's X^T dY that nobody forms, a sum over batches. `init(base, gradient, rank, scale, random)`.
template <class Init, class Base, class Gradient>
concept GradientInitializer = FrozenBase<Base> && LinearOperator<Gradient> &&
    std::same_as<typename Base::Scalar, typename Gradient::Scalar> &&
    requires(const Init& init, const Base& base, const Gradient& gradient, Index rank, double scale, Random& random) {
  { init(base, gradient, rank, scale, random) } -> std::same_as<Start<typename Base::Scalar>>;
};

}  // namespace lora
