// SPDX-License-Identifier: MIT
// What the layer refuses, in which words, and that it changed nothing.
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/starts.hpp"

#include <lora/adapter/lora_linear.hpp>

#include <cmath>
#include <limits>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 6, m = 5, r = 2, b = 3;
constexpr double infinity = std::numeric_limits<double>::infinity();
using Layer = LoraLinear<OwnedBase<float>>;
using Saved = SavedState<float>;

struct Fixture {
  Random random{91};
  Layer layer{random_columns<float>(n, m, random), {.rank = r, .alpha = 3}};
  RowMatrix<float> X = random_rows<float>(b, n, random), dY = random_rows<float>(b, m, random);
  RowMatrix<float> Y = RowMatrix<float>::Constant(b, m, 7), dX = RowMatrix<float>::Constant(b, n, 7);
  Factors<float> gradient = random_factors<float>(n, m, r, random);
  Saved saved;

  Fixture() { layer.set_factors(random_factors<float>(n, m, r, random)); }
};

std::string config_message(LoraConfig config) {
  const ColMatrix<float> W0 = ColMatrix<float>::Zero(n, m);
  return message_of<ConfigError>([&] { LoraLinear{W0, config}; });
}

}  // namespace

TEST_CASE("a layer refuses hyper-parameters out of range", "[adapter][errors]") {
  CHECK(config_message({.rank = 0}) == "LoraLinear: rank must lie in [1, min(n, m)] = [1, 5], got 0");
  CHECK(config_message({.rank = -1}) == "LoraLinear: rank must lie in [1, min(n, m)] = [1, 5], got -1");
  CHECK(config_message({.rank = 6}) == "LoraLinear: rank must lie in [1, min(n, m)] = [1, 5], got 6");
  CHECK(config_message({.rank = 5}) == "[no error]");
  CHECK(config_message({.rank = 1, .alpha = 0}) == "LoraLinear: alpha must be positive and finite, got 0");
  CHECK(config_message({.rank = 1, .alpha = -2}) == "LoraLinear: alpha must be positive and finite, got -2");
  CHECK(config_message({.rank = 1, .alpha = 1e40}) ==
        "LoraLinear: scale must be finite in the weight's scalar, got 1e+40");
  CHECK(config_message({.rank = 1, .alpha = infinity}) == "LoraLinear: alpha must be positive and finite, got inf");
  CHECK(config_message({.rank = 1, .alpha = std::nan("")}) == "LoraLinear: alpha must be positive and finite, got nan");
  CHECK(config_message({.rank = 1, .dropout = 1}) == "LoraLinear: dropout must lie in [0, 1), got 1");
  CHECK(config_message({.rank = 1, .dropout = -0.1}) == "LoraLinear: dropout must lie in [0, 1), got -0.1");
  CHECK(config_message({.rank = 1, .dropout = std::nan("")}) == "LoraLinear: dropout must lie in [0, 1), got nan");
  CHECK(config_message({.rank = 1, .dropout = 0.999}) == "[no error]");
}

TEST_CASE("forward names the matrix that does not fit, and writes nothing", "[adapter][errors]") {
  Fixture f;
  CHECK(message_of<ShapeError>([&] { f.layer.forward(f.dY, f.Y, f.saved); }) ==
        "LoraLinear::forward: X must be b x n = b x 6, got 3 x 5");
  CHECK(message_of<ShapeError>([&] { f.layer.forward(f.X, f.dX, f.saved); }) ==
        "LoraLinear::forward: Y must be 3 x 5, got 3 x 6");
  CHECK(message_of<ShapeError>([&] { f.layer.forward(f.X, f.Y.topRows(2), f.saved, f.random); }) ==
        "LoraLinear::forward: Y must be 3 x 5, got 2 x 5");
  CHECK(f.saved.branch == Saved::Branch::NoForward);
  CHECK(f.Y == RowMatrix<float>::Constant(b, m, 7));
  CHECK(f.dX == RowMatrix<float>::Constant(b, n, 7));
}

TEST_CASE("forward and backward refuse to write over what they read", "[adapter][errors]") {
  Random random{92};
  LoraLinear layer{random_columns<float>(4, 4, random), {.rank = r}};
  auto X = random_rows<float>(b, 4, random), dY = random_rows<float>(b, 4, random);
  const auto X_before = X, dY_before = dY;
  RowMatrix<float> Y(b, 4);
  Saved saved;
  auto gradient = layer.zero_gradient();
  CHECK(message_of<ShapeError>([&] { layer.forward(X, X, saved); }) ==
        "LoraLinear::forward: Y must not lie in X's memory, got overlapping memory");
  layer.forward(X, Y, saved);
  CHECK(message_of<ShapeError>([&] { layer.backward(dY, saved, gradient, X); }) ==
        "LoraLinear::backward: dX must not lie in X's or dY's memory, got overlapping memory");
  CHECK(message_of<ShapeError>([&] { layer.backward(dY, saved, gradient, dY); }) ==
        "LoraLinear::backward: dX must not lie in X's or dY's memory, got overlapping memory");
  CHECK(X == X_before);
  CHECK(dY == dY_before);
  CHECK(gradient == layer.zero_gradient());

  // Slices of one buffer: refused where they share an element, at another address too, taken where they lie apart.
  RowMatrix<float> buffer = random_rows<float>(b, 12, random);
  const auto before = buffer;
  CHECK(message_of<ShapeError>([&] { layer.forward(buffer.leftCols(4), buffer.middleCols(3, 4), saved); }) ==
        "LoraLinear::forward: Y must not lie in X's memory, got overlapping memory");
  CHECK(buffer == before);
  layer.forward(buffer.leftCols(4), buffer.middleCols(4, 4), saved);
  CHECK(message_of<ShapeError>([&] { layer.backward(dY, saved, gradient, buffer.middleCols(3, 4)); }) ==
        "LoraLinear::backward: dX must not lie in X's or dY's memory, got overlapping memory");
  CHECK(message_of<ShapeError>([&] {
          layer.backward(buffer.middleCols(4, 4), saved, gradient, buffer.middleCols(7, 4));
        }) == "LoraLinear::backward: dX must not lie in X's or dY's memory, got overlapping memory");
  layer.backward(buffer.middleCols(4, 4), saved, gradient, buffer.rightCols(4));
  auto of_B = layer.zero_gradient();
  of_B.A.resize(0, r);
  layer.backward(dY, saved, of_B, buffer.leftCols(4));  // X is not read for B alone
}

TEST_CASE("backward refuses a saved state without a forward of this layer", "[adapter][errors]") {
  const std::string message = "LoraLinear::backward: needs the saved state of a forward of this layer, got none";
  Fixture f;
  const auto before = f.gradient;
  CHECK(message_of<StateError>([&] { f.layer.backward(f.dY, f.saved, f.gradient); }) == message);
  CHECK(message_of<StateError>([&] { f.layer.backward(f.dY, f.saved, f.gradient, f.dX); }) == message);

  Layer other_rank(random_columns<float>(n, m, f.random), {.rank = 3}), other_size(ColMatrix<float>(4, m), {.rank = r});
  other_rank.forward(f.X, f.Y, f.saved);
  CHECK(message_of<StateError>([&] { f.layer.backward(f.dY, f.saved, f.gradient, f.dX); }) == message);
  const RowMatrix<float> narrow = RowMatrix<float>::Zero(b, 4);
  other_size.forward(narrow, f.Y, f.saved);
  CHECK(message_of<StateError>([&] { f.layer.backward(f.dY, f.saved, f.gradient, f.dX); }) == message);
  CHECK(f.gradient == before);
  CHECK(f.dX == RowMatrix<float>::Constant(b, n, 7));
}

TEST_CASE("backward names the matrix that does not fit, and changes no gradient", "[adapter][errors]") {
  Fixture f;
  f.layer.forward(f.X, f.Y, f.saved);
  const auto before = f.gradient;
  CHECK(message_of<ShapeError>([&] { f.layer.backward(f.X, f.saved, f.gradient, f.dX); }) ==
        "LoraLinear::backward: dY must be 3 x 5, got 3 x 6");
  CHECK(message_of<ShapeError>([&] { f.layer.backward(f.dY.topRows(2), f.saved, f.gradient); }) ==
        "LoraLinear::backward: dY must be 3 x 5, got 2 x 5");
  CHECK(message_of<ShapeError>([&] { f.layer.backward(f.dY, f.saved, f.gradient, f.Y); }) ==
        "LoraLinear::backward: dX must be 3 x 6, got 3 x 5");
  auto wrong = Factors<float>::zero(n + 1, m, r);
  CHECK(message_of<ShapeError>([&] { f.layer.backward(f.dY, f.saved, wrong, f.dX); }) ==
        "LoraLinear::backward: gradient A must be 6 x 2, got 7 x 2");
  wrong = Factors<float>::zero(n, m + 1, r);
  CHECK(message_of<ShapeError>([&] { f.layer.backward(f.dY, f.saved, wrong, f.dX); }) ==
        "LoraLinear::backward: gradient B must be 2 x 5, got 2 x 6");
  CHECK(f.gradient == before);
  CHECK(f.dX == RowMatrix<float>::Constant(b, n, 7));
}

TEST_CASE("training with dropout needs a forward with a generator", "[adapter][errors]") {
  Fixture f;
  Layer layer(random_columns<float>(n, m, f.random), {.rank = r, .dropout = 0.5});
  layer.forward(f.X, f.Y, f.saved);
  CHECK(message_of<StateError>([&] { layer.backward(f.dY, f.saved, f.gradient); }) ==
        "LoraLinear::backward: training with dropout needs forward(X, Y, saved, random), got a forward without a "
        "generator");
}

TEST_CASE("a merged layer refuses what would leave the base behind, and stays as it was", "[adapter][errors]") {
  Fixture f;
  f.layer.forward(f.X, f.Y, f.saved);
  f.layer.merge();
  const Layer merged = f.layer;
  const Random random = f.random;
  const auto before = f.gradient;
  const auto factors = Factors<float>::zero(n, m, r);
  CHECK(message_of<StateError>([&] { f.layer.merge(); }) ==
        "OwnedBase::merge: unmerge first, got a base with an adapter merged already");
  CHECK(message_of<StateError>([&] { f.layer.backward(f.dY, f.saved, f.gradient, f.dX); }) ==
        "LoraLinear::backward: unmerge before training, got a merged layer");
  CHECK(message_of<StateError>([&] { f.layer.factors(); }) == "LoraLinear::factors: unmerge first, got a merged layer");
  CHECK(message_of<StateError>([&] { f.layer.set_factors(factors); }) ==
        "LoraLinear::set_factors: unmerge first, got a merged layer");
  CHECK(message_of<StateError>([&] { f.layer.set_scale(1); }) ==
        "LoraLinear::set_scale: unmerge first, got a merged layer");
  CHECK(message_of<StateError>([&] { f.layer.initialize(RandomOffset{}, f.random); }) ==
        "LoraLinear::initialize: unmerge first, got a merged layer");
  CHECK(f.layer == merged);
  CHECK(f.random == random);
  CHECK(f.gradient == before);
  CHECK(std::as_const(f.layer).factors() == merged.factors());  // reading stays possible
  f.layer.unmerge();
  CHECK(message_of<StateError>([&] { f.layer.unmerge(); }) ==
        "OwnedBase::unmerge: needs a merged adapter, got a base without one");
}

TEST_CASE("setters refuse values that do not fit, and keep the old ones", "[adapter][errors]") {
  Fixture f;
  f.layer.set_bias(std::vector<float>(m, 1.0F));
  const Layer before = f.layer;
  auto factors = Factors<float>::zero(n, m, r + 1);
  CHECK(message_of<ShapeError>([&] { f.layer.set_factors(factors); }) ==
        "LoraLinear::set_factors: A must be 6 x 2, got 6 x 3");
  factors = Factors<float>::zero(n, m - 1, r);
  CHECK(message_of<ShapeError>([&] { f.layer.set_factors(factors); }) ==
        "LoraLinear::set_factors: B must be 2 x 5, got 2 x 4");
  factors = Factors<float>::zero(n, m, r);
  factors.A(1, 1) = std::numeric_limits<float>::quiet_NaN();
  CHECK(message_of<NumericalError>([&] { f.layer.set_factors(factors); }) ==
        "LoraLinear::set_factors: A must be finite, got NaN or infinity");
  factors = Factors<float>::zero(n, m, r);
  factors.B(1, 1) = -std::numeric_limits<float>::infinity();
  CHECK(message_of<NumericalError>([&] { f.layer.set_factors(factors); }) ==
        "LoraLinear::set_factors: B must be finite, got NaN or infinity");
  CHECK(message_of<ConfigError>([&] { f.layer.set_scale(infinity); }) ==
        "LoraLinear::set_scale: scale must be finite, got inf");
  CHECK(message_of<ConfigError>([&] { f.layer.set_scale(std::nan("")); }) ==
        "LoraLinear::set_scale: scale must be finite, got nan");
  CHECK(message_of<ShapeError>([&] { f.layer.set_bias(std::vector<float>(4)); }) ==
        "LoraLinear::set_bias: bias must hold m = 5 numbers, got 4");
  CHECK(f.layer == before);
}
