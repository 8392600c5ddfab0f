// SPDX-License-Identifier: MIT
// LoRA-GA (Wang et al., arXiv:2407.05000): start so that the first step moves W as full fine-tuning would.
#pragma once

#include <lora/core/error.hpp>
#include <lora/init/initializer.hpp>
#include <lora/linalg/dense.hpp>
#include <lora/linalg/product.hpp>
#include <lora/linalg/truncated_svd.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace lora {

/// A0 and B0 from two **disjoint** singular bands of the gradient G (n x m), which minimise
/// || G - c (A0 A0^T G + G B0^T B0) ||_F. With the leading 2r triplets (u_i, sigma_i, v_i) of G:
///
/// | direction | A0 | B0 |
/// |---|---|---|
/// | `ArB2r` | u_0 .. u_{r-1} | v_r .. v_{2r-1} |
/// | `A2rBr` | u_r .. u_{2r-1} | v_0 .. v_{r-1} |
/// | `ArBr` | u_1, u_3, ... | v_0, v_2, ... |
/// | `Random` | r of the 2r, drawn | `Authors`: the other r; `Peft`: the same r |
///
/// The layer keeps the start as an offset: the base is not touched and the first output equals the base's. G may be any
/// linear operator: `DenseGradient`, a `BatchGradient` that nobody forms, `StreamingSvd::svd`. Cost: one
/// `truncated_svd` of 2r triplets, sketch 2r + oversampling wide; `Size::Weight` adds one of the base.
/// \note The two conventions are different algorithms: PEFT multiplies row i of B0 by its singular value, so that its
/// start depends on the size of the loss. \see the authors' fork of PEFT and PEFT itself, tuners/lora/layer.py;
/// docs/methods/lora_ga.md
struct GradientSvd {
  enum class Convention { Authors, Peft };
  enum class Direction { ArB2r, A2rBr, ArBr, Random };
  /// What the factors are multiplied by. In their own words: "stable", "gd" ("gd_scale" in PEFT), "weight_svd", "unit".
  enum class Size {
    Stable,        ///< `Authors`: both m^(1/4) / sqrt(gamma); `Peft`: B0 alone
    InverseScale,  ///< both 1 / s
    Weight,  ///< `Authors`: both the mean over i < r of sqrt(sigma_i(W0) / s); `Peft`: B0 sigma_0(W0) / its first sigma
    Unit,    ///< 1
  };

  Convention convention = Convention::Authors;
  Direction direction = Direction::ArB2r;
  Size size = Size::Stable;
  double gamma = 16;  ///< > 0, of `Stable`
  /// Shrinks both factors by sqrt(c), c = max |W0| / max |s A0 B0|, where c < 1: the authors' norm clip. Reads the
  /// base's elements, n m of them.
  bool clip = false;
  SvdEffort effort{.oversampling = 32, .power_iterations = 2};

  bool operator==(const GradientSvd&) const = default;

  /// \throws ConfigError  gamma not positive; scale zero; 2r > min(n, m): there are no two disjoint bands, take a
  /// smaller rank. \throws NumericalError  the gradient is zero or not finite; the base is zero where `clip` or
  /// `Size::Weight` asks it.
  template <FrozenBase Base, LinearOperator Gradient>
  Start<typename Base::Scalar> operator()(const Base& base, const Gradient& gradient, Index rank, double scale,
                                          Random& random) const {
    using Scalar = typename Base::Scalar;
    const Index most = std::min(Index{base.rows()}, Index{base.cols()});
    detail::require<ConfigError>(std::isfinite(gamma) && gamma > 0,
                                 "GradientSvd: gamma must be positive and finite, got ", gamma);
    detail::require<ConfigError>(std::isfinite(scale) && scale != 0,
                                 "GradientSvd: scale must be finite and not zero, got ", scale);
    detail::require<ConfigError>(2 * rank <= most, "GradientSvd: needs 2 rank <= min(n, m) = ", most,
                                 " for two disjoint bands, got rank ", rank);
    detail::require_shape(gradient, base.rows(), base.cols(), "GradientSvd: gradient");
    const auto svd = truncated_svd(gradient, 2 * rank, random, effort);
    detail::require<NumericalError>(svd.S(0) > 0, "GradientSvd: the gradient must not be zero, got zeros alone");

    const auto [input, output] = bands(rank, random);
    Factors<Scalar> factors{svd.U(Eigen::indexing::all, input), svd.Vt(output, Eigen::indexing::all)};
    if (convention == Convention::Peft) {
      for (Index i = 0; i < rank; ++i) factors.B.row(i) *= svd.S(output[static_cast<std::size_t>(i)]);
    }
    const auto [size_A, size_B] = sizes(base, static_cast<double>(svd.S(output.front())), rank, scale, random);
    factors.A *= static_cast<Scalar>(size_A);
    factors.B *= static_cast<Scalar>(size_B);
    const double ratio = clip ? largest_element(base) / (std::abs(scale) * largest_product(factors)) : 1;
    if (ratio < 1) factors *= std::sqrt(ratio);
    detail::require<NumericalError>(size_A > 0 && size_B > 0 && ratio > 0,
                                    "GradientSvd: a base that sets the size of the factors must not be zero, got zeros "
                                    "alone");
    return {std::move(factors), Offset::SubtractInitial};
  }

 private:
  using Indices = std::vector<Index>;

  /// Which triplets A0 and B0 take.
  std::pair<Indices, Indices> bands(Index rank, Random& random) const {
    Indices order(static_cast<std::size_t>(2 * rank));
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<Index>(i);
    if (direction == Direction::Random) {
      for (Index i = 2 * rank - 1; i > 0; --i)
        std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(random.below(i + 1))]);
    }
    if (direction == Direction::ArBr) {  // odd ones before even ones
      std::stable_partition(order.begin(), order.end(), [](Index i) { return i % 2 == 1; });
    }
    const auto half = order.begin() + rank;
    Indices first(order.begin(), half), second(half, order.end());
    if (direction == Direction::A2rBr) return {second, first};
    if (direction == Direction::Random && convention == Convention::Peft) return {first, first};
    return {first, second};
  }

  /// By what A0 and B0 are multiplied.
  template <FrozenBase Base>
  std::pair<double, double> sizes(const Base& base, double first_sigma, Index rank, double scale,
                                  Random& random) const {
    const bool authors = convention == Convention::Authors;
    switch (size) {
      case Size::Stable: {
        const double stable = std::pow(static_cast<double>(base.cols()), 0.25) / std::sqrt(gamma);
        return {authors ? stable : 1, stable};
      }
      case Size::InverseScale:
        return {1 / scale, 1 / scale};
      case Size::Weight: {
        const Eigen::VectorXd sigma = truncated_svd(base, rank, random, effort).S.template cast<double>();
        if (!authors) return {1, first_sigma > 0 ? sigma(0) / first_sigma : 1};
        const double mean = (sigma / std::abs(scale)).cwiseSqrt().mean();
        return {mean, mean};
      }
      case Size::Unit:
        break;
    }
    return {1, 1};
  }

  /// max |A B|, by blocks of rows.
  template <Real Scalar>
  static double largest_product(const Factors<Scalar>& factors) {
    constexpr Index most = 64;
    double largest = 0;
    RowMatrix<Scalar> block;
    for (Index first = 0; first < factors.in_features(); first += most) {
      const Index count = std::min(most, factors.in_features() - first);
      block.resize(count, factors.out_features());
      set_product(block, 1, factors.A.middleRows(first, count), factors.B);
      largest = std::max(largest, static_cast<double>(block.cwiseAbs().maxCoeff()));
    }
    return largest;
  }
};

}  // namespace lora
