// SPDX-License-Identifier: MIT
// Our layer as a torch module: an autograd function around forward and backward, factors shared as parameters.
#pragma once

#include "tensor_views.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/base/view_base.hpp>
#include <lora/core/random.hpp>
#include <lora/init/kaiming_uniform.hpp>

#include <memory>
#include <utility>
#include <vector>

namespace lora_torch {

using Layer = lora::LoraLinear<lora::ViewBase<float>>;

/// The layer and the memory that it views.
struct SharedLayer {
  torch::Tensor weight;
  Layer layer;
};

// [function]
/// What autograd carries from one forward to its backward; a layer may run several times before.
struct Use : torch::CustomClassHolder {
  std::shared_ptr<const SharedLayer> shared;
  lora::SavedState<float> saved;
  std::vector<std::int64_t> shape;  // of x
  bool x_needs_gradient = false;
};

/// y = layer(x) for x [..., n]. `A` and `B` are the layer's own factors as tensors, there for autograd to see.
class LoraFunction : public torch::autograd::Function<LoraFunction> {
 public:
  using Context = torch::autograd::AutogradContext;

  static torch::Tensor forward(Context* context, const torch::Tensor& x, const torch::Tensor& A, const torch::Tensor& B,
                               const std::shared_ptr<const SharedLayer>& shared) {
    auto use = c10::make_intrusive<Use>();
    use->shared = shared;
    use->shape = x.sizes().vec();
    use->x_needs_gradient = x.requires_grad();
    const Layer& layer = shared->layer;
    TORCH_CHECK(A.data_ptr() == layer.factors().A.data() && B.data_ptr() == layer.factors().B.data(),
                "lora: the parameters left the layer's memory (was the module converted or moved?)");
    auto shape = use->shape;
    shape.back() = layer.out_features();
    const auto X = as_rows(x), y = torch::empty(shape, X.options());
    layer.forward(const_rows(X), rows(y.view({-1, shape.back()})), use->saved);
    context->save_for_backward({X, A, B});  // keeps X alive, and notices a change in place before the backward
    context->saved_data["use"] = c10::IValue::make_capsule(use);
    return y;
  }

  static torch::autograd::tensor_list backward(Context* context, torch::autograd::tensor_list gradients) {
    TORCH_CHECK(!torch::GradMode::is_enabled(), "lora: has no second derivatives (create_graph)");
    const auto tensors = context->get_saved_variables();
    const auto capsule = context->saved_data["use"].toCapsule();
    auto& use = static_cast<Use&>(*capsule);
    const Layer& layer = use.shared->layer;
    use.saved.remember(const_rows(tensors[0]));  // hooks of the trainer's may have put X elsewhere meanwhile
    const auto dY = as_rows(gradients[0]);
    // With the strides of the parameters, so that autograd keeps these tensors as their .grad and does not copy.
    auto dA = torch::zeros({layer.rank(), layer.in_features()}, dY.options());
    auto dB = torch::zeros({layer.rank(), layer.out_features()}, dY.options()).t();
    torch::Tensor dX;
    if (use.x_needs_gradient) {
      dX = torch::empty(use.shape, dY.options());
      layer.backward(const_rows(dY), use.saved, factors(dA, dB), rows(dX.view({-1, layer.in_features()})));
    } else {
      layer.backward(const_rows(dY), use.saved, factors(dA, dB));
    }
    return {dX, dA, dB, torch::Tensor()};
  }
};
// [/function]

// [module]
/// A frozen nn.Linear with an adapter. Parameters have PEFT's names and shapes and lie in the layer's memory: any
/// optimizer of torch's steps them, and so does any of ours.
class LoraModuleImpl : public torch::nn::Module {
 public:
  LoraModuleImpl(const torch::nn::Linear& linear, lora::LoraConfig config, lora::Random& random)
      : shared_(share(linear, config, random)) {
    const auto pair = shared_->layer.factors();
    const auto keep = [shared = shared_](void*) {};  // the tensors hold the layer
    const auto n = pair.in_features(), m = pair.out_features(), r = pair.rank();
    A = register_parameter("lora_A", torch::from_blob(const_cast<float*>(pair.A.data()), {r, n}, keep));
    B = register_parameter("lora_B", torch::from_blob(const_cast<float*>(pair.B.data()), {m, r}, {1, m}, keep));
  }

  torch::Tensor forward(const torch::Tensor& x) { return LoraFunction::apply(x, A, B, std::as_const(shared_)); }

  const Layer& layer() const { return shared_->layer; }

  torch::Tensor A;  ///< [r, n], strides (n, 1)
  torch::Tensor B;  ///< [m, r], strides (1, m)

 private:
  static std::shared_ptr<SharedLayer> share(const torch::nn::Linear& linear, lora::LoraConfig config,
                                            lora::Random& random) {
    linear->weight.requires_grad_(false);
    const auto weight = as_rows(linear->weight);
    auto shared = std::make_shared<SharedLayer>(
        SharedLayer{weight, Layer{lora::ViewBase<float>{lora::ConstColumns<float>{columns(weight)}}, config}});
    if (linear->bias.defined()) {
      const auto bias = linear->bias.requires_grad_(false).contiguous();
      shared->layer.set_bias({bias.data_ptr<float>(), static_cast<std::size_t>(bias.numel())});  // m numbers, copied
    }
    shared->layer.initialize(lora::KaimingUniform{}, random);
    return shared;
  }

  std::shared_ptr<SharedLayer> shared_;
};
TORCH_MODULE(LoraModule);
// [/module]

}  // namespace lora_torch
