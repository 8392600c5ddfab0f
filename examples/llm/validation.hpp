// SPDX-License-Identifier: MIT
// The mean loss over sequences.
#pragma once

#include "batches.hpp"
#include "model.hpp"
#include "sequences.hpp"

#include <lora/core/error.hpp>

namespace llm {

/// The mean of -log p(target) over all targets that count, `batch` sequences at a time.
/// \throws ConfigError  no target counts.
inline double mean_loss(Model& model, const Sequences& sequences, Index batch) {
  const Index counted = sequences.counted();
  lora::detail::require<lora::ConfigError>(counted > 0, "evaluate: needs a target that counts, got none");
  double sum = 0;
  in_order(sequences, batch, [&](const Batch& rows) { sum += model.loss(rows); });
  return sum / static_cast<double>(counted);
}

}  // namespace llm
