// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/linalg/product.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

using namespace lora;
using namespace lora::test;

namespace {

struct Sizes {
  Index rows, depth, cols;
};

/// Operands and Y's old values, with alpha L R and |alpha| |L| |R| by a triple loop in long double.
template <Real Scalar>
struct Problem {
  RowMatrix<Scalar> L, R, start;
  double alpha, gamma;
  Wide exact, terms;

  Problem(Sizes sizes, double factor, Random& random)
      : L(random_rows<Scalar>(sizes.rows, sizes.depth, random)),
        R(random_rows<Scalar>(sizes.depth, sizes.cols, random)),
        start(random_rows<Scalar>(sizes.rows, sizes.cols, random)),
        alpha(factor),
        gamma(rounding_bound<Scalar>(product_roundings(sizes.depth))),
        exact(static_cast<long double>(alpha) * product(wide(L), wide(R))),
        terms(std::abs(static_cast<long double>(alpha)) * product(absolute(wide(L)), absolute(wide(R)))) {}
};

/// The product of strided operands in given orders: its worst error as a share of the bound.
template <Real Scalar, int YOrder, int LOrder, int ROrder>
double worst_in_order(const Problem<Scalar>& problem) {
  const Strided<Scalar, LOrder> L(problem.L);
  const Strided<Scalar, ROrder> R(problem.R);
  Strided<Scalar, YOrder> added(problem.start), again(problem.start);
  add_product(added.view(), problem.alpha, L.view(), R.view());
  add_product(again.view(), problem.alpha, L.view(), R.view());
  CHECK(same_bits(added.view(), again.view()));
  CHECK(added.border_untouched());
  Strided<Scalar, YOrder> set(problem.start * std::numeric_limits<Scalar>::quiet_NaN());
  set_product(set.view(), problem.alpha, L.view(), R.view());
  CHECK(set.border_untouched());

  const Wide sum = wide(problem.start) + problem.exact, sum_terms = absolute(wide(problem.start)) + problem.terms;
  return std::max(worst_ratio(added.view(), sum, problem.gamma * sum_terms),
                  worst_ratio(set.view(), problem.exact, problem.gamma * problem.terms));
}

template <Real Scalar>
double worst_of_all_orders(Sizes sizes, double alpha, Random& random) {
  constexpr int row = Eigen::RowMajor, column = Eigen::ColMajor;
  const Problem<Scalar> problem(sizes, alpha, random);
  const std::array<double, 8> ratios{
      worst_in_order<Scalar, row, row, row>(problem),       worst_in_order<Scalar, row, row, column>(problem),
      worst_in_order<Scalar, row, column, row>(problem),    worst_in_order<Scalar, row, column, column>(problem),
      worst_in_order<Scalar, column, row, row>(problem),    worst_in_order<Scalar, column, row, column>(problem),
      worst_in_order<Scalar, column, column, row>(problem), worst_in_order<Scalar, column, column, column>(problem)};
  return *std::max_element(ratios.begin(), ratios.end());
}

}  // namespace

TEMPLATE_TEST_CASE("a product in any storage orders stays within the a-priori bound of a triple loop",
                   "[linalg][product]", float, double) {
  Random random{12};
  const auto sizes = GENERATE(values<Sizes>({{0, 3, 4},
                                             {3, 0, 4},
                                             {3, 4, 0},
                                             {1, 1, 1},
                                             {1, 17, 9},
                                             {9, 17, 1},
                                             {1, 1, 30},
                                             {30, 1, 1},
                                             {2, 3, 4},
                                             {7, 8, 9},
                                             {8, 8, 8},
                                             {15, 16, 17},
                                             {16, 4, 16},
                                             {17, 1, 31},
                                             {33, 15, 7},
                                             {31, 33, 32}}));
  for (const double alpha : {1.0, -0.7, 0.0, 3.1}) {
    const double ratio = worst_of_all_orders<TestType>(sizes, alpha, random);
    INFO(sizes.rows << " x " << sizes.depth << " x " << sizes.cols << ", alpha " << alpha << ": worst error is "
                    << ratio << " of the bound");
    CHECK(ratio <= 1);
  }
}

TEMPLATE_TEST_CASE("products with a small dimension stay within the bound at every remainder of the kernels' tiles",
                   "[linalg][product]", float, double) {
  // Ranks around the tiles' 3 to 12 rows and the limit of 64, batches and widths of every remainder of 6 and 32.
  Random random{19};
  double worst = 0;
  for (const Index r : {1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 16, 25, 63, 64, 65}) {
    const Index b = 8 + 5 * r % 37, n = 65 + 3 * r % 67;
    for (const Sizes& sizes : {Sizes{b, n, r}, Sizes{r, b, n}, Sizes{n, b, r}, Sizes{b, r, n}}) {
      worst = std::max(worst, worst_of_all_orders<TestType>(sizes, 0.3, random));
    }
  }
  for (Index remainder = 0; remainder < 32; ++remainder) {
    for (const Sizes& sizes : {Sizes{16 + remainder, 32 + remainder, 3}, Sizes{3, 9 + remainder, 32 + remainder}}) {
      worst = std::max(worst, worst_of_all_orders<TestType>(sizes, -0.7, random));
    }
  }
  worst = std::max(worst, worst_of_all_orders<TestType>({5, 600, 40}, 0.3, random));  // several stretches of the sum
  INFO("worst error is " << worst << " of the bound");
  CHECK(worst <= 1);
}

TEMPLATE_TEST_CASE("products whose packed panels exceed Eigen's stack limit of 128 KiB stay within the bound",
                   "[linalg][product]", float, double) {
  Random random{13};
  const auto sizes = GENERATE(values<Sizes>({{130, 700, 97}, {257, 129, 301}, {1, 70'000, 1}, {3, 40'000, 1}}));
  const double ratio = worst_of_all_orders<TestType>(sizes, 0.3, random);
  INFO(sizes.rows << " x " << sizes.depth << " x " << sizes.cols << ": worst error is " << ratio << " of the bound");
  CHECK(ratio <= 1);
}

TEMPLATE_TEST_CASE("the strides of the operands do not change a bit of the product", "[linalg][product]", float,
                   double) {
  Random random{14};
  const auto sizes = GENERATE(values<Sizes>({{1, 40, 30}, {40, 30, 1}, {3, 4, 5}, {19, 37, 41}, {64, 130, 65}}));
  const auto L = random_rows<TestType>(sizes.rows, sizes.depth, random);
  const auto R = random_rows<TestType>(sizes.depth, sizes.cols, random);
  RowMatrix<TestType> Y = RowMatrix<TestType>::Ones(sizes.rows, sizes.cols);
  const Strided<TestType> strided_L(L), strided_R(R);
  Strided<TestType> strided_Y(Y);
  add_product(Y, 0.3, L, R);
  add_product(strided_Y.view(), 0.3, strided_L.view(), strided_R.view());
  CHECK(same_bits(strided_Y.view(), Y));
}

TEST_CASE("sizes that do not fit are refused with all three shapes", "[linalg][product][errors]") {
  RowMatrix<float> Y = RowMatrix<float>::Constant(2, 4, 5);
  const RowMatrix<float> L(2, 3), R(3, 4), wrong(4, 4);
  CHECK(message_of<ShapeError>([&] { add_product(Y, 1, L, wrong); }) ==
        "add_product: Y += L R needs fitting sizes, got Y 2 x 4, L 2 x 3, R 4 x 4");
  CHECK(message_of<ShapeError>([&] { add_product(Y, 1, wrong, wrong); }) ==
        "add_product: Y += L R needs fitting sizes, got Y 2 x 4, L 4 x 4, R 4 x 4");
  CHECK(message_of<ShapeError>([&] { add_product(Y, 1, L, RowMatrix<float>(3, 5)); }) ==
        "add_product: Y += L R needs fitting sizes, got Y 2 x 4, L 2 x 3, R 3 x 5");
  CHECK(message_of<ShapeError>([&] { set_product(Y, 1, L, wrong); }) ==
        "set_product: Y = L R needs fitting sizes, got Y 2 x 4, L 2 x 3, R 4 x 4");
  CHECK(Y == RowMatrix<float>::Constant(2, 4, 5));
}
