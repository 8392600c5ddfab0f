// SPDX-License-Identifier: MIT
#include "support/allocations.hpp"
#include "support/bases.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/base/packed_base.hpp>
#include <lora/base/view_base.hpp>
#include <lora/core/threads.hpp>
#include <lora/linalg/dense.hpp>

#include <algorithm>
#include <limits>

using namespace lora;
using namespace lora::test;

namespace {

/// Both products of strided rows: the worst error as a share of gamma_n |X| |W0|, and nobody writes beside the results.
template <Real Scalar>
double worst_error(const PackedBase<Scalar>& base, const ColMatrix<Scalar>& weight, Index b, Random& random) {
  const Index n = weight.rows(), m = weight.cols();
  const Strided<Scalar> X(random_rows<Scalar>(b, n, random)), dY(random_rows<Scalar>(b, m, random));
  Strided<Scalar> Y(RowMatrix<Scalar>::Constant(b, m, std::numeric_limits<Scalar>::quiet_NaN()));
  Strided<Scalar> dX(RowMatrix<Scalar>::Constant(b, n, std::numeric_limits<Scalar>::quiet_NaN()));
  base.multiply(X.view(), Y.view());
  base.multiply_transposed(dY.view(), dX.view());
  CHECK(Y.border_untouched());
  CHECK(dX.border_untouched());
  const Wide W0 = wide(weight), wide_X = wide(X.view()), wide_dY = wide(dY.view());
  return std::max(
      worst_ratio(Y.view(), product(wide_X, W0), rounding_bound<Scalar>(n) * product(absolute(wide_X), absolute(W0))),
      worst_ratio(dX.view(), product(wide_dY, W0.transpose()),
                  rounding_bound<Scalar>(m) * product(absolute(wide_dY), absolute(W0.transpose()))));
}

}  // namespace

TEMPLATE_TEST_CASE("a packed base multiplies within gamma_n at every remainder of its tiles", "[base][packed]", float,
                   double) {
  Random random{51};
  double worst = 0;
  for (Index remainder = 0; remainder < 33; ++remainder) {  // a tile is at most 12 x 32
    const Index n = 1 + remainder, m = 1 + (7 * remainder) % 66, b = 1 + (5 * remainder) % 27;
    const auto weight = random_columns<TestType>(n, m, random);
    for (const Packs packs : {Packs::Both, Packs::Forward}) {
      worst = std::max(worst, worst_error(PackedBase<TestType>(weight, packs), weight, b, random));
    }
  }
  const auto weight = random_columns<TestType>(33, 45, random);
  const PackedBase<TestType> both(weight), once(weight, Packs::Forward);
  for (Index b = 0; b < 40; ++b) {
    worst = std::max({worst, worst_error(both, weight, b, random), worst_error(once, weight, b, random)});
  }
  INFO("worst error is " << worst << " of the bound");
  CHECK(worst <= 1);
}

TEMPLATE_TEST_CASE("long sums, many rows and wide weights stay within the bound", "[base][packed]", float, double) {
  struct Sizes {
    Index b, n, m;
  };
  Random random{52};
  const auto [b, n, m] = GENERATE(values<Sizes>({{70, 2100, 35}, {401, 40, 50}, {30, 65, 1100}, {13, 4200, 3}}));
  const auto weight = random_columns<TestType>(n, m, random);
  for (const Packs packs : {Packs::Both, Packs::Forward}) {
    const double worst = worst_error(PackedBase<TestType>(weight, packs), weight, b, random);
    INFO("b " << b << ", n " << n << ", m " << m << ": worst error is " << worst << " of the bound");
    CHECK(worst <= 1);
  }
}

TEST_CASE("a packed base is made from either storage order, a block, or bfloat16", "[base][packed]") {
  Random random{53};
  const auto columns = random_columns<float>(21, 35, random);
  const RowMatrix<float> rows = columns;
  ColMatrix<float> larger = ColMatrix<float>::Zero(30, 40);
  larger.block(3, 2, 21, 35) = columns;
  const PackedBase base{columns};
  CHECK(base == PackedBase{rows});
  CHECK(base == PackedBase{larger.block(3, 2, 21, 35)});
  CHECK(base != PackedBase{columns, Packs::Forward});
  CHECK(base.packs() == Packs::Both);
  CHECK(to_dense(base) == columns);

  const Eigen::Matrix<Eigen::bfloat16, Eigen::Dynamic, Eigen::Dynamic> narrow = columns.cast<Eigen::bfloat16>();
  CHECK(to_dense(PackedBase<float>(narrow)) == narrow.cast<float>());
  CHECK(PackedBase<float>(columns, Packs::Forward).describe() == "packed 21 x 35 float once");
}

TEST_CASE("a packed weight without rows or columns makes zeros, or nothing", "[base][packed]") {
  for (const Packs packs : {Packs::Both, Packs::Forward}) {
    const PackedBase<float> flat(ColMatrix<float>(0, 5), packs), thin(ColMatrix<float>(5, 0), packs);
    for (const Index b : {0, 3, 40}) {
      const RowMatrix<float> none(b, 0), some = RowMatrix<float>::Ones(b, 5);
      RowMatrix<float> Y = RowMatrix<float>::Ones(b, 5), nothing(b, 0);
      flat.multiply(none, Y);
      CHECK(Y.isZero(0));
      flat.multiply_transposed(some, nothing);
      thin.multiply(some, nothing);
      Y.setOnes();
      thin.multiply_transposed(none, Y);
      CHECK(Y.isZero(0));
    }
  }
}

TEST_CASE("NaN and infinity stay in their rows of a packed product", "[base][packed]") {
  Random random{54};
  const PackedBase<float> base(random_columns<float>(19, 40, random));
  auto X = random_rows<float>(14, 19, random);
  X(3, 5) = std::numeric_limits<float>::quiet_NaN();
  X(8, 2) = std::numeric_limits<float>::infinity();
  RowMatrix<float> Y(14, 40);
  base.multiply(X, Y);
  for (Index i = 0; i < 14; ++i) CHECK(Y.row(i).allFinite() == (i != 3 && i != 8));
}

TEMPLATE_TEST_CASE("merging into packs adds s A B, and unmerging restores them bit for bit", "[base][packed][merge]",
                   float, double) {
  constexpr Index n = 43, m = 37, r = 3;
  constexpr double s = 0.3;
  Random random{55};
  auto weight = random_columns<TestType>(n, m, random);
  weight(0, 0) = TestType(-0.0);
  const auto factors = random_factors<TestType>(n, m, r, random);
  const Packs packs = GENERATE(Packs::Both, Packs::Forward);
  PackedBase<TestType> base(weight, packs);
  const auto fresh = base;
  base.merge(factors, s);
  CHECK(base.merged());

  const Wide W0 = wide(weight), A = wide(factors.A), B = wide(factors.B);
  const Wide merged = W0 + static_cast<long double>(s) * product(A, B);
  const Wide bound =
      rounding_bound<TestType>(product_roundings(r)) * (absolute(W0) + s * product(absolute(A), absolute(B)));
  CHECK(worst_ratio(to_dense(base), merged, bound) <= 1);
  const RowMatrix<TestType> identity = RowMatrix<TestType>::Identity(m, m);
  RowMatrix<TestType> back(m, n);  // the pack of the backward product
  base.multiply_transposed(identity, back);
  CHECK(worst_ratio(back, Wide(merged.transpose()), Wide(bound.transpose())) <= 1);
  CHECK(message_of<StateError>([&] { base.merge(factors, s); }) ==
        "PackedBase::merge: unmerge first, got a base with an adapter merged already");

  base.unmerge();
  CHECK(base == fresh);
  CHECK(same_bits(to_dense(base), to_dense(fresh)));
  CHECK(message_of<StateError>([&] { base.unmerge(); }) ==
        "PackedBase::unmerge: needs a merged adapter, got a base without one");
  CHECK(message_of<ShapeError>([&] { base.merge(random_factors<TestType>(n + 1, m, r, random), 1); }) ==
        "PackedBase::merge: A must be 43 x 3, got 44 x 3");
  CHECK(base == fresh);
}

TEST_CASE("a packed product allocates nothing once the thread has seen its largest batch", "[base][packed]") {
  if (!allocations_are_counted) WARN(not_counted);
  Random random{56};
  const auto weight = random_columns<float>(300, 200, random);
  for (const Packs packs : {Packs::Both, Packs::Forward}) {
    CHECK(allocations_of_warm_products(PackedBase<float>(weight, packs), random) == 0);
  }
}
