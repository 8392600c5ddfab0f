// SPDX-License-Identifier: MIT
// The scale s of the low-rank branch: alpha / r (LoRA) or alpha / sqrt(r) (rsLoRA, arXiv:2312.03732).
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>

#include <cmath>

namespace lora {

enum class Scaling {
  Standard,        ///< s = alpha / r
  RankStabilized,  ///< s = alpha / sqrt(r); files call it `use_rslora`
};
constexpr const char* name_of(Scaling scaling) {
  switch (scaling) {
    case Scaling::Standard:
      return "Standard";
    case Scaling::RankStabilized:
      return "RankStabilized";
  }
  return "unknown";
}

/// The scale s at rank r.
/// \throws ConfigError  rank < 1; alpha not positive or not finite.
inline double scale(double alpha, Index rank, Scaling scaling) {
  detail::require<ConfigError>(rank >= 1, "scale: rank must be at least 1, got ", rank);
  detail::require<ConfigError>(std::isfinite(alpha) && alpha > 0, "scale: alpha must be positive and finite, got ",
                               alpha);
  const auto r = static_cast<double>(rank);
  return alpha / (scaling == Scaling::Standard ? r : std::sqrt(r));
}

}  // namespace lora
