// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/base/view_base.hpp>
#include <lora/init/dense_gradient.hpp>
#include <lora/init/gradient_sketch.hpp>
#include <lora/init/gradient_svd.hpp>
#include <lora/init/kaiming_uniform.hpp>
#include <lora/linalg/batch_gradient.hpp>

#include <cmath>
#include <limits>
#include <set>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

using Dense = ColMatrix<double>;
using Convention = GradientSvd::Convention;
using Direction = GradientSvd::Direction;
using Size = GradientSvd::Size;
using Bands = std::vector<Index>;

constexpr Index n = 24, m = 16, r = 3;
constexpr double s = 1.7;

/// A base and a gradient with their exact decompositions (those of tests/linalg, against Eigen's JacobiSVD).
struct Example {
  Random random{1};
  Dense W0 = random_columns<double>(n, m, random), G = random_columns<double>(n, m, random);
  TruncatedSvd<double> weight = truncated_svd(ViewBase<double>(W0), m, random, SvdEffort::exact());
  TruncatedSvd<double> gradient = truncated_svd(ViewBase<double>(G), m, random, SvdEffort::exact());

  Factors<double> start(const GradientSvd& init) {
    const auto start = init(ViewBase<double>(W0), ViewBase<double>(G), r, s, random);
    CHECK(start.offset == Offset::SubtractInitial);
    return start.factors;
  }
  /// Which of the leading 2r triplets a start has taken on each side.
  std::pair<Bands, Bands> bands(const Factors<double>& f) const {
    const Dense on_input = gradient.leading(2 * r).U.transpose() * f.A,
                on_output = gradient.leading(2 * r).Vt * f.B.transpose();
    const auto taken = [](const Dense& shares) {
      Bands all;
      for (Index i = 0; i < shares.rows(); ++i) {
        if (shares.row(i).norm() > decomposition<double>) all.push_back(i);
      }
      return all;
    };
    return {taken(on_input), taken(on_output)};
  }
};

/// The start against u_i and v_i of the two bands, free of their signs: A0 A0^T, B0^T B0, and A0 B0 seen between the
/// bands. `sigma`: what row i of B0 is multiplied by.
void check_bands(const Example& example, const Factors<double>& f, const Bands& input, const Bands& output,
                 double size_A, const Eigen::VectorXd& size_B) {
  const Dense U = example.gradient.U(Eigen::indexing::all, input),
              V = example.gradient.Vt(output, Eigen::indexing::all).transpose();
  const Dense inner = U.transpose() * f.A * f.B * V;
  const double A = relative_error(f.A * f.A.transpose(), size_A * size_A * U * U.transpose());
  const double B = relative_error(f.B.transpose() * f.B, V * size_B.cwiseAbs2().asDiagonal() * V.transpose());
  const double AB = relative_error(inner.cwiseAbs(), Dense((size_A * size_B).asDiagonal()));
  INFO("A0 A0^T off by " << A << ", B0^T B0 by " << B << ", A0 B0 by " << AB);
  CHECK(std::max({A, B, AB}) <= decomposition<double>);
  CHECK((f.A * f.B).norm() == Catch::Approx(inner.norm()));  // nothing outside the bands
}

}  // namespace

TEST_CASE("every direction, size and convention of LoRA-GA is made of the bands of an exact SVD", "[init][lora_ga]") {
  Example example;
  const double gamma = GENERATE(16.0, 9.0);
  struct Bandwise {
    Direction direction;
    Bands input, output;
  };
  const auto& W = example.weight.S;
  const double stable = std::pow(m, 0.25) / std::sqrt(gamma), mean = (W.head(r) / s).cwiseSqrt().mean();
  for (const auto& [direction, input, output] : {Bandwise{Direction::ArB2r, {0, 1, 2}, {3, 4, 5}},
                                                 {Direction::A2rBr, {3, 4, 5}, {0, 1, 2}},
                                                 {Direction::ArBr, {1, 3, 5}, {0, 2, 4}}}) {
    const Eigen::VectorXd one = Eigen::VectorXd::Ones(r), sigma = example.gradient.S(output);
    const auto start = [&, band = direction](Convention convention, Size size) {
      return example.start({.convention = convention, .direction = band, .size = size, .gamma = gamma});
    };
    check_bands(example, start(Convention::Authors, Size::Unit), input, output, 1, one);
    check_bands(example, start(Convention::Authors, Size::Stable), input, output, stable, stable * one);
    check_bands(example, start(Convention::Authors, Size::InverseScale), input, output, 1 / s, one / s);
    check_bands(example, start(Convention::Authors, Size::Weight), input, output, mean, mean * one);
    check_bands(example, start(Convention::Peft, Size::Unit), input, output, 1, sigma);
    check_bands(example, start(Convention::Peft, Size::Stable), input, output, 1, stable * sigma);
    check_bands(example, start(Convention::Peft, Size::InverseScale), input, output, 1 / s, sigma / s);
    check_bands(example, start(Convention::Peft, Size::Weight), input, output, 1, W(0) / sigma(0) * sigma);
  }
}

TEST_CASE("the random direction takes disjoint bands by the authors' convention and one band by PEFT's",
          "[init][lora_ga]") {
  Example example;
  std::set<Bands> seen;
  for (int draw = 0; draw < 20; ++draw) {
    const auto authors = example.start({.direction = Direction::Random, .size = Size::Unit});
    const auto [input, output] = example.bands(authors);
    REQUIRE(input.size() == r);
    REQUIRE(output.size() == r);
    Bands both = input;
    both.insert(both.end(), output.begin(), output.end());
    CHECK(std::set<Index>(both.begin(), both.end()).size() == 2 * r);
    seen.insert(input);

    const auto peft =
        example.start({.convention = Convention::Peft, .direction = Direction::Random, .size = Size::Unit});
    const auto [same, as_well] = example.bands(peft);
    REQUIRE(same.size() == r);
    CHECK(same == as_well);
    // One band on both sides leaves no sign open: A0 B0 is that part of G.
    Dense part = Dense::Zero(n, m);
    for (const Index i : same) part += example.gradient.S(i) * example.gradient.U.col(i) * example.gradient.Vt.row(i);
    CHECK(relative_error(peft.A * peft.B, part) <= decomposition<double>);
  }
  CHECK(seen.size() > 5);  // of 20 possible choices
  Example again;
  again.random = Random{42};
  const auto drawn = again.bands(again.start({.direction = Direction::Random, .size = Size::Unit}));
  CHECK(drawn.first == Bands{2, 4, 5});  // pinned: our own generator draws alike everywhere
}

TEST_CASE("the first step of LoRA-GA moves W along the best approximation of the gradient of rank 2r",
          "[init][lora_ga]") {
  Example example;
  const auto& svd = example.gradient;
  const Dense best = to_dense(svd.leading(2 * r));
  for (const auto direction : {Direction::ArB2r, Direction::A2rBr, Direction::ArBr, Direction::Random}) {
    const auto [A, B] = example.start({.direction = direction, .size = Size::Unit});
    // A step of plain gradient descent on both factors, to first order in the rate: -rate s^2 (A A^T G + G B^T B).
    const Dense step = A * (A.transpose() * example.G) + (example.G * B.transpose()) * B;
    INFO("off by " << relative_error(step, best));
    CHECK(relative_error(step, best) <= decomposition<double>);
  }
}

TEST_CASE("the norm clip brings the offset down to the weight, and leaves a smaller one alone", "[init][lora_ga]") {
  Example example;
  const GradientSvd plain{}, clipped{.clip = true};
  const auto start = [&](const Dense& W, const GradientSvd& init) {
    Random same{9};
    return init(ViewBase<double>(W), ViewBase<double>(example.G), r, s, same).factors;
  };
  const Dense small = 1e-3 * example.W0, large = 1e3 * example.W0;
  const auto free = start(small, plain), tight = start(small, clipped);
  const double ratio = small.cwiseAbs().maxCoeff() / (s * (free.A * free.B).cwiseAbs().maxCoeff());
  REQUIRE(ratio < 1);
  CHECK(relative_error(tight.A, std::sqrt(ratio) * free.A) <= decomposition<double>);
  CHECK(relative_error(tight.B, std::sqrt(ratio) * free.B) <= decomposition<double>);
  CHECK(s * (tight.A * tight.B).cwiseAbs().maxCoeff() == Catch::Approx(small.cwiseAbs().maxCoeff()));
  CHECK(same_bits(start(large, clipped), start(large, plain)));
}

TEMPLATE_TEST_CASE("a layer that starts by LoRA-GA has the base's output and leaves the base alone", "[init][lora_ga]",
                   float, double) {
  Random random{2};
  const auto W0 = random_columns<TestType>(n, m, random), before = W0;
  const auto X = random_rows<TestType>(7, n, random), dY = random_rows<TestType>(7, m, random);
  const BatchGradient<TestType> gradient(X, dY);
  LoraLinear layer{W0, {.rank = r, .alpha = 5}};
  RowMatrix<TestType> Y(7, m);
  SavedState<TestType> saved;
  for (const auto convention : {Convention::Authors, Convention::Peft}) {
    layer.initialize(GradientSvd{.convention = convention}, gradient, random);
    layer.forward(X, Y, saved);
    const auto& f = std::as_const(layer).factors();
    CHECK(same_bits(f, layer.initial_factors()));
    CHECK(layer.delta().rank() == 2 * r);  // for the original base
    const Wide branch =
        2 * layer.scale() * product(product(absolute(wide(X)), absolute(wide(f.A))), absolute(wide(f.B)));
    const Wide bound =
        rounding_bound<TestType>(layer_roundings(n, r)) * (product(absolute(wide(X)), absolute(wide(W0))) + branch);
    const double ratio = worst_ratio(Y, product(wide(X), wide(W0)), bound);
    INFO("worst difference to the base's output is " << ratio << " of the bound");
    CHECK(ratio <= 1);
    CHECK(same_bits(W0, before));
  }
}

TEST_CASE("LoRA-GA takes its gradient from whatever knows the products: a mean, batches, signs, a sketch",
          "[init][lora_ga]") {
  Random random{3};
  const auto W0 = random_columns<double>(n, m, random);
  const auto X = random_rows<double>(6, n, random), dY = random_rows<double>(6, m, random);
  BatchGradient<double> batches(X, dY);
  DenseGradient<double> dense(n, m);
  GradientSketch<double> sketch(n, m, 2 * r + 2, random);
  dense.add(X, dY);
  sketch.add(X, dY);
  const auto product = [&](const auto& gradient) {
    LoraLinear layer{W0, {.rank = r}};
    Random same{4};
    // By PEFT's convention and equal indices, so that no sign is open.
    layer.initialize(GradientSvd{.convention = Convention::Peft, .direction = Direction::Random}, gradient, same);
    return Dense(std::as_const(layer).factors().A * std::as_const(layer).factors().B);
  };
  const Dense expected = product(dense);
  CHECK(relative_error(product(batches), expected) <= decomposition<double>);
  CHECK(relative_error(product(sketch.svd(2 * r)), expected) <= decomposition<double>);
  CHECK(relative_error(product(dense.sign()), expected) > 0.1);  // another gradient, another start
}

TEST_CASE("a gradient of a single token, of rank 1, makes a start with orthonormal bands all the same",
          "[init][lora_ga]") {
  Random random{5};
  const auto W0 = random_columns<double>(n, m, random);
  const auto X = random_rows<double>(1, n, random), dY = random_rows<double>(1, m, random);
  LoraLinear layer{W0, {.rank = r}};
  layer.initialize(GradientSvd{.size = Size::Unit}, BatchGradient<double>(X, dY), random);
  const auto& [A, B] = std::as_const(layer).factors();
  CHECK(off_orthonormal(A) <= 2 * qr_bound<double>(n, m));
  CHECK(off_orthonormal(Dense(B.transpose())) <= 2 * qr_bound<double>(m, m));
}

TEST_CASE("LoRA-GA repeats by seed, and its first factors are pinned up to rounding", "[init][lora_ga]") {
  Dense W0(5, 4), G(5, 4);
  for (Index i = 0; i < 20; ++i) {
    W0.data()[i] = static_cast<double>((7 * i) % 11) - 5;
    G.data()[i] = static_cast<double>((5 * i) % 13) - 6;
  }
  const auto start = [&](std::uint64_t seed) {
    Random random{seed};
    return GradientSvd{}(ViewBase<double>(W0), ViewBase<double>(G), 2, 1, random).factors;
  };
  CHECK(same_bits(start(42), start(42)));
  // Not bit for bit: a decomposition adds up in an order that the compiler and the vector width choose.
  const auto [A, B] = start(42);
  constexpr double first[] = {-0x1.e135500fde6fbp-3, 0x1.bed830810552fp-4, -0x1.a71792adbf467p-4, 0x1.ba4840bdf1a3ap-3,
                              0x1.8b7abcec74566p-6},
                   last[] = {-0x1.1fc67dd2f436p-6, -0x1.0084b1477d1bdp-2, 0x1.fd79cad37106ep-3, 0x1.dca508a428e45p-8};
  for (Index i = 0; i < 5; ++i) CHECK(A(i, 0) == Catch::Approx(first[i]).epsilon(decomposition<double>));
  for (Index j = 0; j < 4; ++j) CHECK(B(1, j) == Catch::Approx(last[j]).epsilon(decomposition<double>));
}

TEST_CASE("what LoRA-GA cannot use is named, and the layer stays as it was", "[init][lora_ga][errors]") {
  Example example;
  LoraLinear layer{example.W0, {.rank = r}};
  layer.initialize(KaimingUniform{}, example.random);
  const auto before = layer;
  const auto start = [&](auto& of, const auto& G, const GradientSvd& init) {
    return [&of, &G, &example, init] { of.initialize(init, G, example.random); };
  };
  const ViewBase<double> gradient(example.G);
  const Dense zero = Dense::Zero(n, m), wrong = Dense::Ones(n, m + 1);
  CHECK(message_of<NumericalError>(start(layer, ViewBase<double>(zero), {})) ==
        "GradientSvd: the gradient must not be zero, got zeros alone");
  Dense broken = example.G;
  for (const double bad : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    broken(3, 2) = bad;
    CHECK(message_of<NumericalError>(start(layer, ViewBase<double>(broken), {})) ==
          "truncated_svd: the operator's products must be finite, got NaN or infinity");
  }
  CHECK(message_of<ShapeError>(start(layer, ViewBase<double>(wrong), {})) ==
        "LoraLinear::initialize: gradient must be 24 x 16, got 24 x 17");
  CHECK(message_of<StateError>(start(layer, BatchGradient<double>(n, m), {})) ==
        "BatchGradient: needs at least one batch, got none");
  CHECK(message_of<StateError>(start(layer, DenseGradient<double>(n, m), {})) ==
        "DenseGradient: needs at least one batch, got none");
  CHECK(message_of<ConfigError>(start(layer, gradient, {.gamma = 0})) ==
        "GradientSvd: gamma must be positive and finite, got 0");
  CHECK(message_of<ConfigError>(start(layer, gradient, {.gamma = -1})) ==
        "GradientSvd: gamma must be positive and finite, got -1");
  CHECK(message_of<ConfigError>(start(layer, gradient, {.gamma = std::nan("")})) ==
        "GradientSvd: gamma must be positive and finite, got nan");
  CHECK(message_of<ConfigError>(start(layer, gradient, {.effort = {.oversampling = -1}})) ==
        "truncated_svd: oversampling must not be negative, got -1");
  CHECK(layer == before);

  // By itself, without a layer that looks at the shape first.
  CHECK(message_of<ShapeError>([&] {
          GradientSvd{}(ViewBase<double>(example.W0), ViewBase<double>(wrong), r, s, example.random);
        }) == "GradientSvd: gradient must be 24 x 16, got 24 x 17");

  LoraLinear wide_layer{example.W0, {.rank = 9}};
  const auto untouched = wide_layer;
  CHECK(message_of<ConfigError>(start(wide_layer, gradient, {})) ==
        "GradientSvd: needs 2 rank <= min(n, m) = 16 for two disjoint bands, got rank 9");
  CHECK(wide_layer == untouched);

  layer.set_scale(0);
  const auto silent = layer;
  CHECK(message_of<ConfigError>(start(layer, gradient, {.size = Size::InverseScale})) ==
        "GradientSvd: scale must be finite and not zero, got 0");
  CHECK(layer == silent);
}
