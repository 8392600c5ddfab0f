// SPDX-License-Identifier: MIT
// Registers one measurement with Google Benchmark.
#pragma once

#include "../tests/support/allocations.hpp"

#include <lora/core/threads.hpp>

#include <benchmark/benchmark.h>

#include <string>

namespace bench {

enum class Heap { Forbidden, Allowed };

/// What one call does: multiply-adds count twice, bytes are those that must come from memory or go there once.
struct Work {
  double flops = 0, bytes = 0;
};

/// `make()` returns the call to measure. On one thread the time is that of the processor, so that other programs on the
/// machine disturb less.
template <class Make>
void add(const std::string& name, const Work& work, Heap heap, const Make& make) {
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
    constexpr auto rate = benchmark::Counter::kIsIterationInvariantRate;
    if (work.flops > 0) state.counters["flop/s"] = benchmark::Counter(work.flops, rate);
    if (work.bytes > 0) state.counters["B/s"] = benchmark::Counter(work.bytes, rate);
  });
  if (lora::threads() > 1) entry->UseRealTime();
  entry->Unit(benchmark::kMillisecond);
}

}  // namespace bench
