// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"

#include <lora/core/factors.hpp>

#include <limits>
#include <type_traits>
#include <vector>

using namespace lora;
using namespace lora::test;

TEST_CASE("gradients of threads add up, and only where their shapes agree", "[core]") {
  Random random{77};
  const auto left = random_factors<double>(4, 5, 2, random), right = random_factors<double>(4, 5, 2, random);
  auto sum = left;
  sum += right;
  CHECK(same_bits(sum.A, ColMatrix<double>(left.A + right.A)));
  CHECK(same_bits(sum.B, RowMatrix<double>(left.B + right.B)));
  CHECK(message_of<ShapeError>([&] { sum += Factors<double>::zero(4, 5, 3); }) ==
        "Factors: the A that is added must be 4 x 2, got 4 x 3");
  FactorsView<double>(sum).set_zero();
  CHECK(sum == Factors<double>::zero(4, 5, 2));
}

TEMPLATE_TEST_CASE("zero factors have the shapes of the pair", "[core][factors]", float, double) {
  const auto factors = Factors<TestType>::zero(5, 4, 2);
  CHECK(factors.A == ColMatrix<TestType>::Zero(5, 2));
  CHECK(factors.B == RowMatrix<TestType>::Zero(2, 4));
  CHECK(factors.in_features() == 5);
  CHECK(factors.out_features() == 4);
  CHECK(factors.rank() == 2);
  CHECK(factors.parameters() == 2 * (5 + 4));
}

TEMPLATE_TEST_CASE("a component is contiguous in both factors", "[core][factors]", float, double) {
  auto factors = Factors<TestType>::zero(5, 4, 2);
  CHECK(&factors.A(4, 1) == factors.A.data() + 9);
  CHECK(&factors.B(1, 3) == factors.B.data() + 7);
}

TEMPLATE_TEST_CASE("factors are equal where shapes and values are", "[core][factors]", float, double) {
  Random random{2};
  const auto factors = random_factors<TestType>(5, 4, 2, random);
  auto other = factors;
  CHECK(other == factors);
  other.B(1, 3) += 1;
  CHECK(other != factors);
  other = factors;
  other.A(4, 0) += 1;
  CHECK(other != factors);
  CHECK(Factors<TestType>::zero(5, 4, 2) != Factors<TestType>::zero(4, 5, 2));
  CHECK(Factors<TestType>() == Factors<TestType>());
}

TEMPLATE_TEST_CASE("a sum of gradients is scaled to its mean and cleared in place", "[core][factors]", float, double) {
  Random random{3};
  const auto sum = random_factors<TestType>(5, 4, 2, random);
  auto gradient = sum;
  const auto* address = gradient.A.data();
  gradient *= 0.25;
  CHECK(gradient.A == sum.A / 4);
  CHECK(gradient.B == sum.B / 4);
  gradient.set_zero();
  CHECK(gradient == Factors<TestType>::zero(5, 4, 2));
  CHECK(gradient.A.data() == address);
}

TEST_CASE("a view of factors sees foreign memory and writes through", "[core][factors]") {
  std::vector<float> a(6), b(8);
  FactorsView<float> view{{a.data(), 3, 2}, {b.data(), 2, 4}};
  CHECK(view.in_features() == 3);
  CHECK(view.out_features() == 4);
  CHECK(view.rank() == 2);
  view.A.data()[3] = 5;  // second column, first row
  CHECK(view.A(0, 1) == 5);
  b[5] = 7;
  CHECK(view.B(1, 1) == 7);

  std::vector<double> wide_a(20), wide_b(20);
  const FactorsView<double> strided{{wide_a.data(), 3, 2, 10}, {wide_b.data(), 2, 4, 10}};
  wide_a[10] = 1;
  wide_b[10] = 2;
  CHECK(strided.A(0, 1) == 1);
  CHECK(strided.B(1, 0) == 2);
}

TEST_CASE("factors and views of them convert to the view that only reads", "[core][factors]") {
  auto factors = Factors<float>::zero(3, 4, 2);
  const FactorsView<float> writable = factors;
  const ConstFactorsView<float> from_view = writable, from_factors = factors;
  const Factors<float>& constant = factors;
  const ConstFactorsView<float> from_constant = constant;
  CHECK(from_view.A.data() == factors.A.data());
  CHECK(from_factors.B.data() == factors.B.data());
  CHECK(from_constant.B.data() == factors.B.data());
  CHECK_FALSE(std::is_convertible_v<const Factors<float>&, FactorsView<float>>);
  CHECK_FALSE(std::is_convertible_v<ConstFactorsView<float>, FactorsView<float>>);
  CHECK_FALSE(std::is_copy_assignable_v<FactorsView<float>>);
}

TEMPLATE_TEST_CASE("the difference of two products is one pair, without a rounding", "[core][factors]", float, double) {
  Random random{4};
  const auto factors = random_factors<TestType>(5, 4, 2, random), initial = random_factors<TestType>(5, 4, 3, random);
  const auto both = difference(factors, initial);
  REQUIRE(both.rank() == 5);
  CHECK(same_bits(both.A.leftCols(2), factors.A));
  CHECK(same_bits(both.A.rightCols(3), initial.A));
  CHECK(same_bits(both.B.topRows(2), factors.B));
  CHECK(same_bits(both.B.bottomRows(3), RowMatrix<TestType>(-initial.B)));
  CHECK(difference(factors, Factors<TestType>::zero(5, 4, 0)) == factors);
}

TEST_CASE("products of different shapes have no difference", "[core][factors][errors]") {
  const auto factors = Factors<float>::zero(5, 4, 2);
  CHECK(message_of<ShapeError>([&] { difference(factors, Factors<float>::zero(5, 3, 2)); }) ==
        "difference: both products must be of one shape, got 5 x 4 and 5 x 3");
  CHECK(message_of<ShapeError>([&] { difference(factors, Factors<float>::zero(4, 4, 2)); }) ==
        "difference: both products must be of one shape, got 5 x 4 and 4 x 4");
}

TEST_CASE("factors that disagree about the rank are refused", "[core][factors][errors]") {
  const std::vector<float> memory(12);
  CHECK(message_of<ShapeError>([&] {
          ConstFactorsView<float>{{memory.data(), 3, 2}, {memory.data(), 3, 4}};
        }) == "FactorsView: A (n x r) and B (r x m) must share the rank, got A 3 x 2 and B 3 x 4");
}

TEMPLATE_TEST_CASE("checks of factors name the factor", "[core][factors][errors]", float, double) {
  auto factors = Factors<TestType>::zero(3, 4, 2);
  const ConstFactorsView<TestType> view = factors;
  CHECK_NOTHROW(detail::require_finite(view, "here:"));
  CHECK_NOTHROW(detail::require_factors(view, 3, 4, 2, "here:"));
  CHECK(message_of<ShapeError>([&] { detail::require_factors(view, 5, 4, 2, "here:"); }) ==
        "here: A must be 5 x 2, got 3 x 2");
  CHECK(message_of<ShapeError>([&] { detail::require_factors(view, 3, 5, 2, "here:"); }) ==
        "here: B must be 2 x 5, got 2 x 4");
  factors.B(0, 0) = std::numeric_limits<TestType>::infinity();
  CHECK(message_of<NumericalError>([&] { detail::require_finite(view, "here:"); }) ==
        "here: B must be finite, got NaN or infinity");
  factors.A(0, 0) = std::numeric_limits<TestType>::quiet_NaN();
  CHECK(message_of<NumericalError>([&] { detail::require_finite(view, "here:"); }) ==
        "here: A must be finite, got NaN or infinity");
}
