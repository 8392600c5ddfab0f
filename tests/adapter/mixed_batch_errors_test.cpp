// SPDX-License-Identifier: MIT
// What mixed batches refuse, in which words, and that they changed nothing.
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/starts.hpp"

#include <lora/adapter/mixed_batch.hpp>
#include <lora/base/callback_base.hpp>

#include <cmath>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index few_n = 6, few_m = 5, tokens = 4;
using Layer = LoraLinear<OwnedBase<float>>;

/// Three adapters of ranks 2, 1, 3 in a batch of four rows; adapter 1 has none.
struct Small {
  Random random{74};
  OwnedBase<float> base{random_columns<float>(few_n, few_m, random)};
  MixedLinear<OwnedBase<float>> mixed{base};
  std::vector<Layer> layers;
  std::vector<Factors<float>> gradients;
  std::vector<Index> adapter_of_row{2, 0, -1, 2};
  RowGroups groups{adapter_of_row, 3};
  RowMatrix<float> X = random_rows<float>(tokens, few_n, random), dY = random_rows<float>(tokens, few_m, random);
  RowMatrix<float> Y = RowMatrix<float>::Constant(tokens, few_m, 7);
  RowMatrix<float> dX = RowMatrix<float>::Constant(tokens, few_n, 7);
  MixedState<float> saved;

  Small() {
    for (const Index r : {2, 1, 3}) {
      layers.emplace_back(base, LoraConfig{.rank = r});
      layers.back().set_factors(random_factors<float>(few_n, few_m, r, random));
      gradients.push_back(random_factors<float>(few_n, few_m, r, random));
    }
  }
  std::vector<LowRankBranch<float>> branches() const { return {layers.begin(), layers.end()}; }
  std::string forward_message(const std::vector<LowRankBranch<float>>& of) {
    return message_of<ShapeError>([&] { mixed.forward(X, Y, of, groups, saved); });
  }
  bool nothing_written() const {
    return Y == RowMatrix<float>::Constant(tokens, few_m, 7) && dX == RowMatrix<float>::Constant(tokens, few_n, 7);
  }
};

}  // namespace

TEST_CASE("groups refuse an adapter that is not there, name its row, and stay as they were",
          "[adapter][mixed][errors]") {
  const std::vector<Index> good{0, 1, 1}, too_high{0, -1, 2, 7}, too_low{-1, -2};
  RowGroups groups{good, 2};
  const RowGroups before = groups;
  CHECK(message_of<ConfigError>([&] { groups.assign(too_high, 2); }) ==
        "RowGroups: adapter of row 2 must lie in [-1, 2), got 2");
  CHECK(message_of<ConfigError>([&] { groups.assign(too_low, 2); }) ==
        "RowGroups: adapter of row 1 must lie in [-1, 2), got -2");
  CHECK(message_of<ConfigError>([&] { groups.assign(good, 0); }) ==
        "RowGroups: adapter of row 0 must lie in [-1, 0), got 0");
  CHECK(message_of<ConfigError>([&] { groups.assign({}, -1); }) == "RowGroups: adapters must not be negative, got -1");
  CHECK(groups == before);
}

TEST_CASE("a branch refuses a scale that is not finite, a merged layer and temporaries", "[adapter][mixed][errors]") {
  Small f;
  const auto& factors = std::as_const(f.layers[0]).factors();
  CHECK(message_of<ConfigError>([&] {
          LowRankBranch{factors, std::nan("")};
        }) == "LowRankBranch: scale must be finite, got nan");
  CHECK(message_of<ConfigError>([&] {
          LowRankBranch{factors, 1e300};
        }) == "LowRankBranch: scale must be finite, got 1e+300");
  f.layers[0].merge();
  CHECK(message_of<StateError>([&] { LowRankBranch{f.layers[0]}; }) ==
        "LowRankBranch: unmerge first, got a merged layer");
  CHECK(message_of<StateError>([&] { f.mixed.forward(f.X, f.Y, f.layers, f.groups, f.saved); }) ==
        "LowRankBranch: unmerge first, got a merged layer");
  CHECK(f.nothing_written());
  static_assert(!std::is_constructible_v<LowRankBranch<float>, Factors<float>, double>);
  static_assert(!std::is_constructible_v<LowRankBranch<float>, Layer>);
  static_assert(!std::is_convertible_v<const LoraLinear<OwnedBase<double>>&, LowRankBranch<float>>);
}

TEST_CASE("a mixed forward names what does not fit, and writes nothing", "[adapter][mixed][errors]") {
  Small f;
  auto branches = f.branches();
  branches.pop_back();
  CHECK(f.forward_message(branches) ==
        "MixedLinear::forward: needs the 3 adapters that the groups were made for, got 2");
  CHECK(message_of<ShapeError>([&] { f.mixed.forward(f.dY, f.Y, f.layers, f.groups, f.saved); }) ==
        "MixedLinear::forward: X must be 4 x 6, got 4 x 5");
  CHECK(message_of<ShapeError>([&] { f.mixed.forward(f.X.topRows(3), f.Y, f.layers, f.groups, f.saved); }) ==
        "MixedLinear::forward: X must be 4 x 6, got 3 x 6");
  CHECK(message_of<ShapeError>([&] { f.mixed.forward(f.X, f.dX, f.layers, f.groups, f.saved); }) ==
        "MixedLinear::forward: Y must be 4 x 5, got 4 x 6");

  auto wrong = Factors<float>::zero(few_n + 1, few_m, 2);
  branches = f.branches();
  branches[2] = LowRankBranch{wrong, 1};
  CHECK(f.forward_message(branches) == "MixedLinear::forward: adapter 2: A must be 6 x 2, got 7 x 2");
  wrong = Factors<float>::zero(few_n, few_m - 1, 2);
  branches[2] = LowRankBranch{wrong, 1};
  CHECK(f.forward_message(branches) == "MixedLinear::forward: adapter 2: B must be 2 x 5, got 2 x 4");
  auto offset = f.layers[2];
  offset.initialize(RandomOffset{}, f.random);
  branches[2] = LowRankBranch{offset};
  std::construct_at(&branches[2].initial, wrong);
  CHECK(f.forward_message(branches) == "MixedLinear::forward: offset of adapter 2: B must be 2 x 5, got 2 x 4");
  CHECK(f.nothing_written());
  CHECK_FALSE(f.saved.complete);

  branches = f.branches();
  branches[1] = LowRankBranch{wrong, 1};  // without rows: not looked at
  CHECK(f.forward_message(branches) == "[no error]");

  f.layers[2].set_bias(std::vector<float>(few_m, 1.0F));
  const RowMatrix<float> Y = f.Y;
  CHECK(message_of<StateError>([&] { f.mixed.forward(f.X, f.Y, f.layers, f.groups, f.saved); }) ==
        "MixedLinear::forward: needs the bias of the layer (set_bias), got none, and adapter 2 with one");
  CHECK(message_of<ShapeError>([&] { f.mixed.set_bias(std::vector<float>(4)); }) ==
        "MixedLinear::set_bias: bias must hold m = 5 numbers, got 4");
  CHECK(f.mixed.bias().empty());
  CHECK(f.Y == Y);
  CHECK(f.saved.complete);  // the forward before is still there
}

TEST_CASE("a mixed layer refuses to write over what it reads, in part as well", "[adapter][mixed][errors]") {
  Random random{75};
  const auto W0 = random_columns<float>(5, 5, random);
  LoraLinear layer{W0, {.rank = 2}};
  const MixedLinear mixed{W0};
  const std::vector<LowRankBranch<float>> branches{layer};
  const std::vector<Index> rows(3, 0);
  const RowGroups groups{rows, 1};
  auto memory = random_rows<float>(3, 12, random), dY = random_rows<float>(4, 5, random);
  const auto memory_before = memory, dY_before = dY;
  const auto X = memory.leftCols(5);
  RowMatrix<float> Y(3, 5);
  MixedState<float> saved;
  const std::string message = "MixedLinear::forward: Y must not lie in X's memory, got overlapping memory";
  CHECK(message_of<ShapeError>([&] { mixed.forward(X, memory.leftCols(5), branches, groups, saved); }) == message);
  CHECK(message_of<ShapeError>([&] { mixed.forward(X, memory.middleCols(4, 5), branches, groups, saved); }) == message);
  mixed.forward(X, Y, branches, groups, saved);

  const std::string dX_message = "MixedLinear::backward: dX must not lie in X's or dY's memory, got overlapping memory";
  std::vector<Factors<float>> gradients{layer.zero_gradient()};
  const auto top = dY.topRows(3);
  CHECK(message_of<ShapeError>([&] { mixed.backward(top, saved, gradients, memory.middleCols(3, 5)); }) == dX_message);
  CHECK(message_of<ShapeError>([&] { mixed.backward(top, saved, gradients, dY.bottomRows(3)); }) == dX_message);
  CHECK(memory == memory_before);
  CHECK(dY == dY_before);
  CHECK(gradients[0] == layer.zero_gradient());
  mixed.forward(X, memory.rightCols(5), branches, groups, saved);  // beside each other: fine
  CHECK(memory.rightCols(5) == Y);
}

TEST_CASE("a mixed backward refuses a saved state without a forward of this layer", "[adapter][mixed][errors]") {
  const std::string message = "MixedLinear::backward: needs the saved state of a forward of this layer, got none";
  Small f;
  const auto before = f.gradients;
  CHECK(message_of<StateError>([&] { f.mixed.backward(f.dY, f.saved, f.gradients, f.dX); }) == message);
  const MixedLinear other{ColMatrix<float>(ColMatrix<float>::Zero(few_m, few_m))};
  RowMatrix<float> other_Y(tokens, few_m);
  const std::vector<Index> none(tokens, RowGroups::base_only);
  other.forward(f.dY, other_Y, f.layers, RowGroups{none, 3}, f.saved);
  CHECK(message_of<StateError>([&] { f.mixed.backward(f.dY, f.saved, f.gradients, f.dX); }) == message);

  struct Broken {};
  bool breaks = false;
  const auto multiply = [&](const ConstRows<float>&, Rows<float> Y) {
    if (breaks) throw Broken{};
    Y.setZero();
  };
  const MixedLinear fragile{CallbackBase<float>{few_n, few_m, multiply, multiply}};
  fragile.forward(f.X, f.Y, f.layers, f.groups, f.saved);
  breaks = true;
  CHECK_THROWS_AS(fragile.forward(f.X, f.Y, f.layers, f.groups, f.saved), Broken);
  CHECK(message_of<StateError>([&] { fragile.backward(f.dY, f.saved, f.gradients); }) == message);
  CHECK(f.gradients == before);
}

TEST_CASE("a mixed backward names what does not fit, and changes no gradient", "[adapter][mixed][errors]") {
  Small f;
  f.mixed.forward(f.X, f.Y, f.layers, f.groups, f.saved);
  const auto before = f.gradients;
  const auto refused = [&](const auto& dY, auto& gradients, auto&& dX) {
    return message_of<ShapeError>([&] { f.mixed.backward(dY, f.saved, gradients, dX); });
  };
  CHECK(refused(f.X, f.gradients, f.dX) == "MixedLinear::backward: dY must be 4 x 5, got 4 x 6");
  CHECK(refused(f.dY.topRows(2), f.gradients, f.dX) == "MixedLinear::backward: dY must be 4 x 5, got 2 x 5");
  CHECK(refused(f.dY, f.gradients, f.Y) == "MixedLinear::backward: dX must be 4 x 6, got 4 x 5");
  auto gradients = f.gradients;
  gradients.pop_back();
  CHECK(refused(f.dY, gradients, f.dX) ==
        "MixedLinear::backward: needs one gradient for each of the 3 adapters, got 2");
  gradients = f.gradients;
  gradients[2].A.resize(few_n + 1, 3);
  CHECK(refused(f.dY, gradients, f.dX) == "MixedLinear::backward: gradient of adapter 2: A must be 6 x 3, got 7 x 3");
  gradients[2] = Factors<float>::zero(few_n, few_m, 2);
  CHECK(refused(f.dY, gradients, f.dX) == "MixedLinear::backward: gradient of adapter 2: A must be 6 x 3, got 6 x 2");
  gradients[2] = Factors<float>::zero(few_n, few_m + 1, 3);
  CHECK(refused(f.dY, gradients, f.dX) == "MixedLinear::backward: gradient of adapter 2: B must be 3 x 5, got 3 x 6");
  CHECK(gradients[0] == before[0]);
  CHECK(f.gradients == before);
  CHECK(f.dX == RowMatrix<float>::Constant(tokens, few_n, 7));

  gradients = before;
  gradients[1] = Factors<float>();  // without rows: not looked at
  CHECK(refused(f.dY, gradients, f.dX) == "[no error]");
}

TEST_CASE("a mixed batch does not train adapters with dropout, and serves them", "[adapter][mixed][errors]") {
  Small f;
  Layer dropped(f.base, {.rank = 3, .dropout = 0.25});
  dropped.set_factors(std::as_const(f.layers[2]).factors());
  f.mixed.forward(f.X, f.Y, f.layers, f.groups, f.saved);
  const RowMatrix<float> expected = f.Y;
  auto branches = f.branches();
  branches[2] = LowRankBranch{dropped};
  branches[2].scale = f.layers[2].scale();
  f.mixed.forward(f.X, f.Y, branches, f.groups, f.saved);
  CHECK(same_bits(f.Y, expected));
  const auto before = f.gradients;
  CHECK(message_of<StateError>([&] { f.mixed.backward(f.dY, f.saved, f.gradients); }) ==
        "MixedLinear::backward: adapters must be without dropout, got adapter 2 with 0.25");
  CHECK(f.gradients == before);
}
