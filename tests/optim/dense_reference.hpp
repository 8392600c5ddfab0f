// SPDX-License-Identifier: MIT
// LoRA-Pro by its formulas on dense n x m matrices in double: slow, and sharing nothing with the library's way there.
#pragma once

#include "support/matrices.hpp"

#include <lora/optim/lora_pro.hpp>

#include <algorithm>
#include <cmath>

namespace lora::test {

using Dense = ColMatrix<double>;

/// By Gauss-Jordan elimination with row pivots; Eigen's own costs every file seconds of compile time.
inline Dense inverse(Dense K) {
  const Index size = K.rows();
  Dense result = Dense::Identity(size, size);
  for (Index k = 0; k < size; ++k) {
    Index pivot = k;
    for (Index i = k; i < size; ++i) pivot = std::abs(K(i, k)) > std::abs(K(pivot, k)) ? i : pivot;
    K.row(k).swap(K.row(pivot));
    result.row(k).swap(result.row(pivot));
    const double head = K(k, k);
    K.row(k) /= head;
    result.row(k) /= head;
    for (Index i = 0; i < size; ++i) {
      const double factor = K(i, k);
      if (i == k || factor == 0) continue;
      K.row(i) -= factor * K.row(k);
      result.row(i) -= factor * result.row(k);
    }
  }
  return result;
}

/// Orthonormal columns that span those of M, by Gram and Schmidt, twice; M may be rank-deficient.
inline Dense orthonormal_basis(const Dense& M) {
  Dense Q(M.rows(), std::min(M.rows(), M.cols()));
  Index rank = 0;
  for (Index j = 0; j < M.cols() && rank < Q.cols(); ++j) {
    Eigen::VectorXd column = M.col(j);
    const double length = column.norm();
    for (int pass = 0; pass < 2; ++pass) {
      for (Index k = 0; k < rank; ++k) column -= Q.col(k).dot(column) * Q.col(k);
    }
    if (column.norm() > 1e-9 * length) Q.col(rank++) = column.normalized();
  }
  return Q.leftCols(rank);
}

/// The C with M C + C L = K, from the r^2 x r^2 system of its elements.
inline Dense sylvester(const Dense& M, const Dense& L, const Dense& K) {
  const Index r = M.rows();
  Dense system = Dense::Zero(r * r, r * r);
  for (Index j = 0; j < r; ++j) {
    for (Index i = 0; i < r; ++i) {
      for (Index k = 0; k < r; ++k) {
        system(i + j * r, k + j * r) += M(i, k);
        system(i + j * r, i + k * r) += L(k, j);
      }
    }
  }
  const Eigen::VectorXd flat = K.reshaped();
  return Dense(inverse(system) * flat).reshaped(r, r);
}

/// G_A = s G B^T, G_B = s A^T G.
template <Real Scalar>
Factors<Scalar> factor_gradient(const Factors<Scalar>& factors, const ColMatrix<Scalar>& G, double s) {
  const auto scale = static_cast<Scalar>(s);
  return {scale * G * factors.B.transpose(), scale * factors.A.transpose() * G};
}
/// How W moves as (A, B) move along H: s H_A B + s A H_B.
inline Dense effect(const Factors<double>& factors, const Factors<double>& H, double s) {
  return s * H.A * factors.B + s * factors.A * H.B;
}
inline double inner_product(const Factors<double>& left, const Factors<double>& right) {
  return left.A.cwiseProduct(right.A).sum() + left.B.cwiseProduct(right.B).sum();
}

/// One run of LoRA-Pro; `step` is handed the gradient G of the weight.
class DenseLoraPro {
 public:
  explicit DenseLoraPro(LoraPro method) : method_(method), t_(method.compat == LoraPro::Compat::DeepSpeed ? 1 : 0) {}

  /// H for a gradient G of the weight, for factors of full rank or B = 0.
  Factors<double> direction(const Factors<double>& f, const Dense& G, double s, Freedom freedom) const {
    const auto [GA, GB] = factor_gradient(f, G, s);
    const Dense M = damped(f.A.transpose() * f.A), M_inverse = inverse(M + shift(f));
    if (f.B.isZero(0)) return {Dense::Zero(f.A.rows(), f.A.cols()), M_inverse * GB / (s * s)};
    const Dense L = damped(f.B * f.B.transpose()), L_inverse = inverse(L + shift(f));
    const Dense I = Dense::Identity(f.B.cols(), f.B.cols());
    const Dense shared = f.A.transpose() * GA * L_inverse / (s * s);
    Dense C = Dense::Zero(L.rows(), L.cols());
    if (freedom == Freedom::Sylvester) C = sylvester(M, L, -shared);
    if (freedom == Freedom::Symmetric) C = -0.5 * M_inverse * shared;
    if (freedom == Freedom::ReleasedSymmetric) C = -0.5 * (f.A.transpose() * f.A) * shared;
    return {GA * L_inverse / (s * s) + f.A * C,
            M_inverse * GB * (I - f.B.transpose() * L_inverse * f.B) / (s * s) - C * f.B};
  }

  void step(Factors<double>& f, const Dense& G, double s, double rate) {
    const double lr = rate * method_.learning_rate;
    ++t_;
    if (method_.mode == LoraPro::Mode::Efficient) {
      const auto H = direction(f, G, s, method_.freedom);
      const Dense step_A = adam(A_, H.A), step_B = adam(B_, H.B);
      f.A = (1 - lr * method_.weight_decay) * f.A - lr * step_A;
      f.B = (1 - lr * method_.weight_decay) * f.B - lr * step_B;
      return;
    }
    Dense g = G;
    if (method_.mode != LoraPro::Mode::Sgd) {
      const Dense Gt = effect(f, direction(f, G, s, Freedom::Zero), s);
      g = method_.mode == LoraPro::Mode::Full ? adam(W_, Gt) : factored(f, Gt, s);
    }
    const auto H = direction(f, g, s, method_.freedom);
    double length = lr;
    if (lr * H.A.norm() > method_.trust * f.A.norm()) length = method_.trust * f.A.norm() / H.A.norm();
    const double keep = std::sqrt(1 - lr * method_.weight_decay);
    f.A = keep * f.A - length * H.A;
    f.B = keep * f.B - length * H.B;
  }

 private:
  struct Moments {
    Dense mean, square;
  };

  Dense damped(const Dense& K) const {
    const auto r = static_cast<double>(K.rows());
    return K + method_.damping * K.trace() / r * Dense::Identity(K.rows(), K.rows());
  }
  /// What the released codes add before they invert.
  Dense shift(const Factors<double>& f) const {
    return (method_.compat == LoraPro::Compat::None ? 0 : 1e-8) * Dense::Identity(f.rank(), f.rank());
  }
  double mean_correction() const { return 1 - std::pow(method_.beta1, t_); }
  double square_correction() const { return 1 - std::pow(method_.beta2, t_); }

  /// m^ / (sqrt(v^) + epsilon)
  Dense adam(Moments& moments, const Dense& g) const {
    auto& [mean, square] = moments;
    if (mean.size() == 0) mean = square = Dense::Zero(g.rows(), g.cols());
    mean = method_.beta1 * mean + (1 - method_.beta1) * g;
    square = method_.beta2 * square + (1 - method_.beta2) * g.cwiseProduct(g);
    return (mean / mean_correction()).array() / ((square / square_correction()).array().sqrt() + method_.epsilon);
  }
  /// D_R m^ D_K, with the momentum first projected on what the factors of now can do.
  Dense factored(const Factors<double>& f, const Dense& Gt, double s) {
    auto& mean = W_.mean;
    if (mean.size() == 0) {
      mean = Dense::Zero(Gt.rows(), Gt.cols());
      rows_ = Eigen::VectorXd::Zero(Gt.rows());
      columns_ = Eigen::VectorXd::Zero(Gt.cols());
    }
    mean = method_.beta1 * effect(f, direction(f, mean, s, Freedom::Zero), s) + (1 - method_.beta1) * Gt;
    rows_ = method_.beta2 * rows_ + (1 - method_.beta2) * Gt.rowwise().squaredNorm();
    columns_ = method_.beta2 * columns_ + (1 - method_.beta2) * Gt.colwise().squaredNorm().transpose();
    const Eigen::VectorXd R = rows_ / square_correction(), K = columns_ / square_correction();
    const double root = std::sqrt(R.sum());
    Dense g = mean / mean_correction();
    for (Index i = 0; i < g.rows(); ++i) {
      for (Index j = 0; j < g.cols(); ++j) {
        g(i, j) /= std::sqrt((R(i) / root + method_.epsilon) * (K(j) / root + method_.epsilon));
      }
    }
    return g;
  }

  LoraPro method_;
  int t_;
  Moments A_, B_, W_;
  Eigen::VectorXd rows_, columns_;
};

}  // namespace lora::test
