// SPDX-License-Identifier: MIT
// An adapter taken out of two full weights: the nearest product of low rank to what fine-tuning has done.
#pragma once

#include <lora/adapter/adapter_state.hpp>
#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/random.hpp>
#include <lora/linalg/dense.hpp>
#include <lora/linalg/difference_operator.hpp>
#include <lora/linalg/linear_operator.hpp>
#include <lora/linalg/low_rank_product.hpp>
#include <lora/linalg/truncated_svd.hpp>
#include <lora/model/combine.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cmath>

namespace lora {

/// Where to cut.
struct ExtractConfig {
  Index rank = 0;     ///< the most that the adapter may have, in [1, min(n, m)]; 0: no limit
  double energy = 1;  ///< in (0, 1]: the smallest rank that captures this share of ||W1 - W0||_F^2, if one does
  SvdEffort effort{.oversampling = 16, .power_iterations = 4};

  bool operator==(const ExtractConfig&) const = default;
};

/// The adapter, at scale 1, and how much of the change it is.
template <Real RealScalar>
struct Extraction {
  using Scalar = RealScalar;

  AdapterState<Scalar> adapter;
  Eigen::VectorX<Scalar> singular_values;  ///< of W1 - W0, the leading `adapter.config.rank`
  double captured = 0;                     ///< sum of their squares over ||W1 - W0||_F^2
  double error = 0;                        ///< ||W1 - W0 - A B||_F / ||W1 - W0||_F, measured
  double change = 0;                       ///< ||W1 - W0||_F
};

/// A B = the leading triplets of W1 - W0 (n x m), A = U sqrt(S), B = sqrt(S) Vt.
///
/// `before` and `after` are any operators of one shape: `ViewBase` of matrices in memory, a packed or mapped base. The
/// difference is never formed; with a threshold the rank is doubled until it is reached, each time by a new
/// `truncated_svd`. Two passes over the weights more for the norm and the error: row by row where they are in memory,
/// n^2 m multiply-adds elsewhere.
///
///     auto found = lora::extract(lora::ViewBase{W0}, lora::ViewBase{W1}, {.energy = 0.95}, random);
///     layer.swap(found.adapter);
///
/// \throws ShapeError  different shapes. \throws ConfigError  rank outside [0, min(n, m)]; energy outside (0, 1]; no
/// rank and no threshold; the effort's own. \throws NumericalError  equal weights; a weight that is not finite.
template <LinearOperator Before, LinearOperator After>
Extraction<typename Before::Scalar> extract(const Before& before, const After& after, const ExtractConfig& config,
                                            Random& random) {
  using Scalar = typename Before::Scalar;
  detail::require_shape(after, before.rows(), before.cols(), "extract: the weight after training");
  const Index most = std::min(Index{before.rows()}, Index{before.cols()});
  detail::require<ConfigError>(config.rank >= 0 && config.rank <= most,
                               "extract: rank must lie in [0, min(n, m)] = [0, ", most, "], got ", config.rank);
  detail::require<ConfigError>(config.energy > 0 && config.energy <= 1, "extract: energy must lie in (0, 1], got ",
                               config.energy);
  detail::require<ConfigError>(config.rank > 0 || config.energy < 1,
                               "extract: needs a rank or an energy below 1, got neither");
  const DifferenceOperator change(after, before);
  const double total = squared_norm(change);
  detail::require<NumericalError>(std::isfinite(total), "extract: both weights must be finite, got NaN or infinity");
  detail::require<NumericalError>(total > 0, "extract: the weights must differ, got equal ones");

  const Index limit = config.rank > 0 ? config.rank : most;
  Index rank = config.energy < 1 ? std::min<Index>(limit, 16) : limit;
  const auto squares = [](const TruncatedSvd<Scalar>& svd) {
    return Eigen::VectorXd(svd.S.template cast<double>().cwiseAbs2());
  };
  auto svd = truncated_svd(change, rank, random, config.effort);
  while (rank < limit && squares(svd).sum() < config.energy * total) {
    rank = std::min(2 * rank, limit);
    svd = truncated_svd(change, rank, random, config.effort);
  }
  if (config.energy < 1) {
    const Eigen::VectorXd energies = squares(svd);
    double sum = energies(0);
    for (rank = 1; rank < energies.size() && sum < config.energy * total; ++rank) sum += energies(rank);
    svd = svd.leading(rank);
  }

  Extraction<Scalar> result;
  result.singular_values = svd.S;
  result.captured = std::min(1.0, squares(svd).sum() / total);
  result.adapter = detail::at_scale_one(LoraConfig{}, detail::balanced(svd));
  const LowRankProduct product(result.adapter.factors, 1);
  result.change = std::sqrt(total);
  result.error = std::sqrt(squared_norm(DifferenceOperator(change, product)) / total);
  return result;
}

}  // namespace lora
