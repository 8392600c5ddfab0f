// SPDX-License-Identifier: MIT
// Where the time of a step goes.
#pragma once

#include <chrono>

namespace llm {

/// Seconds spent so far.
struct Profile {
  double products = 0;   ///< the linear layers with their adapters
  double attention = 0;  ///< softmax(Q K^T) V
  double head = 0;       ///< logits and loss
  double rest = 0;       ///< norms, rotations, gates, sums

  double total() const { return products + attention + head + rest; }
};

/// Adds the time of its life to one entry.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds), begin_(Clock::now()) {}
  ~Stopwatch() { seconds_ += std::chrono::duration<double>(Clock::now() - begin_).count(); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  using Clock = std::chrono::steady_clock;

  double& seconds_;
  Clock::time_point begin_;
};

}  // namespace llm
