// SPDX-License-Identifier: MIT
// An orthonormal basis of a column space (thin QR by Householder reflections).
#pragma once

#include <lora/core/matrix.hpp>

#include <Eigen/QR>

#include <algorithm>
#include <cmath>

namespace lora {

/// Q (rows x k) and R (k x cols) of M = Q R, k = min(rows, cols): Q has orthonormal columns whatever M's rank, R is
/// upper triangular.
template <Real Scalar>
struct ThinQr {
  ColMatrix<Scalar> Q, R;
};

/// Cost 4 rows k^2 flops. ||Q^T Q - I|| is a small multiple of the unit roundoff.
template <Real Scalar>
ThinQr<Scalar> thin_qr(const ColMatrix<Scalar>& M) {
  const Scalar size = M.size() > 0 ? M.cwiseAbs().maxCoeff() : 0;
  // Eigen's reflections square what they see; a power of two changes no bit.
  const Scalar unit = size > 0 ? std::ldexp(Scalar{1}, std::ilogb(size)) : Scalar{1};
  const Eigen::HouseholderQR<ColMatrix<Scalar>> qr(M / unit);
  const Index k = std::min(M.rows(), M.cols());
  ThinQr<Scalar> result{ColMatrix<Scalar>::Identity(M.rows(), k), unit * qr.matrixQR().topRows(k)};
  result.Q.applyOnTheLeft(qr.householderQ());
  result.R.template triangularView<Eigen::StrictlyLower>().setZero();
  return result;
}

}  // namespace lora
