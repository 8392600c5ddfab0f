// SPDX-License-Identifier: MIT
// Against PyTorch and PEFT: two LoRA layers with a tanh between them, forward, backward and 100 optimizer steps.
#include "parity/network.hpp"

#include <string>

using namespace lora;
using namespace lora::test;

namespace {

/// The whole recorded run with one method (LoRA or LoRA+) in both layers.
template <class Scalar, class Method>
void follow(const Golden& golden, const Method& method) {
  Comparison<Scalar> comparison(golden);
  Network<Scalar> network(golden);
  REQUIRE(network.layer1.scale() == Catch::Approx(golden.number("scale")).epsilon(1e-15));

  const auto X0 = golden.rows<Scalar>("batch0.X"), T0 = golden.rows<Scalar>("batch0.T");
  comparison.check("Y", network.forward(X0));
  comparison.check("loss", network.loss(T0));
  network.backward(T0);
  comparison.check("dX", network.dX);
  comparison.check("layer1.A.grad", network.gradient1.A);
  comparison.check("layer1.B.grad", network.gradient1.B);
  comparison.check("layer2.A.grad", network.gradient2.A);
  comparison.check("layer2.B.grad", network.gradient2.B);

  train(network, method, golden, static_cast<int>(golden.number("steps")), {1, 10, 100}, comparison);
  comparison.check("layer1.merged", network.layer1.merged_weight());
  network.layer1.merge();
  network.layer2.merge();
  comparison.check("layer1.merged", network.layer1.base().weight());
  comparison.check("merged.Y", network.forward(X0));
  comparison.print();
}

}  // namespace

TEMPLATE_TEST_CASE("forward, backward and 100 steps agree with PyTorch and PEFT", "[parity]", float, double) {
  const auto adamw = [](const Golden& golden) {
    return AdamW{.learning_rate = golden.number("learning_rate"),
                 .beta1 = golden.number("beta1"),
                 .beta2 = golden.number("beta2"),
                 .epsilon = golden.number("eps"),
                 .weight_decay = golden.number("weight_decay")};
  };
  SECTION("LoRA with AdamW") {
    const auto golden = Golden::read("lora" + precision<TestType>);
    follow<TestType>(golden, PerFactor{adamw(golden)});
  }
  SECTION("LoRA+ with AdamW") {
    const auto golden = Golden::read("lora_plus" + precision<TestType>);
    const double ratio = golden.number("ratio");
    REQUIRE(golden.number("layer1.B.learning_rate") == Catch::Approx(ratio * golden.number("layer1.A.learning_rate")));
    follow<TestType>(golden, LoraPlus{adamw(golden), ratio});
  }
}
