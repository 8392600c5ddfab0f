// SPDX-License-Identifier: MIT
// What a trainer may rely on around a layer: addresses, stacked layers, failures of its own code.
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/starts.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/base/callback_base.hpp>
#include <lora/init/gaussian.hpp>

#include <utility>
#include <vector>

using namespace lora;
using namespace lora::test;

TEST_CASE("the factors stay where they are for the layer's life", "[adapter]") {
  Random random{1};
  const auto W0 = random_columns<float>(12, 9, random);
  LoraLinear layer{W0, {.rank = 3}};
  const float *A = layer.factors().A.data(), *B = layer.factors().B.data();
  layer.initialize(Gaussian{}, random);
  layer.initialize(RandomOffset{}, random);
  layer.set_factors(random_factors<float>(12, 9, 3, random));
  CHECK(layer.factors().A.data() == A);
  CHECK(layer.factors().B.data() == B);
}

TEST_CASE("a stacked adapter hands on the bias of the layer below, and allocates nothing once warm", "[adapter]") {
  Random random{2};
  const auto W0 = random_columns<double>(40, 30, random);
  const auto bias = random_rows<double>(1, 30, random);
  LoraLinear below{W0, {.rank = 3}};
  below.set_bias({bias.data(), 30});
  below.set_factors(random_factors<double>(40, 30, 3, random));
  LoraLinear<decltype(below)> layer{below, {.rank = 2}};

  const auto X = random_rows<double>(50, 40, random), dY = random_rows<double>(50, 30, random);
  RowMatrix<double> Y(50, 30), expected(50, 30), dX(50, 40);
  SavedState<double> saved, saved_below;
  below.forward(X, expected, saved_below);
  auto gradient = layer.zero_gradient();
  layer.forward(X, Y, saved);
  CHECK(relative_error(Y, expected) < 1e-14);  // the upper factors are zero
  layer.backward(dY, saved, gradient, dX);

  if (!allocations_are_counted) WARN(not_counted);
  CHECK(allocations_in([&] {
          layer.forward(X, Y, saved);
          layer.backward(dY, saved, gradient, dX);
        }) == 0);
}

TEST_CASE("a merged layer cannot be switched off: the branch is in the base", "[adapter]") {
  Random random{3};
  LoraLinear layer{random_columns<double>(8, 6, random), {.rank = 2}};
  layer.merge();
  CHECK(message_of<StateError>([&] { layer.disable(); }) == "LoraLinear::disable: unmerge first, got a merged layer");
  CHECK(layer.enabled());
}

TEST_CASE("a layer that is switched off cannot be merged: the branch would come back on", "[adapter][merge]") {
  Random random{3};
  LoraLinear layer{random_columns<double>(8, 6, random), {.rank = 2}};
  layer.disable();
  const auto before = layer;
  CHECK(message_of<StateError>([&] { layer.merge(); }) ==
        "LoraLinear::merge: enable first, got a layer that is switched off");
  CHECK(layer == before);
}

TEST_CASE("after a forward that a trainer's function broke off, backward asks for another one", "[adapter]") {
  struct Broken {};
  Random random{4};
  bool breaks = false;
  const auto multiply = [&](const ConstRows<double>&, Rows<double> Y) {
    if (breaks) throw Broken{};
    Y.setZero();
  };
  const auto transposed = [](const ConstRows<double>&, Rows<double> dX) { dX.setZero(); };
  LoraLinear<CallbackBase<double>> layer{{8, 6, multiply, transposed}, {.rank = 2}};
  layer.initialize(RandomOffset{}, random);
  const auto X = random_rows<double>(5, 8, random), dY = random_rows<double>(5, 6, random);
  RowMatrix<double> Y(5, 6);
  SavedState<double> saved;
  auto gradient = layer.zero_gradient();
  layer.forward(X, Y, saved);
  breaks = true;
  CHECK_THROWS_AS(layer.forward(X, Y, saved), Broken);
  CHECK(message_of<StateError>([&] { layer.backward(dY, saved, gradient); }) ==
        "LoraLinear::backward: needs the saved state of a forward of this layer, got none");
  CHECK(gradient == layer.zero_gradient());
}

TEST_CASE("a scale that is finite in double but not in float is refused", "[adapter]") {
  Random random{5};
  const auto W0 = random_columns<float>(8, 6, random);
  LoraLinear layer{W0, {.rank = 2}};
  CHECK(message_of<ConfigError>([&] { layer.set_scale(1e300); }) ==
        "LoraLinear::set_scale: scale must be finite, got 1e+300");
}
