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

/// For a pair (A, B) and the scale s: from the factor gradients G_A = s G B^T, G_B = s A^T G of any G (n x m) to the H
/// that minimises || s H_A B + s A H_B - G ||_F,
///
///     H_A = (1/s^2) G_A (B B^T)^+ + A C,   H_B = (1/s^2) (A^T A)^+ G_B (I - P_B) - C B,   P_B = B^T (B B^T)^+ B.
///
/// For every C, s H_A B + s A H_B = G P_B + P_A G (I - P_B), with P_A = A (A^T A)^+ A^T. Never forms an n x n, m x m or
/// n x m matrix: 8 n r^2 + 10 m r^2 flops (4 and 8 with C = 0) and two r x r eigendecompositions. B = 0 is no
/// special case: all eigenvalues of B B^T are cut, so H_A = 0, H_B = (1/s^2) (A^T A)^+ G_B and C = 0. Inverse and
/// projector share one cut, so rank-deficient factors get the minimiser too.
template <Real Scalar>
class EquivalentGradient {
 public:
  /// Decomposes A^T A and B B^T of the pair that the next `direction`s belong to.
  void at(const ConstFactorsView<Scalar>& factors, const Regularisation<Scalar>& regularisation = {});

  const Gram<Scalar>& input() const { return input_; }    ///< of A^T A
  const Gram<Scalar>& output() const { return output_; }  ///< of B B^T

  /// Writes H for the factor gradients `gradient`. \pre `at(factors)` came before; `H` and `gradient` do not overlap.
  void direction(const ConstFactorsView<Scalar>& factors, const ConstFactorsView<Scalar>& gradient, double scale,
                 Freedom freedom, Factors<Scalar>& H);

 private:
  static void narrow(const Eigen::MatrixXd& from, double factor, ColMatrix<Scalar>& to) {
    to = (factor * from).template cast<Scalar>();
  }

  Gram<Scalar> input_, output_;
  ColMatrix<Scalar> small_;
  RowMatrix<Scalar> complement_;
  Eigen::MatrixXd wide_, work_, C_;
};

template <Real Scalar>
void EquivalentGradient<Scalar>::at(const ConstFactorsView<Scalar>& factors,
                                    const Regularisation<Scalar>& regularisation) {
  const Index r = factors.rank();
  small_.resize(r, r);
  set_product(small_, 1, factors.A.transpose(), factors.A);
  input_.compute(small_, regularisation);
  set_product(small_, 1, factors.B, factors.B.transpose());
  output_.compute(small_, regularisation);
}

template <Real Scalar>
void EquivalentGradient<Scalar>::direction(const ConstFactorsView<Scalar>& factors,
                                           const ConstFactorsView<Scalar>& gradient, double scale, Freedom freedom,
                                           Factors<Scalar>& H) {
  const Index r = factors.rank();
  const double weight = 1 / (scale * scale);
  H.A.resize(gradient.A.rows(), r);
  H.B.resize(r, gradient.B.cols());
  small_.resize(r, r);
  work_.resize(r, r);

  narrow(output_.pseudo_inverse(), weight, small_);
  set_product(H.A, 1, gradient.A, small_);

  // G_B (I - P_B) as G_B - (G_B B^T) (B B^T)^+ B.
  set_product(small_, 1, gradient.B, factors.B.transpose());
  wide_ = small_.template cast<double>();
  set_product(work_, 1, wide_, output_.pseudo_inverse());
  narrow(work_, 1, small_);
  complement_ = gradient.B;
  add_product(complement_, -1, small_, factors.B);
  narrow(input_.pseudo_inverse(), weight, small_);
  set_product(H.B, 1, small_, complement_);

  if (freedom == Freedom::Zero || output_.rank() == 0) return;
  set_product(small_, 1, factors.A.transpose(), H.A);  // (1/s^2) A^T G_A (B B^T)^+
  wide_ = small_.template cast<double>();
  C_.resize(r, r);
  if (freedom == Freedom::Sylvester) {
    wide_ *= -1;
    solve_sylvester(input_, output_, wide_, work_, C_);
  } else if (freedom == Freedom::Symmetric) {
    set_product(C_, -0.5, input_.pseudo_inverse(), wide_);
  } else {
    set_product(small_, 1, factors.A.transpose(), factors.A);
    work_ = small_.template cast<double>();
    set_product(C_, -0.5, work_, wide_);
  }
  narrow(C_, 1, small_);
  add_product(H.A, 1, factors.A, small_);
  add_product(H.B, -1, small_, factors.B);
}

}  // namespace lora
