// SPDX-License-Identifier: MIT
// The hyper-parameters of a LoRA layer.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/scaling.hpp>

#include <algorithm>
#include <cmath>

namespace lora {

/// Hyper-parameters of a LoRA layer.
struct LoraConfig {
  static constexpr const char* name = "LoraConfig";

  Index rank = 8;                       ///< r, in [1, min(n, m)]
  double alpha = 16;                    ///< > 0
  Scaling scaling = Scaling::Standard;  ///< s = alpha / r or alpha / sqrt(r)
  double dropout = 0;                   ///< p in [0, 1): share of X that the low-rank branch does not see in training

  bool operator==(const LoraConfig&) const = default;
  static void fields(auto& self, const auto& visit) {
    visit("rank", self.rank);
    visit("alpha", self.alpha);
    visit("scaling", self.scaling);
    visit("dropout", self.dropout);
  }

  /// For a weight of n x m; `where` begins the messages. \throws ConfigError  a field out of range.
  template <class... Where>
  void check(Index n, Index m, const Where&... where) const {
    const Index most = std::min(n, m);
    detail::require<ConfigError>(rank >= 1 && rank <= most, where..., ": rank must lie in [1, min(n, m)] = [1, ", most,
                                 "], got ", rank);
    detail::require<ConfigError>(std::isfinite(alpha) && alpha > 0, where...,
                                 ": alpha must be positive and finite, got ", alpha);
    detail::require<ConfigError>(dropout >= 0 && dropout < 1, where..., ": dropout must lie in [0, 1), got ", dropout);
  }
};

}  // namespace lora
