// SPDX-License-Identifier: MIT
// The laws of every frozen base.
#include "support/bases.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <cmath>
#include <type_traits>

using namespace lora;
using namespace lora::test;

#define EVERY_BASE                                                                                                    \
  (OwnedBase<float>), (OwnedBase<double>), (OwnedBase<float, Eigen::RowMajor>), (OwnedBase<double, Eigen::RowMajor>), \
      (ViewBase<float>), (ViewBase<double>), (ViewBase<float, Eigen::RowMajor>), (ViewBase<double, Eigen::RowMajor>), \
      (CallbackBase<float>), (CallbackBase<double>), (PackedBase<float>), (PackedBase<double>), (PackedBf16Base),     \
      (LoraLinear<OwnedBase<float>>), (LoraLinear<OwnedBase<double>>)

namespace {

constexpr Index n = 37, m = 29;

template <class Base>
struct Fixture {
  using Scalar = typename Base::Scalar;
  Random random{21};
  BaseCase<Base> of{n, m, random};
  const Base& base = of.base;
};

}  // namespace

TEMPLATE_TEST_CASE("a base multiplies like the dense matrix it stands for", "[base][laws]", EVERY_BASE) {
  using Scalar = typename TestType::Scalar;
  Fixture<TestType> fixture;
  REQUIRE(fixture.base.rows() == n);
  REQUIRE(fixture.base.cols() == m);
  for (const Index b : {Index{1}, Index{5}, Index{64}}) {
    const auto X = random_rows<Scalar>(b, n, fixture.random);
    RowMatrix<Scalar> Y = RowMatrix<Scalar>::Constant(b, m, 99);
    fixture.base.multiply(X, Y);
    const double gamma = rounding_bound<Scalar>(product_roundings(n) + fixture.of.roundings);
    const double ratio =
        worst_ratio(Y, product(wide(X), fixture.of.dense), gamma * product(absolute(wide(X)), fixture.of.magnitude));
    INFO("b = " << b << ": worst error is " << ratio << " of the bound");
    CHECK(ratio <= 1);
  }
}

TEMPLATE_TEST_CASE("the transposed product of a base is the adjoint of its product", "[base][laws]", EVERY_BASE) {
  using Scalar = typename TestType::Scalar;
  Fixture<TestType> fixture;
  constexpr Index b = 6;
  const auto X = random_rows<Scalar>(b, n, fixture.random), Y = random_rows<Scalar>(b, m, fixture.random);
  RowMatrix<Scalar> XM(b, m), YMt(b, n);
  fixture.base.multiply(X, XM);
  fixture.base.multiply_transposed(Y, YMt);
  const long double left = wide(XM).cwiseProduct(wide(Y)).sum(), right = wide(X).cwiseProduct(wide(YMt)).sum();
  const long double terms = product(absolute(wide(X)), fixture.of.magnitude).cwiseProduct(absolute(wide(Y))).sum();
  const double gamma = rounding_bound<Scalar>(adjoint_roundings(n, m) + 2 * fixture.of.roundings);
  const double ratio = static_cast<double>(std::abs(left - right) / (gamma * terms));
  INFO("<X M, Y> - <X, Y M^T> is " << ratio << " of the bound");
  CHECK(ratio <= 1);
}

TEMPLATE_TEST_CASE("a base takes strided rows, with the same bits as rows without gaps", "[base][laws]", EVERY_BASE) {
  using Scalar = typename TestType::Scalar;
  Fixture<TestType> fixture;
  for (const Index b : {Index{1}, Index{6}, Index{40}}) {
    const auto X = random_rows<Scalar>(b, n, fixture.random), dY = random_rows<Scalar>(b, m, fixture.random);
    RowMatrix<Scalar> Y(b, m), dX(b, n);
    fixture.base.multiply(X, Y);
    fixture.base.multiply_transposed(dY, dX);
    const Strided<Scalar> strided_X(X), strided_dY(dY);
    Strided<Scalar> strided_Y(2 * Y), strided_dX(2 * dX);
    fixture.base.multiply(strided_X.view(), strided_Y.view());
    fixture.base.multiply_transposed(strided_dY.view(), strided_dX.view());
    CAPTURE(b);
    CHECK(same_bits(strided_Y.view(), Y));
    CHECK(same_bits(strided_dX.view(), dX));
    CHECK(strided_Y.border_untouched());
    CHECK(strided_dX.border_untouched());
  }
}

TEMPLATE_TEST_CASE("a base takes an empty batch", "[base][laws]", EVERY_BASE) {
  using Scalar = typename TestType::Scalar;
  const Fixture<TestType> fixture;
  const RowMatrix<Scalar> X(0, n), dY(0, m);
  RowMatrix<Scalar> Y(0, m), dX(0, n);
  CHECK_NOTHROW(fixture.base.multiply(X, Y));
  CHECK_NOTHROW(fixture.base.multiply_transposed(dY, dX));
}

TEMPLATE_TEST_CASE("a base says what it is", "[base][laws]", EVERY_BASE) {
  const Fixture<TestType> fixture;
  CHECK(fixture.base.describe() == fixture.of.description);
}

TEMPLATE_TEST_CASE("a copy of a base gives the same bits", "[base][laws]", EVERY_BASE) {
  using Scalar = typename TestType::Scalar;
  Fixture<TestType> fixture;
  const TestType copy = fixture.base;
  const auto X = random_rows<Scalar>(4, n, fixture.random);
  RowMatrix<Scalar> Y(4, m), Y_copy(4, m);
  fixture.base.multiply(X, Y);
  copy.multiply(X, Y_copy);
  CHECK(same_bits(Y, Y_copy));
  if constexpr (std::equality_comparable<TestType>) CHECK(copy == fixture.base);
}

TEMPLATE_TEST_CASE("a base refuses activations of the wrong shape and writes nothing", "[base][laws][errors]",
                   EVERY_BASE) {
  using Scalar = typename TestType::Scalar;
  const Fixture<TestType> fixture;
  const auto& base = fixture.base;
  // A stacked adapter leaves the check to the base under it.
  const std::string name =
      std::is_same_v<TestType, LoraLinear<OwnedBase<Scalar>>> || fixture.of.description.starts_with("owned")
          ? "OwnedBase"
      : std::is_same_v<TestType, PackedBf16Base>     ? "PackedBf16Base"
      : std::is_same_v<TestType, PackedBase<Scalar>> ? "PackedBase"
      : fixture.of.description.starts_with("view")   ? "ViewBase"
                                                     : "CallbackBase";
  const RowMatrix<Scalar> X(4, n), dY(4, m);
  RowMatrix<Scalar> Y = RowMatrix<Scalar>::Constant(4, m, 7), dX = RowMatrix<Scalar>::Constant(4, n, 7);
  CHECK(message_of<ShapeError>([&] { base.multiply(dY, Y); }) ==
        name + "::multiply: input must have 37 columns, got 4 x 29");
  CHECK(message_of<ShapeError>([&] { base.multiply(X, Y.topRows(3)); }) ==
        name + "::multiply: output must be 4 x 29, got 3 x 29");
  CHECK(message_of<ShapeError>([&] { base.multiply_transposed(X, dX); }) ==
        name + "::multiply_transposed: input must have 29 columns, got 4 x 37");
  CHECK(message_of<ShapeError>([&] { base.multiply_transposed(dY, Y); }) ==
        name + "::multiply_transposed: output must be 4 x 37, got 4 x 29");
  CHECK(Y == RowMatrix<Scalar>::Constant(4, m, 7));
  CHECK(dX == RowMatrix<Scalar>::Constant(4, n, 7));
}
