// SPDX-License-Identifier: MIT
// Registers one measurement with Google Benchmark.
#pragma once

#include "../tests/support/allocations.hpp"

#include <benchmark/benchmark.h>

#include <Eigen/Core>

#include <string>

namespace bench {

enum class Heap { Forbidden, Allowed };

/// `make()` returns the call to measure. Without threads the time is that of the processor, so that other programs on
/// the machine disturb less.
template <class Make>
void add(const std::string& name, double flops, Heap heap, const Make& make) {
  auto* entry = benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    const auto call = make();
    call();  // buffers take their sizes
    if (heap == Heap::Forbidden && lora::test::allocations_in(call) != 0) {
      state.SkipWithError("allocates memory after the first call");
    }
    for (auto _ : state) {
      call();
      benchmark::ClobberMemory();
    }
    state.counters["flop/s"] = benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate);
  });
  if (Eigen::nbThreads() > 1) entry->UseRealTime();
  entry->Unit(benchmark::kMillisecond);
}

}  // namespace bench
