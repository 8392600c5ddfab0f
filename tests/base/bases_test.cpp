// SPDX-License-Identifier: MIT
// What only some bases can do: merging, viewing foreign memory, calling the trainer.
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/base/callback_base.hpp>
#include <lora/base/owned_base.hpp>
#include <lora/base/view_base.hpp>

#include <cstddef>
#include <cstring>
#include <limits>
#include <vector>

using namespace lora;
using namespace lora::test;

using FloatColumns = OwnedBase<float>;
using DoubleColumns = OwnedBase<double>;
using FloatRows = OwnedBase<float, Eigen::RowMajor>;
using DoubleRows = OwnedBase<double, Eigen::RowMajor>;

TEMPLATE_TEST_CASE("merging adds s A B, and unmerging restores the weight bit for bit", "[base][merge]", FloatColumns,
                   DoubleColumns, FloatRows, DoubleRows) {
  using Scalar = typename TestType::Scalar;
  constexpr Index n = 23, m = 17, r = 3;
  constexpr double s = 0.3;
  Random random{31};
  typename TestType::Matrix weight = random_columns<Scalar>(n, m, random);
  weight(0, 0) = Scalar(-0.0);  // lost by adding and subtracting
  weight(1, 1) = std::numeric_limits<Scalar>::denorm_min();
  const auto factors = random_factors<Scalar>(n, m, r, random);

  TestType base(weight);
  base.merge(factors, s);
  CHECK(base.merged());
  const Wide W0 = wide(weight), A = wide(factors.A), B = wide(factors.B);
  const double gamma = rounding_bound<Scalar>(product_roundings(r));
  const double ratio = worst_ratio(base.weight(), W0 + static_cast<long double>(s) * product(A, B),
                                   gamma * (absolute(W0) + s * product(absolute(A), absolute(B))));
  INFO("worst error of the merged weight is " << ratio << " of the bound");
  CHECK(ratio <= 1);

  base.unmerge();
  CHECK_FALSE(base.merged());
  CHECK(std::memcmp(base.weight().data(), weight.data(), sizeof(Scalar) * static_cast<std::size_t>(weight.size())) ==
        0);
  CHECK(base == TestType(weight));
  base.merge(factors, s);  // and once more
  base.unmerge();
  CHECK(same_bits(base.weight(), weight));
}

TEST_CASE("merging twice, or unmerging what is not merged, is refused and changes nothing", "[base][merge][errors]") {
  Random random{32};
  OwnedBase<float> base(random_columns<float>(5, 4, random));
  const auto factors = random_factors<float>(5, 4, 2, random);
  const auto fresh = base;
  CHECK(message_of<StateError>([&] { base.unmerge(); }) ==
        "OwnedBase::unmerge: needs a merged adapter, got a base without one");
  CHECK(base == fresh);
  CHECK(message_of<ShapeError>([&] { base.merge(random_factors<float>(6, 4, 2, random), 1); }) ==
        "OwnedBase::merge: A must be 5 x 2, got 6 x 2");
  CHECK(message_of<ShapeError>([&] { base.merge(random_factors<float>(5, 3, 2, random), 1); }) ==
        "OwnedBase::merge: B must be 2 x 4, got 2 x 3");
  CHECK(base == fresh);

  base.merge(factors, 2);
  const auto merged = base;
  CHECK(message_of<StateError>([&] { base.merge(factors, 2); }) ==
        "OwnedBase::merge: unmerge first, got a base with an adapter merged already");
  CHECK(base == merged);
  CHECK(base != fresh);
  base.unmerge();
  CHECK(base == fresh);
}

TEST_CASE("two merged bases are equal only where they unmerge to equal weights", "[base][merge]") {
  OwnedBase<float> one(ColMatrix<float>::Constant(2, 2, 1)), two(ColMatrix<float>::Constant(2, 2, 3));
  const auto factors = [](float a, float b) {
    return Factors<float>{ColMatrix<float>::Constant(2, 1, a), RowMatrix<float>::Constant(1, 2, b)};
  };
  one.merge(factors(1, 4), 1);
  two.merge(factors(1, 2), 1);
  REQUIRE(one.weight() == two.weight());
  CHECK(one != two);
}

TEST_CASE("a view of a weight reads constant foreign memory where it lies", "[base][view]") {
  // PyTorch's weight [m, n] = [2, 3], row by row, inside rows of 5.
  const std::vector<float> memory{1, 2, 3, 0, 0, 4, 5, 6, 0, 0};
  const ViewBase<float> base{memory.data(), 3, 2, 5};
  CHECK(base.weight().data() == memory.data());
  CHECK(base.weight()(2, 0) == 3);
  CHECK(base.weight()(0, 1) == 4);
  const RowMatrix<float> X = RowMatrix<float>::Ones(1, 3);
  RowMatrix<float> Y(1, 2);
  base.multiply(X, Y);
  CHECK(Y(0, 0) == 6);
  CHECK(Y(0, 1) == 15);

  const ViewBase<float, Eigen::RowMajor> conv1d{memory.data(), 2, 3, 5};  // GPT-2's order [n, m]
  CHECK(conv1d.weight()(1, 0) == 4);
  const ViewBase<float> packed{memory.data(), 5, 2};
  CHECK(packed.weight()(0, 1) == 4);
}

TEST_CASE("a view of a weight sees what its owner changes, and equals views of the same memory", "[base][view]") {
  ColMatrix<double> weight = ColMatrix<double>::Zero(3, 2), other = weight;
  const ViewBase<double> base(weight);
  weight(1, 1) = 5;
  CHECK(base.weight()(1, 1) == 5);
  CHECK(base == ViewBase<double>(weight));
  CHECK(base != ViewBase<double>(other));
  CHECK(message_of<ShapeError>([] { ViewBase<double>(nullptr, 3, 2); }) ==
        "View: pointer must not be null for 3 x 2 elements, got null");
  CHECK(message_of<ShapeError>([&] { ViewBase<double>(weight.data(), 3, 2, 1); }) ==
        "View: stride must be at least 3, got 1");
}

TEST_CASE("a callback base hands the trainer the caller's own memory", "[base][callback]") {
  RowMatrix<float> X(2, 3), Y(2, 4);
  const float* seen_in = nullptr;
  const float* seen_out = nullptr;
  const auto look = [&](const ConstRows<float>& in, Rows<float> out) {
    seen_in = in.data();
    seen_out = out.data();
  };
  const CallbackBase<float> base(3, 4, look, look);
  base.multiply(X, Y);
  CHECK(seen_in == X.data());
  CHECK(seen_out == Y.data());
  base.multiply_transposed(Y, X);
  CHECK(seen_in == Y.data());
}

TEST_CASE("a callback base without functions or without a size is refused", "[base][callback][errors]") {
  const CallbackBase<float>::Product nothing = [](const ConstRows<float>&, Rows<float>) {}, empty;
  CHECK(message_of<ShapeError>([&] { CallbackBase<float>(0, 4, nothing, nothing); }) ==
        "CallbackBase: n and m must be at least 1, got 0 x 4");
  CHECK(message_of<ShapeError>([&] { CallbackBase<float>(3, -1, nothing, nothing); }) ==
        "CallbackBase: n and m must be at least 1, got 3 x -1");
  CHECK(message_of<ConfigError>([&] { CallbackBase<float>(3, 4, empty, nothing); }) ==
        "CallbackBase: both products must be callable, got an empty function");
  CHECK(message_of<ConfigError>([&] { CallbackBase<float>(3, 4, nothing, empty); }) ==
        "CallbackBase: both products must be callable, got an empty function");
}
