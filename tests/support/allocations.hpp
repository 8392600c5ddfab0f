// SPDX-License-Identifier: MIT
// Counts every heap allocation of the process and the bytes in use, at the level of malloc: Eigen's own calls and
// operator new alike.
#pragma once

#include <Eigen/Core>  // before our posix_memalign: clang declares its own without noexcept

#include <atomic>
#include <cstddef>
#include <cstdlib>

// The sanitizers have a malloc of their own, and only glibc lends out its own under another name.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LORA_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define LORA_TEST_SANITIZED 1
#endif
#endif
#if defined(__GLIBC__) && !defined(LORA_TEST_SANITIZED)
#include <malloc.h>
#define LORA_TEST_COUNTS_ALLOCATIONS 1
#else
#define LORA_TEST_COUNTS_ALLOCATIONS 0
#endif

namespace lora::test {

/// Where false, a test must say that it did not count: `WARN(not_counted)`.
inline constexpr bool allocations_are_counted = LORA_TEST_COUNTS_ALLOCATIONS != 0;
inline constexpr const char* not_counted = "HEAP ALLOCATIONS WERE NOT COUNTED: needs glibc and no sanitizer";

inline std::atomic<long> allocation_count{0};
inline std::atomic<long> live_bytes{0};  ///< from an arbitrary origin
inline std::atomic<long> peak_bytes{0};  ///< the most that live_bytes has been

/// How many heap allocations `call` makes, in all threads; 0 where they are not counted.
template <class Call>
long allocations_in(const Call& call) {
  const long before = allocation_count.load();
  call();
  return allocation_count.load() - before;
}

/// How far the heap in use rises above its start while `call` runs, in bytes, all threads; 0 where not counted.
template <class Call>
long peak_bytes_in(const Call& call) {
  const long before = live_bytes.load();
  peak_bytes = before;
  call();
  return peak_bytes.load() - before;
}

#if LORA_TEST_COUNTS_ALLOCATIONS
/// Notes a block that was handed out.
inline void* handed_out(void* memory) noexcept {
  ++allocation_count;
  const long live = live_bytes += static_cast<long>(malloc_usable_size(memory));
  long peak = peak_bytes.load();
  while (live > peak && !peak_bytes.compare_exchange_weak(peak, live)) {
  }
  return memory;
}
inline void* taken_back(void* memory) noexcept {
  live_bytes -= static_cast<long>(malloc_usable_size(memory));
  return memory;
}
#endif

}  // namespace lora::test

#if LORA_TEST_COUNTS_ALLOCATIONS
// Weak, so that several files of one program may include this; they still go before libc's own in the search for
// symbols.
extern "C" {
void* __libc_malloc(std::size_t);                 // NOLINT(bugprone-reserved-identifier)
void* __libc_calloc(std::size_t, std::size_t);    // NOLINT(bugprone-reserved-identifier)
void* __libc_realloc(void*, std::size_t);         // NOLINT(bugprone-reserved-identifier)
void* __libc_memalign(std::size_t, std::size_t);  // NOLINT(bugprone-reserved-identifier)
void __libc_free(void*);                          // NOLINT(bugprone-reserved-identifier)

[[gnu::weak]] void* malloc(std::size_t size) noexcept { return lora::test::handed_out(__libc_malloc(size)); }
[[gnu::weak]] void* calloc(std::size_t count, std::size_t size) noexcept {
  return lora::test::handed_out(__libc_calloc(count, size));
}
[[gnu::weak]] void* realloc(void* memory, std::size_t size) noexcept {
  return lora::test::handed_out(__libc_realloc(lora::test::taken_back(memory), size));
}
[[gnu::weak]] void* memalign(std::size_t alignment, std::size_t size) noexcept {
  return lora::test::handed_out(__libc_memalign(alignment, size));
}
[[gnu::weak]] void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  return lora::test::handed_out(__libc_memalign(alignment, size));
}
[[gnu::weak]] int posix_memalign(void** memory, std::size_t alignment, std::size_t size) noexcept {
  *memory = lora::test::handed_out(__libc_memalign(alignment, size));
  return *memory == nullptr ? 12 : 0;  // ENOMEM
}
[[gnu::weak]] void free(void* memory) noexcept { __libc_free(lora::test::taken_back(memory)); }
}
#endif
