// SPDX-License-Identifier: MIT
// Several adapters of one weight made into one: concatenated, re-compressed, summed, TIES (Yadav et al.,
// arXiv:2306.01708), DARE (Yu et al., arXiv:2311.03099).
#pragma once

#include <lora/adapter/adapter_state.hpp>
#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/finite.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/random.hpp>
#include <lora/linalg/low_rank_product.hpp>
#include <lora/linalg/truncated_svd.hpp>
#include <lora/model/model_adapter.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lora {

/// How adapters become one. s_i is the scale, w_i the weight of the i-th; the result has scale 1.
///
/// | | A B of the result | rank |
/// |---|---|---|
/// | `Cat` | sum w_i s_i A_i B_i, exactly: the components side by side | sum r_i |
/// | `Svd` | the nearest product to that sum in the Frobenius norm | `rank`, or the largest r_i |
/// | `Linear` | (sum a_i A_i) (sum b_i B_i), b_i = sqrt abs(w_i s_i), a_i = b_i sign(w_i s_i) | r, the same in all |
/// | `MagnitudePrune` | `Linear` of factors that keep their largest elements, a share `density` | r |
/// | `Ties` | of those, the elements with the elected sign: their sum over how many they are | r |
/// | `DareLinear` | `Linear` of factors that keep a drawn share `density`, divided by it | r |
/// | `DareTies` | `Ties` of those | r |
///
/// \note All but `Cat` and `Svd` work on A and on B by themselves, as PEFT does: the product of two sums has cross
/// terms a_i b_j A_i B_j between adapters, which belong to no adapter and are as large as the rest. Adapters that
/// started from one A bear it best. \note TIES elects signs before the weights come in, so that a negative weight does
/// not turn the election; both as in PEFT (`utils/merge_utils.py`). PEFT's `ties_svd` and its like form n x m matrices:
/// not here.
enum class Combination { Cat, Svd, Linear, MagnitudePrune, Ties, DareLinear, DareTies };

/// How TIES elects the sign of an element: that of the sum of all values, or that of most values. Even: plus.
enum class MajoritySign { Total, Frequency };

struct CombineConfig {
  Combination method = Combination::Cat;
  Index rank = 0;      ///< of `Svd`, in [1, min(n, m)]; 0: the largest of the adapters
  double density = 1;  ///< in (0, 1]: the share of elements that pruning and DARE keep
  MajoritySign sign = MajoritySign::Total;

  bool operator==(const CombineConfig&) const = default;
};

/// An adapter and its weight w in a combination; any finite number, negative ones subtract.
template <Real RealScalar>
struct WeightedAdapter {
  using Scalar = RealScalar;
  AdapterState<Scalar> state;
  double weight = 1;
};

/// The same for adapters of a whole model.
template <Real RealScalar>
struct WeightedModelAdapter {
  using Scalar = RealScalar;
  ModelAdapter<Scalar> adapter;
  double weight = 1;
};

namespace detail {

/// Keeps the floor(density size) elements of largest magnitude; of equal ones the first.
template <class Matrix>
void keep_largest(Matrix& matrix, double density) {
  if (density >= 1) return;
  const auto size = static_cast<std::size_t>(matrix.size());
  const auto kept = static_cast<std::size_t>(density * static_cast<double>(size));
  std::vector<std::uint32_t> order(size);
  for (std::size_t i = 0; i < size; ++i) order[i] = static_cast<std::uint32_t>(i);
  const auto* values = matrix.data();
  const auto larger = [&](std::uint32_t left, std::uint32_t right) {
    const auto a = std::abs(values[left]), b = std::abs(values[right]);
    return a != b ? a > b : left < right;
  };
  std::nth_element(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(), larger);
  for (std::size_t i = kept; i < size; ++i) matrix.data()[order[i]] = 0;
}

/// Keeps each element with probability `density` and divides it by that; one draw an element, in memory order.
template <class Matrix>
void keep_drawn(Matrix& matrix, double density, Random& random) {
  if (density >= 1) return;
  for (auto& element : std::span(matrix.data(), static_cast<std::size_t>(matrix.size()))) {
    const bool kept = random.uniform() < density;
    element = kept ? static_cast<typename Matrix::Scalar>(element / density) : 0;
  }
}

/// sum w_i M_i
template <class Matrix>
Matrix weighted_sum(const std::vector<Matrix>& matrices, const std::vector<double>& weights) {
  Matrix sum = Matrix::Zero(matrices[0].rows(), matrices[0].cols());
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    sum += static_cast<typename Matrix::Scalar>(weights[i]) * matrices[i];
  }
  return sum;
}

/// Element by element: the mean of the w_i M_i whose M_i has the elected sign.
template <class Matrix>
Matrix elected_mean(const std::vector<Matrix>& matrices, const std::vector<double>& weights, MajoritySign sign) {
  using Scalar = typename Matrix::Scalar;
  Matrix result = Matrix::Zero(matrices[0].rows(), matrices[0].cols());
  for (Index k = 0; k < result.size(); ++k) {
    Scalar vote = 0;
    for (const auto& matrix : matrices) {
      const Scalar value = matrix.data()[k];
      vote += sign == MajoritySign::Total ? value : static_cast<Scalar>((value > 0) - (value < 0));
    }
    Scalar sum = 0;
    int count = 0;
    for (std::size_t i = 0; i < matrices.size(); ++i) {
      const Scalar value = matrices[i].data()[k];
      if (vote >= 0 ? value > 0 : value < 0) {
        sum += static_cast<Scalar>(weights[i]) * value;
        ++count;
      }
    }
    result.data()[k] = sum / static_cast<Scalar>(std::max(count, 1));
  }
  return result;
}

/// One factor of all adapters, by the methods that see A and B apart.
template <class Matrix>
Matrix combine_factor(std::vector<Matrix> matrices, const std::vector<double>& weights, const CombineConfig& config,
                      Random& random) {
  using enum Combination;
  for (auto& matrix : matrices) {
    if (config.method == MagnitudePrune || config.method == Ties) keep_largest(matrix, config.density);
    if (config.method == DareLinear || config.method == DareTies) keep_drawn(matrix, config.density, random);
  }
  const bool elects = config.method == Ties || config.method == DareTies;
  return elects ? elected_mean(matrices, weights, config.sign) : weighted_sum(matrices, weights);
}

/// The components of all adapters side by side, weights and scales in A.
template <Real Scalar>
Factors<Scalar> concatenated(const std::vector<Factors<Scalar>>& pairs, const std::vector<double>& weights) {
  Index rank = 0;
  for (const auto& pair : pairs) rank += pair.rank();
  auto all = Factors<Scalar>::zero(pairs[0].in_features(), pairs[0].out_features(), rank);
  Index first = 0;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    all.A.middleCols(first, pairs[i].rank()) = static_cast<Scalar>(weights[i]) * pairs[i].A;
    all.B.middleRows(first, pairs[i].rank()) = pairs[i].B;
    first += pairs[i].rank();
  }
  return all;
}

/// U S Vt as factors of equal size: A = U sqrt(S), B = sqrt(S) Vt.
template <Real Scalar>
Factors<Scalar> balanced(const TruncatedSvd<Scalar>& svd) {
  const Eigen::VectorX<Scalar> root = svd.S.cwiseSqrt();
  return {svd.U * root.asDiagonal(), root.asDiagonal() * svd.Vt};
}

/// An adapter at scale 1 that goes on with the hyper-parameters of `config`.
template <Real Scalar>
AdapterState<Scalar> at_scale_one(LoraConfig config, Factors<Scalar> factors) {
  config.rank = factors.rank();
  config.alpha = static_cast<double>(config.rank);
  config.scaling = Scaling::Standard;
  return {config, 1, std::move(factors), {}};
}

}  // namespace detail

/// The adapters as one, over the base as it was given; after an offset start the factors are ([A A0], [B; -B0]).
/// Dropout is the first one's. `Svd` costs O((n + m) R^2), R the sum of ranks, and never forms n x m; it leaves
/// singular values beyond the rank. Draws for DARE: each A, then each B, an element a draw in memory order. \throws
/// ConfigError  no adapters; a weight that is not finite; density outside (0, 1]; a rank that does not fit; different
/// ranks where they must be the same. \throws ShapeError  adapters of different weights. \throws NumericalError  a
/// result that is not finite. \see PEFT, tuners/lora/model.py, `add_weighted_adapter`
template <Real Scalar>
AdapterState<Scalar> combine(const std::vector<WeightedAdapter<Scalar>>& adapters, const CombineConfig& config,
                             Random& random) {
  detail::require<ConfigError>(!adapters.empty(), "combine: needs at least one adapter, got none");
  detail::require<ConfigError>(config.density > 0 && config.density <= 1, "combine: density must lie in (0, 1], got ",
                               config.density);
  std::vector<Factors<Scalar>> pairs;
  std::vector<double> weights;
  for (const auto& [state, weight] : adapters) {
    detail::require<ConfigError>(std::isfinite(weight) && std::isfinite(state.scale),
                                 "combine: weights and scales must be finite, got ", weight, " and ", state.scale);
    pairs.push_back(state.delta());
    weights.push_back(weight * state.scale);
    detail::require_factors(ConstFactorsView<Scalar>(pairs.back()), pairs[0].in_features(), pairs[0].out_features(),
                            pairs.back().rank(), "combine:");
  }
  const Index n = pairs[0].in_features(), m = pairs[0].out_features();

  Factors<Scalar> result;
  if (config.method == Combination::Cat) {
    result = detail::concatenated(pairs, weights);
  } else if (config.method == Combination::Svd) {
    Index rank = config.rank;
    for (const auto& pair : pairs) rank = config.rank != 0 ? rank : std::max(rank, pair.rank());
    detail::require<ConfigError>(rank >= 1 && rank <= std::min(n, m), "combine: rank must lie in [1, min(n, m)] = [1, ",
                                 std::min(n, m), "], got ", rank);
    const auto all = detail::concatenated(pairs, weights);
    // A sketch wider than the rank of the sum: exact but for rounding.
    const SvdEffort effort{.oversampling = std::max<Index>(all.rank() - rank, 0) + 8, .power_iterations = 1};
    result = detail::balanced(truncated_svd(LowRankProduct(all, 1), rank, random, effort));
  } else {
    const Index rank = pairs[0].rank();
    std::vector<ColMatrix<Scalar>> A;
    std::vector<RowMatrix<Scalar>> B;
    std::vector<double> weights_A, weights_B;
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      detail::require<ConfigError>(pairs[i].rank() == rank,
                                   "combine: this method needs adapters of one rank (Cat and Svd do not), got ", rank,
                                   " and ", pairs[i].rank());
      const double root = std::sqrt(std::abs(weights[i]));
      weights_A.push_back(weights[i] < 0 ? -root : root);
      weights_B.push_back(root);
      A.push_back(std::move(pairs[i].A));
      B.push_back(std::move(pairs[i].B));
    }
    result.A = detail::combine_factor(std::move(A), weights_A, config, random);
    result.B = detail::combine_factor(std::move(B), weights_B, config, random);
  }
  detail::require_finite(ConstFactorsView<Scalar>(result), "combine: result");
  return detail::at_scale_one(adapters[0].state.config, std::move(result));
}

/// The same for whole models, layer by layer in the order of their names; on a layer that some adapters do not have,
/// the others are combined, as in PEFT.
template <Real Scalar>
ModelAdapter<Scalar> combine(const std::vector<WeightedModelAdapter<Scalar>>& adapters, const CombineConfig& config,
                             Random& random) {
  std::map<std::string, std::vector<WeightedAdapter<Scalar>>, std::less<>> by_layer;
  for (const auto& [adapter, weight] : adapters) {
    for (const auto& [name, state] : adapter) by_layer[name].push_back({state, weight});
  }
  detail::require<ConfigError>(!by_layer.empty(), "combine: needs at least one adapter with a layer, got none");
  ModelAdapter<Scalar> result;
  const auto of_layer = [](const std::string& name, const Error& error) {
    constexpr std::string_view own = "combine";
    const std::string what = error.what();
    return "combine: layer " + name + (what.starts_with(own) ? what.substr(own.size()) : ": " + what);
  };
  for (const auto& [name, parts] : by_layer) {
    try {
      result.emplace(name, combine(parts, config, random));
    } catch (const ConfigError& error) {
      throw ConfigError(of_layer(name, error));
    } catch (const ShapeError& error) {
      throw ShapeError(of_layer(name, error));
    } catch (const NumericalError& error) {
      throw NumericalError(of_layer(name, error));
    }
  }
  return result;
}

}  // namespace lora
