// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"

#include <lora/core/finite.hpp>

#include <limits>

using namespace lora;
using namespace lora::test;

TEMPLATE_TEST_CASE("one NaN or infinity anywhere is found", "[core][finite]", float, double) {
  using Limits = std::numeric_limits<TestType>;
  Random random{4};
  auto matrix = random_rows<TestType>(3, 37, random);  // longer than a vector register, with a remainder
  REQUIRE(all_finite(ConstRows<TestType>(matrix)));
  for (const TestType bad :
       {Limits::quiet_NaN(), -Limits::quiet_NaN(), Limits::signaling_NaN(), Limits::infinity(), -Limits::infinity()}) {
    for (Index i = 0; i < matrix.rows(); ++i) {
      for (Index j = 0; j < matrix.cols(); ++j) {
        const TestType good = std::exchange(matrix(i, j), bad);
        CAPTURE(bad, i, j);
        CHECK_FALSE(all_finite(Rows<TestType>(matrix)));
        matrix(i, j) = good;
      }
    }
  }
}

TEMPLATE_TEST_CASE("the largest, the smallest and the denormal numbers are finite", "[core][finite]", float, double) {
  using Limits = std::numeric_limits<TestType>;
  RowMatrix<TestType> matrix(2, 3);
  matrix << Limits::max(), Limits::lowest(), Limits::min(), Limits::denorm_min(), -Limits::denorm_min(), TestType(-0.0);
  CHECK(all_finite(ConstRows<TestType>(matrix)));
}

TEMPLATE_TEST_CASE("a matrix without elements is finite", "[core][finite]", float, double) {
  CHECK(all_finite(ConstRows<TestType>(nullptr, 0, 3)));
  CHECK(all_finite(ConstRows<TestType>(nullptr, 3, 0)));
  CHECK(all_finite(ConstColumns<TestType>(nullptr, 3, 0, 5)));
  CHECK(all_finite(ConstRows<TestType>(nullptr, 3, 0, 5)));
}

TEMPLATE_TEST_CASE("what lies between strided rows does not count", "[core][finite]", float, double) {
  RowMatrix<TestType> matrix = RowMatrix<TestType>::Constant(4, 6, std::numeric_limits<TestType>::quiet_NaN());
  matrix.block(1, 1, 2, 4).setOnes();
  CHECK(all_finite(ConstRows<TestType>(matrix.block(1, 1, 2, 4))));
  CHECK_FALSE(all_finite(ConstRows<TestType>(matrix.block(1, 1, 2, 5))));
  CHECK_FALSE(all_finite(ConstRows<TestType>(matrix.block(1, 1, 3, 4))));
}
