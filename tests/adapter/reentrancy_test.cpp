// SPDX-License-Identifier: MIT
// What a forward leaves behind belongs to its caller: several uses, threads, changes between forward and backward.
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/starts.hpp"

#include <lora/adapter/lora_linear.hpp>

#include <array>
#include <thread>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 33, m = 21, r = 4, b = 12;

template <Real Scalar>
struct Use {
  RowMatrix<Scalar> X, dY, Y = RowMatrix<Scalar>(b, m), dX = RowMatrix<Scalar>(b, n);
  SavedState<Scalar> saved;

  explicit Use(Random& random) : X(random_rows<Scalar>(b, n, random)), dY(random_rows<Scalar>(b, m, random)) {}
};

template <Real Scalar>
LoraLinear<OwnedBase<Scalar>> make_layer(Random& random, LoraConfig config = {.rank = r, .alpha = 6}) {
  LoraLinear layer{random_columns<Scalar>(n, m, random), config};
  layer.initialize(RandomOffset{}, random);
  layer.set_factors(random_factors<Scalar>(n, m, r, random));
  return layer;
}

}  // namespace

TEMPLATE_TEST_CASE("two forwards before two backwards give the bits of one after the other", "[adapter][reentrancy]",
                   float, double) {
  const double dropout = GENERATE(0.0, 0.3);
  Random random{61};
  const auto layer = make_layer<TestType>(random, {.rank = r, .alpha = 6, .dropout = dropout});
  Use<TestType> one(random), two(random), alone_one = one, alone_two = two;
  Random mask{62}, same_mask = mask;

  auto gradient = layer.zero_gradient(), expected = gradient;
  layer.forward(alone_one.X, alone_one.Y, alone_one.saved, same_mask);
  layer.backward(alone_one.dY, alone_one.saved, expected, alone_one.dX);
  layer.forward(alone_two.X, alone_two.Y, alone_two.saved, same_mask);
  layer.backward(alone_two.dY, alone_two.saved, expected, alone_two.dX);

  layer.forward(one.X, one.Y, one.saved, mask);
  layer.forward(two.X, two.Y, two.saved, mask);
  layer.backward(one.dY, one.saved, gradient, one.dX);
  layer.backward(two.dY, two.saved, gradient, two.dX);
  CHECK(same_bits(gradient, expected));
  CHECK(same_bits(one.Y, alone_one.Y));
  CHECK(same_bits(one.dX, alone_one.dX));
  CHECK(same_bits(two.dX, alone_two.dX));
}

TEMPLATE_TEST_CASE("two threads on one layer give the bits of one thread", "[adapter][reentrancy][threads]", float,
                   double) {
  Random random{63};
  const auto layer = make_layer<TestType>(random);
  std::array<Use<TestType>, 2> uses{Use<TestType>(random), Use<TestType>(random)}, alone = uses;
  std::array<Factors<TestType>, 2> gradients{layer.zero_gradient(), layer.zero_gradient()}, expected = gradients;
  const auto train = [&](Use<TestType>& use, Factors<TestType>& gradient) {
    for (int step = 0; step < 50; ++step) {
      layer.forward(use.X, use.Y, use.saved);
      layer.backward(use.dY, use.saved, gradient, use.dX);
    }
  };
  train(alone[0], expected[0]);
  train(alone[1], expected[1]);
  std::thread first([&] { train(uses[0], gradients[0]); }), second([&] { train(uses[1], gradients[1]); });
  first.join();
  second.join();
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(same_bits(gradients[i], expected[i]));
    CHECK(same_bits(uses[i].Y, alone[i].Y));
    CHECK(same_bits(uses[i].dX, alone[i].dX));
  }
}

TEMPLATE_TEST_CASE("switched off, a layer is its base and trains nothing; switched on, it is as before",
                   "[adapter][switch]", float, double) {
  Random random{64};
  auto layer = make_layer<TestType>(random);
  const std::vector<TestType> bias(m, TestType(0.25));
  layer.set_bias(bias);
  Use<TestType> use(random), off = use;
  layer.forward(use.X, use.Y, use.saved);

  layer.disable();
  CHECK_FALSE(layer.enabled());
  layer.forward(off.X, off.Y, off.saved);
  RowMatrix<TestType> expected(b, m), expected_dX(b, n);
  layer.base().multiply(off.X, expected);
  expected.array() += TestType(0.25);
  CHECK(same_bits(off.Y, expected));
  auto gradient = layer.zero_gradient();
  layer.backward(off.dY, off.saved, gradient, off.dX);
  CHECK(gradient == layer.zero_gradient());
  layer.base().multiply_transposed(off.dY, expected_dX);
  CHECK(same_bits(off.dX, expected_dX));
  RowMatrix<TestType> product(b, m), base_product(b, m);
  layer.multiply(off.X, product);
  layer.base().multiply(off.X, base_product);
  CHECK(same_bits(product, base_product));

  layer.enable();
  RowMatrix<TestType> again(b, m);
  layer.forward(use.X, again, use.saved);
  CHECK(same_bits(again, use.Y));
}

TEMPLATE_TEST_CASE("a forward keeps its own scale for its backward", "[adapter][scale]", float, double) {
  const double dropout = GENERATE(0.0, 0.3);
  Random random{65};
  auto layer = make_layer<TestType>(random, {.rank = r, .alpha = 6, .dropout = dropout});
  Use<TestType> use(random), reference = use;
  Random mask{66}, same_mask = mask;
  auto gradient = layer.zero_gradient(), expected = gradient;
  layer.forward(reference.X, reference.Y, reference.saved, same_mask);
  layer.backward(reference.dY, reference.saved, expected, reference.dX);

  layer.forward(use.X, use.Y, use.saved, mask);
  layer.set_scale(-40);
  layer.backward(use.dY, use.saved, gradient, use.dX);
  CHECK(same_bits(gradient, expected));
  CHECK(same_bits(use.dX, reference.dX));
}

TEMPLATE_TEST_CASE("a scale of zero silences the branch, a negative one subtracts it", "[adapter][scale]", float,
                   double) {
  Random random{67};
  auto layer = make_layer<TestType>(random);
  CHECK(layer.scale() == 1.5);
  Use<TestType> plus(random), zero = plus, minus = plus;
  layer.forward(plus.X, plus.Y, plus.saved);
  layer.set_scale(0);
  layer.forward(zero.X, zero.Y, zero.saved);
  layer.set_scale(-1.5);
  CHECK(layer.scale() == -1.5);
  layer.forward(minus.X, minus.Y, minus.saved);
  RowMatrix<TestType> base(b, m);
  layer.base().multiply(zero.X, base);
  CHECK(zero.Y == base);
  CHECK((plus.Y + minus.Y).isApprox(2 * base));
}

TEMPLATE_TEST_CASE("a copy of a layer is an independent equal value", "[adapter][value]", float, double) {
  Random random{68};
  auto layer = make_layer<TestType>(random);
  layer.set_bias(std::vector<TestType>(m, TestType(1)));
  auto copy = layer;
  CHECK(copy == layer);
  copy.factors().A(0, 0) += 1;
  CHECK(copy != layer);
  copy = layer;
  CHECK(copy == layer);
  copy.set_scale(0.1);
  CHECK(copy != layer);
  copy = layer;
  copy.disable();
  CHECK(copy != layer);
  copy = layer;
  copy.set_bias({});
  CHECK(copy != layer);
  copy = layer;
  copy.merge();
  CHECK(copy != layer);
  CHECK_FALSE(layer.merged());
  copy.unmerge();
  CHECK(copy == layer);
}
