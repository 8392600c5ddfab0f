// SPDX-License-Identifier: MIT
// A gradient with one NaN or infinity is refused by every optimizer, and then no bit of parameters or state has
// changed.
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"

#include <lora/lora.hpp>

#include <limits>
#include <string>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 9, m = 7, r = 3;

template <Real Scalar>
Scalar bad_value() {
  using Limits = std::numeric_limits<Scalar>;
  return GENERATE(Limits::quiet_NaN(), Limits::signaling_NaN(), Limits::infinity(), -Limits::infinity());
}

/// LoRA-FA has no use for the gradient of A, so that nobody need fill it.
enum class Looks { AtBoth, AtB };

template <Real Scalar, class Method>
void check_method(const Method& method, const std::string& name, Looks looks = Looks::AtBoth) {
  Random random{21};
  auto factors = random_factors<Scalar>(n, m, r, random);
  const auto gradient = random_factors<Scalar>(n, m, r, random);
  Optimizer<Method, Scalar> optimizer(method, n, m, r);
  optimizer.step(factors, gradient, 2, 1);
  const auto factors_before = factors;
  const auto state_before = optimizer.state();
  const auto refused = [&](const Factors<Scalar>& bad) {
    const auto message = message_of<NumericalError>([&] { optimizer.step(factors, bad, 2, 1); });
    CHECK(same_bits(factors, factors_before));
    CHECK(optimizer.state() == state_before);
    return message;
  };
  const Scalar value = bad_value<Scalar>();
  auto in_A = gradient, in_B = gradient;
  in_A.A(n - 1, r - 1) = value;
  in_B.B(r - 1, 0) = value;  // the last thing that is looked at: A must not have been stepped by then
  if (looks == Looks::AtBoth) CHECK(refused(in_A) == name + "::step: gradient A must be finite, got NaN or infinity");
  CHECK(refused(in_B) == name + "::step: gradient B must be finite, got NaN or infinity");
}

}  // namespace

TEMPLATE_TEST_CASE("a gradient that is not finite changes neither factors nor state", "[optim]", float, double) {
  SECTION("LoRA") { check_method<TestType>(PerFactor{AdamW{.weight_decay = 0.1}}, "PerFactor"); }
  SECTION("LoRA+") { check_method<TestType>(LoraPlus{AdamW{}}, "LoraPlus"); }
  SECTION("Sgd") { check_method<TestType>(PerFactor{Sgd{}}, "PerFactor"); }
  SECTION("Nesterov") {
    check_method<TestType>(LoraPlus{Sgd{.momentum = 0.9, .kind = Sgd::Momentum::Nesterov}}, "LoraPlus");
  }
  SECTION("LoRA-Pro Sgd") { check_method<TestType>(LoraPro{.mode = LoraPro::Mode::Sgd}, "LoraPro"); }
  SECTION("LoRA-Pro Efficient") { check_method<TestType>(LoraPro{.mode = LoraPro::Mode::Efficient}, "LoraPro"); }
  SECTION("LoRA-Pro Full") { check_method<TestType>(LoraPro{.mode = LoraPro::Mode::Full}, "LoraPro"); }
  SECTION("LoRA-Pro Factored") { check_method<TestType>(LoraPro{.mode = LoraPro::Mode::Factored}, "LoraPro"); }
  SECTION("Riemannian") { check_method<TestType>(Riemannian<>{}, "Riemannian"); }
  SECTION("LoRA-FA") { check_method<TestType>(LoraFa<>{}, "LoraFa", Looks::AtB); }
}

TEMPLATE_TEST_CASE("a gradient that is not finite leaves a fully fine-tuned weight as it was", "[optim]", float,
                   double) {
  Random random{22};
  auto weight = random_rows<TestType>(n, m, random);
  auto gradient = random_rows<TestType>(n, m, random);
  const FullFineTuning method{AdamW{}};
  auto state = method.init(weight);
  method.step(state, weight, gradient);
  const auto weight_before = weight;
  const auto state_before = state;
  gradient(n - 1, m - 1) = bad_value<TestType>();
  CHECK(message_of<NumericalError>([&] { method.step(state, weight, gradient); }) ==
        "FullFineTuning::step: gradient must be finite, got NaN or infinity");
  CHECK(same_bits(weight, weight_before));
  CHECK(state == state_before);
}

TEMPLATE_TEST_CASE("clipping leaves every layer's gradient as it was where one is not finite", "[optim]", float,
                   double) {
  Random random{23};
  std::vector<Factors<TestType>> gradients;
  for (int layer = 0; layer < 3; ++layer) gradients.push_back(random_factors<TestType>(n, m, r, random));
  const TestType value = bad_value<TestType>();
  const auto check = [&](const std::string& factor) {
    const auto before = gradients;
    CHECK(message_of<NumericalError>([&] { clip_global_norm(gradients, 1e-3); }) ==
          "clip_global_norm: gradient " + factor + " must be finite, got NaN or infinity");
    for (std::size_t layer = 0; layer < 3; ++layer) CHECK(same_bits(gradients[layer], before[layer]));
  };
  gradients[2].B(0, m - 1) = value;
  check("B");
  gradients[1].A(0, 0) = value;
  check("A");
}
