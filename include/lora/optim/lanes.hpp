// SPDX-License-Identifier: MIT
// Elementwise arithmetic that gives an element the same bits wherever it stands.
#pragma once

#include <lora/core/matrix.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cmath>

namespace lora::detail {

/// Sixteen elements at a time, vectorised as a whole. An array of run-time length is not: Eigen computes the elements
/// before the first aligned one and after the last whole vector by other instructions, with other last bits, so that a
/// column in a trainer's memory would not step as the same column in ours does.
template <Real Scalar>
using Lanes = Eigen::Array<Scalar, 16, 1>;
inline constexpr Index lane_count = 16;

/// The first `count` lanes from memory, the others zero.
template <Real Scalar>
Lanes<Scalar> load(const Scalar* from, Index count) {
  if (count == lane_count) return Eigen::Map<const Lanes<Scalar>>(from);
  Lanes<Scalar> lanes = Lanes<Scalar>::Zero();
  std::copy_n(from, count, lanes.data());
  return lanes;
}
template <Real Scalar>
void store(const Lanes<Scalar>& lanes, Scalar* to, Index count) {
  if (count == lane_count) {
    Eigen::Map<Lanes<Scalar>> target(to);
    target = lanes;
  } else {
    std::copy_n(lanes.data(), count, to);
  }
}

/// Correctly rounded. Eigen's `sqrt` of float vectors is an estimate of 1-2 ulp that differs between processors and
/// makes NaN of infinity (a squared gradient may overflow).
template <Real Scalar>
Lanes<Scalar> square_root(Lanes<Scalar> lanes) {
#ifdef EIGEN_VECTORIZE_SSE2
  for (Index i = 0; i < lane_count; i += Index{16 / sizeof(Scalar)}) {
    if constexpr (sizeof(Scalar) == 4) {
      _mm_store_ps(&lanes(i), _mm_sqrt_ps(_mm_load_ps(&lanes(i))));
    } else {
      _mm_store_pd(&lanes(i), _mm_sqrt_pd(_mm_load_pd(&lanes(i))));
    }
  }
#else
  for (Scalar& lane : lanes) lane = std::sqrt(lane);
#endif
  return lanes;
}

}  // namespace lora::detail
