// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/starts.hpp"
#include "support/tolerances.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/base/callback_base.hpp>

#include <cstring>
#include <vector>

using namespace lora;
using namespace lora::test;

using FloatColumns = OwnedBase<float>;
using DoubleColumns = OwnedBase<double>;
using FloatRows = OwnedBase<float, Eigen::RowMajor>;
using DoubleRows = OwnedBase<double, Eigen::RowMajor>;

namespace {

constexpr Index n = 61, m = 43, r = 5, b = 9;

template <class Base>
LoraLinear<Base> make_layer(typename Base::Matrix weight, bool offset, Random& random) {
  LoraLinear<Base> layer(std::move(weight), {.rank = r, .alpha = 3, .scaling = Scaling::RankStabilized});  // s = 1.34
  if (offset) layer.initialize(RandomOffset{}, random);
  layer.set_factors(random_factors<typename Base::Scalar>(n, m, r, random));
  return layer;
}

/// |W0| + s |A| |B|, and s |A0| |B0| after an offset start.
template <class Base>
Wide magnitude(const LoraLinear<Base>& layer) {
  const auto change = layer.delta();
  return absolute(wide(to_dense(layer.base()))) +
         layer.scale() * product(absolute(wide(change.A)), absolute(wide(change.B)));
}

}  // namespace

TEMPLATE_TEST_CASE("merged and unmerged outputs agree within the a-priori bound, and W0 comes back bit for bit",
                   "[adapter][merge]", FloatColumns, DoubleColumns, FloatRows, DoubleRows) {
  using Scalar = typename TestType::Scalar;
  const bool offset = GENERATE(false, true);
  Random random{71};
  const typename TestType::Matrix W0 = random_columns<Scalar>(n, m, random);
  auto layer = make_layer<TestType>(W0, offset, random);
  layer.set_bias(std::vector<Scalar>(m, Scalar(0.5)));
  const auto X = random_rows<Scalar>(b, n, random);
  RowMatrix<Scalar> unmerged(b, m), merged(b, m), again(b, m);
  SavedState<Scalar> saved;
  layer.forward(X, unmerged, saved);
  // Each output is off by at most its own rounding bound times (|X| (|W0| + s |A||B| [+ s |A0||B0|]) + |bias|).
  const Wide terms = (product(absolute(wide(X)), magnitude(layer)).array() + 0.5L).matrix();
  const double gamma = rounding_bound<Scalar>(layer_roundings(n, r)) + rounding_bound<Scalar>(merged_roundings(n, r));

  layer.merge();
  CHECK(layer.merged());
  layer.forward(X, merged, saved);
  const double ratio = worst_ratio(merged, wide(unmerged), gamma * terms);
  INFO("merged and unmerged outputs differ by " << ratio << " of the bound");
  CHECK(ratio <= 1);
  CHECK_FALSE(same_bits(layer.base().weight(), W0));

  layer.unmerge();
  CHECK_FALSE(layer.merged());
  CHECK(std::memcmp(layer.base().weight().data(), W0.data(), sizeof(Scalar) * static_cast<std::size_t>(W0.size())) ==
        0);
  layer.forward(X, again, saved);
  CHECK(same_bits(again, unmerged));
}

TEMPLATE_TEST_CASE("the merged weight is W0 + s A B, before, during and after a merge", "[adapter][merge]",
                   FloatColumns, DoubleRows) {
  using Scalar = typename TestType::Scalar;
  const bool offset = GENERATE(false, true);
  Random random{72};
  auto layer = make_layer<TestType>(random_columns<Scalar>(n, m, random), offset, random);
  const auto& factors = std::as_const(layer).factors();
  const auto& initial = layer.initial_factors();
  Wide expected =
      wide(layer.base().weight()) + static_cast<long double>(layer.scale()) * product(wide(factors.A), wide(factors.B));
  if (offset) expected -= static_cast<long double>(layer.scale()) * product(wide(initial.A), wide(initial.B));
  const auto weight = layer.merged_weight();
  const double ratio =
      worst_ratio(weight, expected, rounding_bound<Scalar>(product_roundings(2 * r)) * magnitude(layer));
  INFO("worst error of the merged weight is " << ratio << " of the bound");
  CHECK(ratio <= 1);
  layer.merge();
  CHECK(same_bits(layer.merged_weight(), ColMatrix<Scalar>(layer.base().weight())));
  const Wide bound = 2 * rounding_bound<Scalar>(product_roundings(2 * r)) * magnitude(layer);
  CHECK(worst_ratio(layer.merged_weight(), wide(weight), bound) <= 1);
  layer.unmerge();
  CHECK(same_bits(layer.merged_weight(), weight));
}

TEMPLATE_TEST_CASE("delta is (A, B), and of rank 2r after an offset start", "[adapter][merge]", float, double) {
  Random random{73};
  auto layer = make_layer<OwnedBase<TestType>>(random_columns<TestType>(n, m, random), false, random);
  CHECK(layer.delta() == std::as_const(layer).factors());
  layer.initialize(RandomOffset{}, random);
  layer.set_factors(random_factors<TestType>(n, m, r, random));
  const auto change = layer.delta();
  const auto& factors = std::as_const(layer).factors();
  CHECK(change.rank() == 2 * r);
  CHECK(change.A.leftCols(r) == factors.A);
  CHECK(change.B.topRows(r) == factors.B);
  CHECK(change.A.rightCols(r) == layer.initial_factors().A);
  CHECK(change.B.bottomRows(r) == -layer.initial_factors().B);
}

TEMPLATE_TEST_CASE("a forward while merged leaves a backward after unmerge nothing to train", "[adapter][merge]", float,
                   double) {
  Random random{74};
  auto layer = make_layer<OwnedBase<TestType>>(random_columns<TestType>(n, m, random), false, random);
  const auto X = random_rows<TestType>(b, n, random), dY = random_rows<TestType>(b, m, random);
  RowMatrix<TestType> Y(b, m);
  SavedState<TestType> saved;
  layer.merge();
  layer.forward(X, Y, saved);
  layer.unmerge();
  auto gradient = layer.zero_gradient();
  layer.backward(dY, saved, gradient);
  CHECK(gradient == layer.zero_gradient());
}

TEST_CASE("the merged weight of a base known by its products alone is its dense matrix", "[adapter][merge]") {
  Random random{75};
  const auto W0 = random_columns<double>(n, m, random);
  const auto multiply = [&](const ConstRows<double>& X, Rows<double> Y) { set_product(Y, 1, X, W0); };
  LoraLinear layer(CallbackBase<double>(n, m, multiply, multiply), {.rank = r, .alpha = 3});
  LoraLinear reference{W0, layer.config()};
  const auto factors = random_factors<double>(n, m, r, random);
  layer.set_factors(factors);
  reference.set_factors(factors);
  CHECK(layer.merged_weight() == reference.merged_weight());
  CHECK_FALSE(layer.merged());
}
