// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/init/dense_gradient.hpp>
#include <lora/linalg/batch_gradient.hpp>
#include <lora/linalg/dense.hpp>

#include <limits>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 19, m = 14;

}  // namespace

TEMPLATE_TEST_CASE("a dense gradient, a batch gradient and the explicit mean over batches are one matrix",
                   "[init][gradient]", float, double) {
  Random random{1};
  const Strided<TestType> X1(random_rows<TestType>(8, n, random)), dY1(random_rows<TestType>(8, m, random));
  const auto X2 = random_rows<TestType>(3, n, random), dY2 = random_rows<TestType>(3, m, random);
  DenseGradient<TestType> dense(n, m);
  BatchGradient<TestType> batches(n, m);
  CHECK(dense.rows() == n);
  CHECK(dense.cols() == m);
  dense.add(X1.view(), dY1.view());
  dense.add(X2, dY2);
  batches.add(X1.view(), dY1.view());
  batches.add(X2, dY2);
  CHECK(dense.batches() == 2);
  CHECK(batches.batches() == 2);

  const Wide x1 = wide(X1.view()), x2 = wide(X2), dy1 = wide(dY1.view()), dy2 = wide(dY2);
  const Wide expected = (product(x1.transpose(), dy1) + product(x2.transpose(), dy2)) / 2;
  const Wide terms =
      (product(absolute(x1.transpose()), absolute(dy1)) + product(absolute(x2.transpose()), absolute(dy2))) / 2;
  const Wide bound = rounding_bound<TestType>(product_roundings(1) + product_roundings(8 + 3)) * terms;
  CHECK(worst_ratio(dense.mean(), expected, bound) <= 1);
  CHECK(worst_ratio(to_dense(dense), expected, bound) <= 1);
  CHECK(worst_ratio(to_dense(batches), expected, bound) <= 1);

  const auto in = random_rows<TestType>(4, n, random), out = random_rows<TestType>(4, m, random);
  RowMatrix<TestType> forth(4, m), back(4, n);
  dense.multiply(in, forth);
  dense.multiply_transposed(out, back);
  const double gamma = rounding_bound<TestType>(product_roundings(n) + product_roundings(8 + 3));
  CHECK(worst_ratio(forth, product(wide(in), expected), gamma * product(absolute(wide(in)), terms)) <= 1);
  CHECK(worst_ratio(back, product(wide(out), expected.transpose()),
                    gamma * product(absolute(wide(out)), terms.transpose())) <= 1);
}

TEMPLATE_TEST_CASE("gradients that the trainer has formed are added in either storage order", "[init][gradient]", float,
                   double) {
  Random random{2};
  const auto by_columns = random_columns<TestType>(n, m, random);
  const RowMatrix<TestType> by_rows = 3 * by_columns;
  const Strided<TestType> strided(by_rows);
  DenseGradient<TestType> gradient(n, m);
  gradient.add(by_columns);
  CHECK(same_bits(gradient.mean(), by_columns));  // one batch is its own mean
  gradient.add(by_rows);
  gradient.add(strided.view());
  CHECK(gradient.batches() == 3);
  const double bound = rounding_bound<TestType>(product_roundings(3));
  CHECK(worst_ratio(gradient.mean(), wide(by_columns) * 7 / 3, absolute(wide(by_columns)) * (7 * bound / 3)) <= 1);
}

TEMPLATE_TEST_CASE("the sign of a gradient is that of its mean, element by element", "[init][gradient]", float,
                   double) {
  Random random{3};
  auto G = random_columns<TestType>(n, m, random);
  G(2, 3) = 0;
  DenseGradient<TestType> gradient(n, m);
  gradient.add(G);
  gradient.add(G);
  const auto signs = gradient.sign();
  CHECK(signs.batches() == 1);
  CHECK(same_bits(signs.mean(), ColMatrix<TestType>(G.cwiseSign())));
  CHECK(signs.mean()(2, 3) == 0);
  CHECK(same_bits(gradient.mean(), G));  // itself unchanged
}

TEST_CASE("bad input to a dense gradient is named and leaves it as it was", "[init][gradient][errors]") {
  DenseGradient<double> gradient(6, 4);
  const std::string none = "DenseGradient: needs at least one batch, got none";
  RowMatrix<double> in = RowMatrix<double>::Ones(2, 6), out = RowMatrix<double>::Constant(2, 4, 7), back(2, 6);
  CHECK(message_of<StateError>([&] { static_cast<void>(gradient.mean()); }) == none);
  CHECK(message_of<StateError>([&] { static_cast<void>(gradient.sign()); }) == none);
  CHECK(message_of<StateError>([&] { gradient.multiply(in, out); }) == none);
  CHECK(message_of<StateError>([&] { gradient.multiply_transposed(out, back); }) == none);
  CHECK(out == RowMatrix<double>::Constant(2, 4, 7));

  ColMatrix<double> G = ColMatrix<double>::Ones(6, 4);
  gradient.add(G);
  const RowMatrix<double> dY = RowMatrix<double>::Ones(2, 4), narrow = RowMatrix<double>::Ones(2, 3);
  const ColMatrix<double> wrong = ColMatrix<double>::Ones(6, 5);
  CHECK(message_of<ShapeError>([&] { gradient.add(wrong); }) ==
        "DenseGradient::add: gradient must be 6 x 4, got 6 x 5");
  CHECK(message_of<ShapeError>([&] { gradient.add(dY, dY); }) == "DenseGradient::add: X must be b x 6, got 2 x 4");
  CHECK(message_of<ShapeError>([&] { gradient.add(in, narrow); }) == "DenseGradient::add: dY must be 2 x 4, got 2 x 3");
  G(5, 1) = std::numeric_limits<double>::quiet_NaN();
  CHECK(message_of<NumericalError>([&] { gradient.add(G); }) ==
        "DenseGradient::add: gradient must be finite, got NaN or infinity");
  in(1, 1) = std::numeric_limits<double>::infinity();
  CHECK(message_of<NumericalError>([&] { gradient.add(in, dY); }) ==
        "DenseGradient::add: X must be finite, got NaN or infinity");
  CHECK(gradient.batches() == 1);
  CHECK(gradient.mean() == ColMatrix<double>::Ones(6, 4));

  CHECK(message_of<ShapeError>([] { DenseGradient<double>(0, 4); }) ==
        "DenseGradient: n and m must be at least 1, got 0 x 4");
}
