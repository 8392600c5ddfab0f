// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/core/random.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <random>

using namespace lora;
using namespace lora::test;

TEST_CASE("the first words of seed 42 are pinned", "[core][random]") {
  // SplitMix64 into xoshiro256++, recomputed with Python's integers.
  constexpr std::array<std::uint64_t, 8> words{0xd0764d4f4476689f, 0x519e4174576f3791, 0xfbe07cfb0c24ed8c,
                                               0xb37d9f600cd835b8, 0xcb231c3874846a73, 0x968d9f004e50de7d,
                                               0x201718ff221a3556, 0x9ae94e070ed8cb46};
  Random random{42};
  CHECK(random.state() ==
        Random::State{0xbdd732262feb6e95, 0x28efe333b266f103, 0x47526757130f9f52, 0x581ce1ff0e4ae394});
  for (const auto word : words) CHECK(random() == word);
}

TEST_CASE("the first uniform draws of seed 42 are pinned", "[core][random]") {
  constexpr std::array<double, 8> draws{0x1.a0ec9a9e88ecdp-1, 0x1.467905d15dbccp-2, 0x1.f7c0f9f61849dp-1,
                                        0x1.66fb3ec019b06p-1, 0x1.96463870e908dp-1, 0x1.2d1b3e009ca1bp-1,
                                        0x1.00b8c7f910d18p-3, 0x1.35d29c0e1db19p-1};
  Random random{42};
  for (const double draw : draws) CHECK(random.uniform() == draw);
}

TEST_CASE("the first normal draws of seed 42 are pinned", "[core][random]") {
  // Each within 2 units in the last place of the quantile computed to 40 digits (mpmath).
  constexpr std::array<double, 8> draws{0x1.c9a9c14cfb0ffp-1,  -0x1.e24d5486f05dbp-2, 0x1.1225a771ccf75p+1,
                                        0x1.0e2aaf8f6f889p-1,  0x1.a324f849926d1p-1,  0x1.c7fffdbf387b8p-3,
                                        -0x1.260d33f990041p+0, 0x1.1107191792021p-2};
  Random random{42};
  for (const double draw : draws) CHECK(random.normal() == draw);
}

namespace {

/// |x - quantile(p)| / |quantile(p)| to first order, from the distribution function at x in long double: by erf around
/// the median and by erfc in the tails, so that neither cancels.
double quantile_error(double p) {
  const long double x = detail::normal_quantile(p);
  const long double density = std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi_v<long double>);
  const long double z = x / std::numbers::sqrt2_v<long double>;
  long double missed = 0;
  if (std::abs(p - 0.5) < 0.25) {
    missed = std::erf(z) / 2 - (static_cast<long double>(p) - 0.5L);
  } else if (p < 0.5) {
    missed = std::erfc(-z) / 2 - static_cast<long double>(p);
  } else {
    missed = std::erfc(z) / 2 - (1 - static_cast<long double>(p));
  }
  if (missed == 0) return 0;
  return static_cast<double>(std::abs(missed / density / x));
}

}  // namespace

TEST_CASE("the normal quantile inverts the distribution function to 1e-14", "[core][random]") {
  double worst = 0, worst_p = 0;
  const auto look_at = [&](double p) {
    const double error = quantile_error(p);
    if (error > worst) worst_p = p;
    worst = std::max(worst, error);
  };
  constexpr int grid = 100'000;
  for (int i = 0; i < grid; ++i) look_at((i + 0.5) / grid);
  for (int exponent = 2; exponent <= 53; ++exponent) {  // both tails, as far as normal() reaches
    for (int i = 0; i < 64; ++i) {
      const double p = std::ldexp(1 + i / 64.0, -exponent);
      look_at(p);
      look_at(1 - p);
      look_at(0.5 + p / 4);  // down to the median
      look_at(0.5 - p / 4);
    }
  }
  INFO("largest relative error " << worst << " at p = " << worst_p);
  CHECK(worst < normal_quantile);
}

TEST_CASE("the normal quantile is odd, zero at the median and grows with p", "[core][random]") {
  CHECK(detail::normal_quantile(0.5) == 0);
  double last = detail::normal_quantile(0x1p-53);
  CHECK(last > -8.3);
  CHECK(last < -8.2);
  constexpr int grid = 1 << 14;
  for (int i = 1; i < grid; ++i) {
    const double p = static_cast<double>(i) / grid;
    const double x = detail::normal_quantile(p);
    CAPTURE(p);
    if (!(x > last)) FAIL("not monotone");
    if (x != -detail::normal_quantile(1 - p)) FAIL("not odd");
    last = x;
  }
}

TEST_CASE("portable_log agrees with std::log to 2 units in the last place", "[core][random]") {
  double worst = 0, worst_x = 0;
  const auto look_at = [&](double x) {
    const double expected = std::log(x);
    const double ulp = std::abs(std::nextafter(expected, 1e300) - expected);
    const double error = std::abs(detail::portable_log(x) - expected) / ulp;
    if (error > worst) worst_x = x;
    worst = std::max(worst, error);
  };
  Random random{5};
  for (int exponent = -1074; exponent < 1024; ++exponent) {
    for (int i = 0; i < 40; ++i) look_at(std::ldexp(1 + random.uniform(), exponent));
  }
  for (int i = 0; i < 200'000; ++i) look_at(0.25 + 1.5 * random.uniform());  // where the sum cancels, and around 1
  INFO("largest error " << worst << " ulp at x = " << worst_x);
  CHECK(worst <= log_ulps);
  CHECK(detail::portable_log(1) == 0);
}

TEST_CASE("a million draws have the moments of their distribution", "[core][random]") {
  constexpr int count = 1'000'000;
  const double root = std::sqrt(static_cast<double>(count));
  Random random{6};
  double uniform1 = 0, uniform2 = 0, uniform_low = 1, uniform_high = 0;
  std::array<double, 4> normal{};
  for (int i = 0; i < count; ++i) {
    const double u = random.uniform();
    uniform1 += u / count;
    uniform2 += (u - 0.5) * (u - 0.5) / count;
    uniform_low = std::min(uniform_low, u);
    uniform_high = std::max(uniform_high, u);
    const double x = random.normal();
    double power = 1;
    for (double& moment : normal) moment += (power *= x) / count;
  }
  CHECK(uniform_low >= 0);
  CHECK(uniform_high < 1);
  // In standard errors: sqrt(Var) of u, (u - 1/2)^2, x, x^2, x^3, x^4 is sqrt of 1/12, 1/180, 1, 2, 15, 96.
  const std::array<double, 6> errors{(uniform1 - 0.5) * root * std::sqrt(12.0),
                                     (uniform2 - 1.0 / 12) * root * std::sqrt(180.0),
                                     normal[0] * root,
                                     (normal[1] - 1) * root / std::sqrt(2.0),
                                     normal[2] * root / std::sqrt(15.0),
                                     (normal[3] - 3) * root / std::sqrt(96.0)};
  for (const double error : errors) {
    INFO("off by " << error << " standard errors");
    CHECK(std::abs(error) < standard_errors);
  }
}

TEST_CASE("below draws every number under the bound equally often", "[core][random]") {
  Random random{7};
  constexpr Index bound = 7;
  constexpr int count = 70'000;
  std::array<int, bound> hits{};
  for (int i = 0; i < count; ++i)
    ++hits.at(static_cast<std::size_t>(random.below(bound)));  // at: throws past the bound
  const double expected = static_cast<double>(count) / bound;
  for (const int hit : hits) {
    CAPTURE(hit);
    CHECK(std::abs(hit - expected) < standard_errors * std::sqrt(expected));
  }
  CHECK(random.below(1) == 0);
}

TEST_CASE("below rejects the words that would favour small numbers", "[core][random]") {
  // With s0 = 0 the first word is rotl(s3, 23). 2^64 mod 3 = 1: of all words only the largest is rejected.
  const auto first_word = [](std::uint64_t word) { return Random(Random::State{0, 1, 2, std::rotr(word, 23)}); };
  constexpr std::uint64_t largest = Random::max();
  Random rejecting = first_word(largest);
  Random next = rejecting;
  REQUIRE(next() == largest);
  CHECK(rejecting.below(3) == static_cast<Index>(next() % 3));
  CHECK(rejecting == next);

  Random accepting = first_word(largest - 1);
  CHECK(accepting.below(3) == static_cast<Index>((largest - 1) % 3));

  constexpr Index huge = Index{3} << 61;  // 2^64 mod huge = 2^62: a quarter of all words is rejected
  Random random{8};
  for (int i = 0; i < 1000; ++i) {
    const Index draw = random.below(huge);
    if (draw < 0 || draw >= huge) FAIL("out of range: " << draw);
  }
  CHECK(message_of<ConfigError>([&] { random.below(0); }) == "Random::below: bound must be at least 1, got 0");
  CHECK(message_of<ConfigError>([&] { random.below(-3); }) == "Random::below: bound must be at least 1, got -3");
}

TEST_CASE("a generator goes on from its saved state", "[core][random]") {
  Random random{9};
  for (int i = 0; i < 10; ++i) random.normal();
  Random resumed{random.state()};
  Random copy = random;
  CHECK(resumed == random);
  for (int i = 0; i < 10; ++i) CHECK(resumed() == random());
  CHECK(copy != random);
  CHECK(Random{9} != Random{10});
  CHECK(message_of<ConfigError>([] { Random(Random::State{}); }) ==
        "Random: the state must not be all zeros, got four zero words");
}

TEST_CASE("the generator serves the standard library's algorithms", "[core][random]") {
  Random random{11};
  std::array<int, 5> values{1, 2, 3, 4, 5};
  std::shuffle(values.begin(), values.end(), random);
  std::sort(values.begin(), values.end());
  CHECK(values == std::array<int, 5>{1, 2, 3, 4, 5});
}
