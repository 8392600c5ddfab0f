// SPDX-License-Identifier: MIT
// The low-rank branch of a layer, s ((X A) B - (X A0) B0): its formulas, forward and backward, over views of factors.
#pragma once

#include <lora/base/frozen_base.hpp>
#include <lora/core/buffer.hpp>
#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/views.hpp>
#include <lora/linalg/product.hpp>

#include <cmath>
#include <concepts>
#include <iterator>
#include <memory>
#include <span>
#include <type_traits>

namespace lora {

template <FrozenBase Base>
class LoraLinear;

/// What an adapter adds to rows of activations, as views: s ((x A) B - (x A0) B0) for a row x. Cheap to copy; assigning
/// lets it show another adapter. The factors must stay in place.
///
/// Its formulas are all that `LoraLinear` and `MixedLinear` do beside the base. They allocate nothing once `scratch`
/// has seen the largest batch, and check no more than sizes.
template <Real RealScalar>
struct LowRankBranch {
  using Scalar = RealScalar;

  ConstFactorsView<Scalar> factors;  ///< A (n x r), B (r x m)
  ConstFactorsView<Scalar> initial;  ///< A0, B0 of an offset start (LoRA-GA, PiSSA); of rank 0 where there is none
  double scale;                      ///< s; 0 leaves the rows of a mixed batch to the base
  double dropout = 0;                ///< of the layer: mixed batches train without
  bool has_bias = false;             ///< of the layer: the mixed layer must have it too

  /// Factors from anywhere: a trainer's buffers, a file, a `delta()` that was kept.
  /// \throws ConfigError  scale not finite.
  LowRankBranch(const ConstFactorsView<Scalar>& pair, double s)
      : LowRankBranch(pair, {{nullptr, 0, 0}, {nullptr, 0, 0}}, s) {}
  /// With an offset. \throws ConfigError  scale not finite.
  LowRankBranch(const ConstFactorsView<Scalar>& pair, const ConstFactorsView<Scalar>& start, double s)
      : factors(pair), initial(start), scale(s) {
    detail::require<ConfigError>(std::isfinite(static_cast<Scalar>(s)), "LowRankBranch: scale must be finite, got ", s);
  }
  /// A layer as it is now, over the base as it was given (before `bake`); of scale 0 where it is switched off.
  /// \throws StateError  merged.
  template <FrozenBase Base>
  LowRankBranch(const LoraLinear<Base>& layer) requires std::same_as<typename Base::Scalar, Scalar>
      : factors(layer.factors()),
        initial(layer.initial_factors()),
        scale(layer.enabled() ? layer.scale() : 0),
        dropout(layer.config().dropout),
        has_bias(!layer.bias().empty()) {
    detail::require<StateError>(!layer.merged(), "LowRankBranch: unmerge first, got a merged layer");
  }
  LowRankBranch(Factors<Scalar>&&, double) = delete;  // they would be gone before they are used: give them a name
  LowRankBranch(Factors<Scalar>&&, const ConstFactorsView<Scalar>&, double) = delete;
  LowRankBranch(const ConstFactorsView<Scalar>&, Factors<Scalar>&&, double) = delete;
  template <FrozenBase Base>
  LowRankBranch(LoraLinear<Base>&&) = delete;

  LowRankBranch(const LowRankBranch&) = default;
  LowRankBranch& operator=(const LowRankBranch& other) {
    if (this != &other) std::construct_at(this, other);  // views are bound anew, never written through
    return *this;
  }

  bool has_offset() const { return initial.rank() > 0; }

  /// P = s X A, Y += P B - s (X A0) B0, with X b x n, Y b x m, P b x r (kept for the backward).
  void forward(const ConstRows<Scalar>& X, Rows<Scalar> Y, Rows<Scalar> P, Buffer<Scalar>& scratch) const {
    set_product(P, scale, X, factors.A);
    add_product(Y, 1, P, factors.B);
    if (!has_offset()) return;
    auto P0 = scratch.reshape(X.rows(), initial.rank());
    set_product(P0, scale, X, initial.A);
    add_product(Y, -1, P0, initial.B);
  }

  /// Q = s dY B^T (b x r), in `scratch`; dY is b x m.
  Rows<Scalar> input_side(const ConstRows<Scalar>& dY, Buffer<Scalar>& scratch) const {
    auto Q = scratch.reshape(dY.rows(), factors.rank());
    set_product(Q, scale, dY, factors.B.transpose());
    return Q;
  }
  /// G_B += P^T dY; and G_A += X^T Q, with Q left in `scratch`, unless the gradient's A is 0 x r: then X, a function
  /// that gives the forward's X, is not called.
  template <class Input>
  void add_gradient(const ConstRows<Scalar>& dY, const ConstRows<Scalar>& P, const Input& X,
                    FactorsView<Scalar> gradient, Buffer<Scalar>& scratch) const {
    add_product(gradient.B, 1, P.transpose(), dY);
    if (gradient.A.rows() == 0) return;
    const auto Q = input_side(dY, scratch);
    add_product(gradient.A, 1, X().transpose(), Q);
  }
  /// dX += Q A^T - s dY B0^T A0^T, with Q as `scratch` has it; it is overwritten where there is an offset.
  void add_input_gradient(const ConstRows<Scalar>& dY, Buffer<Scalar>& scratch, Rows<Scalar> dX) const {
    add_product(dX, 1, scratch.view(), factors.A.transpose());
    if (!has_offset()) return;
    auto Q0 = scratch.reshape(dY.rows(), initial.rank());
    set_product(Q0, scale, dY, initial.B.transpose());
    add_product(dX, -1, Q0, initial.A.transpose());
  }
};

template <Real Scalar>
LowRankBranch(const Factors<Scalar>&, double) -> LowRankBranch<Scalar>;
template <class Element>
LowRankBranch(const BasicFactorsView<Element>&, double) -> LowRankBranch<std::remove_const_t<Element>>;
template <FrozenBase Base>
LowRankBranch(const LoraLinear<Base>&) -> LowRankBranch<typename Base::Scalar>;

namespace detail {

/// Throws unless X is b x n, Y is b x m, and they lie apart; `name`: "LoraLinear::forward".
template <Real Scalar>
void require_activations(const ConstRows<Scalar>& X, const Rows<Scalar>& Y, Index n, Index m, const char* name) {
  require<ShapeError>(X.cols() == n, name, ": X must be b x n = b x ", n, ", got ", shape(X));
  require_shape(Y, X.rows(), m, name, ": Y");
  require<ShapeError>(!overlap(X, Y), name, ": Y must not lie in X's memory, got overlapping memory");
}
/// Throws unless dX is b x n and apart from dY (b x m) and from X, which is empty where nobody reads it any more.
template <Real Scalar>
void require_input_gradient(const ConstRows<Scalar>& X, const ConstRows<Scalar>& dY, const Rows<Scalar>& dX, Index n,
                            const char* name) {
  require_shape(dX, dY.rows(), n, name, ": dX");
  require<ShapeError>(!overlap(dY, dX) && !overlap(X, dX), name,
                      ": dX must not lie in X's or dY's memory, got overlapping memory");
}
/// Throws unless a bias holds m numbers or none; `name`: "LoraLinear::set_bias".
template <Real Scalar>
void require_bias(std::span<const Scalar> bias, Index m, const char* name) {
  require<ShapeError>(bias.empty() || std::ssize(bias) == m, name, ": bias must hold m = ", m, " numbers, got ",
                      bias.size());
}

}  // namespace detail
}  // namespace lora
