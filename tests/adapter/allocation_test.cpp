// SPDX-License-Identifier: MIT
// No heap allocation in forward and backward once they are warm.
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/starts.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/init/kaiming_uniform.hpp>

#include <memory>
#include <thread>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

struct Sizes {
  Index b, n, m, r;
};

/// One training step on `b` rows of buffers that exist; the number of heap allocations in it.
template <class Layer, Real Scalar>
long allocations_of_step(const Layer& layer, Index b, RowMatrix<Scalar>& X, RowMatrix<Scalar>& Y, RowMatrix<Scalar>& dX,
                         SavedState<Scalar>& saved, Factors<Scalar>& gradient, Random& random) {
  const auto x = X.topRows(b);
  auto y = Y.topRows(b), dx = dX.topRows(b);
  return allocations_in([&] {
    layer.forward(x, y, saved, random);
    layer.backward(y, saved, gradient, dx);
    layer.forward(x, y, saved, random);
    layer.backward(y, saved, gradient);
  });
}

}  // namespace

TEST_CASE("the counter sees malloc, new and Eigen's own memory", "[adapter][allocations]") {
  if (!allocations_are_counted) {
    WARN(not_counted);
    return;
  }
  void* volatile kept = nullptr;
  CHECK(allocations_in([&] { kept = std::malloc(10); }) == 1);
  CHECK(allocations_in([&] { kept = std::realloc(kept, 100'000); }) == 1);
  std::free(kept);
  CHECK(allocations_in([&] { kept = std::calloc(10, 10); }) == 1);
  std::free(kept);
  CHECK(allocations_in([&] { kept = std::aligned_alloc(64, 128); }) == 1);
  std::free(kept);
  void* aligned = nullptr;
  CHECK(allocations_in([&] { kept = posix_memalign(&aligned, 64, 128) == 0 ? aligned : nullptr; }) == 1);
  std::free(kept);
  CHECK(allocations_in([&] { kept = ::operator new(10); }) == 1);
  ::operator delete(kept);
  Eigen::VectorXf vector;
  CHECK(allocations_in([&] { vector.resize(100); }) == 1);
  CHECK(allocations_in([&] { vector.setZero(); }) == 0);
}

TEMPLATE_TEST_CASE("a warm forward and backward allocate nothing", "[adapter][allocations]", float, double) {
  if (!allocations_are_counted) {
    WARN(not_counted);
    return;
  }
  // From one token to panels and vectors beyond the 128 KiB that Eigen keeps on the stack.
  const auto sizes = GENERATE(values<Sizes>({{1, 6, 5, 2},
                                             {8, 6, 5, 2},
                                             {1, 768, 768, 16},
                                             {2, 300, 200, 1},
                                             {256, 768, 768, 16},
                                             {40'000, 3, 2, 1},
                                             {1, 40'000, 2, 1},
                                             {1, 2, 40'000, 1},
                                             {3, 1, 40'000, 1},
                                             {3, 40'000, 1, 1}}));
  const double dropout = GENERATE(0.0, 0.1);
  const bool offset = GENERATE(false, true);
  const auto [b, n, m, r] = sizes;
  Random random{81};
  LoraLinear layer{random_columns<TestType>(n, m, random), {.rank = r, .alpha = 3, .dropout = dropout}};
  if (offset) layer.initialize(RandomOffset{}, random);
  layer.set_factors(random_factors<TestType>(n, m, r, random));
  layer.set_bias(std::vector<TestType>(static_cast<std::size_t>(m), TestType(0.5)));
  auto X = random_rows<TestType>(b, n, random);
  RowMatrix<TestType> Y(b, m), dX(b, n);
  SavedState<TestType> saved;
  auto gradient = layer.zero_gradient();
  const auto count = [&](Index tokens) {
    return allocations_of_step(layer, tokens, X, Y, dX, saved, gradient, random);
  };
  const long cold = count(b);
  const long warm = count(b);
  const long smaller = b > 1 ? count(b - 1) : 0;  // the last batch of an epoch
  const long full_again = count(b);
  INFO(b << " x " << n << " x " << m << ", r = " << r << ", dropout " << dropout << ", offset " << offset);
  INFO("heap allocations: " << cold << " in the first step, then " << warm << ", " << smaller << ", " << full_again);
  CHECK(warm + smaller + full_again == 0);
}

TEMPLATE_TEST_CASE("a view of a row-major weight with strided activations allocates nothing either",
                   "[adapter][allocations]", float, double) {
  if (!allocations_are_counted) {
    WARN(not_counted);
    return;
  }
  constexpr Index b = 50, n = 200, m = 300, r = 8;
  Random random{82};
  const Strided<TestType> W0(random_rows<TestType>(n, m, random));
  LoraLinear layer(ViewBase<TestType, Eigen::RowMajor>(W0.view()), {.rank = r});
  layer.initialize(KaimingUniform{}, random);
  const Strided<TestType> X(random_rows<TestType>(b, n, random));
  Strided<TestType> Y(RowMatrix<TestType>::Zero(b, m)), dX(RowMatrix<TestType>::Zero(b, n));
  SavedState<TestType> saved;
  auto gradient = layer.zero_gradient();
  const auto step = [&] {
    layer.forward(X.view(), Y.view(), saved);
    layer.backward(Y.view(), saved, gradient, dX.view());
  };
  step();
  const long warm = allocations_in(step);
  INFO("heap allocations: " << warm);
  CHECK(warm == 0);
}
