// SPDX-License-Identifier: MIT
// Operators made of others: a low-rank product, a difference.
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/base/callback_base.hpp>
#include <lora/base/view_base.hpp>
#include <lora/linalg/dense.hpp>
#include <lora/linalg/difference_operator.hpp>
#include <lora/linalg/low_rank_product.hpp>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 130, m = 41, r = 3, b = 9;

}  // namespace

TEMPLATE_TEST_CASE("a low-rank product multiplies as its matrix does", "[linalg]", float, double) {
  Random random{1};
  const auto factors = random_factors<TestType>(n, m, r, random);
  const LowRankProduct op(factors, 1.5);
  const Wide A = wide(factors.A), B = wide(factors.B);
  const auto X = random_rows<TestType>(b, n, random), dY = random_rows<TestType>(b, m, random);
  RowMatrix<TestType> Y(b, m), dX(b, n);
  op.multiply(X, Y);
  op.multiply_transposed(dY, dX);
  const double bound = rounding_bound<TestType>(layer_roundings(n, r));
  CHECK(worst_ratio(Y, 1.5L * product(product(wide(X), A), B),
                    bound * 1.5L * product(product(absolute(wide(X)), absolute(A)), absolute(B))) <= 1);
  CHECK(worst_ratio(dX, 1.5L * product(product(wide(dY), B.transpose()), A.transpose()),
                    bound * 1.5L *
                        product(product(absolute(wide(dY)), absolute(B.transpose())), absolute(A.transpose()))) <= 1);
  CHECK(message_of<ShapeError>([&] { op.multiply(dY, Y); }) ==
        "LowRankProduct::multiply: input must have 130 columns, got 9 x 41");
}

TEMPLATE_TEST_CASE("a difference multiplies as the difference of the matrices, and its norm is theirs", "[linalg]",
                   float, double) {
  Random random{2};
  const auto W1 = random_columns<TestType>(n, m, random);
  const auto W0 = random_rows<TestType>(n, m, random);
  const auto factors = random_factors<TestType>(n, m, r, random);
  const ViewBase after(W1);
  const ViewBase before(W0);
  const DifferenceOperator change(after, before);
  const LowRankProduct low(factors, -2);
  const DifferenceOperator rest(change, low);  // of rows in memory and of products
  const Wide expected = wide(W1) - wide(W0) + 2 * product(wide(factors.A), wide(factors.B));
  const Wide magnitude =
      absolute(wide(W1)) + absolute(wide(W0)) + 2 * product(absolute(wide(factors.A)), absolute(wide(factors.B)));
  const double bound = rounding_bound<TestType>(product_roundings(r) + 2);
  CHECK(worst_ratio(to_dense(rest), expected, bound * magnitude) <= 1);
  const double norm = static_cast<double>(expected.norm()), off = bound * static_cast<double>(magnitude.norm());
  CHECK(std::abs(std::sqrt(squared_norm(rest)) - norm) <= off);

  const auto Y = random_rows<TestType>(b, m, random);
  RowMatrix<TestType> X(b, n);
  rest.multiply_transposed(Y, X);
  CHECK(worst_ratio(X, product(wide(Y), expected.transpose()),
                    2 * rounding_bound<TestType>(layer_roundings(m, r)) *
                        product(absolute(wide(Y)), magnitude.transpose())) <= 1);

  const auto multiply = [&](const ConstRows<TestType>& in, Rows<TestType> out) { set_product(out, 1, in, W1); };
  const auto transposed = [&](const ConstRows<TestType>& in, Rows<TestType> out) {
    set_product(out, 1, in, W1.transpose());
  };
  const CallbackBase<TestType> unseen(n, m, multiply, transposed);
  CHECK(squared_norm(DifferenceOperator(unseen, before)) == squared_norm(change));  // unit rows are exact
  const auto small = random_columns<TestType>(4, m, random);
  const ViewBase other(small);
  CHECK(message_of<ShapeError>([&] { DifferenceOperator(after, other); }) ==
        "DifferenceOperator: the operator that is subtracted must be 130 x 41, got 4 x 41");
}
