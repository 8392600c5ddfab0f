// SPDX-License-Identifier: MIT
// LoRA-Pro against its authors' released formulas, LoRA-FA and training after a LoRA-GA start against PEFT: 50 steps
// from the start of the LoRA+ run.
#include "parity/network.hpp"
#include "support/starts.hpp"

#include <string>

using namespace lora;
using namespace lora::test;

namespace {

struct Case {
  std::string name;
  LoraPro::Mode mode;
  Freedom freedom;
  LoraPro::Compat compat = LoraPro::Compat::Peta;
};

}  // namespace

TEMPLATE_TEST_CASE("50 steps of LoRA-Pro follow the formulas that its authors released", "[parity]", float, double) {
  using enum LoraPro::Mode;
  const auto start = Golden::read("lora_plus" + precision<TestType>);
  const auto golden = Golden::read("lora_pro" + precision<TestType>);
  const auto follow = [&](const Case& which, bool from_zero = false) {
    const std::string prefix = which.name + ".";
    const LoraPro method{.learning_rate = golden.number(prefix + "learning_rate"),
                         .mode = which.mode,
                         .freedom = which.freedom,
                         .beta1 = start.number("beta1"),
                         .beta2 = start.number("beta2"),
                         .epsilon = start.number("eps"),
                         .weight_decay = golden.number(prefix + "weight_decay"),
                         .compat = which.compat};
    Network<TestType> network(start);
    if (from_zero) {
      network.layer1.factors().B.setZero();
      network.layer2.factors().B.setZero();
    }
    Comparison<TestType> comparison(golden, parity<TestType>, which.name);
    train(network, method, start, 50, {1, 50}, comparison, prefix);
    comparison.print();
  };
  for (const auto& [mode, name] : {std::pair{Sgd, "sgd"}, {Efficient, "efficient"}, {Full, "full"}}) {
    const std::string prefix = std::string(name) + "_";
    follow({prefix + "zero", mode, Freedom::Zero});
    follow({prefix + "sylvester", mode, Freedom::Sylvester});
    follow({prefix + "symmetry", mode, Freedom::ReleasedSymmetric});
  }
  follow({"full_sylvester_deepspeed", Full, Freedom::Sylvester, LoraPro::Compat::DeepSpeed});
  if constexpr (std::is_same_v<TestType, double>) {
    follow({"efficient_sylvester_zero_b", Efficient, Freedom::Sylvester}, true);
  }
}

TEMPLATE_TEST_CASE("50 steps of LoRA-FA agree with PEFT's optimizer", "[parity]", float, double) {
  const auto start = Golden::read("lora_plus" + precision<TestType>);
  const auto golden = Golden::read("lora_fa" + precision<TestType>);
  const LoraFa method{AdamW{.learning_rate = golden.number("learning_rate"), .epsilon = golden.number("eps")}};
  Network<TestType> network(start);
  Comparison<TestType> comparison(golden, lora_fa_parity<TestType>);
  train(network, method, start, 50, {1, 50}, comparison);
  comparison.print();
}

TEST_CASE("50 steps after PEFT's LoRA-GA start, the offset beside the base, agree with PEFT's changed base",
          "[parity]") {
  const auto start = Golden::read("lora_plus_float32.txt"), golden = Golden::read("lora_ga_float32.txt");
  Random random{1};
  Network<float> network(start);
  const auto begin = [&](auto& layer, const std::string& name) {
    const Given<float> init{recorded_factors<float>(golden, name + "."), Offset::SubtractInitial};
    layer.initialize(init, random);
  };
  begin(network.layer1, "layer1");
  begin(network.layer2, "layer2");
  const PerFactor method{AdamW{.learning_rate = golden.number("learning_rate"),
                               .beta1 = start.number("beta1"),
                               .beta2 = start.number("beta2"),
                               .epsilon = start.number("eps"),
                               .weight_decay = golden.number("weight_decay")}};
  Comparison<float> comparison(golden);
  train(network, method, start, 50, {1, 50}, comparison);
  comparison.print();
}
