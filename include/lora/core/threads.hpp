// SPDX-License-Identifier: MIT
// How many threads a product may use. OpenMP where the program is built with it, one thread otherwise.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>

#include <algorithm>
#include <atomic>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace lora {

namespace detail {

inline int available_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

inline std::atomic<int>& thread_setting() {
  static std::atomic<int> setting{available_threads()};
  return setting;
}

}  // namespace detail

/// The number of threads that one product may use. At first OpenMP's (`OMP_NUM_THREADS`, else one per core).
inline int threads() { return detail::thread_setting().load(std::memory_order_relaxed); }

/// Sets it for the whole program. Threads of the trainer's own may call the library at the same time, with
/// `set_threads(1)` if they fill the machine by themselves. \throws ConfigError  below 1; above 1 in a program built
/// without OpenMP.
inline void set_threads(int count) {
  detail::require<ConfigError>(count >= 1, "set_threads: needs at least 1 thread, got ", count);
#ifndef _OPENMP
  detail::require<ConfigError>(count == 1, "set_threads: more than 1 thread needs a build with OpenMP, got ", count);
#endif
  detail::thread_setting().store(count, std::memory_order_relaxed);
}

namespace detail {

/// Part `i` of [0, size) in `parts` parts of equal size, or off by one unit.
struct Part {
  Index first, last;
  Part(Index size, Index parts, Index i, Index unit = 1) {
    const Index units = (size + unit - 1) / unit;
    first = std::min(size, units * i / parts * unit);
    last = std::min(size, units * (i + 1) / parts * unit);
  }
  Index size() const { return last - first; }
};

}  // namespace detail

/// Calls `work(first, last)` for contiguous parts of [0, count), one part a thread; in the calling thread alone where
/// fewer than `least_flops` would not pay for waking the others, or inside a parallel region of the caller's. `work`
/// must not throw. The parts depend on `count` and on the number of threads alone. A trainer can share out its own
/// loops so, and stay in the one pool of threads: `parallel_for(rows, 10.0 * size, [&](Index first, Index last) ...)`.
template <class Work>
void parallel_for(Index count, double flops, const Work& work) {
#ifdef _OPENMP
  constexpr double least_flops = 1e6;  // some 10 us of one core, the price of waking and joining a pool of threads
  const auto parts = static_cast<int>(std::min<Index>(threads(), count));
  if (parts > 1 && flops >= least_flops && omp_in_parallel() == 0) {
#pragma omp parallel num_threads(parts)
    {
      const detail::Part part(count, omp_get_num_threads(), omp_get_thread_num());
      work(part.first, part.last);
    }
    return;
  }
#endif
  static_cast<void>(flops);
  if (count > 0) work(Index{0}, count);
}

}  // namespace lora
