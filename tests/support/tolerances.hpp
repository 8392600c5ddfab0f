// SPDX-License-Identifier: MIT
// Every tolerance of the tests, by scalar and operation, each with its reason. No test has a bare number of its own.
#pragma once

#include <lora/core/matrix.hpp>

#include <cmath>
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

/// Householder QR of rows x k, absolute in the Frobenius norm of Q^T Q - I and relative in that of Q R - M.
/// \see Higham, theorem 19.4: sqrt(k) gamma of a small multiple of rows k.
template <Real Scalar>
double qr_bound(Index rows, Index k) {
  return std::sqrt(static_cast<double>(k)) * rounding_bound<Scalar>(2 * rows * k);
}

/// A symmetric r x r matrix rebuilt from its eigenbasis, or taken to it and back, in double, relative in norm to the
/// matrix: at most r^2 roundings in the eigensolver and in each of a few products with r terms.
constexpr double eigen_bound(Index r) { return rounding_bound<double>(8 * r * r); }

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

/// LoRA-FA over 50 steps against PEFT, which adds 1e-8 to A^T A: with eigenvalues from 0.05 up here, each step differs
/// by up to 2e-7 in any precision.
template <Real Scalar>
inline constexpr double lora_fa_parity = sizeof(Scalar) == 4 ? parity<Scalar> : 1e-6;

/// Starts made of singular vectors, relative in norm: in float against PEFT's, whose SVD for LoRA-GA is randomised, and
/// in double against full decompositions; the bars that the project set.
inline constexpr double float_start = 1e-4, exact_start = 1e-10;

/// Singular vectors, and whatever is made of them, by two different algorithms, relative in norm: the bar that the
/// project set in double. The error is a few hundred u over the relative gap between singular values (1 % and more).
template <Real Scalar>
inline constexpr double decomposition = sizeof(Scalar) == 4 ? 1e-3 : 1e-10;

/// The randomised SVD of sigma_i = 1 / i, k = r + 16 wide with 4 power iterations, against the exact one: the product
/// of the leading r = 4 triplets, relative in norm. (sigma_{k+1} / sigma_r)^9 = 7e-7, times the 1 / sigma gap between
/// neighbours.
inline constexpr double fast_decomposition = 1e-4;

/// Share of the best rank-32 energy that 32 triplets capture, n = m = 2048: the bars that the project set for sigma_i =
/// 1 / i and 1 / sqrt(i), for two passes (width 64, 2 power iterations) and for one (widths 64 and 128).
inline constexpr double two_pass_share[] = {0.9995, 0.997}, one_pass_share[] = {0.98, 0.72};
/// And in the subspaces of the linear sketch, a little below what was measured (0.981 and 0.50).
inline constexpr double linear_share[] = {0.97, 0.45};

/// Memory of twice the size over memory of the size, where it should double: up to what does not grow (r x r matrices,
/// one batch, allocator granules).
inline constexpr double doubling_from = 1.8, doubling_to = 2.2;

// ---- LoRA-Pro and what stands on it

/// The step of W of LoRA-Pro's direction against an explicit least-squares minimiser, against its closed form, and
/// between splittings of one product, relative to ||G||: the bars that the project set for double.
inline constexpr double minimiser_bound = 1e-10, closed_form_bound = 1e-12;

/// The same direction in float: u times the condition of A^T A and B B^T (up to 1e2 here).
inline constexpr double float_direction_bound = 1e-5;

/// LoRA-Pro over 30 steps against its formulas on dense matrices, relative in norm: each step multiplies the rounding
/// by the condition of A^T A and B B^T, and the run carries it on. Rounding has given below 1e-6 and 1e-12.
template <Real Scalar>
inline constexpr double pair_run = sizeof(Scalar) == 4 ? 1e-4 : 1e-10;

/// What 400 steps leave of a low-rank target, relative in norm, where the rate falls to 0 in a straight line.
inline constexpr double learnt = 0.1;

/// Heap of an optimizer that keeps no n x m array, as a share of one, where r = 4, n = 500 and m = 400: a dozen arrays
/// of (n + m) r make 0.2.
inline constexpr double far_from_dense = 0.25;

/// The first-order part of a step of size lr, which is about lr ||H_A|| ||H_B|| / ||Gt|| off; u / lr of rounding is
/// less.
constexpr double first_order(double lr) { return 10 * lr; }

/// The optimizer view against the adapter inside the network, 100 steps, relative in norm: the bar that the project set
/// in float.
template <Real Scalar>
inline constexpr double weight_space_run = sizeof(Scalar) == 4 ? 1e-6 : 1e-12;

/// Alignment against dense matrices: in double sums of n m + n k terms, in float products of n terms in float.
template <Real Scalar>
inline constexpr double alignment_bound = sizeof(Scalar) == 4 ? 1e-6 : 1e-14;

/// A captured share of 1, at r = min(n, m): u times the condition of A^T A, 1e4 here and not chosen.
template <Real Scalar>
inline constexpr double full_rank_share = sizeof(Scalar) == 4 ? 1e-2 : 1e-10;

// ---- files

/// What an adapter from a file adds to a weight, relative in norm, against the same in double: the factors are stored
/// in float, a folded scale rounds them once more. Rounding has given below 1e-7.
inline constexpr double stored_adapter = 1e-6;

/// The same for PiSSA and LoRA-GA against the change of the weights that PEFT keeps, in float: W0 - s A0 B0 + s A B, of
/// which the change is about a half.
inline constexpr double converted_adapter = 1e-5;

// ---- whole models

/// Logits of the small transformers, relative in norm, against transformers and PEFT in float, and with an adapter
/// that was saved and loaded: the bar that the project set.
inline constexpr double model_logits = 1e-5;

/// By how much an adapter must change them, so that such a comparison shows something.
inline constexpr double adapter_effect = 0.05;

/// Gradients of factors through a whole model, along unit directions, relative in norm: the fifth derivative of a
/// stack of softmax and norms is far larger than that of one layer.
inline constexpr double model_gradient = 1e-7;

/// What 30 steps leave of the loss.
inline constexpr double model_learnt = 0.5;

/// The demo's Llama against PyTorch in float, relative in norm: logits, the loss, gradients. Both round in every layer,
/// in orders of their own; the largest seen is 1e-6.
inline constexpr double llama_bound = 1e-5;
/// The same with weights and activations of products rounded to bfloat16 (8 bits), in the loss.
inline constexpr double llama_bf16_bound = 3e-2;

// ---- draws

/// How far a count of `draws` independent events of that probability strays: six standard deviations, 2e-9 of them
/// beyond. The seeds are fixed, so a test that passes passes for ever.
inline double count_deviation(double draws, double probability) {
  return 6 * std::sqrt(draws * probability * (1 - probability));
}

}  // namespace lora::test
