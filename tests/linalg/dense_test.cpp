// SPDX-License-Identifier: MIT
#include "support/bases.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/tolerances.hpp"

#include <lora/linalg/dense.hpp>

using namespace lora;
using namespace lora::test;

TEMPLATE_TEST_CASE("the dense matrix of a base in memory is that memory, in either order", "[linalg][dense]", float,
                   double) {
  Random random{15};
  const auto weight = random_columns<TestType>(70, 9, random);
  const Strided<TestType, Eigen::ColMajor> columns(weight);
  const Strided<TestType, Eigen::RowMajor> rows(weight);
  CHECK(same_bits(to_dense(ViewBase<TestType>(columns.view())), weight));
  CHECK(same_bits(to_dense(ViewBase<TestType, Eigen::RowMajor>(rows.view())), weight));
  CHECK(same_bits(to_dense(OwnedBase<TestType>(weight)), weight));
}

TEMPLATE_TEST_CASE("the dense matrix of products alone is exact", "[linalg][dense]", float, double) {
  Random random{16};
  for (const Index n : {Index{1}, Index{63}, Index{64}, Index{65}, Index{150}}) {
    const auto weight = random_columns<TestType>(n, 9, random);
    const CallbackBase<TestType> base(
        n, 9, [&](const ConstRows<TestType>& X, Rows<TestType> Y) { set_product(Y, 1, X, weight); },
        [](const ConstRows<TestType>&, Rows<TestType>) { FAIL("needs no transposed product"); });
    CAPTURE(n);
    CHECK(to_dense(base) == weight);
  }
}

TEMPLATE_TEST_CASE("the dense matrix of a stacked adapter holds its low-rank product", "[linalg][dense]", float,
                   double) {
  Random random{17};
  const BaseCase<LoraLinear<OwnedBase<TestType>>> stacked(70, 9, random);
  const double gamma = rounding_bound<TestType>(layer_roundings(1, 3));  // each unit row makes sums of one term
  const double ratio = worst_ratio(to_dense(stacked.base), stacked.dense, gamma * stacked.magnitude);
  INFO("worst error is " << ratio << " of the bound");
  CHECK(ratio <= 1);
}

TEMPLATE_TEST_CASE("norm and largest element of an operator are those of its dense matrix", "[linalg][dense]", float,
                   double) {
  Random random{18};
  const auto check = [](const auto& op) {
    const auto dense = to_dense(op);
    CHECK(largest_element(op) == static_cast<double>(dense.cwiseAbs().maxCoeff()));
    const auto expected = static_cast<double>(wide(dense).squaredNorm());
    const double error = std::abs(squared_norm(op) - expected) / expected;
    INFO("squared norm off by " << error);
    CHECK(error <= rounding_bound<double>(dense.size()));  // summed in double
  };
  for (const Index n : {1, 64, 150}) {  // less than a block, one block, more
    auto weight = random_columns<TestType>(n, 9, random);
    weight(n - 1, 4) = TestType(-3);  // the largest, in the last block
    const RowMatrix<TestType> by_rows = weight;
    check(ViewBase<TestType>(weight));
    check(ViewBase<TestType, Eigen::RowMajor>(by_rows));
    check(CallbackBase<TestType>(
        n, 9, [&](const ConstRows<TestType>& X, Rows<TestType> Y) { set_product(Y, 1, X, weight); },
        [](const ConstRows<TestType>&, Rows<TestType>) { FAIL("needs no transposed product"); }));
    CHECK(largest_element(ViewBase<TestType>(weight)) == 3);
  }
  const BaseCase<LoraLinear<OwnedBase<TestType>>> stacked(70, 9, random);
  check(stacked.base);
}
