// SPDX-License-Identifier: MIT
// What one pass over the batches of a gradient captures, beside two passes of the same width, and the memory of each.
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/base/view_base.hpp>
#include <lora/init/gradient_sketch.hpp>
#include <lora/init/streaming_svd.hpp>
#include <lora/linalg/batch_gradient.hpp>
#include <lora/linalg/dense.hpp>
#include <lora/linalg/truncated_svd.hpp>

#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

using Dense = ColMatrix<double>;

/// G = U diag(sigma) V^T with all of its `size` singular values, fed as batches of tokens.
///
/// X = T diag(sqrt(sigma)) U^T and dY = T diag(sqrt(sigma)) V^T. T mixes the tokens: the rows of a Hadamard matrix in
/// random order, so that no batch stands for a band of the spectrum. U and V are reflections I - 2 v v^T, which make G
/// dense and its energies cheap; nothing is lost by it, for the sketches draw normal numbers, whose distribution no
/// rotation of G changes.
class Example {
 public:
  static constexpr Index size = 2048, batches = 8, tokens = size / batches;
  RowMatrix<float> X, dY;  ///< the mean over batches of X^T dY is G

  Example(double power, Random& random) : sigma_(Eigen::VectorXd::LinSpaced(size, 1, size).array().pow(-power)) {
    u_ = direction(random);
    v_ = direction(random);
    std::vector<unsigned> order(size);
    std::iota(order.begin(), order.end(), 0U);
    for (std::size_t i = size - 1; i > 0; --i)
      std::swap(order[i], order[static_cast<std::size_t>(random.below(static_cast<Index>(i) + 1))]);
    RowMatrix<double> mixed(size, size);
    for (Index i = 0; i < size; ++i) {
      for (Index j = 0; j < size; ++j) {
        const bool odd = std::popcount(order[static_cast<std::size_t>(i)] & static_cast<unsigned>(j)) % 2 == 1;
        mixed(i, j) = (odd ? -1 : 1) * std::sqrt(sigma_(j) / size);
      }
    }
    const auto seen_along = [&](const Eigen::VectorXd& v) {
      return RowMatrix<float>((mixed - 2 * (mixed * v).eval() * v.transpose()).cast<float>());
    };
    X = batches * seen_along(u_);
    dY = seen_along(v_);
  }

  /// As shares of the best energy that as many triplets can hold, sum of sigma_i^2.
  struct Shares {
    double approximation;  ///< (||G||^2 - ||G - U diag(S) V^T||^2): what the triplets rebuild
    double projection;     ///< ||U^T G V||^2: what lies in their two subspaces, all that LoRA-GA takes from them
  };
  Shares captured(const TruncatedSvd<float>& svd) const {
    Dense left = svd.U.cast<double>(), right = svd.Vt.transpose().cast<double>();
    reflect_rows(left, u_);
    reflect_rows(right, v_);
    const Dense core = left.transpose() * sigma_.asDiagonal() * right;
    const Eigen::VectorXd S = svd.S.cast<double>();
    const double best = sigma_.head(svd.rank()).squaredNorm();
    return {(2 * core.diagonal().dot(S) - S.squaredNorm()) / best, core.squaredNorm() / best};
  }

 private:
  static Eigen::VectorXd direction(Random& random) {
    return random_matrix<Eigen::VectorXd>(size, 1, random).normalized();
  }
  template <class Matrix>
  static void reflect_rows(Matrix& M, const Eigen::VectorXd& v) {
    const Eigen::RowVectorXd along = v.transpose() * M;
    M -= 2 * v * along;
  }

  Eigen::VectorXd sigma_, u_, v_;
};

/// The peak of memory while an accumulator of n x m is made, fed and decomposed.
template <class Accumulator>
long one_pass_bytes(Index size, Index width) {
  Random random{4};
  const auto X = random_rows<float>(8, size, random), dY = random_rows<float>(8, size, random);
  return peak_bytes_in([&] {
    Accumulator sketch(size, size, width, random);
    for (int batch = 0; batch < 3; ++batch) sketch.add(X, dY);
    static_cast<void>(sketch.svd(width / 2));
  });
}
/// The same for two passes over batches that are kept anyway.
long two_pass_bytes(Index size, Index width) {
  Random random{4};
  const auto X = random_rows<float>(8, size, random), dY = random_rows<float>(8, size, random);
  const BatchGradient<float> gradient(X, dY);
  return peak_bytes_in(
      [&] { static_cast<void>(truncated_svd(gradient, width / 2, random, {.oversampling = width / 2})); });
}

}  // namespace

TEST_CASE("share of the best rank-32 energy that 32 triplets of a 2,048 x 2,048 gradient capture at rank 16",
          "[init][gradient][sketch]") {
  constexpr Index triplets = 32, width = 64;
  const int spectrum = GENERATE(0, 1);  // 1 / i, 1 / sqrt(i)
  Random random{3};
  const Example example(spectrum == 0 ? 1 : 0.5, random);
  BatchGradient<float> kept(Example::size, Example::size);
  StreamingSvd<float> stream(Example::size, Example::size, width, random);
  GradientSketch<float> sketch(Example::size, Example::size, width, random);
  for (Index batch = 0; batch < Example::batches; ++batch) {
    const auto X = example.X.middleRows(batch * Example::tokens, Example::tokens);
    const auto dY = example.dY.middleRows(batch * Example::tokens, Example::tokens);
    kept.add(X, dY);
    stream.add(X, dY);
    sketch.add(X, dY);
  }
  const auto two_pass = example.captured(
      truncated_svd(kept, triplets, random, {.oversampling = width - triplets, .power_iterations = 2}));
  const auto one_pass = example.captured(stream.svd(triplets)), linear = example.captured(sketch.svd(triplets));
  const auto print = [](const Example::Shares& shares) {
    return std::to_string(shares.approximation) + " (in the subspaces " + std::to_string(shares.projection) + ")";
  };
  WARN((spectrum == 0 ? "sigma_i = 1 / i" : "sigma_i = 1 / sqrt(i)")
       << ": two passes " << print(two_pass) << ", one pass " << print(one_pass) << ", linear sketch "
       << print(linear));
  CHECK(two_pass.approximation >= two_pass_share[spectrum]);
  CHECK(one_pass.approximation >= one_pass_share[spectrum]);
  CHECK(linear.projection >= linear_share[spectrum]);
  for (const auto& shares : {two_pass, one_pass, linear}) CHECK(shares.projection <= 1 + decomposition<float>);
}

TEST_CASE("the memory of all ways is linear in (n + m) r", "[init][gradient][sketch][allocations]") {
  if (!allocations_are_counted) {
    WARN(not_counted);
    return;
  }
  constexpr Index size = 2048, width = 32;
  for (const auto bytes :
       {one_pass_bytes<StreamingSvd<float>>, one_pass_bytes<GradientSketch<float>>, two_pass_bytes}) {
    bytes(2 * size, width);  // warms the packing memory of products, which the caches bound and threads keep
    const long once = bytes(size, width), wider = bytes(size, 2 * width), larger = bytes(2 * size, width);
    const auto scalars = [](long count) { return static_cast<double>(count) / sizeof(float); };
    INFO("at n = m = " << size << ", width " << width << ": " << scalars(once) / (2 * size * width)
                       << " (n + m) width scalars; width doubled: " << scalars(wider) / scalars(once)
                       << " times as much; n and m doubled: " << scalars(larger) / scalars(once));
    CHECK(scalars(larger) / scalars(once) >= doubling_from);
    CHECK(scalars(larger) / scalars(once) <= doubling_to);
    CHECK(scalars(wider) / scalars(once) >= doubling_from);
    CHECK(scalars(wider) / scalars(once) <= doubling_to);
    CHECK(scalars(larger) < 0.5 * (2 * size) * (2 * size));  // no n x m array
  }
}

TEMPLATE_TEST_CASE("one pass is exact where the gradient's rank is at most its width", "[init][gradient][sketch]",
                   StreamingSvd<double>, GradientSketch<double>) {
  struct Case {
    Index n, m, width;
  };
  for (const auto& [n, m, width] : {Case{40, 30, 8}, {30, 40, 8}, {12, 9, 9}, {9, 12, 9}}) {
    Random random{1};
    TestType sketch(n, m, width, random);
    CHECK(sketch.rows() == n);
    CHECK(sketch.cols() == m);
    CHECK(sketch.width() == width);
    const auto X1 = random_rows<double>(4, n, random), dY1 = random_rows<double>(4, m, random);
    const auto X2 = random_rows<double>(2, n, random), dY2 = random_rows<double>(2, m, random);
    sketch.add(X1, dY1);
    sketch.add(X2, dY2);
    CHECK(sketch.batches() == 2);
    const Dense G = (X1.transpose() * dY1 + X2.transpose() * dY2) / 2;  // of rank 6
    const auto svd = sketch.svd(6);
    INFO(n << " x " << m << ", width " << width << ": off by " << relative_error(to_dense(svd), G));
    CHECK(relative_error(to_dense(svd), G) <= decomposition<double>);
    CHECK(off_orthonormal(svd.U) <= 4 * qr_bound<double>(n, width));
    CHECK(off_orthonormal(Dense(svd.Vt.transpose())) <= 4 * qr_bound<double>(m, width));
    const auto all = sketch.svd(width);
    CHECK(all.S.tail(width - 6).maxCoeff() <= decomposition<double> * G.norm());
  }
}

TEMPLATE_TEST_CASE("one pass takes gradients that the trainer has formed, in either order, beside batches",
                   "[init][gradient][sketch]", StreamingSvd<double>, GradientSketch<double>) {
  constexpr Index n = 20, m = 16;
  Random random{2};
  const auto X = random_rows<double>(3, n, random), dY = random_rows<double>(3, m, random);
  const Dense by_columns = X.transpose() * dY;
  const RowMatrix<double> by_rows = by_columns;
  Random one{5}, two{5}, three{5};
  TestType sketch(n, m, 6, one), formed(n, m, 6, two), again(n, m, 6, three);
  sketch.add(X, dY);
  sketch.add(by_columns);
  formed.add(by_rows);
  again.add(by_rows);
  CHECK(relative_error(to_dense(sketch.svd(3)), by_columns) <= decomposition<double>);
  CHECK(relative_error(to_dense(formed.svd(3)), by_columns) <= decomposition<double>);
  CHECK(same_bits(formed.svd(3).U, again.svd(3).U));  // same seed, same bits
  CHECK(one == two);
}

TEMPLATE_TEST_CASE("one pass over a zero gradient leaves singular values of zero", "[init][gradient][sketch]",
                   StreamingSvd<float>, GradientSketch<float>) {
  Random random{6};
  TestType sketch(10, 8, 4, random);
  const ColMatrix<float> zero = ColMatrix<float>::Zero(10, 8);
  sketch.add(zero);
  CHECK(sketch.svd(4).S == Eigen::Vector4f::Zero());
}

TEST_CASE("sketches of several threads add up to that of one", "[init][gradient][sketch]") {
  constexpr Index n = 20, m = 16;
  Random random{8};
  const auto X = random_rows<double>(6, n, random), dY = random_rows<double>(6, m, random);
  Random first{5}, second{5}, third{5}, other{6};
  GradientSketch<double> whole(n, m, 6, first), left(n, m, 6, second), right(n, m, 6, third), stranger(n, m, 6, other),
      narrow(n, m, 5, other);
  whole.add(X.topRows(3), dY.topRows(3));
  whole.add(X.bottomRows(3), dY.bottomRows(3));
  left.add(X.topRows(3), dY.topRows(3));
  right.add(X.bottomRows(3), dY.bottomRows(3));
  left += right;
  CHECK(left.batches() == 2);
  CHECK(relative_error(to_dense(left.svd(6)), to_dense(whole.svd(6))) <= decomposition<double>);
  CHECK(message_of<StateError>([&] { left += stranger; }) ==
        "GradientSketch: sketches to be added must share their draws, got other ones");
  CHECK(message_of<ShapeError>([&] { left += narrow; }) ==
        "GradientSketch: Omega of the sketch that is added must be 16 x 6, got 16 x 5");
  CHECK(left.batches() == 2);
}

TEMPLATE_TEST_CASE("bad input to one pass is named and leaves it as it was", "[init][gradient][sketch][errors]",
                   StreamingSvd<double>, GradientSketch<double>) {
  const std::string name = std::is_same_v<TestType, StreamingSvd<double>> ? "StreamingSvd" : "GradientSketch";
  Random random{7};
  CHECK(message_of<ConfigError>([&] { TestType(6, 4, 0, random); }) ==
        name + ": width must lie in [1, min(n, m)] = [1, 4], got 0");
  CHECK(message_of<ConfigError>([&] { TestType(6, 4, 5, random); }) ==
        name + ": width must lie in [1, min(n, m)] = [1, 4], got 5");
  TestType sketch(6, 4, 3, random);
  CHECK(message_of<StateError>([&] { static_cast<void>(sketch.svd(2)); }) ==
        name + "::svd: needs at least one batch, got none");
  Dense G = random_columns<double>(6, 4, random);
  sketch.add(G);
  const Dense before = to_dense(sketch.svd(3));
  CHECK(message_of<ConfigError>([&] { static_cast<void>(sketch.svd(0)); }) ==
        name + "::svd: rank must lie in [1, width] = [1, 3], got 0");
  CHECK(message_of<ConfigError>([&] { static_cast<void>(sketch.svd(4)); }) ==
        name + "::svd: rank must lie in [1, width] = [1, 3], got 4");

  RowMatrix<double> X = RowMatrix<double>::Ones(2, 6);
  const RowMatrix<double> dY = RowMatrix<double>::Ones(2, 4), short_dY = RowMatrix<double>::Ones(1, 4);
  const Dense wrong = Dense::Ones(4, 6);
  CHECK(message_of<ShapeError>([&] { sketch.add(dY, dY); }) == name + "::add: X must be b x 6, got 2 x 4");
  CHECK(message_of<ShapeError>([&] { sketch.add(X, short_dY); }) == name + "::add: dY must be 2 x 4, got 1 x 4");
  CHECK(message_of<ShapeError>([&] { sketch.add(wrong); }) == name + "::add: gradient must be 6 x 4, got 4 x 6");
  X(1, 2) = std::numeric_limits<double>::quiet_NaN();
  G(0, 0) = std::numeric_limits<double>::infinity();
  CHECK(message_of<NumericalError>([&] { sketch.add(X, dY); }) ==
        name + "::add: X must be finite, got NaN or infinity");
  CHECK(message_of<NumericalError>([&] { sketch.add(G); }) ==
        name + "::add: gradient must be finite, got NaN or infinity");
  CHECK(sketch.batches() == 1);
  CHECK(same_bits(to_dense(sketch.svd(3)), before));
}
