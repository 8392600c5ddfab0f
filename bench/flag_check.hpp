// SPDX-License-Identifier: MIT
// Do the compiler's flags suit this machine? Eigen's product against what the processor can do in registers.
#pragma once

#include "peak.hpp"

#include <lora/core/matrix.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <ctime>

namespace bench {

/// In GFLOP/s, one thread.
struct FlagCheck {
  double product = 0;  ///< 1024 x 1024 x 1024 by Eigen
  double peak = 0;     ///< independent fused multiply-adds
};

namespace detail {

/// Of the processor, so that other programs disturb less.
template <class Call>
double seconds(const Call& call) {
  const std::clock_t start = std::clock();
  call();
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

}  // namespace detail

/// The best of some rounds of each, in turns.
inline FlagCheck check_flags() {
  constexpr lora::Index size = 1024;
  const lora::ColMatrix<float> L = lora::ColMatrix<float>::Constant(size, size, 0.5F), R = L;
  lora::ColMatrix<float> result(size, size);
  FlagCheck best;
  for (int round = 0; round < 10; ++round) {
    double flops = 0;
    double time = detail::seconds([&] { flops = multiply_add(2'000'000); });
    best.peak = std::max(best.peak, 1e-9 * flops / time);
    time = detail::seconds([&] { result.noalias() = L * R; });
    benchmark::DoNotOptimize(result.data());
    best.product = std::max(best.product, 2e-9 * static_cast<double>(size * size * size) / time);
  }
  return best;
}

inline void print(const FlagCheck& check) {
  const double share = 100 * check.product / check.peak;
  std::printf(
      "flag check: Eigen's 1024^3 product %.1f GFLOP/s, multiply-adds in registers %.1f GFLOP/s, share %.0f %%\n",
      check.product, check.peak, share);
  if (share < 75) {
    std::printf(
        "WARNING: below 75 %%: these flags slow Eigen down here, or the machine is busy; see bench/README.md, "
        "\"Flags\"\n");
  }
  std::fflush(stdout);
}

}  // namespace bench
