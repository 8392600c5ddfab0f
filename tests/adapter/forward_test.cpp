// SPDX-License-Identifier: MIT
#include "support/bases.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/starts.hpp"
#include "support/tolerances.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/init/gaussian.hpp>

#include <cmath>
#include <vector>

using namespace lora;
using namespace lora::test;

// Every kind of base, scalar and storage order at least once; tests/base has the laws over all combinations.
#define SOME_BASES                                                                                              \
  OwnedBase<float>, (OwnedBase<double, Eigen::RowMajor>), ViewBase<double>, (ViewBase<float, Eigen::RowMajor>), \
      CallbackBase<float>, LoraLinear<OwnedBase<double>>

namespace {

constexpr Index n = 37, m = 29, r = 4;

/// A layer with random factors and a bias on one of every base.
template <class Base>
struct Fixture {
  using Scalar = typename Base::Scalar;
  Random random{41};
  BaseCase<Base> of{n, m, random};
  LoraLinear<Base> layer;
  std::vector<Scalar> bias;

  explicit Fixture(LoraConfig config = {.rank = r, .alpha = 3, .scaling = Scaling::RankStabilized})
      : layer(of.base, config) {
    layer.set_factors(random_factors<Scalar>(n, m, r, random));
    for (Index j = 0; j < m; ++j) bias.push_back(static_cast<Scalar>(random.uniform() - 0.5));
    layer.set_bias(bias);
  }

  /// Y as a share of the a-priori bound around X W0 + bias + s (X A) B - s (X A0) B0.
  double ratio(const RowMatrix<Scalar>& X, const RowMatrix<Scalar>& Y, double scale) const {
    const auto& factors = layer.factors();
    const auto& initial = layer.initial_factors();
    const long double s = scale;
    const Wide x = wide(X), A = wide(factors.A), B = wide(factors.B), A0 = wide(initial.A), B0 = wide(initial.B);
    Wide expected = product(x, of.dense) + s * product(product(x, A), B);
    Wide terms =
        product(absolute(x), of.magnitude) + std::abs(s) * product(product(absolute(x), absolute(A)), absolute(B));
    if (initial.rank() > 0) {
      expected -= s * product(product(x, A0), B0);
      terms += std::abs(s) * product(product(absolute(x), absolute(A0)), absolute(B0));
    }
    for (Index i = 0; i < X.rows(); ++i) {
      for (std::size_t j = 0; j < bias.size(); ++j) {
        expected(i, static_cast<Index>(j)) += static_cast<long double>(bias[j]);
        terms(i, static_cast<Index>(j)) += std::abs(static_cast<long double>(bias[j]));
      }
    }
    const double gamma = rounding_bound<Scalar>(layer_roundings(n, r) + of.roundings);
    return worst_ratio(Y, expected, gamma * terms);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("forward is X (W0 + s A B) + bias on every base", "[adapter][forward]", SOME_BASES) {
  using Scalar = typename TestType::Scalar;
  const auto scaling = GENERATE(Scaling::Standard, Scaling::RankStabilized);
  Fixture<TestType> fixture({.rank = r, .alpha = 3, .scaling = scaling});
  auto& layer = fixture.layer;
  CHECK(layer.scale() == (scaling == Scaling::Standard ? 0.75 : 1.5));
  for (const Index b : {Index{1}, Index{2}, Index{16}, Index{65}}) {
    const auto X = random_rows<Scalar>(b, n, fixture.random);
    RowMatrix<Scalar> Y = RowMatrix<Scalar>::Constant(b, m, 99);
    SavedState<Scalar> saved;
    layer.forward(X, Y, saved);
    const double ratio = fixture.ratio(X, Y, layer.scale());
    INFO("b = " << b << ": worst error is " << ratio << " of the bound");
    CHECK(ratio <= 1);
  }
}

TEMPLATE_TEST_CASE("a layer is an operator: its products are those of its merged weight", "[adapter][operator]",
                   SOME_BASES) {
  using Scalar = typename TestType::Scalar;
  Fixture<TestType> fixture;
  auto& layer = fixture.layer;
  if (GENERATE(false, true)) layer.initialize(RandomOffset{}, fixture.random);
  layer.set_factors(random_factors<Scalar>(n, m, r, fixture.random));
  fixture.bias.clear();  // operators have none
  const auto X = random_rows<Scalar>(5, n, fixture.random), dY = random_rows<Scalar>(5, m, fixture.random);
  RowMatrix<Scalar> Y(5, m), dX(5, n);
  layer.multiply(X, Y);
  const double ratio = fixture.ratio(X, Y, layer.scale());
  INFO("worst error of the product is " << ratio << " of the bound");
  CHECK(ratio <= 1);

  layer.multiply_transposed(dY, dX);
  const long double left = wide(Y).cwiseProduct(wide(dY)).sum(), right = wide(X).cwiseProduct(wide(dX)).sum();
  const auto change = layer.delta();
  const Wide magnitude =
      fixture.of.magnitude + layer.scale() * product(absolute(wide(change.A)), absolute(wide(change.B)));
  const long double terms = product(absolute(wide(X)), magnitude).cwiseProduct(absolute(wide(dY))).sum();
  const double gamma = rounding_bound<Scalar>(2 * (layer_roundings(n, r) + fixture.of.roundings));
  INFO("<X M, dY> - <X, dY M^T> is " << static_cast<double>(std::abs(left - right) / (gamma * terms))
                                     << " of the bound");
  CHECK(std::abs(left - right) <= gamma * terms);
}

TEMPLATE_TEST_CASE("a start with an offset begins at the base", "[adapter][offset]", SOME_BASES) {
  using Scalar = typename TestType::Scalar;
  Fixture<TestType> fixture;
  auto& layer = fixture.layer;
  layer.initialize(RandomOffset{}, fixture.random);
  CHECK(layer.initial_factors() == std::as_const(layer).factors());
  CHECK(layer.initial_factors().rank() == r);
  const auto X = random_rows<Scalar>(7, n, fixture.random);
  RowMatrix<Scalar> Y(7, m);
  SavedState<Scalar> saved;
  layer.forward(X, Y, saved);
  const double ratio = fixture.ratio(X, Y, layer.scale());  // A = A0 and B = B0: the expected value is the base's
  INFO("worst difference to the base is " << ratio << " of the bound");
  CHECK(ratio <= 1);

  layer.set_factors(random_factors<Scalar>(n, m, r, fixture.random));
  layer.forward(X, Y, saved);
  CHECK(fixture.ratio(X, Y, layer.scale()) <= 1);

  layer.initialize(Gaussian{}, fixture.random);  // a start without offset drops the old one
  CHECK(layer.initial_factors().rank() == 0);
}

TEMPLATE_TEST_CASE("strided activations and raw pointers give the same bits", "[adapter][views]", float, double) {
  Fixture<OwnedBase<TestType>> fixture;
  const auto& layer = fixture.layer;
  for (const Index b : {Index{1}, Index{6}, Index{70}}) {
    const auto X = random_rows<TestType>(b, n, fixture.random), dY = random_rows<TestType>(b, m, fixture.random);
    RowMatrix<TestType> Y(b, m), dX(b, n);
    SavedState<TestType> saved;
    auto gradient = layer.zero_gradient();
    layer.forward(X, Y, saved);
    layer.backward(dY, saved, gradient, dX);

    Strided<TestType> wide_X(X), wide_dY(dY), wide_Y(2 * Y), wide_dX(2 * dX);
    Strided<TestType, Eigen::ColMajor> wide_A(0 * gradient.A);
    Strided<TestType, Eigen::RowMajor> wide_B(0 * gradient.B);
    const TestType* x = wide_X.view().data();
    const TestType* dy = wide_dY.view().data();
    TestType* y = wide_Y.view().data();
    TestType* dx = wide_dX.view().data();
    layer.forward({x, b, n, wide_X.stride()}, {y, b, m, wide_Y.stride()}, saved);
    layer.backward({dy, b, m, wide_dY.stride()}, saved,
                   {{wide_A.view().data(), n, r, wide_A.stride()}, {wide_B.view().data(), r, m, wide_B.stride()}},
                   {dx, b, n, wide_dX.stride()});
    CAPTURE(b);
    CHECK(same_bits(wide_Y.view(), Y));
    CHECK(same_bits(wide_dX.view(), dX));
    CHECK(same_bits(wide_A.view(), gradient.A));
    CHECK(same_bits(wide_B.view(), gradient.B));
    CHECK((wide_Y.border_untouched() && wide_dX.border_untouched()));
    CHECK((wide_A.border_untouched() && wide_B.border_untouched()));
  }
}

TEMPLATE_TEST_CASE("an empty batch yields zeros: no rows, and gradients as they were", "[adapter][empty]", float,
                   double) {
  const double dropout = GENERATE(0.0, 0.5);
  Fixture<OwnedBase<TestType>> fixture({.rank = r, .dropout = dropout});
  const auto& layer = fixture.layer;
  const RowMatrix<TestType> X(0, n), dY(0, m);
  RowMatrix<TestType> Y(0, m), dX(0, n);
  SavedState<TestType> saved;
  auto gradient = layer.zero_gradient();
  layer.forward(X, Y, saved, fixture.random);
  layer.backward(dY, saved, gradient, dX);
  layer.backward(dY, saved, gradient);
  CHECK(gradient == layer.zero_gradient());
  const TestType* none = nullptr;
  layer.forward({none, 0, n}, {nullptr, 0, m}, saved, fixture.random);
  layer.backward({none, 0, m}, saved, gradient, {nullptr, 0, n});
  CHECK(gradient == layer.zero_gradient());
}

TEMPLATE_TEST_CASE("a bias is passed through, and an empty one removes it", "[adapter][bias]", float, double) {
  Fixture<OwnedBase<TestType>> fixture;
  auto& layer = fixture.layer;
  CHECK(std::vector<TestType>(layer.bias().begin(), layer.bias().end()) == fixture.bias);
  layer.set_bias({});
  CHECK(layer.bias().empty());
  fixture.bias.clear();
  const auto X = random_rows<TestType>(3, n, fixture.random);
  RowMatrix<TestType> Y(3, m);
  SavedState<TestType> saved;
  layer.forward(X, Y, saved);
  CHECK(fixture.ratio(X, Y, layer.scale()) <= 1);
}

TEMPLATE_TEST_CASE("a layer on the low-rank branch adds to what Y and dX hold", "[adapter][callback]", float, double) {
  Fixture<OwnedBase<TestType>> fixture;
  fixture.layer.set_bias({});
  LoraLinear branch(low_rank_branch<TestType>(n, m), fixture.layer.config());
  branch.set_factors(std::as_const(fixture.layer).factors());

  const auto X = random_rows<TestType>(6, n, fixture.random), dY = random_rows<TestType>(6, m, fixture.random);
  RowMatrix<TestType> Y(6, m), dX(6, n), branch_Y(6, m), branch_dX(6, n);
  SavedState<TestType> saved, branch_saved;
  auto gradient = branch.zero_gradient(), branch_gradient = gradient;
  fixture.layer.forward(X, Y, saved);
  fixture.layer.backward(dY, saved, gradient, dX);

  fixture.of.base.multiply(X, branch_Y);  // the trainer's part
  branch.forward(X, branch_Y, branch_saved);
  fixture.of.base.multiply_transposed(dY, branch_dX);
  branch.backward(dY, branch_saved, branch_gradient, branch_dX);
  CHECK(same_bits(branch_Y, Y));
  CHECK(same_bits(branch_dX, dX));
  CHECK(same_bits(branch_gradient, gradient));
  CHECK(branch.describe() ==
        "LoRA of rank 4, scale 1.5 on callback 37 x 29 " + std::string(sizeof(TestType) == 4 ? "float" : "double"));
}
