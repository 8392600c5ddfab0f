// SPDX-License-Identifier: MIT
// OLoRA (Büyükakyüz, arXiv:2406.01775): an orthonormal start from the QR decomposition of the weight.
#pragma once

#include <lora/init/initializer.hpp>
#include <lora/linalg/thin_qr.hpp>

#include <Eigen/Core>

#include <utility>

namespace lora {

/// W0^T = Q R (m x n): B0 = Q_r^T, A0 = R_r^T, the first r of each.
///
/// The first r columns of Q come from the first r rows of W0 alone, and R_r^T = W0 Q_r: two products of r rows with any
/// base, offset, nothing written. \note As in PEFT (`olora_init`), A0 is not divided by s: the offset is s A0 B0.
struct QrInit {
  bool operator==(const QrInit&) const = default;

  template <FrozenBase Base>
  Start<typename Base::Scalar> operator()(const Base& base, Index rank, double /*scale*/, Random& /*random*/) const {
    using Scalar = typename Base::Scalar;
    RowMatrix<Scalar> unit = RowMatrix<Scalar>::Identity(rank, base.rows()), top(rank, base.cols());
    base.multiply(unit, top);
    Factors<Scalar> factors;
    factors.B = thin_qr<Scalar>(top.transpose()).Q.transpose();
    base.multiply_transposed(factors.B, unit);
    factors.A = unit.transpose();
    return {std::move(factors), Offset::SubtractInitial};
  }
};

}  // namespace lora
