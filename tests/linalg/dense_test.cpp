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
