// SPDX-License-Identifier: MIT
// Gradients of A, B and X against central differences of a loss that is not linear in Y.
#include "support/bases.hpp"
#include "support/catch.hpp"
#include "support/finite_difference.hpp"
#include "support/matrices.hpp"
#include "support/starts.hpp"
#include "support/tolerances.hpp"

#include <lora/adapter/lora_linear.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 9, m = 7, r = 3, b = 5;

using Matrix = RowMatrix<double>;

/// A layer, one batch and the loss sum weights o sin(Y); every forward draws the same dropout mask.
template <class Base>
struct Problem {
  Random random{51};
  BaseCase<Base> of{n, m, random};
  LoraLinear<Base> layer;
  Matrix X = random_rows<double>(b, n, random), weights = random_rows<double>(b, m, random);
  Random mask{52};

  explicit Problem(LoraConfig config) : layer(of.base, config) {
    layer.set_factors(random_factors<double>(n, m, r, random));
  }
  Matrix forward(const Matrix& input, SavedState<double>& saved) const {
    Matrix Y(input.rows(), m);
    Random draws = mask;
    layer.forward(input, Y, saved, draws);
    return Y;
  }
  double loss(const Matrix& input) const {
    SavedState<double> saved;
    return weights.cwiseProduct(forward(input, saved).array().sin().matrix()).sum();
  }
  /// Adds to `gradient`; returns dX.
  Matrix backward(const Matrix& input, Factors<double>& gradient) const {
    SavedState<double> saved;
    const Matrix dY = weights.array() * forward(input, saved).array().cos();
    Matrix dX(input.rows(), n);
    layer.backward(dY, saved, gradient, dX);
    return dX;
  }
};

}  // namespace

TEMPLATE_TEST_CASE("gradients of A, B and X agree with central differences", "[adapter][gradient]", OwnedBase<double>,
                   (OwnedBase<double, Eigen::RowMajor>), ViewBase<double>, (ViewBase<double, Eigen::RowMajor>),
                   CallbackBase<double>, LoraLinear<OwnedBase<double>>) {
  const auto scaling = GENERATE(Scaling::Standard, Scaling::RankStabilized);  // s = 5/3, 5/sqrt(3)
  const double dropout = GENERATE(0.0, 0.4);
  const bool offset = GENERATE(false, true), bias = GENERATE(false, true);
  Problem<TestType> problem({.rank = r, .alpha = 5, .scaling = scaling, .dropout = dropout});
  auto& layer = problem.layer;
  if (offset) {
    layer.initialize(RandomOffset{}, problem.random);
    layer.set_factors(random_factors<double>(n, m, r, problem.random));
  }
  if (bias) layer.set_bias(std::vector<double>(m, 0.3));
  REQUIRE(layer.initial_factors().rank() == (offset ? r : 0));

  auto gradient = layer.zero_gradient();
  const Matrix dX = problem.backward(problem.X, gradient);
  const auto loss = [&] { return problem.loss(problem.X); };
  const double error_A = relative_error(gradient.A, numerical_gradient(layer.factors().A, loss));
  const double error_B = relative_error(gradient.B, numerical_gradient(layer.factors().B, loss));
  const double error_X = relative_error(dX, numerical_gradient(problem.X, loss));
  INFO("scale " << layer.scale() << ", dropout " << dropout << ", offset " << offset << ", bias " << bias);
  INFO("relative errors: A " << error_A << ", B " << error_B << ", X " << error_X);
  CHECK(std::max({error_A, error_B, error_X}) < gradient_check);
}

TEST_CASE("gradients of a wide layer agree with central differences in random directions", "[adapter][gradient]") {
  constexpr Index N = 130, M = 90, R = 8, tokens = 33;  // beyond Eigen's small kernels
  Random random{53};
  const auto W0 = random_columns<double>(N, M, random);
  LoraLinear layer{W0, {.rank = R, .alpha = 12, .scaling = Scaling::RankStabilized}};
  layer.set_factors(random_factors<double>(N, M, R, random));
  Matrix X = random_rows<double>(tokens, N, random) / 8, Y(tokens, M), dX(tokens, N);
  const Matrix weights = random_rows<double>(tokens, M, random);
  SavedState<double> saved;
  const auto loss = [&] {
    layer.forward(X, Y, saved);
    return weights.cwiseProduct(Y.array().sin().matrix()).sum();
  };
  loss();
  auto gradient = layer.zero_gradient();
  const Matrix dY = weights.array() * Y.array().cos();
  layer.backward(dY, saved, gradient, dX);
  for (int i = 0; i < 5; ++i) {
    const ColMatrix<double> along_A = random_columns<double>(N, R, random).normalized();
    const Matrix along_B = random_rows<double>(R, M, random).normalized();
    const Matrix along_X = random_rows<double>(tokens, N, random).normalized();
    // Against the norm of the gradient, to which a random direction may be nearly orthogonal.
    const double error_A =
        std::abs(central_difference(layer.factors().A, along_A, loss) - gradient.A.cwiseProduct(along_A).sum()) /
        gradient.A.norm();
    const double error_B =
        std::abs(central_difference(layer.factors().B, along_B, loss) - gradient.B.cwiseProduct(along_B).sum()) /
        gradient.B.norm();
    const double error_X = std::abs(central_difference(X, along_X, loss) - dX.cwiseProduct(along_X).sum()) / dX.norm();
    INFO("relative errors: A " << error_A << ", B " << error_B << ", X " << error_X);
    CHECK(std::max({error_A, error_B, error_X}) < gradient_check);
  }
}

TEST_CASE("gradients accumulate over two calls to the gradient of the sum", "[adapter][gradient]") {
  const double dropout = GENERATE(0.0, 0.4);
  Problem<OwnedBase<double>> problem({.rank = r, .alpha = 5, .dropout = dropout});
  auto& layer = problem.layer;
  const Matrix other = random_rows<double>(b, n, problem.random);
  auto gradient = layer.zero_gradient();
  problem.backward(problem.X, gradient);
  problem.backward(other, gradient);
  const auto loss = [&] { return problem.loss(problem.X) + problem.loss(other); };
  const double error_A = relative_error(gradient.A, numerical_gradient(layer.factors().A, loss));
  const double error_B = relative_error(gradient.B, numerical_gradient(layer.factors().B, loss));
  INFO("relative errors: A " << error_A << ", B " << error_B);
  CHECK(std::max(error_A, error_B) < gradient_check);
}

TEST_CASE("a tied layer, used twice before its backwards, has the gradient of both uses", "[adapter][gradient]") {
  Random random{54};
  LoraLinear layer{random_columns<double>(n, n, random), {.rank = r, .alpha = 5}};
  layer.set_factors(random_factors<double>(n, n, r, random));
  Matrix X = random_rows<double>(b, n, random), H(b, n), Y(b, n), dH(b, n), dX(b, n);
  SavedState<double> first, second;
  const auto loss = [&] {
    layer.forward(X, H, first);
    layer.forward(H, Y, second);
    return Y.array().sin().sum();
  };
  loss();
  auto gradient = layer.zero_gradient();
  const Matrix dY = Y.array().cos();
  layer.backward(dY, second, gradient, dH);
  layer.backward(dH, first, gradient, dX);
  const double error_A = relative_error(gradient.A, numerical_gradient(layer.factors().A, loss));
  const double error_B = relative_error(gradient.B, numerical_gradient(layer.factors().B, loss));
  const double error_X = relative_error(dX, numerical_gradient(X, loss));
  INFO("relative errors: A " << error_A << ", B " << error_B << ", X " << error_X);
  CHECK(std::max({error_A, error_B, error_X}) < gradient_check);
}

TEST_CASE("backward without dX gives the same gradients, and dX is written, not accumulated", "[adapter][gradient]") {
  const double dropout = GENERATE(0.0, 0.4);
  const bool offset = GENERATE(false, true);
  Problem<OwnedBase<double>> problem({.rank = r, .alpha = 5, .dropout = dropout});
  if (offset) problem.layer.initialize(RandomOffset{}, problem.random);
  SavedState<double> saved;
  const Matrix dY = problem.forward(problem.X, saved);
  auto with = problem.layer.zero_gradient(), without = with;
  Matrix dX = Matrix::Constant(b, n, 99), again = Matrix::Constant(b, n, -7);
  problem.layer.backward(dY, saved, without);
  problem.layer.backward(dY, saved, with, dX);
  CHECK(same_bits(with, without));
  problem.layer.backward(dY, saved, with, again);  // a second backward of one forward adds once more
  CHECK(same_bits(again, dX));
  CHECK(with.A.isApprox(2 * without.A));
}
