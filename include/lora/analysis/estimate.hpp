// SPDX-License-Identifier: MIT
// What one adapted layer and its optimizer will take, in bytes and flops, before anything is allocated.
#pragma once

#include <lora/analysis/optimizer_cost.hpp>
#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>
#include <lora/kernel/tile.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <type_traits>

namespace lora {

/// A linear layer and its largest batch: W0 is n x m, A n x r, B r x m, X b x n.
struct LayerShape {
  Index in_features = 0;   ///< n, >= 1
  Index out_features = 0;  ///< m, >= 1
  Index rank = 0;          ///< r, in [1, min(n, m)]
  Index tokens = 0;        ///< b, >= 0
};

/// Where W0 lies. For a base of your own say `View`, and add what it holds.
enum class BaseStorage {
  View,           ///< `ViewBase`, `CallbackBase`: nothing of the layer's own
  Owned,          ///< `OwnedBase`: n m scalars
  PackedForward,  ///< `PackedBase` with one pack: n m scalars, m rounded up to whole panels of two vectors
  PackedBoth,     ///< `PackedBase` with two packs: m n more, n rounded up
  PackedBf16,     ///< `PackedBf16Base`: two packs of 2 bytes an element, their rows rounded up to 32. Float only
};

/// What becomes of A0 and B0 after a start with a nonzero product (LoRA-GA, PiSSA). The layer keeps them either way.
enum class OffsetStart {
  None,     ///< there are none: the start's product is zero
  Carried,  ///< s ((X A) B - (X A0) B0): a branch of rank 2r
  Baked,    ///< in an `OwnedBase` (`LoraLinear::bake`): a branch of rank r
};

/// How the layer is set up, and what its backward is asked for.
struct EstimateConfig {
  BaseStorage storage = BaseStorage::View;
  OffsetStart offset = OffsetStart::None;
  bool merged = false;         ///< an adapter is merged in between steps: W0 is there twice
  double dropout = 0;          ///< in [0, 1)
  bool input_gradient = true;  ///< dX, which the first layer of a network does without
  bool gradient_of_A = true;   ///< false: a gradient of B alone, for LoRA-FA
};

/// Bytes on the heap from the first step on.
struct MemoryEstimate {
  Index base = 0;               ///< see `BaseStorage`; while merged twice that
  Index factors = 0;            ///< (n + m) r scalars
  Index initial_factors = 0;    ///< (n + m) r after an offset start
  Index gradient = 0;           ///< (n + m) r; of B alone m r; of a trained weight n m
  Index optimizer_state = 0;    ///< what a checkpoint must hold; 2 (n + m) r for AdamW
  Index optimizer_scratch = 0;  ///< kept, so that steps allocate nothing
  Index saved_state = 0;        ///< of one use of the layer: 2 b r, with dropout 2 b n more; b r less with B alone

  bool operator==(const MemoryEstimate&) const = default;
  Index total() const {
    return base + factors + initial_factors + gradient + optimizer_state + optimizer_scratch + saved_state;
  }
};

/// Flops of one training step, two for a multiply-add.
struct FlopEstimate {
  Index base_forward = 0;     ///< 2 b n m: X W0
  Index base_backward = 0;    ///< 2 b n m: dY W0^T, nothing without dX; of a trained weight 2 b n m more
  Index branch_forward = 0;   ///< 2 b r (n + m), with a carried offset twice that
  Index branch_backward = 0;  ///< 4 b r (n + m), with a carried offset 2 b r (n + m) more; without dX 2 b r (n + 2 m),
                              ///< of B alone and without dX 2 b r m
  Index optimizer_step = 0;   ///< matrix products, decompositions and the update rule

  bool operator==(const FlopEstimate&) const = default;
  Index total() const { return base_forward + base_backward + branch_forward + branch_backward + optimizer_step; }
};

struct Estimate {
  MemoryEstimate bytes;
  FlopEstimate flops;
  bool operator==(const Estimate&) const = default;
};

namespace detail {

template <Real Scalar>
double base_bytes(BaseStorage storage, double n, double m) {
  constexpr double size = sizeof(Scalar), width = kernel::TileShape<Scalar>::cols;
  const auto up = [](double count, double multiple) { return multiple * std::ceil(count / multiple); };
  switch (storage) {
    case BaseStorage::View:
      break;
    case BaseStorage::Owned:
      return size * n * m;
    case BaseStorage::PackedForward:
      return size * n * up(m, width);
    case BaseStorage::PackedBoth:
      return size * (n * up(m, width) + m * up(n, width));
    case BaseStorage::PackedBf16:  // 32 rows are what matrix units take at once
      require<ConfigError>(std::is_same_v<Scalar, float>, "estimate: a bf16 base serves layers of float, got double");
      return 2 * (up(n, 32) * up(m, width) + up(m, 32) * up(n, width));
  }
  return 0;
}

inline void check_estimate(const LayerShape& shape, const EstimateConfig& config, OptimizerCost::Trains trains) {
  const auto& [n, m, r, b] = shape;
  require<ShapeError>(n >= 1 && m >= 1, "estimate: in_features and out_features must be at least 1, got ", n, " and ",
                      m);
  require<ShapeError>(b >= 0, "estimate: tokens must not be negative, got ", b);
  require<ConfigError>(r >= 1 && r <= std::min(n, m), "estimate: rank must lie in [1, min(n, m)] = [1, ",
                       std::min(n, m), "], got ", r);
  require<ConfigError>(config.dropout >= 0 && config.dropout < 1, "estimate: dropout must lie in [0, 1), got ",
                       config.dropout);
  const bool view = config.storage == BaseStorage::View, owned = config.storage == BaseStorage::Owned;
  require<ConfigError>(!config.merged || !(view || config.storage == BaseStorage::PackedBf16),
                       "estimate: a merge needs an owned base or one packed in full precision, got another storage");
  require<ConfigError>(config.offset != OffsetStart::Baked || owned,
                       "estimate: a baked offset needs an owned base, got another storage");
  require<ConfigError>(config.gradient_of_A || trains == OptimizerCost::Trains::B,
                       "estimate: a gradient of B alone needs a method that leaves A as it is, got another");
  const bool plain = (view || owned) && !config.merged && config.offset == OffsetStart::None && config.dropout == 0;
  require<ConfigError>(
      trains != OptimizerCost::Trains::Weight || plain,
      "estimate: a trained weight must be dense, without merge, offset or dropout, got another config");
}

/// Below 2^60, so that no total overflows either.
inline Index whole(double count, const char* what) {
  require<ShapeError>(count < 0x1p60, "estimate: ", what, " must stay below 2^60, got ", count);
  return static_cast<Index>(count);
}

}  // namespace detail

/// The bytes of a `LoraLinear`, a gradient, one `SavedState` and an `Optimizer` of `method`, and the flops of a
/// training step: `estimate<float>({.in_features = 768, .out_features = 768, .rank = 8, .tokens = 512},
/// PerFactor{AdamW{}})`. A weight that is trained itself (`FullFineTuning`, `InWeightSpace`) has a gradient of n x m
/// and no branch.
///
/// Exact to the byte, but for what the allocator adds to each block. Not counted: X, Y, dX and dY, a bias, what a start
/// or a merge needs while it runs, the packing memory of each thread; see docs/estimate.md.
/// \throws ShapeError  in_features or out_features below 1; tokens negative; a count of 2^60 or more.
/// \throws ConfigError  rank outside [1, min(n, m)]; dropout outside [0, 1); what the storage or the method cannot do;
/// the method's own.
template <Real Scalar, class Method>
Estimate estimate(const LayerShape& shape, const Method& method, const EstimateConfig& config = {}) {
  static_assert(
      requires(const Method& any, double size) {
        { optimizer_cost(any, size, size, size) } -> std::same_as<OptimizerCost>;
      },
      "lora: estimate needs an optimizer_cost(method, n, m, r) in the method's namespace");
  const auto n = static_cast<double>(shape.in_features), m = static_cast<double>(shape.out_features),
             r = static_cast<double>(shape.rank), b = static_cast<double>(shape.tokens);
  const OptimizerCost cost = optimizer_cost(method, n, m, r);
  detail::check_estimate(shape, config, cost.trains);

  using detail::whole;
  const double size = sizeof(Scalar), pair = (n + m) * r;
  const bool weight = cost.trains == OptimizerCost::Trains::Weight;
  const double dX = config.input_gradient ? 1 : 0, dA = config.gradient_of_A ? 1 : 0, dW = weight ? 1 : 0;
  const double branch = weight ? 0 : 1, offset = config.offset == OffsetStart::Carried ? 1 : 0;
  const double Q = dX + dA > 0 ? 1 : 0;  // s dY B^T
  Estimate result;
  auto& bytes = result.bytes;
  bytes.base = whole((config.merged ? 2 : 1) * detail::base_bytes<Scalar>(config.storage, n, m), "bytes of the base");
  bytes.factors = whole(size * branch * pair, "bytes of the factors");
  bytes.initial_factors = config.offset == OffsetStart::None ? 0 : bytes.factors;
  bytes.gradient = whole(size * (weight ? n * m : (dA * n + m) * r), "bytes of the gradient");
  bytes.optimizer_state = whole(size * cost.state, "bytes of the optimizer's state");
  bytes.optimizer_scratch = whole(size * cost.scratch + sizeof(double) * cost.doubles, "bytes of the optimizer");
  const double saved = (1 + std::max(Q, offset)) * r + (config.dropout > 0 ? 2 * n : 0);  // an offset lends Q's memory
  bytes.saved_state = whole(size * branch * b * saved, "bytes of the saved state");

  auto& flops = result.flops;
  flops.base_forward = whole(2 * b * n * m, "flops of the base's forward");
  flops.base_backward = whole((dX + dW) * 2 * b * n * m, "flops of the base's backward");
  flops.branch_forward = whole(branch * (1 + offset) * 2 * b * pair, "flops of the branch's forward");
  const double Q_and_B = (Q + 1) * m * r, A = dA * n * r, to_X = dX * (n * r + offset * pair);
  flops.branch_backward = whole(branch * 2 * b * (Q_and_B + A + to_X), "flops of the branch's backward");
  flops.optimizer_step = whole(cost.flops, "flops of the optimizer");
  return result;
}

}  // namespace lora
