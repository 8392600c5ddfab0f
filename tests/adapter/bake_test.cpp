// SPDX-License-Identifier: MIT
// An offset baked into the owned base, and a backward that trains B alone.
#include "support/bases.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/starts.hpp"
#include "support/tolerances.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/init/kaiming_uniform.hpp>

#include <limits>
#include <vector>

using namespace lora;
using namespace lora::test;

using FloatColumns = OwnedBase<float>;
using DoubleColumns = OwnedBase<double>;
using FloatRows = OwnedBase<float, Eigen::RowMajor>;
using DoubleRows = OwnedBase<double, Eigen::RowMajor>;

namespace {

constexpr Index n = 61, m = 43, r = 5, b = 9;

/// A layer after an offset start and some training; s = 1.34.
template <class Base>
LoraLinear<Base> trained(const typename Base::Matrix& W0, Random& random) {
  LoraLinear<Base> layer(W0, {.rank = r, .alpha = 3, .scaling = Scaling::RankStabilized});
  layer.initialize(RandomOffset{}, random);
  layer.set_factors(random_factors<typename Base::Scalar>(n, m, r, random));
  return layer;
}

/// |W0| + s |A| |B| + s |A0| |B0|.
template <class Matrix, class Layer>
Wide magnitude(const Matrix& W0, const Layer& layer) {
  const auto change = layer.delta();
  return absolute(wide(W0)) + layer.scale() * product(absolute(wide(change.A)), absolute(wide(change.B)));
}

}  // namespace

TEMPLATE_TEST_CASE("baking changes the output by no more than one rounding of the weight and the bounds of the layer",
                   "[adapter][bake]", FloatColumns, DoubleColumns, FloatRows, DoubleRows) {
  using Scalar = typename TestType::Scalar;
  Random random{1};
  const typename TestType::Matrix W0 = random_columns<Scalar>(n, m, random);
  auto layer = trained<TestType>(W0, random);
  layer.set_bias(std::vector<Scalar>(m, Scalar(0.5)));
  const auto X = random_rows<Scalar>(b, n, random);
  RowMatrix<Scalar> before(b, m), after(b, m);
  SavedState<Scalar> saved;
  layer.forward(X, before, saved);
  CHECK_FALSE(layer.baked());
  layer.bake();
  CHECK(layer.baked());
  layer.forward(X, after, saved);
  const Wide terms = (product(absolute(wide(X)), magnitude(W0, layer)).array() + 0.5L).matrix();
  const double gamma = rounding_bound<Scalar>(layer_roundings(n, r)) + rounding_bound<Scalar>(merged_roundings(n, r));
  const double ratio = worst_ratio(after, wide(before), gamma * terms);
  INFO("outputs differ by " << ratio << " of the bound");
  CHECK(ratio <= 1);

  // The base itself is W0 - s A0 B0.
  const auto& initial = layer.initial_factors();
  const Wide offset = static_cast<long double>(layer.scale()) * product(wide(initial.A), wide(initial.B));
  const double weight_ratio = worst_ratio(layer.base().weight(), wide(W0) - offset,
                                          rounding_bound<Scalar>(product_roundings(r)) * magnitude(W0, layer));
  INFO("the baked weight is " << weight_ratio << " of the bound off");
  CHECK(weight_ratio <= 1);
}

TEMPLATE_TEST_CASE("after baking, delta still relates to the base as it was given", "[adapter][bake]", FloatColumns,
                   DoubleRows) {
  using Scalar = typename TestType::Scalar;
  Random random{2};
  const typename TestType::Matrix W0 = random_columns<Scalar>(n, m, random);
  auto layer = trained<TestType>(W0, random);
  const auto before = layer.delta();
  layer.bake();
  const auto change = layer.delta();
  CHECK(same_bits(change, before));
  CHECK(change.rank() == 2 * r);
  // W0 + s (A B - A0 B0), by way of the baked base.
  const Wide expected = wide(W0) + static_cast<long double>(layer.scale()) * product(wide(change.A), wide(change.B));
  const double gamma = 2 * rounding_bound<Scalar>(product_roundings(2 * r));
  CHECK(worst_ratio(layer.merged_weight(), expected, gamma * magnitude(W0, layer)) <= 1);
  CHECK(worst_ratio(to_dense(layer), expected,
                    rounding_bound<Scalar>(layer_roundings(1, r) + merged_roundings(1, r)) * magnitude(W0, layer)) <=
        1);
}

TEMPLATE_TEST_CASE("a baked layer is, bit for bit, a plain one on the baked weight: output, gradients, merge",
                   "[adapter][bake]", FloatColumns, DoubleColumns, FloatRows, DoubleRows) {
  using Scalar = typename TestType::Scalar;
  Random random{3};
  auto layer = trained<TestType>(random_columns<Scalar>(n, m, random), random);
  layer.bake();
  const typename TestType::Matrix baked = layer.base().weight();
  LoraLinear<TestType> plain(baked, layer.config());
  plain.set_factors(std::as_const(layer).factors());

  const auto X = random_rows<Scalar>(b, n, random), dY = random_rows<Scalar>(b, m, random);
  const auto run = [&](const LoraLinear<TestType>& of) {
    struct Result {
      RowMatrix<Scalar> Y{b, m}, dX{b, n}, operator_Y{b, m}, operator_dX{b, n};
      Factors<Scalar> gradient;
    } result;
    SavedState<Scalar> saved;
    result.gradient = of.zero_gradient();
    of.forward(X, result.Y, saved);
    of.backward(dY, saved, result.gradient, result.dX);
    of.multiply(X, result.operator_Y);
    of.multiply_transposed(dY, result.operator_dX);
    return result;
  };
  const auto one = run(layer), two = run(plain);
  CHECK(same_bits(one.Y, two.Y));
  CHECK(same_bits(one.dX, two.dX));
  CHECK(same_bits(one.operator_Y, two.operator_Y));
  CHECK(same_bits(one.operator_dX, two.operator_dX));
  CHECK(same_bits(one.gradient, two.gradient));
  CHECK(same_bits(layer.merged_weight(), plain.merged_weight()));

  layer.merge();
  plain.merge();
  CHECK(same_bits(layer.base().weight(), plain.base().weight()));
  layer.unmerge();
  CHECK(same_bits(layer.base().weight(), baked));
  layer.set_factors(random_factors<Scalar>(n, m, r, random));  // training goes on
}

TEST_CASE("what a baked base can no longer do is refused and changes nothing", "[adapter][bake][errors]") {
  Random random{4};
  auto layer = trained<OwnedBase<float>>(random_columns<float>(n, m, random), random);
  layer.bake();
  const auto baked = layer;
  const Random before = random;
  const std::string rule = ": needs the base as it was given, got one with an offset baked into it";
  CHECK(message_of<StateError>([&] { layer.set_scale(1); }) == "LoraLinear::set_scale" + rule);
  CHECK(message_of<StateError>([&] { layer.disable(); }) == "LoraLinear::disable" + rule);
  CHECK(message_of<StateError>([&] { layer.initialize(KaimingUniform{}, random); }) == "LoraLinear::initialize" + rule);
  CHECK(message_of<StateError>([&] { layer.bake(); }) == "LoraLinear::bake" + rule);
  CHECK(layer == baked);
  CHECK(random == before);
}

TEST_CASE("a layer that is switched off cannot be baked: it would compute neither base", "[adapter][bake][errors]") {
  Random random{4};
  auto layer = trained<OwnedBase<float>>(random_columns<float>(n, m, random), random);
  layer.disable();
  const auto before = layer;
  CHECK(message_of<StateError>([&] { layer.bake(); }) ==
        "LoraLinear::bake: enable first, got a layer that is switched off");
  CHECK(layer == before);
}

TEST_CASE("only an offset, and only into an unmerged base, can be baked", "[adapter][bake][errors]") {
  Random random{5};
  auto layer = trained<OwnedBase<float>>(random_columns<float>(n, m, random), random);
  layer.merge();
  const auto merged = layer;
  CHECK(message_of<StateError>([&] { layer.bake(); }) == "LoraLinear::bake: unmerge first, got a merged layer");
  CHECK(layer == merged);
  layer.unmerge();
  layer.initialize(KaimingUniform{}, random);
  const auto plain = layer;
  CHECK(message_of<StateError>([&] { layer.bake(); }) == "LoraLinear::bake: needs a start with an offset, got none");
  CHECK(layer == plain);

  OwnedBase<float> base(random_columns<float>(5, 4, random));
  const auto fresh = base;
  const auto factors = random_factors<float>(5, 4, 2, random);
  CHECK(message_of<ShapeError>([&] { base.bake(random_factors<float>(6, 4, 2, random), 1); }) ==
        "OwnedBase::bake: A must be 5 x 2, got 6 x 2");
  CHECK(message_of<ShapeError>([&] { base.bake(random_factors<float>(5, 3, 2, random), 1); }) ==
        "OwnedBase::bake: B must be 2 x 4, got 2 x 3");
  CHECK(base == fresh);
  base.merge(factors, 1);
  const auto taken = base;
  CHECK(message_of<StateError>([&] { base.bake(factors, 1); }) ==
        "OwnedBase::bake: unmerge first, got a base with an adapter merged");
  CHECK(base == taken);
}

TEMPLATE_TEST_CASE("baked before any training, the layer computes what the base did, at the cost of rank r",
                   "[adapter][bake]", float, double) {
  Random random{6};
  const auto W0 = random_columns<TestType>(n, m, random);
  LoraLinear<OwnedBase<TestType>> layer(W0, {.rank = r, .alpha = 3});
  layer.initialize(RandomOffset{}, random);
  layer.bake();
  const auto X = random_rows<TestType>(b, n, random);
  RowMatrix<TestType> Y(b, m);
  SavedState<TestType> saved;
  layer.forward(X, Y, saved);
  const double gamma =
      rounding_bound<TestType>(layer_roundings(n, r)) + rounding_bound<TestType>(merged_roundings(n, r));
  CHECK(worst_ratio(Y, product(wide(X), wide(W0)), gamma * product(absolute(wide(X)), magnitude(W0, layer))) <= 1);
}

TEMPLATE_TEST_CASE("a gradient view whose A is 0 x r asks for B's alone, and for the same bits", "[adapter][backward]",
                   float, double) {
  const double dropout = GENERATE(0.0, 0.4);
  const bool offset = GENERATE(false, true);
  Random random{7};
  const auto W0 = random_columns<TestType>(n, m, random);
  LoraLinear layer{W0, {.rank = r, .alpha = 3, .dropout = dropout}};
  if (offset) layer.initialize(RandomOffset{}, random);
  layer.set_factors(random_factors<TestType>(n, m, r, random));
  auto X = random_rows<TestType>(b, n, random);
  const auto dY = random_rows<TestType>(b, m, random);
  RowMatrix<TestType> Y(b, m), dX(b, n), dX_alone(b, n);
  SavedState<TestType> saved;
  layer.forward(X, Y, saved, random);
  auto both = layer.zero_gradient();
  layer.backward(dY, saved, both, dX);

  RowMatrix<TestType> alone = RowMatrix<TestType>::Zero(r, m);
  const FactorsView<TestType> gradient{{nullptr, 0, r}, alone};
  if (dropout == 0) X.setConstant(std::numeric_limits<TestType>::quiet_NaN());  // may be gone
  layer.backward(dY, saved, gradient, dX_alone);
  CHECK(same_bits(alone, both.B));
  CHECK(same_bits(dX_alone, dX));
  layer.backward(dY, saved, gradient);  // adds once more, without dX
  CHECK(alone.isApprox(2 * both.B));
  layer.backward(dY, saved, gradient, X);  // X's memory may serve as dX
  CHECK(same_bits(X, dX));

  RowMatrix<TestType> wrong = RowMatrix<TestType>::Zero(r, m + 1);
  CHECK(message_of<ShapeError>([&] {
          layer.backward(dY, saved, FactorsView<TestType>{{nullptr, 0, r}, wrong});
        }) == "LoraLinear::backward: gradient B must be 5 x 43, got 5 x 44");
  RowMatrix<TestType> narrow = RowMatrix<TestType>::Zero(r - 1, m);
  CHECK(message_of<ShapeError>([&] {
          layer.backward(dY, saved, FactorsView<TestType>{{nullptr, 0, r - 1}, narrow});
        }) == "LoraLinear::backward: gradient A must be 0 x 5, got 0 x 4");
}
