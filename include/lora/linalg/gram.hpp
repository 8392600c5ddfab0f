// SPDX-License-Identifier: MIT
// Symmetric positive r x r matrices in double: pseudo-inverse with a relative cut, and the Sylvester equation.
#pragma once

#include <lora/core/matrix.hpp>
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
  double shift = 0;    ///< absolute: and this
};

/// The eigendecomposition K = V diag(lambda) V^T of a Gram matrix of `Scalar` factors, in double; about 9 r^3 flops.
/// `compute` allocates only where r changes.
template <Real Scalar>
class Gram {
 public:
  /// \pre K is symmetric and finite.
  void compute(const ColMatrix<Scalar>& K, const Regularisation<Scalar>& regularisation) {
    wide_ = K.template cast<double>();
    solver_.compute(wide_);
    const auto& raw = solver_.eigenvalues();  // in ascending order
    const double least = regularisation.cut * std::max(raw(raw.size() - 1), 0.0);
    const double gain = regularisation.damping * raw.mean() + regularisation.shift;
    values_.resize(raw.size());
    for (Index i = 0; i < raw.size(); ++i) values_(i) = raw(i) > least ? raw(i) + gain : 0;

    for (Index i = 0; i < raw.size(); ++i) wide_.col(i) = vectors().col(i) * (values_(i) > 0 ? 1 / values_(i) : 0);
    inverse_.resizeLike(wide_);
    set_product(inverse_, 1, wide_, vectors().transpose());
  }

  const Eigen::VectorXd& values() const { return values_; }  ///< regularised; zero where cut
  const Eigen::MatrixXd& vectors() const { return solver_.eigenvectors(); }
  const Eigen::MatrixXd& pseudo_inverse() const { return inverse_; }
  /// How many directions survive the cut.
  Index rank() const { return (values_.array() > 0).count(); }

 private:
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver_;
  Eigen::VectorXd values_;
  Eigen::MatrixXd wide_, inverse_;
};

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
