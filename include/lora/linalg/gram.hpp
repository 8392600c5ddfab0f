// SPDX-License-Identifier: MIT
// Symmetric positive r x r matrices in double: pseudo-inverse with a relative cut, and the Sylvester equation.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/finite.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/views.hpp>
#include <lora/linalg/product.hpp>

#include <Eigen/Core>
#include <Eigen/Eigenvalues>

#include <algorithm>
#include <limits>

namespace lora {

/// What is done about the small eigenvalues of a Gram matrix K (r x r).
template <Real Scalar>
struct Regularisation {
  /// Eigenvalues up to `cut` times the largest count as zero, in the inverse and so in every projector made from it.
  /// The default is what a Gram matrix rounded to `Scalar` can resolve.
  double cut = 64 * static_cast<double>(std::numeric_limits<Scalar>::epsilon());
  double damping = 0;  ///< relative: the other eigenvalues gain damping tr(K) / r
  double shift = 0;    ///< absolute: this is added where they are inverted, and only there
};

/// The eigendecomposition K = V diag(lambda) V^T of a Gram matrix of `Scalar` factors, in double; about 11 r^3 flops.
/// `compute` allocates only where r changes.
template <Real Scalar>
class Gram {
 public:
  /// \pre K is symmetric. \throws NumericalError  K is not finite: products of large factors overflow.
  void compute(const ColMatrix<Scalar>& K, const Regularisation<Scalar>& regularisation);

  const Eigen::VectorXd& values() const { return values_; }  ///< damped, not shifted; zero where cut
  const Eigen::MatrixXd& vectors() const { return vectors_; }
  const Eigen::MatrixXd& pseudo_inverse() const { return inverse_; }
  /// How many directions survive the cut.
  Index rank() const { return (values_.array() > 0).count(); }

 private:
  void decompose();

  Eigen::Tridiagonalization<Eigen::MatrixXd> tridiagonal_{2};
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver_;
  Eigen::VectorXd diagonal_, subdiagonal_, coefficients_, workspace_, values_;
  Eigen::MatrixXd wide_, vectors_, inverse_;
};

template <Real Scalar>
void Gram<Scalar>::compute(const ColMatrix<Scalar>& K, const Regularisation<Scalar>& regularisation) {
  detail::require<NumericalError>(all_finite(ConstColumns<Scalar>(K)),
                                  "Gram: products of the factors must be finite, got NaN or infinity");
  const Index r = K.rows();
  wide_ = K.template cast<double>();
  const double size = wide_.cwiseAbs().maxCoeff();
  const double unit = size > 0 ? size : 1;
  wide_ /= unit;  // against overflow and underflow
  decompose();
  const auto& raw = solver_.eigenvalues();  // in ascending order
  const double least = regularisation.cut * std::max(raw(r - 1), 0.0);
  const double gain = regularisation.damping * raw.mean();
  values_.resize(r);
  for (Index i = 0; i < r; ++i) values_(i) = raw(i) > least ? unit * (raw(i) + gain) : 0;

  for (Index i = 0; i < r; ++i) {
    wide_.col(i) = vectors_.col(i) * (values_(i) > 0 ? 1 / (values_(i) + regularisation.shift) : 0);
  }
  inverse_.resize(r, r);
  set_product(inverse_, 1, wide_, vectors_.transpose());
}

/// `SelfAdjointEigenSolver::compute` in its three parts, because as a whole it takes its workspace from the heap.
template <Real Scalar>
void Gram<Scalar>::decompose() {
  const Index r = wide_.rows();
  tridiagonal_.compute(wide_);
  diagonal_ = tridiagonal_.diagonal();
  subdiagonal_ = tridiagonal_.subDiagonal();
  solver_.computeFromTridiagonal(diagonal_, subdiagonal_);
  wide_ = tridiagonal_.packedMatrix();  // each reflection's vector (1, tail) below the subdiagonal
  coefficients_.resize(r - 1);          // Eigen hands out a copy of its own; they follow from the vectors
  for (Index k = 0; k + 1 < r; ++k) {
    const double tail = wide_.col(k).tail(r - k - 2).squaredNorm();
    coefficients_(k) = tail > 0 ? 2 / (1 + tail) : 0;
  }
  Eigen::HouseholderSequence<Eigen::MatrixXd, Eigen::VectorXd>(wide_, coefficients_)
      .setLength(r - 1)
      .setShift(1)
      .evalTo(wide_, workspace_);
  vectors_.resize(r, r);
  set_product(vectors_, 1, wide_, solver_.eigenvectors());
}

/// The C with left C + C right = rhs, for symmetric positive left and right: in their eigenbases each element is
/// divided by mu_i + lambda_j, and is zero where both are (the solution of least norm). `work` is r x r scratch; C may
/// be rhs.
template <Real Scalar>
void solve_sylvester(const Gram<Scalar>& left, const Gram<Scalar>& right, const Eigen::MatrixXd& rhs,
                     Eigen::MatrixXd& work, Eigen::MatrixXd& C) {
  work.resizeLike(rhs);
  set_product(work, 1, left.vectors().transpose(), rhs);
  C.resizeLike(rhs);
  set_product(C, 1, work, right.vectors());
  for (Index j = 0; j < C.cols(); ++j) {
    for (Index i = 0; i < C.rows(); ++i) {
      const double sum = left.values()(i) + right.values()(j);
      C(i, j) = sum > 0 ? C(i, j) / sum : 0;
    }
  }
  set_product(work, 1, left.vectors(), C);
  set_product(C, 1, work, right.vectors().transpose());
}

}  // namespace lora
