// SPDX-License-Identifier: MIT
// The factor directions whose common effect on W is nearest to full fine-tuning's (LoRA-Pro, arXiv:2407.18242, Theorem
// 2.1).
#pragma once

#include <lora/core/factors.hpp>
#include <lora/linalg/gram.hpp>
#include <lora/linalg/product.hpp>

#include <Eigen/Core>

namespace lora {

/// Which of the directions that all move W alike: (H_A + A C, H_B - C B) for an r x r matrix C.
enum class Freedom {
  Sylvester,  ///< nearest to the raw gradients (the paper's): C (B B^T) + (A^T A) C = -(1/s^2) A^T G_A (B B^T)^+
  Symmetric,  ///< what both factors could carry is split in halves: C = -(1/2s^2) (A^T A)^+ A^T G_A (B B^T)^+
  Zero,       ///< C = 0: A carries all of it
  ReleasedSymmetric,  ///< as the authors released `Symmetric`: A^T A in the place of its inverse. For comparisons only.
};
constexpr const char* name_of(Freedom freedom) {
  switch (freedom) {
    case Freedom::Sylvester:
      return "Sylvester";
    case Freedom::Symmetric:
      return "Symmetric";
    case Freedom::Zero:
      return "Zero";
    case Freedom::ReleasedSymmetric:
      return "ReleasedSymmetric";
  }
  return "unknown";
}

/// For a pair (A, B) and the scale s: from the factor gradients G_A = s G B^T, G_B = s A^T G of any G (n x m) to the H
/// that minimises || s H_A B + s A H_B - G ||_F,
///
///     H_A = (1/s^2) G_A (B B^T)^+ + A C,   H_B = (1/s^2) (A^T A)^+ G_B (I - P_B) - C B,   P_B = B^T (B B^T)^+ B.
///
/// For every C, s H_A B + s A H_B = G P_B + P_A G (I - P_B), with P_A = A (A^T A)^+ A^T. Never forms an n x n, m x m or
/// n x m matrix: 4 n r^2 + 6 m r^2 flops (2 and 6 with C = 0), A^T A and B B^T by their halves, and their inverses.
/// B = 0 is no special case: all eigenvalues of B B^T are cut, so H_A = 0, H_B = (1/s^2) (A^T A)^+ G_B and C = 0.
/// Inverse and projector share one cut, so rank-deficient factors get the minimiser too.
/// \note C takes A^T G_A from G_B B^T, its equal for gradients of one G. For others C is another, and any C leaves
/// s H_A B + s A H_B as it is.
template <Real Scalar>
class EquivalentGradient {
 public:
  /// H_A = G_A M + A C, H_B = W G_B - L B; all r x r.
  struct Coefficients {
    Eigen::MatrixXd M, W;  ///< (1/s^2) (B B^T)^+ and (1/s^2) (A^T A)^+
    Eigen::MatrixXd C, L;  ///< L = W G_B B^T (B B^T)^+ + C; both zero with B
  };

  /// Decomposes A^T A and B B^T of the pair that the next `direction`s belong to.
  void at(const ConstFactorsView<Scalar>& factors, const Regularisation<Scalar>& regularisation = {});

  const Gram<Scalar>& input() const { return input_; }                         ///< of A^T A
  const Gram<Scalar>& output() const { return output_; }                       ///< of B B^T
  const ColMatrix<Scalar>& input_product() const { return input_product_; }    ///< A^T A
  const ColMatrix<Scalar>& output_product() const { return output_product_; }  ///< B B^T

  /// Writes H for the factor gradients `gradient`. \pre `at(factors)` came before; `H` and `gradient` do not overlap.
  void direction(const ConstFactorsView<Scalar>& factors, const ConstFactorsView<Scalar>& gradient, double scale,
                 Freedom freedom, Factors<Scalar>& H);

  /// What `direction` multiplies with, from S = G_B B^T (r x r); the next call overwrites it. 4 r^3 flops, and
  /// `Sylvester` 8 r^3 and the eigenvalues of B B^T more.
  const Coefficients& coefficients(const Eigen::MatrixXd& S, double scale, Freedom freedom);

 private:
  Gram<Scalar> input_, output_;
  ColMatrix<Scalar> input_product_, output_product_, left_;
  RowMatrix<Scalar> right_;
  Eigen::MatrixXd S_, work_, wide_;
  Coefficients coefficients_;
};

template <Real Scalar>
void EquivalentGradient<Scalar>::at(const ConstFactorsView<Scalar>& factors,
                                    const Regularisation<Scalar>& regularisation) {
  detail::set_symmetric_product(input_product_, factors.A.transpose(), factors.A);
  detail::set_symmetric_product(output_product_, factors.B, factors.B.transpose());
  input_.compute(input_product_, regularisation);
  output_.compute(output_product_, regularisation);
}

template <Real Scalar>
auto EquivalentGradient<Scalar>::coefficients(const Eigen::MatrixXd& S, double scale, Freedom freedom)
    -> const Coefficients& {
  auto& [M, W, C, L] = coefficients_;
  const Index r = S.rows();
  const double weight = 1 / (scale * scale);
  M = weight * output_.pseudo_inverse();
  W = weight * input_.pseudo_inverse();
  C.setZero(r, r);
  L.setZero(r, r);
  work_.resize(r, r);  // all before the return: the step after B = 0 must not allocate either
  if (freedom == Freedom::ReleasedSymmetric) wide_ = input_product_.template cast<double>();
  if (output_.rank() == 0) return coefficients_;
  set_product(work_, 1, S, M);  // (1/s^2) A^T G_A (B B^T)^+
  set_product(L, 1, input_.pseudo_inverse(), work_);
  switch (freedom) {
    case Freedom::Zero:
      break;
    case Freedom::Sylvester:
      output_.decompose();
      C = -work_;
      solve_sylvester(input_, output_, C, work_, C);
      break;
    case Freedom::Symmetric:
      C = -0.5 * L;
      break;
    case Freedom::ReleasedSymmetric:
      set_product(C, -0.5, wide_, work_);
      break;
  }
  L += C;
  return coefficients_;
}

template <Real Scalar>
void EquivalentGradient<Scalar>::direction(const ConstFactorsView<Scalar>& factors,
                                           const ConstFactorsView<Scalar>& gradient, double scale, Freedom freedom,
                                           Factors<Scalar>& H) {
  const Index r = factors.rank();
  H.A.resize(gradient.A.rows(), r);
  H.B.resize(r, gradient.B.cols());
  left_.resize(r, r);
  set_product(left_, 1, gradient.B, factors.B.transpose());
  S_ = left_.template cast<double>();
  const auto& [M, W, C, L] = coefficients(S_, scale, freedom);
  right_ = M.template cast<Scalar>();
  set_product(H.A, 1, gradient.A, right_);
  left_ = W.template cast<Scalar>();
  set_product(H.B, 1, left_, gradient.B);
  if (output_.rank() == 0) return;
  left_ = L.template cast<Scalar>();
  add_product(H.B, -1, left_, factors.B);
  if (freedom == Freedom::Zero) return;
  right_ = C.template cast<Scalar>();
  add_product(H.A, 1, factors.A, right_);
}

}  // namespace lora
