// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/linalg/batch_gradient.hpp>
#include <lora/linalg/dense.hpp>

#include <limits>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 31, m = 23, tokens = 8 + 5 + 1;

/// Three batches of different sizes, strided, with their mean gradient in long double.
template <Real Scalar>
struct Batches {
  Random random{1};
  Strided<Scalar> X1{random_rows<Scalar>(8, n, random)}, X2{random_rows<Scalar>(5, n, random)},
      X3{random_rows<Scalar>(1, n, random)};
  Strided<Scalar> dY1{random_rows<Scalar>(8, m, random)}, dY2{random_rows<Scalar>(5, m, random)},
      dY3{random_rows<Scalar>(1, m, random)};
  BatchGradient<Scalar> gradient{n, m};
  Wide mean = Wide::Zero(n, m), magnitude = Wide::Zero(n, m);

  Batches() {
    const auto add = [&](const auto& X, const auto& dY) {
      gradient.add(X.view(), dY.view());
      const Wide x = wide(X.view()), dy = wide(dY.view());
      mean += product(x.transpose(), dy) / 3;
      magnitude += product(absolute(x.transpose()), absolute(dy)) / 3;
    };
    add(X1, dY1);
    add(X2, dY2);
    add(X3, dY3);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("a batch gradient multiplies like the mean of X^T dY over its batches", "[linalg][gradient]", float,
                   double) {
  Batches<TestType> batches;
  const auto& gradient = batches.gradient;
  CHECK(gradient.rows() == n);
  CHECK(gradient.cols() == m);
  CHECK(gradient.batches() == 3);
  for (const Index k : {0, 1, 6}) {
    const auto in = random_rows<TestType>(k, n, batches.random), out = random_rows<TestType>(k, m, batches.random);
    RowMatrix<TestType> forth = RowMatrix<TestType>::Constant(k, m, 99), back = RowMatrix<TestType>::Constant(k, n, 99);
    gradient.multiply(in, forth);
    gradient.multiply_transposed(out, back);
    const double gamma = rounding_bound<TestType>(product_roundings(n) + product_roundings(tokens));
    const double forth_ratio =
        worst_ratio(forth, product(wide(in), batches.mean), gamma * product(absolute(wide(in)), batches.magnitude));
    const double back_ratio = worst_ratio(back, product(wide(out), batches.mean.transpose()),
                                          gamma * product(absolute(wide(out)), batches.magnitude.transpose()));
    INFO("worst errors are " << forth_ratio << " and " << back_ratio << " of the bound");
    CHECK(forth_ratio <= 1);
    CHECK(back_ratio <= 1);
  }
}

TEMPLATE_TEST_CASE("norm, elements and largest element of a batch gradient are those of its matrix",
                   "[linalg][gradient]", float, double) {
  const Batches<TestType> batches;
  const auto dense = to_dense(batches.gradient);
  const double gamma = rounding_bound<TestType>(product_roundings(1) + product_roundings(tokens));
  CHECK(worst_ratio(dense, batches.mean, gamma * batches.magnitude) <= 1);
  CHECK(largest_element(batches.gradient) == static_cast<double>(dense.cwiseAbs().maxCoeff()));

  const double norm = batches.gradient.squared_norm();
  const auto expected = static_cast<double>(batches.mean.squaredNorm());
  const auto terms = static_cast<double>(batches.magnitude.squaredNorm());
  const double bound = rounding_bound<TestType>(product_roundings(n) + product_roundings(m) + 2 * tokens) * terms;
  INFO("squared norm " << norm << " for " << expected << ": " << std::abs(norm - expected) / bound << " of the bound");
  CHECK(std::abs(norm - expected) <= bound);
  CHECK(squared_norm(batches.gradient) == norm);  // the free function takes the operator's own
}

TEST_CASE("one batch is its own mean, and is read where it lies", "[linalg][gradient]") {
  Random random{2};
  auto X = random_rows<double>(4, 3, random), dY = random_rows<double>(4, 2, random);
  const BatchGradient<double> gradient(X, dY);
  CHECK(gradient.batches() == 1);
  const double before = gradient.squared_norm();
  dY *= 2;
  CHECK(gradient.squared_norm() == 4 * before);
}

TEST_CASE("bad input to a batch gradient is named and leaves it as it was", "[linalg][gradient][errors]") {
  BatchGradient<double> gradient(6, 4);
  const RowMatrix<double> in = RowMatrix<double>::Ones(2, 6), dY = RowMatrix<double>::Ones(3, 4),
                          narrow = RowMatrix<double>::Ones(3, 5);
  RowMatrix<double> out = RowMatrix<double>::Constant(2, 4, 7), back(2, 6);
  const std::string none = "BatchGradient: needs at least one batch, got none";
  CHECK(message_of<StateError>([&] { gradient.multiply(in, out); }) == none);
  CHECK(message_of<StateError>([&] { gradient.multiply_transposed(out, back); }) == none);
  CHECK(message_of<StateError>([&] { static_cast<void>(gradient.squared_norm()); }) == none);
  CHECK(out == RowMatrix<double>::Constant(2, 4, 7));

  CHECK(message_of<ShapeError>([&] { gradient.add(narrow, dY); }) == "BatchGradient::add: X must be b x 6, got 3 x 5");
  CHECK(message_of<ShapeError>([&] { gradient.add(in, dY); }) == "BatchGradient::add: dY must be 2 x 4, got 3 x 4");
  RowMatrix<double> X = RowMatrix<double>::Ones(3, 6), broken = dY;
  broken(2, 1) = std::numeric_limits<double>::quiet_NaN();
  CHECK(message_of<NumericalError>([&] { gradient.add(X, broken); }) ==
        "BatchGradient::add: dY must be finite, got NaN or infinity");
  X(0, 5) = std::numeric_limits<double>::infinity();
  CHECK(message_of<NumericalError>([&] { gradient.add(X, dY); }) ==
        "BatchGradient::add: X must be finite, got NaN or infinity");
  CHECK(gradient.batches() == 0);

  CHECK(message_of<ShapeError>([&] { gradient.multiply(narrow, out); }) ==
        "BatchGradient::multiply: input must have 6 columns, got 3 x 5");
  CHECK(message_of<ShapeError>([&] { gradient.multiply_transposed(dY, out); }) ==
        "BatchGradient::multiply_transposed: output must be 3 x 6, got 2 x 4");
  CHECK(message_of<ShapeError>([] { BatchGradient<double>(0, 4); }) ==
        "BatchGradient: n and m must be at least 1, got 0 x 4");
  CHECK(message_of<ShapeError>([] { BatchGradient<double>(3, -1); }) ==
        "BatchGradient: n and m must be at least 1, got 3 x -1");
}
