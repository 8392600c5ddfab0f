// SPDX-License-Identifier: MIT
// A mean that forgets: of the losses of single batches, which jump about.
#pragma once

namespace llm {

/// Weighs the value k steps back with 0.95^k, so that about twenty count; a true mean from the first value on.
class Smoothed {
 public:
  void add(double value) {
    sum_ = keep * sum_ + value;
    weight_ = keep * weight_ + 1;
  }
  /// 0 before the first value.
  double value() const { return weight_ > 0 ? sum_ / weight_ : 0; }

 private:
  static constexpr double keep = 0.95;
  double sum_ = 0, weight_ = 0;
};

}  // namespace llm
