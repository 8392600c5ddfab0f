// SPDX-License-Identifier: MIT
// Matrices for tests: random ones, strided ones inside a guarded border, and references in long double.
#pragma once

#include <lora/core/factors.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/random.hpp>
#include <lora/core/views.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace lora::test {

/// Uniform in [-1, 1).
template <class Matrix>
Matrix random_matrix(Index rows, Index cols, Random& random) {
  Matrix matrix(rows, cols);
  for (auto& element : matrix.reshaped()) {
    element = static_cast<typename Matrix::Scalar>(2 * random.uniform() - 1);
  }
  return matrix;
}
template <Real Scalar>
RowMatrix<Scalar> random_rows(Index rows, Index cols, Random& random) {
  return random_matrix<RowMatrix<Scalar>>(rows, cols, random);
}
template <Real Scalar>
ColMatrix<Scalar> random_columns(Index rows, Index cols, Random& random) {
  return random_matrix<ColMatrix<Scalar>>(rows, cols, random);
}
template <Real Scalar>
Factors<Scalar> random_factors(Index n, Index m, Index r, Random& random) {
  Factors<Scalar> factors;
  factors.A = random_columns<Scalar>(n, r, random);
  factors.B = random_rows<Scalar>(r, m, random);
  return factors;
}

/// A matrix inside a wider one: its rows (columns) have gaps, and nobody may write into the border around it.
template <Real Scalar, int Order = Eigen::RowMajor>
class Strided {
 public:
  using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Order>;

  template <class Values>
  explicit Strided(const Values& values)
      : rows_(values.rows()), cols_(values.cols()), memory_(Matrix::Constant(rows_ + 3, cols_ + 5, border)) {
    memory_.block(1, 2, rows_, cols_) = values;
  }
  Index stride() const { return memory_.outerStride(); }
  View<Scalar, Order> view() { return memory_.block(1, 2, rows_, cols_); }
  View<const Scalar, Order> view() const { return memory_.block(1, 2, rows_, cols_); }
  bool border_untouched() const {
    Matrix copy = memory_;
    copy.block(1, 2, rows_, cols_).setConstant(border);
    return (copy.array() == border).all();
  }

 private:
  static constexpr Scalar border = Scalar(-12345);
  Index rows_, cols_;
  Matrix memory_;
};

/// Same shape and the same bits (0 and -0 differ, a NaN equals itself); any strides.
template <class Left, class Right>
bool same_bits(const Left& left, const Right& right) {
  if (left.rows() != right.rows() || left.cols() != right.cols()) return false;
  for (Index i = 0; i < left.rows(); ++i) {
    for (Index j = 0; j < left.cols(); ++j) {
      const typename Left::Scalar a = left(i, j), b = right(i, j);
      if (std::memcmp(&a, &b, sizeof a) != 0) return false;
    }
  }
  return true;
}
template <Real Scalar>
bool same_bits(const Factors<Scalar>& left, const Factors<Scalar>& right) {
  return same_bits(left.A, right.A) && same_bits(left.B, right.B);
}

// ---- references

using Wide = Eigen::Matrix<long double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <class Matrix>
Wide wide(const Matrix& matrix) {
  return matrix.template cast<long double>();
}
inline Wide absolute(const Wide& matrix) { return matrix.cwiseAbs(); }
/// L R by a naive triple loop in long double.
inline Wide product(const Wide& L, const Wide& R) {
  Wide result = Wide::Zero(L.rows(), R.cols());
  for (Index i = 0; i < L.rows(); ++i) {
    for (Index k = 0; k < L.cols(); ++k) {
      for (Index j = 0; j < R.cols(); ++j) result(i, j) += L(i, k) * R(k, j);
    }
  }
  return result;
}

/// max |actual - reference| / bound over the elements: at most 1 where the bound holds. Infinite where the shapes
/// differ or where an element misses a bound of zero.
template <class Actual>
double worst_ratio(const Actual& actual, const Wide& reference, const Wide& bound) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  if (actual.rows() != reference.rows() || actual.cols() != reference.cols()) return infinity;
  double worst = 0;
  for (Index i = 0; i < actual.rows(); ++i) {
    for (Index j = 0; j < actual.cols(); ++j) {
      const long double error = std::abs(static_cast<long double>(actual(i, j)) - reference(i, j));
      if (error == 0) continue;
      const double ratio = static_cast<double>(error / bound(i, j));
      worst = std::isnan(ratio) ? infinity : std::max(worst, ratio);
    }
  }
  return worst;
}

/// ||Q^T Q - I||_F.
template <class Matrix>
double off_orthonormal(const Matrix& Q) {
  const Wide wide_Q = wide(Q);
  return static_cast<double>((product(wide_Q.transpose(), wide_Q) - Wide::Identity(Q.cols(), Q.cols())).norm());
}

/// |left - right| / |right| in the Frobenius norm.
template <class Left, class Right>
double relative_error(const Left& left, const Right& right) {
  return static_cast<double>((left - right).norm() / right.norm());
}

}  // namespace lora::test
