// SPDX-License-Identifier: MIT
// Every tolerance of the tests, by scalar and operation, each with its reason. No test has a bare number of its own.
#pragma once

#include <lora/core/matrix.hpp>

#include <limits>

namespace lora::test {

/// u, the relative error of one rounding.
template <Real Scalar>
inline constexpr double unit_roundoff = static_cast<double>(std::numeric_limits<Scalar>::epsilon()) / 2;

/// gamma_k = k u / (1 - k u), the relative error of k roundings in a row.
/// \see Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1.
template <Real Scalar>
constexpr double rounding_bound(Index roundings) {
  const double total = static_cast<double>(roundings) * unit_roundoff<Scalar>;
  return total / (1 - total);
}

// ---- how many roundings one term of a result goes through; the result differs by at most rounding_bound of the sum of
// ---- the absolute values of its terms, whatever the order of summation

/// Y + alpha L R: the product of a term, at most `depth` additions (within a block, between blocks, to Y), alpha
/// rounded to the scalar, alpha times the sum.
constexpr Index product_roundings(Index depth) { return depth + 4; }

/// X W0 + bias + s (X A) B, with or without an offset: X A, then (X A) B, each a product; the bias; the sums of
/// branches.
constexpr Index layer_roundings(Index n, Index r) { return product_roundings(n) + product_roundings(2 * r) + 2; }

/// X (W0 + s A B): the weight is rounded once more as it is merged.
constexpr Index merged_roundings(Index n, Index r) { return product_roundings(n) + product_roundings(2 * r) + 1; }

/// <X M, Y> - <X, Y M^T> over b rows: the two products; the inner products are taken in long double.
constexpr Index adjoint_roundings(Index n, Index m) { return product_roundings(n) + product_roundings(m); }

/// Update rules over many steps, relative in norm: each step rounds the parameter once and its own small change a few
/// times; the constants (learning rate, betas) are rounded to the scalar. At worst all in one direction.
constexpr Index step_roundings(Index steps) { return 4 * steps; }

/// Clipped gradients: the norm is a sum of `elements` squares in double; the factor and the product with it round once.
template <Real Scalar>
constexpr double clip_bound(Index elements) {
  return rounding_bound<double>(elements) + rounding_bound<Scalar>(2);
}

// ---- fixed tolerances

/// Gradients of A, B and X against central differences in double, relative in norm. The step h = 2^-11 leaves h^4 / 30
/// = 2e-15 of the fifth derivative along a unit direction (up to 1e5 here) and u / h = 2e-13 of rounding.
inline constexpr double gradient_check = 1e-9;
inline constexpr double difference_step = 0x1p-11;

/// Random::normal against the distribution function, relative: about 15 roundings in each of two polynomials of
/// positive terms, as the doc comment says.
inline constexpr double normal_quantile = 1e-14;

/// portable_log against std::log, in units in the last place: one from std::log itself, one or two of its own.
inline constexpr double log_ulps = 2;

/// Sample moments: the fixed seed may lie this many standard errors off; a right generator does in 1 of 1.7 million.
inline constexpr double standard_errors = 5;

/// PyTorch and PEFT, relative in the Frobenius norm over a whole run of 100 steps: the bar that the project set.
/// Rounding alone has given below 1e-6 and 1e-15.
template <Real Scalar>
inline constexpr double parity = sizeof(Scalar) == 4 ? 1e-5 : 1e-10;

}  // namespace lora::test
