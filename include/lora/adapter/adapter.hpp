// SPDX-License-Identifier: MIT
// `Adapter`, the contract of every layer that puts trainable `Factors` on a frozen base.
#pragma once

#include <lora/core/factors.hpp>
#include <lora/core/views.hpp>
#include <lora/linalg/linear_operator.hpp>

#include <concepts>
#include <string>

namespace lora {

/// A layer (b x n -> b x m) with factors to train. It is itself a linear operator, so adapters stack.
///
/// - `forward(X, Y, saved)`: Y = layer(X); what backward needs goes into `saved`, which the caller owns.
/// - `backward(dY, saved, gradient[, dX])`: **adds** to the gradient of the factors, writes dX where it is asked for.
/// - `factors()`, `scale()`: what an optimizer steps, and the s that stands before the product.
template <class Layer>
concept Adapter = LinearOperator<Layer> && std::default_initializable<typename Layer::Saved> &&
    requires(Layer& layer, const Layer& frozen, ConstRows<typename Layer::Scalar> in, Rows<typename Layer::Scalar> out,
             typename Layer::Saved& saved, FactorsView<typename Layer::Scalar> gradient) {
  { frozen.forward(in, out, saved) } -> std::same_as<void>;
  { frozen.backward(in, saved, gradient) } -> std::same_as<void>;
  { frozen.backward(in, saved, gradient, out) } -> std::same_as<void>;
  { layer.factors() } -> std::convertible_to<FactorsView<typename Layer::Scalar>>;
  { frozen.factors() } -> std::convertible_to<ConstFactorsView<typename Layer::Scalar>>;
  { frozen.scale() } -> std::convertible_to<double>;
};

}  // namespace lora
