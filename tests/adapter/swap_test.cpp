// SPDX-License-Identifier: MIT
// An adapter as a value: taken out of a layer, put into it, at another rank; anchors.
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/starts.hpp"

#include <lora/adapter/lora_linear.hpp>

#include <limits>
#include <utility>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 8, m = 6, b = 5;

AdapterState<double> random_state(const LoraConfig& config, Random& random) {
  return AdapterState<double>::of(config, random_factors<double>(n, m, config.rank, random));
}

}  // namespace

TEST_CASE("a layer with an adapter swapped in is the layer that was made with it, and back again", "[adapter][swap]") {
  Random random{1};
  const auto W0 = random_columns<double>(n, m, random);
  const bool offset = GENERATE(false, true);
  LoraLinear layer{W0, {.rank = 2, .alpha = 3}}, other{W0, {.rank = 5, .alpha = 7, .dropout = 0.25}};
  layer.set_factors(random_factors<double>(n, m, 2, random));
  if (offset) other.initialize(RandomOffset{}, random);
  other.set_factors(random_factors<double>(n, m, 5, random));
  other.set_scale(0.75);
  const auto before = layer;

  auto state = other.adapter();
  CHECK(state.config == other.config());
  CHECK(state.scale == 0.75);
  CHECK(state.factors == std::as_const(other).factors());
  CHECK(state.initial == other.initial_factors());
  CHECK(state.delta() == other.delta());
  CHECK(state.parameters() == 5 * (n + m));
  layer.swap(state);
  CHECK(layer == other);
  CHECK(state == before.adapter());

  const auto X = random_rows<double>(b, n, random);
  RowMatrix<double> Y(b, m), expected(b, m);
  SavedState<double> saved;
  layer.forward(X, Y, saved);
  other.forward(X, expected, saved);
  CHECK(same_bits(Y, expected));
  layer.swap(state);
  CHECK(layer == before);
}

TEST_CASE("a swap copies no factor and allocates nothing", "[adapter][swap]") {
  Random random{2};
  LoraLinear layer{random_columns<double>(n, m, random), {.rank = 2}};
  auto state = random_state({.rank = 4}, random);
  const double* A = state.factors.A.data();
  const double* own = layer.factors().A.data();
  if (!allocations_are_counted) WARN(not_counted);
  CHECK(allocations_in([&] { layer.swap(state); }) == 0);
  CHECK(layer.factors().A.data() == A);
  CHECK(state.factors.A.data() == own);
}

TEST_CASE("a layer refuses an adapter that does not fit, and changes neither", "[adapter][swap][errors]") {
  Random random{3};
  LoraLinear layer{random_columns<double>(n, m, random), {.rank = 2}};
  const auto before = layer;
  const auto good = random_state({.rank = 3, .alpha = 6}, random);
  CHECK(good.scale == 2);
  CHECK(AdapterState<double>::zero(n, m, {.rank = 3, .alpha = 6}).factors == Factors<double>::zero(n, m, 3));
  const auto refused = [&]<class ErrorType>(ErrorType*, const auto& spoil) {
    auto state = good;
    spoil(state);
    const auto spoilt = state;
    const auto message = message_of<ErrorType>([&] { layer.swap(state); });
    CHECK(layer == before);
    CHECK(state.config == spoilt.config);
    CHECK(state.factors == spoilt.factors);
    return message;
  };
  ConfigError* const config = nullptr;
  ShapeError* const shape = nullptr;
  CHECK(refused(config, [](auto& state) { state.config.rank = 7; }) ==
        "LoraLinear::swap: rank must lie in [1, min(n, m)] = [1, 6], got 7");
  CHECK(refused(config, [](auto& state) { state.config.alpha = 0; }) ==
        "LoraLinear::swap: alpha must be positive and finite, got 0");
  CHECK(refused(config, [](auto& state) { state.config.dropout = 1; }) ==
        "LoraLinear::swap: dropout must lie in [0, 1), got 1");
  CHECK(refused(config, [](auto& state) { state.scale = std::numeric_limits<double>::infinity(); }) ==
        "LoraLinear::swap: scale must be finite, got inf");
  CHECK(refused(shape, [](auto& state) { state.config.rank = 2; }) == "LoraLinear::swap: A must be 8 x 2, got 8 x 3");
  CHECK(refused(shape, [](auto& state) { state.factors.B.resize(3, 5); }) ==
        "LoraLinear::swap: B must be 3 x 6, got 3 x 5");
  CHECK(refused(shape, [](auto& state) { state.initial = Factors<double>::zero(n, m, 2); }) ==
        "LoraLinear::swap: initial A must be 8 x 3, got 8 x 2");

  auto state = good;
  layer.merge();
  CHECK(message_of<StateError>([&] { layer.swap(state); }) == "LoraLinear::swap: unmerge first, got a merged layer");
  layer.unmerge();
  layer.initialize(RandomOffset{}, random);
  layer.bake();
  CHECK(message_of<StateError>([&] { layer.swap(state); }) ==
        "LoraLinear::swap: needs the base as it was given, got one with an offset baked into it");
  CHECK(state == good);
}

TEST_CASE("a saved state of another rank is not taken for one of the adapter that was swapped in", "[adapter][swap]") {
  Random random{4};
  LoraLinear layer{random_columns<double>(n, m, random), {.rank = 2}};
  const auto X = random_rows<double>(b, n, random), dY = random_rows<double>(b, m, random);
  RowMatrix<double> Y(b, m);
  SavedState<double> saved;
  layer.forward(X, Y, saved);
  auto state = random_state({.rank = 3}, random);
  layer.swap(state);
  auto gradient = layer.zero_gradient();
  CHECK(message_of<StateError>([&] { layer.backward(dY, saved, gradient); }) ==
        "LoraLinear::backward: needs the saved state of a forward of this layer, got none");
}

TEST_CASE("an anchor tells its link when the object moves or goes, and a copy has none", "[adapter][anchor]") {
  Random random{5};
  using Layer = LoraLinear<OwnedBase<double>>;
  const auto make = [&] { return Layer(random_columns<double>(n, m, random), {.rank = 2}); };
  std::vector<Layer> layers;
  layers.push_back(make());
  {
    const AnchorLink link(layers[0].anchor());
    CHECK(link.holds());
    CHECK(layers[0].anchor().linked());
    Layer copy = layers[0];
    CHECK_FALSE(copy.anchor().linked());
    CHECK(copy == layers[0]);
    layers[0] = make();  // another value in the same place
    CHECK(link.holds());
    layers.reserve(layers.capacity() + 1);
    CHECK_FALSE(link.holds());
    CHECK_FALSE(layers[0].anchor().linked());
  }
  {
    const AnchorLink link(layers[0].anchor());
    const Layer taken = std::move(layers[0]);
    CHECK_FALSE(link.holds());
    layers[0] = taken;
  }
  {
    const AnchorLink link(layers[0].anchor());
    Layer target = make();
    target = std::move(layers[0]);
    CHECK_FALSE(link.holds());
    layers.clear();
  }
  Layer layer = make();
  { const AnchorLink link(layer.anchor()); }
  CHECK_FALSE(layer.anchor().linked());
}
