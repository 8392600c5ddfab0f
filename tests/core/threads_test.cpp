// SPDX-License-Identifier: MIT
// Results may not depend on how many threads share the work: the packed products' bits, the others' beyond rounding.
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/base/packed_base.hpp>
#include <lora/base/packed_bf16_base.hpp>
#include <lora/core/threads.hpp>
#include <lora/linalg/product.hpp>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

#ifdef _OPENMP
constexpr bool parallel = true;
#else
constexpr bool parallel = false;
#endif

/// Puts the number of threads back.
struct Restore {
  int count = threads();
  Restore() = default;
  Restore(const Restore&) = delete;
  ~Restore() { set_threads(count); }
};

/// Every number of threads that this build can use, up to four, on whatever machine.
std::vector<int> thread_counts() { return parallel ? std::vector<int>{1, 2, 3, 4} : std::vector<int>{1}; }

void say_if_serial() {
  if (!parallel) WARN("built without OpenMP: SEVERAL THREADS WERE NOT TESTED");
}

}  // namespace

TEST_CASE("the number of threads can be set, within what the build can do", "[core][threads]") {
  const Restore restore;
  CHECK(threads() >= 1);
  set_threads(1);
  CHECK(threads() == 1);
  CHECK(message_of<ConfigError>([] { set_threads(0); }) == "set_threads: needs at least 1 thread, got 0");
  CHECK(message_of<ConfigError>([] { set_threads(-3); }) == "set_threads: needs at least 1 thread, got -3");
  if (parallel) {
    set_threads(3);
    CHECK(threads() == 3);
  } else {
    CHECK(message_of<ConfigError>([] { set_threads(2); }) ==
          "set_threads: more than 1 thread needs a build with OpenMP, got 2");
    CHECK(threads() == 1);
  }
}

TEST_CASE("the parts of a loop cover it once, however many threads there are", "[core][threads]") {
  say_if_serial();
  const Restore restore;
  for (const int count : thread_counts()) {
    set_threads(count);
    for (const Index size : {0, 1, 2, 7, 100}) {
      std::vector<std::atomic<int>> visits(static_cast<std::size_t>(size));
      std::atomic<int> calls{0};
      parallel_for(size, 1e9, [&](Index first, Index last) {
        ++calls;
        for (Index i = first; i < last; ++i) ++visits[static_cast<std::size_t>(i)];
      });
      for (const auto& visit : visits) CHECK(visit == 1);
      CHECK(calls == std::min<Index>(count, size));
    }
    std::atomic<int> calls{0};
    parallel_for(100, 1.0, [&](Index, Index) { ++calls; });
    CHECK(calls == 1);  // too little work to wake anybody
  }
}

TEST_CASE("packed products have the same bits for every number of threads", "[core][threads][packed]") {
  say_if_serial();
  const Restore restore;
  Random random{71};
  const auto weight = random_columns<float>(333, 290, random);
  const auto X = random_rows<float>(205, 333, random), dY = random_rows<float>(205, 290, random);
  const auto same = [&](const auto& base) {
    RowMatrix<float> first_Y, first_dX;
    for (const int count : thread_counts()) {
      set_threads(count);
      RowMatrix<float> Y(205, 290), dX(205, 333);
      base.multiply(X, Y);
      base.multiply_transposed(dY, dX);
      if (first_Y.size() == 0) {
        first_Y = Y;
        first_dX = dX;
      }
      CHECK(same_bits(Y, first_Y));
      CHECK(same_bits(dX, first_dX));
    }
  };
  same(PackedBase<float>(weight));
  same(PackedBase<float>(weight, Packs::Forward));
  for (const Bf16Kernel kernel : {Bf16Kernel::Widening, Bf16Kernel::DotProduct, Bf16Kernel::Amx}) {
    if (available(kernel)) same(PackedBf16Base(weight, kernel));
  }
}

TEMPLATE_TEST_CASE("dense products stay within their bound, and repeat their bits, for every number of threads",
                   "[core][threads][product]", float, double) {
  say_if_serial();
  const Restore restore;
  Random random{72};
  const auto check = [&](const auto& L, const auto& R) {
    const Wide exact = product(wide(L), wide(R)), terms = product(absolute(wide(L)), absolute(wide(R)));
    for (const int count : thread_counts()) {
      set_threads(count);
      RowMatrix<TestType> Y(L.rows(), R.cols()), again(L.rows(), R.cols());
      ColMatrix<TestType> Z(L.rows(), R.cols());
      set_product(Y, 1, L, R);
      set_product(again, 1, L, R);
      set_product(Z, 1, L, R);
      CHECK(same_bits(Y, again));
      const double gamma = rounding_bound<TestType>(product_roundings(L.cols()));
      CHECK(worst_ratio(Y, exact, gamma * terms) <= 1);
      CHECK(worst_ratio(Z, exact, gamma * terms) <= 1);
    }
  };
  const auto X = random_rows<TestType>(211, 307, random), P = random_rows<TestType>(211, 20, random);
  const auto A = random_columns<TestType>(307, 20, random);
  const auto B = random_rows<TestType>(20, 290, random);
  check(X, A);              // skinny, by dots
  check(P.transpose(), X);  // skinny, by outer products
  check(P, B);              // Eigen's, by rows and by columns
  check(X, random_rows<TestType>(307, 150, random));
  check(X.topRows(90), random_columns<TestType>(307, 300, random));
}

TEST_CASE("products from several threads of the caller's at once agree with those of one", "[core][threads][packed]") {
  Random random{73};
  const PackedBase<float> base(random_columns<float>(130, 170, random));
  const auto X = random_rows<float>(40, 130, random);
  const auto A = random_columns<float>(130, 5, random);
  RowMatrix<float> Y(40, 170), P(40, 5);
  base.multiply(X, Y);
  set_product(P, 1, X, A);
  std::vector<std::thread> callers;
  std::atomic<int> equal{0};
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int turn = 0; turn < 10; ++turn) {
        RowMatrix<float> own_Y(40, 170), own_P(40, 5);
        base.multiply(X, own_Y);
        set_product(own_P, 1, X, A);
        equal += int{same_bits(own_Y, Y) && same_bits(own_P, P)};
      }
    });
  }
  for (auto& caller : callers) caller.join();
  CHECK(equal == 40);
}

TEST_CASE("products on several threads allocate nothing once these are warm", "[core][threads][packed]") {
  say_if_serial();
  if (!allocations_are_counted) WARN(not_counted);
  const Restore restore;
  set_threads(thread_counts().back());
  Random random{74};
  const PackedBase<float> base(random_columns<float>(300, 290, random));
  const auto X = random_rows<float>(200, 300, random);
  const auto A = random_columns<float>(300, 16, random), wide_A = random_columns<float>(300, 100, random);
  RowMatrix<float> Y(200, 290), P(200, 16), wide_P(200, 100);
  const auto run = [&] {
    base.multiply(X, Y);
    set_product(P, 1, X, A);
    set_product(wide_P, 1, X, wide_A);
  };
  run();
  CHECK(allocations_in(run) == 0);
}
