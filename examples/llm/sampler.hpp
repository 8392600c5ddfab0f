// SPDX-License-Identifier: MIT
// Chooses the next token from its logits.
#pragma once

#include "batch.hpp"

#include <lora/core/error.hpp>
#include <lora/core/random.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <vector>

namespace llm {

/// Greedy at temperature 0; else a draw from softmax(logits / temperature), cut to the smallest set of the likeliest
/// tokens whose probabilities reach `top_p` (Holtzman et al., arXiv:1904.09751).
class Sampler {
 public:
  /// \throws ConfigError  temperature negative or not finite; top_p outside (0, 1].
  Sampler(double temperature, double top_p, std::uint64_t seed)
      : temperature_(temperature), top_p_(top_p), random_(seed) {
    lora::detail::require<lora::ConfigError>(std::isfinite(temperature) && temperature >= 0,
                                             "--temperature: must be finite and not negative, got ", temperature);
    lora::detail::require<lora::ConfigError>(top_p > 0 && top_p <= 1, "--top-p: must lie in (0, 1], got ", top_p);
  }

  Token operator()(const Eigen::RowVectorXf& logits) {
    Index best = 0;
    const float largest = logits.maxCoeff(&best);
    if (temperature_ == 0) return static_cast<Token>(best);
    const Eigen::ArrayXd weights = ((logits.array() - largest).cast<double>() / temperature_).exp();
    order_.resize(static_cast<std::size_t>(weights.size()));
    std::iota(order_.begin(), order_.end(), Index{0});
    std::sort(order_.begin(), order_.end(),
              [&](Index i, Index j) { return weights(i) > weights(j) || (weights(i) == weights(j) && i < j); });
    const double wanted = top_p_ * weights.sum();
    double sum = 0;
    std::size_t kept = 0;
    while (kept < order_.size() && (kept == 0 || sum < wanted)) sum += weights(order_[kept++]);
    double left = random_.uniform() * sum;
    for (std::size_t i = 0; i + 1 < kept; ++i) {
      left -= weights(order_[i]);
      if (left < 0) return static_cast<Token>(order_[i]);
    }
    return static_cast<Token>(order_[kept - 1]);
  }

 private:
  double temperature_, top_p_;
  lora::Random random_;
  std::vector<Index> order_;
};

}  // namespace llm
