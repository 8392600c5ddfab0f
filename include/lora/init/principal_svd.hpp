// SPDX-License-Identifier: MIT
// PiSSA (Meng et al., arXiv:2404.02948): train the principal components of the weight.
#pragma once

#include <lora/core/error.hpp>
#include <lora/init/initializer.hpp>
#include <lora/linalg/truncated_svd.hpp>

#include <Eigen/Core>

#include <utility>

namespace lora {

/// A0 = U_r sqrt(S_r / s), B0 = sqrt(S_r / s) V_r^T of W0 = U S V^T, so that s A0 B0 is the principal part for any s.
///
/// Needs nothing of the base but products, so quantised and mapped bases serve too; the base is not touched (offset).
/// The default is the fast, randomised form; `PrincipalSvd{SvdEffort::exact()}` is exact. \throws ConfigError  scale
/// not positive. \note PEFT's fast form ("pissa_niter_4") has no oversampling, which leaves its trailing vectors poor.
/// \see docs/methods/pissa.md
struct PrincipalSvd {
  SvdEffort effort{.oversampling = 16, .power_iterations = 4};

  bool operator==(const PrincipalSvd&) const = default;

  template <FrozenBase Base>
  Start<typename Base::Scalar> operator()(const Base& base, Index rank, double scale, Random& random) const {
    using Scalar = typename Base::Scalar;
    detail::require<ConfigError>(scale > 0, "PrincipalSvd: scale must be positive, got ", scale);
    const auto svd = truncated_svd(base, rank, random, effort);
    const Eigen::VectorX<Scalar> root = (svd.S / static_cast<Scalar>(scale)).cwiseSqrt();
    Factors<Scalar> factors{svd.U * root.asDiagonal(), root.asDiagonal() * svd.Vt};
    return {std::move(factors), Offset::SubtractInitial};
  }
};

}  // namespace lora
