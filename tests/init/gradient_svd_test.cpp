// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/base/view_base.hpp>
#include <lora/init/gradient_svd.hpp>
#include <lora/init/principal_svd.hpp>
#include <lora/linalg/batch_gradient.hpp>

#include <Eigen/SVD>

#include <limits>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 24, m = 16, r = 3;
constexpr double s = 1.7;
using Direction = GradientSvd::Direction;
using Convention = GradientSvd::Convention;
using Size = GradientSvd::Size;

struct Example {
  Random random{1};
  ColMatrix<double> W0 = random_columns<double>(n, m, random), G = random_columns<double>(n, m, random);
  Eigen::JacobiSVD<ColMatrix<double>> gradient{G, Eigen::ComputeThinU | Eigen::ComputeThinV};
  Eigen::JacobiSVD<ColMatrix<double>> weight{W0, Eigen::ComputeThinU | Eigen::ComputeThinV};

  Start<double> start(const GradientSvd& init) { return init(ViewBase<double>(W0), ViewBase<double>(G), r, s, random); }
};

/// A0 A0^T and B0^T B0, which do not depend on the signs of singular vectors.
ColMatrix<double> input_side(const Factors<double>& f) { return f.A * f.A.transpose(); }
ColMatrix<double> output_side(const Factors<double>& f) { return f.B.transpose() * f.B; }

}  // namespace

TEST_CASE("each direction takes its two disjoint bands of the gradient", "[init]") {
  Example example;
  const std::vector<std::tuple<Direction, std::vector<Index>, std::vector<Index>>> table{
      {Direction::ArB2r, {0, 1, 2}, {3, 4, 5}},
      {Direction::A2rBr, {3, 4, 5}, {0, 1, 2}},
      {Direction::ArBr, {1, 3, 5}, {0, 2, 4}}};
  for (const auto& [direction, input, output] : table) {
    const auto start = example.start({.direction = direction, .size = Size::Unit});
    CHECK(start.offset == Offset::SubtractInitial);
    const ColMatrix<double> U = example.gradient.matrixU()(Eigen::all, input),
                            V = example.gradient.matrixV()(Eigen::all, output);
    CHECK(relative_error(input_side(start.factors), U * U.transpose()) < 1e-10);
    CHECK(relative_error(output_side(start.factors), V * V.transpose()) < 1e-10);

    // PEFT: row i of B0 times its singular value; A0 B0 is then free of the gradient's signs only as a whole.
    const auto peft = example.start({.convention = Convention::Peft, .direction = direction, .size = Size::Unit});
    const Eigen::VectorXd sigma = example.gradient.singularValues()(output);
    CHECK(relative_error(input_side(peft.factors), U * U.transpose()) < 1e-10);
    CHECK(relative_error(output_side(peft.factors), V * sigma.cwiseAbs2().asDiagonal() * V.transpose()) < 1e-10);
  }
}

TEST_CASE("the random direction draws disjoint bands for the authors, the same for PEFT", "[init]") {
  Example example;
  const ColMatrix<double> U = example.gradient.matrixU().leftCols(2 * r),
                          V = example.gradient.matrixV().leftCols(2 * r);
  for (const auto convention : {Convention::Authors, Convention::Peft}) {
    const auto [A, B] =
        example.start({.convention = convention, .direction = Direction::Random, .size = Size::Unit}).factors;
    const Eigen::VectorXd input = (U.transpose() * A).rowwise().norm(), output = (B * V).colwise().norm();
    Index chosen = 0, shared = 0;
    for (Index i = 0; i < 2 * r; ++i) {
      chosen += input(i) > 0.5 ? 1 : 0;
      shared += input(i) > 0.5 && output(i) > 1e-6 ? 1 : 0;
    }
    CHECK(chosen == r);
    CHECK(shared == (convention == Convention::Peft ? r : 0));
  }
}

TEST_CASE("the four sizes, in both conventions", "[init]") {
  Example example;
  const auto norms = [&](Convention convention, Size size) {
    const auto f = example.start({.convention = convention, .size = size, .gamma = 9}).factors;
    return std::pair{f.A.col(0).norm(), f.B.row(0).norm()};
  };
  const auto close = [](std::pair<double, double> actual, double A, double B) {
    CAPTURE(actual.first, A, actual.second, B);
    CHECK(actual.first == Catch::Approx(A).epsilon(1e-9));
    CHECK(actual.second == Catch::Approx(B).epsilon(1e-9));
  };
  const double stable = std::pow(m, 0.25) / 3, sigma = example.gradient.singularValues()(r);
  const Eigen::VectorXd weight = example.weight.singularValues().head(r);
  const double mean = (weight / s).cwiseSqrt().mean();
  close(norms(Convention::Authors, Size::Unit), 1, 1);
  close(norms(Convention::Authors, Size::Stable), stable, stable);
  close(norms(Convention::Authors, Size::Gradient), 1 / s, 1 / s);
  close(norms(Convention::Authors, Size::Weight), mean, mean);
  close(norms(Convention::Peft, Size::Unit), 1, sigma);
  close(norms(Convention::Peft, Size::Stable), 1, stable * sigma);
  close(norms(Convention::Peft, Size::Gradient), 1 / s, sigma / s);
  close(norms(Convention::Peft, Size::Weight), 1, weight(0));
}

TEMPLATE_TEST_CASE("LoRA-GA and PiSSA start at the base and leave it alone", "[init]", float, double) {
  Random random{2};
  const auto W0 = random_columns<TestType>(n, m, random), before = W0;
  const auto X = random_rows<TestType>(7, n, random), dY = random_rows<TestType>(7, m, random);
  const BatchGradient<TestType> gradient(X, dY);
  RowMatrix<TestType> base_output(7, m), output(7, m);
  ViewBase<TestType>(W0).multiply(X, base_output);
  const auto check = [&](const auto& layer) {
    SavedState<TestType> saved;
    layer.forward(X, output, saved);
    CHECK(relative_error(output, base_output) < 200 * unit_roundoff<TestType>);
    CHECK(same_bits(W0, before));
    CHECK(layer.delta().rank() == 2 * r);
  };
  LoraLinear layer{W0, {.rank = r, .alpha = 5}};
  layer.initialize(GradientSvd{}, gradient, random);
  check(layer);
  layer.initialize(PrincipalSvd{}, random);
  check(layer);
}

TEST_CASE("LoRA-GA's first step moves W along the two bands of the gradient that it chose", "[init]") {
  Example example;
  const auto [A, B] = example.start({.size = Size::Unit}).factors;
  // A step of plain gradient descent on both factors, to first order: -lr s^2 (A A^T G + G B^T B).
  const ColMatrix<double> step = A * (A.transpose() * example.G) + (example.G * B.transpose()) * B;
  const auto& svd = example.gradient;
  const ColMatrix<double> best = svd.matrixU().leftCols(2 * r) * svd.singularValues().head(2 * r).asDiagonal() *
                                 svd.matrixV().leftCols(2 * r).transpose();
  CHECK(relative_error(step, best) < 1e-10);  // the best approximation of G of rank 2r
}

TEST_CASE("PiSSA's product is the principal part of the weight for any scale", "[init]") {
  Example example;
  const auto& svd = example.weight;
  const ColMatrix<double> principal =
      svd.matrixU().leftCols(r) * svd.singularValues().head(r).asDiagonal() * svd.matrixV().leftCols(r).transpose();
  for (const double scale : {0.5, 1.0, 4.0}) {
    const auto [A, B] = PrincipalSvd{}(ViewBase<double>(example.W0), r, scale, example.random).factors;
    CHECK(relative_error(scale * A * B, principal) < 1e-10);
    CHECK(relative_error(A.colwise().norm(), B.rowwise().norm().transpose()) < 1e-12);  // shared in equal parts
  }
}

TEST_CASE("a gradient that LoRA-GA cannot use is named and the layer stays as it was", "[init]") {
  Example example;
  LoraLinear layer{example.W0, {.rank = r}};
  layer.initialize(KaimingUniform{}, example.random);
  const auto before = layer;
  const auto message = [&]<class ErrorType>(ErrorType*, const ColMatrix<double>& G, const GradientSvd& init) {
    return message_of<ErrorType>([&] { layer.initialize(init, ViewBase<double>(G), example.random); });
  };
  const ColMatrix<double> zero = ColMatrix<double>::Zero(n, m), wrong = ColMatrix<double>::Ones(n, m + 1);
  ColMatrix<double> broken = example.G;
  broken(3, 2) = std::numeric_limits<double>::infinity();
  CHECK(message(static_cast<NumericalError*>(nullptr), zero, {}) ==
        "GradientSvd: the gradient must not be zero, got a zero matrix");
  CHECK(message(static_cast<NumericalError*>(nullptr), broken, {}) ==
        "truncated_svd: products of the operator must be finite, got NaN or infinity");
  CHECK(message(static_cast<ShapeError*>(nullptr), wrong, {}) ==
        "LoraLinear::initialize: gradient must be 24 x 16, got 24 x 17");
  CHECK(message(static_cast<ConfigError*>(nullptr), example.G, {.gamma = 0}) ==
        "GradientSvd: gamma must be positive and finite, got 0");
  CHECK(layer == before);

  LoraLinear wide{example.W0, {.rank = 9}};
  CHECK(message_of<ConfigError>([&] { wide.initialize(GradientSvd{}, ViewBase<double>(example.G), example.random); }) ==
        "GradientSvd: needs 2 rank <= min(n, m) = 16, got rank 9");
  CHECK(message_of<StateError>([&] { layer.initialize(GradientSvd{}, BatchGradient<double>(n, m), example.random); }) ==
        "BatchGradient: needs at least one batch, got none");
}
