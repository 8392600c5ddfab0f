// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/starts.hpp"
#include "support/tolerances.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/init/gaussian.hpp>
#include <lora/init/kaiming_uniform.hpp>
#include <lora/init/zeros.hpp>

#include <cmath>
#include <limits>

using namespace lora;
using namespace lora::test;

namespace {

struct Moments {
  double mean, variance, smallest, largest;
};

template <class Matrix>
Moments moments(const Matrix& matrix) {
  const Eigen::ArrayXXd values = matrix.template cast<double>();
  return {values.mean(), (values - values.mean()).square().mean(), values.minCoeff(), values.maxCoeff()};
}

/// A user-written start: A0 the first r unit vectors, B0 the first r rows of -G / s, read through products alone.
struct FirstRows {
  template <FrozenBase Base, LinearOperator Gradient>
  Start<typename Base::Scalar> operator()(const Base& base, const Gradient& gradient, Index rank, double scale,
                                          Random& /*random*/) const {
    using Scalar = typename Base::Scalar;
    auto factors = Factors<Scalar>::zero(base.rows(), base.cols(), rank);
    RowMatrix<Scalar> rows = RowMatrix<Scalar>::Zero(rank, gradient.rows());
    rows.leftCols(rank).setIdentity();
    factors.A = rows.transpose();
    gradient.multiply(rows, factors.B);
    factors.B *= static_cast<Scalar>(-1 / scale);
    return {factors, Offset::None};
  }
};
static_assert(GradientInitializer<FirstRows, OwnedBase<float>, ViewBase<float>>);
static_assert(Initializer<RandomOffset, ViewBase<double>> && !Initializer<FirstRows, ViewBase<double>>);

}  // namespace

TEMPLATE_TEST_CASE("kaiming-uniform draws A from U(-1/sqrt n, 1/sqrt n) and leaves B zero", "[init]", float, double) {
  constexpr Index n = 400, m = 250, r = 250;
  Random random{101};
  LoraLinear layer(OwnedBase<TestType>(ColMatrix<TestType>::Zero(n, m)), {.rank = r});
  layer.initialize(KaimingUniform{}, random);
  const auto& factors = std::as_const(layer).factors();
  const auto [mean, variance, smallest, largest] = moments(factors.A);
  const double bound = 1 / std::sqrt(400.0), count = n * r;
  INFO("mean " << mean << ", variance " << variance << ", range [" << smallest << ", " << largest << "]");
  CHECK(smallest >= -static_cast<double>(static_cast<TestType>(bound)));
  CHECK(largest <= static_cast<double>(static_cast<TestType>(bound)));
  CHECK(largest - smallest > 1.99 * bound);
  CHECK(std::abs(mean) < standard_errors * bound / std::sqrt(3 * count));  // Var u = bound^2 / 3
  CHECK(std::abs(variance - bound * bound / 3) <                           // Var u^2 = 4 bound^4 / 45
        standard_errors * bound * bound * std::sqrt(4.0 / 45 / count));
  CHECK(factors.B == RowMatrix<TestType>::Zero(r, m));
  CHECK(layer.initial_factors().rank() == 0);
}

TEMPLATE_TEST_CASE("gaussian draws A from N(0, 1/r^2) and leaves B zero", "[init]", float, double) {
  constexpr Index n = 500, m = 200, r = 200;
  Random random{102};
  LoraLinear layer(OwnedBase<TestType>(ColMatrix<TestType>::Zero(n, m)), {.rank = r});
  layer.initialize(Gaussian{}, random);
  const auto& factors = std::as_const(layer).factors();
  const auto [mean, variance, smallest, largest] = moments(factors.A);
  const double deviation = 1.0 / r, count = n * r;
  INFO("mean " << mean << ", variance " << variance << ", range [" << smallest << ", " << largest << "]");
  CHECK(std::abs(mean) < standard_errors * deviation / std::sqrt(count));
  CHECK(std::abs(variance - deviation * deviation) < standard_errors * deviation * deviation * std::sqrt(2 / count));
  CHECK(largest > 3 * deviation);
  CHECK(factors.B == RowMatrix<TestType>::Zero(r, m));
}

TEMPLATE_TEST_CASE("zeros are zero, and draw nothing", "[init]", float, double) {
  Random random{103};
  const Random before = random;
  LoraLinear layer(OwnedBase<TestType>(ColMatrix<TestType>::Zero(5, 4)), {.rank = 2});
  layer.set_factors(random_factors<TestType>(5, 4, 2, random));
  random = before;
  layer.initialize(Zeros{}, random);
  CHECK(std::as_const(layer).factors() == Factors<TestType>::zero(5, 4, 2));
  CHECK(random == before);
}

TEMPLATE_TEST_CASE("the first factors of seed 42 are pinned", "[init]", float, double) {
  // Column by column. In float each is the double rounded once.
  constexpr double kaiming[] = {0x1.73a37b49baf5ep-2, -0x1.ac74f39fd147dp-3, 0x1.1e14daba8a799p-1,
                                0x1.dba69d0310ea3p-3, 0x1.5b0b2b2844a46p-2,  0x1.a0acdab03febcp-4};
  constexpr double gaussian[] = {0x1.c9a9c14cfb0ffp-2, -0x1.e24d5486f05dbp-3, 0x1.1225a771ccf75p+0,
                                 0x1.0e2aaf8f6f889p-2, 0x1.a324f849926d1p-2,  0x1.c7fffdbf387b8p-4};
  const ColMatrix<TestType> W0 = ColMatrix<TestType>::Zero(3, 4);
  LoraLinear layer{W0, {.rank = 2}};
  Random random{42};
  layer.initialize(KaimingUniform{}, random);
  for (Index i = 0; i < 6; ++i)
    CHECK(std::as_const(layer).factors().A.reshaped()(i) == static_cast<TestType>(kaiming[i]));
  random = Random{42};
  layer.initialize(Gaussian{}, random);
  for (Index i = 0; i < 6; ++i)
    CHECK(std::as_const(layer).factors().A.reshaped()(i) == static_cast<TestType>(gaussian[i]));
}

TEMPLATE_TEST_CASE("equal seeds give equal bits, on any base of the shape", "[init]", float, double) {
  Random random{104};
  const auto W0 = random_columns<TestType>(9, 7, random);
  LoraLinear viewed{W0, {.rank = 3}};
  LoraLinear owned{OwnedBase<TestType, Eigen::RowMajor>(W0), {.rank = 3}};
  Random one{7}, two{7}, other{8};
  viewed.initialize(KaimingUniform{}, one);
  owned.initialize(KaimingUniform{}, two);
  CHECK(same_bits(std::as_const(viewed).factors(), std::as_const(owned).factors()));
  CHECK(one == two);
  viewed.initialize(KaimingUniform{}, other);
  CHECK(std::as_const(viewed).factors() != std::as_const(owned).factors());
}

TEMPLATE_TEST_CASE("a gradient initializer of the user's reads the gradient as an operator", "[init]", float, double) {
  Random random{105};
  const auto W0 = random_columns<TestType>(6, 5, random), G = random_columns<TestType>(6, 5, random);
  LoraLinear layer{W0, {.rank = 2, .alpha = 4}};
  const ViewBase<TestType> gradient(G);
  layer.initialize(FirstRows{}, gradient, random);
  // s A B = -(the first two rows of G): s = 2 divides without rounding
  const RowMatrix<TestType> expected = G.topRows(2) / TestType(-2);
  CHECK(same_bits(std::as_const(layer).factors().B, expected));

  const auto before = layer;
  const ViewBase<TestType> transposed_gradient(G.data(), 5, 6);
  CHECK(message_of<ShapeError>([&] { layer.initialize(FirstRows{}, transposed_gradient, random); }) ==
        "LoraLinear::initialize: gradient must be 6 x 5, got 5 x 6");
  CHECK(layer == before);
}

TEMPLATE_TEST_CASE("a start that is unfit is refused, and the layer stays as it was", "[init][errors]", float, double) {
  Random random{106};
  const auto W0 = random_columns<TestType>(6, 5, random);
  LoraLinear layer{W0, {.rank = 2}};
  layer.initialize(RandomOffset{}, random);
  const auto before = layer;
  auto factors = Factors<TestType>::zero(5, 5, 2);
  const auto start = [&] { layer.initialize(Given<TestType>{factors, Offset::None}, random); };
  CHECK(message_of<ShapeError>(start) == "LoraLinear::initialize: start A must be 6 x 2, got 5 x 2");
  factors = Factors<TestType>::zero(6, 4, 2);
  CHECK(message_of<ShapeError>(start) == "LoraLinear::initialize: start B must be 2 x 5, got 2 x 4");
  factors = Factors<TestType>::zero(6, 5, 3);
  CHECK(message_of<ShapeError>(start) == "LoraLinear::initialize: start A must be 6 x 2, got 6 x 3");
  factors = {ColMatrix<TestType>::Zero(6, 2), RowMatrix<TestType>::Zero(3, 5)};
  CHECK(message_of<ShapeError>(start) ==
        "FactorsView: A (n x r) and B (r x m) must share the rank, got A 6 x 2 and B 3 x 5");
  factors = Factors<TestType>::zero(6, 5, 2);
  factors.A(3, 1) = std::numeric_limits<TestType>::quiet_NaN();
  CHECK(message_of<NumericalError>(start) == "LoraLinear::initialize: start A must be finite, got NaN or infinity");
  factors = Factors<TestType>::zero(6, 5, 2);
  factors.B(1, 4) = std::numeric_limits<TestType>::infinity();
  CHECK(message_of<NumericalError>(start) == "LoraLinear::initialize: start B must be finite, got NaN or infinity");
  CHECK(layer == before);
}
