// SPDX-License-Identifier: MIT
// Learning-rate schedules: a multiplier for each step.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/fields.hpp>
#include <lora/core/matrix.hpp>

#include <cmath>
#include <numbers>

namespace lora {

/// Linear warm-up, then a tail: the multiplier of the learning rate at step 0, 1, 2, ...
///
/// Warm-up: (step + 1) / warmup_steps. Then, with p = (step - warmup) / (total - warmup), from 1 to `last`:
/// Linear 1 - p, Cosine (1 + cos(pi p)) / 2, Constant 1. After `total_steps` it stays at `last`.
/// `Schedule{}` is constant 1.
/// \note Hugging Face's warm-up starts at 0 and spends its first step on a rate of zero; ours does not.
struct Schedule {
  static constexpr const char* name = "Schedule";
  enum class Tail { Constant, Linear, Cosine };

  Index warmup_steps = 0;  ///< >= 0
  Index total_steps = 0;   ///< > warmup_steps for a Linear or Cosine tail; unused for Constant
  Tail tail = Tail::Constant;
  double last = 0;  ///< in [0, 1], where Linear and Cosine end

  bool operator==(const Schedule&) const = default;
  static void fields(auto& self, const auto& visit) {
    visit("warmup_steps", self.warmup_steps);
    visit("total_steps", self.total_steps);
    visit("tail", self.tail);
    visit("last", self.last);
  }
  friend constexpr const char* name_of(Tail value) {
    switch (value) {
      case Tail::Constant:
        return "Constant";
      case Tail::Linear:
        return "Linear";
      case Tail::Cosine:
        return "Cosine";
    }
    return "unknown";
  }

  /// \throws ConfigError  a field out of range, or step < 0.
  double operator()(Index step) const {
    detail::require<ConfigError>(step >= 0, "Schedule: step must not be negative, got ", step);
    detail::require<ConfigError>(warmup_steps >= 0, "Schedule: warmup_steps must not be negative, got ", warmup_steps);
    detail::require<ConfigError>(last >= 0 && last <= 1, "Schedule: last must lie in [0, 1], got ", last);
    detail::require<ConfigError>(tail == Tail::Constant || total_steps > warmup_steps,
                                 "Schedule: total_steps must exceed warmup_steps = ", warmup_steps, ", got ",
                                 total_steps);
    if (step < warmup_steps) return static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
    if (tail == Tail::Constant) return 1;
    if (step >= total_steps) return last;
    const double progress = static_cast<double>(step - warmup_steps) / static_cast<double>(total_steps - warmup_steps);
    const double height = tail == Tail::Linear ? 1 - progress : 0.5 * (1 + std::cos(std::numbers::pi * progress));
    return last + (1 - last) * height;
  }
};

}  // namespace lora
