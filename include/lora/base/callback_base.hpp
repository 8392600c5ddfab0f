// SPDX-License-Identifier: MIT
// A base that the trainer multiplies by itself: its own kernel, a quantised weight, another device.
#pragma once

#include <lora/base/frozen_base.hpp>
#include <lora/core/error.hpp>
#include <lora/core/views.hpp>

#include <functional>
#include <string>
#include <utility>

namespace lora {

/// W0 (n x m) known only by two functions of the trainer's. No weight passes through the library.
///
/// `multiply(X, Y)` writes Y (b x m) = X W0, `multiply_transposed(dY, dX)` writes dX (b x n) = dY W0^T.
/// A trainer that has the product already in Y before it calls `forward` passes a function that does nothing, and
/// likewise for dX: the layer adds its low-rank branch to what it finds. See `low_rank_branch`.
template <Real RealScalar>
class CallbackBase {
 public:
  using Scalar = RealScalar;
  using Product = std::function<void(const ConstRows<Scalar>& in, Rows<Scalar> out)>;

  /// \throws ShapeError  n or m below 1. \throws ConfigError  an empty function.
  CallbackBase(Index n, Index m, Product multiply, Product multiply_transposed)
      : rows_(n), cols_(m), multiply_(std::move(multiply)), multiply_transposed_(std::move(multiply_transposed)) {
    detail::require<ShapeError>(n >= 1 && m >= 1, "CallbackBase: n and m must be at least 1, got ", n, " x ", m);
    detail::require<ConfigError>(multiply_ && multiply_transposed_,
                                 "CallbackBase: both products must be callable, got an empty function");
  }

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  void multiply(const ConstRows<Scalar>& X, Rows<Scalar> Y) const {
    detail::require_multiply(rows_, cols_, X, Y, "CallbackBase::multiply");
    multiply_(X, Y);
  }
  void multiply_transposed(const ConstRows<Scalar>& dY, Rows<Scalar> dX) const {
    detail::require_multiply(cols_, rows_, dY, dX, "CallbackBase::multiply_transposed");
    multiply_transposed_(dY, dX);
  }
  std::string describe() const { return detail::describe_base<Scalar>("callback", rows_, cols_, ""); }

 private:
  Index rows_, cols_;
  Product multiply_, multiply_transposed_;
};

/// A base for the trainer that fills Y = X W0 and dX = dY W0^T itself **before** it calls the layer, which then adds
/// only `s (X A) B` and its gradients to what Y and dX hold. \note As an operator of its own it is the identity on
/// whatever `out` held: do not decompose or merge it.
template <Real Scalar>
CallbackBase<Scalar> low_rank_branch(Index n, Index m) {
  const auto already_there = [](const ConstRows<Scalar>&, Rows<Scalar>) {};
  return {n, m, already_there, already_there};
}

}  // namespace lora
