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
#include <cmath>
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

/// The pseudo-inverse of a Gram matrix K of `Scalar` factors, and its eigendecomposition, in double.
///
/// `compute` takes K to the tridiagonal T = Q^T K Q. Where T proves that no eigenvalue is cut, the inverse follows from
/// it, about 5 r^3 flops in all. Elsewhere, and in `decompose`, come the eigenvalues and their vectors, about 7 r^3
/// more and slow ones: each rotation waits for the one before. Nothing allocates but a `compute` where r changes.
template <Real Scalar>
class Gram {
 public:
  /// \pre K is symmetric. \throws NumericalError  K is not finite: products of large factors overflow.
  void compute(const ColMatrix<Scalar>& K, const Regularisation<Scalar>& regularisation);

  const Eigen::MatrixXd& pseudo_inverse() const { return inverse_; }
  Index rank() const { return rank_; }  ///< how many directions survive the cut

  /// K = V diag(lambda) V^T, unless `compute` has needed it already. \pre `compute` came before.
  void decompose();
  bool decomposed() const { return decomposed_; }
  /// \pre `decomposed`.
  const Eigen::VectorXd& values() const { return values_; }  ///< ascending; damped, not shifted; zero where cut
  const Eigen::MatrixXd& vectors() const { return vectors_; }

  const Eigen::MatrixXd& tridiagonal_basis() const { return basis_; }  ///< Q
  /// Row j of X becomes itself times (T + shifts_j I)^-1, T damped, by elimination in all rows at once; `work` is
  /// scratch. \pre not `decomposed`, or no eigenvalue is cut; no shift is negative.
  void divide(Eigen::MatrixXd& X, const Eigen::VectorXd& shifts, Eigen::MatrixXd& work) const;

 private:
  void tridiagonalise();
  bool nothing_is_cut() const;

  Eigen::Tridiagonalization<Eigen::MatrixXd> tridiagonal_{2};
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver_;
  Eigen::VectorXd diagonal_, subdiagonal_, coefficients_, workspace_, values_;
  Eigen::MatrixXd wide_, basis_, vectors_, inverse_;
  Regularisation<Scalar> regularisation_;
  double unit_ = 1, gain_ = 0;  ///< K = unit Q T Q^T; in this unit each eigenvalue gains `gain`
  Index rank_ = 0;
  bool decomposed_ = false;
};

template <Real Scalar>
void Gram<Scalar>::compute(const ColMatrix<Scalar>& K, const Regularisation<Scalar>& regularisation) {
  detail::require<NumericalError>(all_finite(ConstColumns<Scalar>(K)),
                                  "Gram: products of the factors must be finite, got NaN or infinity");
  const Index r = K.rows();
  wide_ = K.template cast<double>();
  const double size = wide_.cwiseAbs().maxCoeff();
  unit_ = size > 0 ? size : 1;
  wide_ /= unit_;  // against overflow and underflow
  regularisation_ = regularisation;
  decomposed_ = false;
  if (vectors_.rows() != r) {  // also what this K may not need: a later one must not allocate
    solver_ = Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(r);
    vectors_.setZero(r, r);
    inverse_.resize(r, r);
    set_product(inverse_, 1, vectors_, vectors_);  // a product of this form comes with the eigenvalues alone
  }
  tridiagonalise();
  gain_ = regularisation.damping * diagonal_.mean();
  if (nothing_is_cut()) {
    rank_ = r;
    wide_ = basis_;
    values_.setConstant(r, regularisation.shift);
    divide(wide_, values_, inverse_);
    set_product(inverse_, 1, wide_, basis_.transpose());
    return;
  }
  decompose();
  for (Index i = 0; i < r; ++i) {
    wide_.col(i) = vectors_.col(i) * (values_(i) > 0 ? 1 / (values_(i) + regularisation.shift) : 0);
  }
  set_product(inverse_, 1, wide_, vectors_.transpose());
}

template <Real Scalar>
void Gram<Scalar>::decompose() {
  if (decomposed_) return;
  solver_.computeFromTridiagonal(diagonal_, subdiagonal_);
  const auto& raw = solver_.eigenvalues();
  const Index r = raw.size();
  const double least = regularisation_.cut * std::max(raw(r - 1), 0.0);
  values_.resize(r);
  for (Index i = 0; i < r; ++i) values_(i) = raw(i) > least ? unit_ * (raw(i) + gain_) : 0;
  rank_ = (values_.array() > 0).count();
  set_product(vectors_, 1, basis_, solver_.eigenvectors());
  decomposed_ = true;
}

/// The first two of the three parts of `SelfAdjointEigenSolver::compute`, which as a whole takes its workspace from the
/// heap.
template <Real Scalar>
void Gram<Scalar>::tridiagonalise() {
  const Index r = wide_.rows();
  tridiagonal_.compute(wide_);
  diagonal_ = tridiagonal_.diagonal();
  subdiagonal_ = tridiagonal_.subDiagonal();
  wide_ = tridiagonal_.packedMatrix();  // each reflection's vector (1, tail) below the subdiagonal
  coefficients_.resize(r - 1);          // Eigen hands out a copy of its own; they follow from the vectors
  for (Index k = 0; k + 1 < r; ++k) {
    const double tail = wide_.col(k).tail(r - k - 2).squaredNorm();
    coefficients_(k) = tail > 0 ? 2 / (1 + tail) : 0;
  }
  Eigen::HouseholderSequence<Eigen::MatrixXd, Eigen::VectorXd>(wide_, coefficients_)
      .setLength(r - 1)
      .setShift(1)
      .evalTo(wide_, workspace_);  // in place: elsewhere Eigen works by blocks, and allocates for each
  basis_.swap(wide_);
  wide_.resize(r, r);
}

/// Whether T exceeds cut lambda_max I for certain: the pivots of the difference are then positive, as many as there are
/// eigenvalues (Sylvester's law of inertia). A bound stands for lambda_max, and a margin for the rounding of T and of
/// the eigenvalues that would be compared.
template <Real Scalar>
bool Gram<Scalar>::nothing_is_cut() const {
  const Index r = diagonal_.size();
  double most = 0;  // of the sums of absolute values in the rows (Gershgorin)
  for (Index i = 0; i < r; ++i) {
    most = std::max(most, std::abs(diagonal_(i)) + (i > 0 ? std::abs(subdiagonal_(i - 1)) : 0) +
                              (i + 1 < r ? std::abs(subdiagonal_(i)) : 0));
  }
  const double margin = 8 * static_cast<double>(r) * std::numeric_limits<double>::epsilon();
  const double least = (regularisation_.cut + margin) * most;
  double pivot = 1;
  for (Index i = 0; i < r; ++i) {
    const double e = i > 0 ? subdiagonal_(i - 1) : 0;
    pivot = diagonal_(i) - least - e * e / pivot;
    if (!(pivot > 0)) return false;
  }
  return true;
}

template <Real Scalar>
void Gram<Scalar>::divide(Eigen::MatrixXd& X, const Eigen::VectorXd& shifts, Eigen::MatrixXd& work) const {
  const Index r = X.cols();
  auto& reciprocal = work;  // of the pivots
  reciprocal.resizeLike(X);
  for (Index i = 0; i < r; ++i) {
    const double e = i > 0 ? subdiagonal_(i - 1) : 0;
    auto pivot = reciprocal.col(i).array();
    pivot = diagonal_(i) + gain_ + shifts.array() / unit_;
    if (i > 0) {
      const auto before = reciprocal.col(i - 1).array();
      X.col(i).array() -= e * before * X.col(i - 1).array();
      pivot -= e * e * before;
    }
    pivot = pivot.inverse();
  }
  for (Index i = r - 1; i >= 0; --i) {
    if (i + 1 < r) X.col(i) -= subdiagonal_(i) * X.col(i + 1);
    X.col(i).array() *= reciprocal.col(i).array();
  }
  X /= unit_;
}

/// The C with left C + C right = rhs, for symmetric positive left and right. `work` is r x r scratch; C may be rhs.
///
/// In the eigenbasis of `right` each column of C has a system (left + lambda_j I) c = b of its own; tridiagonal where
/// no eigenvalue of left was cut. Elsewhere left's eigenbasis is taken too, so that each element is divided by mu_i +
/// lambda_j, or is zero where both are (the solution of least norm). \pre `right` is `decomposed`.
template <Real Scalar>
void solve_sylvester(const Gram<Scalar>& left, const Gram<Scalar>& right, const Eigen::MatrixXd& rhs,
                     Eigen::MatrixXd& work, Eigen::MatrixXd& C) {
  const Eigen::MatrixXd& basis = left.decomposed() ? left.vectors() : left.tridiagonal_basis();
  work.resizeLike(rhs);
  set_product(work, 1, right.vectors().transpose(), rhs.transpose());
  C.resizeLike(rhs);
  set_product(C, 1, work, basis);  // transposed, so that a system is a row, and step i of all systems a column
  if (left.decomposed()) {
    for (Index i = 0; i < C.cols(); ++i) {
      for (Index j = 0; j < C.rows(); ++j) {
        const double sum = left.values()(i) + right.values()(j);
        C(j, i) = sum > 0 ? C(j, i) / sum : 0;
      }
    }
  } else {
    left.divide(C, right.values(), work);
  }
  set_product(work, 1, right.vectors(), C);
  set_product(C, 1, basis, work.transpose());
}

namespace detail {

/// K = L R (r x r) where that is symmetric, as A^T A is, for little more than half of the product.
template <Real Scalar, class Left, class Right>
void set_symmetric_product(ColMatrix<Scalar>& K, const Left& L, const Right& R) {
  constexpr Index height = 12;  // rows of two register tiles
  const Index r = L.rows();
  K.resize(r, r);
  for (Index first = 0; first < r; first += height) {
    const Index count = std::min(height, r - first), rest = r - first;
    set_product(K.block(first, first, count, rest), 1, L.middleRows(first, count), R.rightCols(rest));
  }
  K.template triangularView<Eigen::StrictlyLower>() = K.transpose();
}

}  // namespace detail
}  // namespace lora
