// SPDX-License-Identifier: MIT
// Adapters taken out of two weights.
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/base/callback_base.hpp>
#include <lora/base/view_base.hpp>
#include <lora/model/extract.hpp>

#include <Eigen/SVD>

#include <cmath>
#include <limits>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 60, m = 45;

/// A change with singular values 1, 1/2, 1/4, ...
template <Real Scalar>
ColMatrix<Scalar> decaying(Random& random) {
  const auto U = thin_qr<double>(random_columns<double>(n, m, random)).Q;
  const auto V = thin_qr<double>(random_columns<double>(m, m, random)).Q;
  Eigen::VectorXd S(m);
  for (Index i = 0; i < m; ++i) S(i) = std::exp2(-static_cast<double>(i));
  return (U * S.asDiagonal() * V.transpose()).cast<Scalar>();
}

}  // namespace

TEMPLATE_TEST_CASE("the adapter that made a weight is found again, and put back it is that weight", "[model][extract]",
                   float, double) {
  Random random{1};
  const auto W0 = random_columns<TestType>(n, m, random);
  LoraLinear layer{W0, {.rank = 5}};
  layer.set_factors(random_factors<TestType>(n, m, 5, random));
  const auto W1 = layer.merged_weight();
  auto found = extract(ViewBase(W0), ViewBase(W1), {.rank = 5}, random);
  CHECK(found.adapter.config == LoraConfig{.rank = 5, .alpha = 5});
  CHECK(found.adapter.scale == 1);
  const double change = static_cast<double>((wide(W1) - wide(W0)).norm());
  INFO("error " << found.error << ", captured " << found.captured);
  CHECK(found.error <= decomposition<TestType>);
  CHECK(std::abs(found.captured - 1) <= decomposition<TestType>);
  CHECK(found.change == Catch::Approx(change).epsilon(rounding_bound<TestType>(n * m)));
  layer.swap(found.adapter);
  CHECK(relative_error(wide(layer.merged_weight()), wide(W1)) <= decomposition<TestType>);
  CHECK(relative_error(wide(found.adapter.delta().A), wide(found.adapter.factors.A)) == 0);  // the old one is out
}

TEMPLATE_TEST_CASE("the error of an extraction is the least possible, and what is reported", "[model][extract]", float,
                   double) {
  Random random{2};
  const auto W0 = random_rows<TestType>(n, m, random);
  const ColMatrix<TestType> W1 = W0 + decaying<TestType>(random);
  const Wide change = wide(W1) - wide(W0);
  const Eigen::JacobiSVD<Eigen::MatrixXd> svd(change.cast<double>());
  const Eigen::VectorXd S = svd.singularValues();
  for (const Index rank : {1, 4, 8}) {
    const auto found = extract(ViewBase(W0), ViewBase(W1), {.rank = rank}, random);
    const auto& [A, B] = found.adapter.factors;
    const double measured = static_cast<double>((change - product(wide(A), wide(B))).norm() / change.norm());
    const double least = S.tail(m - rank).norm() / S.norm();
    INFO("rank " << rank << ": error " << found.error << ", measured " << measured << ", least " << least);
    CHECK(std::abs(found.error - measured) <= rounding_bound<TestType>(n * m));
    CHECK(std::abs(found.error - least) <= decomposition<TestType>);
    CHECK(std::abs(found.captured - (1 - least * least)) <= decomposition<TestType>);
    CHECK(std::abs(double{found.singular_values(0)} - S(0)) <= decomposition<TestType>);
  }
}

TEST_CASE("an energy threshold takes the smallest rank that captures it, up to the limit", "[model][extract]") {
  Random random{3};
  const auto W0 = random_columns<double>(n, m, random);
  const ColMatrix<double> W1 = W0 + decaying<double>(random);  // r triplets capture 1 - 4^-r
  const auto rank_at = [&](const ExtractConfig& config) {
    return extract(ViewBase(W0), ViewBase(W1), config, random).adapter.config.rank;
  };
  CHECK(rank_at({.energy = 0.5}) == 1);
  CHECK(rank_at({.energy = 0.75 + 1e-6}) == 2);
  CHECK(rank_at({.energy = 1 - 1.0 / 1000}) == 5);
  CHECK(rank_at({.rank = 3, .energy = 1 - 1.0 / 1000}) == 3);
  const ColMatrix<double> flat = W0 + random_columns<double>(n, m, random);
  const auto found = extract(ViewBase(W0), ViewBase(flat), {.energy = 0.9}, random);  // more than the first try of 16
  CHECK(found.captured >= 0.9);
  CHECK(found.adapter.config.rank > 16);
  const auto fewer = extract(ViewBase(W0), ViewBase(flat), {.rank = found.adapter.config.rank - 1}, random);
  CHECK(fewer.captured < 0.9);
}

TEST_CASE("weights known by their products alone give the same adapter", "[model][extract]") {
  Random random{4};
  const auto W0 = random_columns<double>(n, m, random);
  const ColMatrix<double> W1 = W0 + decaying<double>(random);
  const auto unseen = [&](const ColMatrix<double>& W) {
    return CallbackBase<double>(
        n, m, [&W](const ConstRows<double>& X, Rows<double> Y) { set_product(Y, 1, X, W); },
        [&W](const ConstRows<double>& dY, Rows<double> dX) { set_product(dX, 1, dY, W.transpose()); });
  };
  Random first{5}, second{5};
  const auto seen = extract(ViewBase(W0), ViewBase(W1), {.rank = 6}, first);
  const auto found = extract(unseen(W0), unseen(W1), {.rank = 6}, second);
  CHECK(found.adapter == seen.adapter);
  CHECK(found.error == seen.error);
}

TEST_CASE("extract says what is wrong with its arguments", "[model][extract][errors]") {
  Random random{6};
  const auto W0 = random_columns<double>(n, m, random);
  auto W1 = W0;
  W1(3, 4) += 1;
  const auto message = [&](const ExtractConfig& config) {
    return message_of<ConfigError>([&] { extract(ViewBase(W0), ViewBase(W1), config, random); });
  };
  CHECK(message({.rank = 1}) == "[no error]");
  CHECK(message({}) == "extract: needs a rank or an energy below 1, got neither");
  CHECK(message({.rank = 46}) == "extract: rank must lie in [0, min(n, m)] = [0, 45], got 46");
  CHECK(message({.rank = -1}) == "extract: rank must lie in [0, min(n, m)] = [0, 45], got -1");
  CHECK(message({.energy = 0}) == "extract: energy must lie in (0, 1], got 0");
  CHECK(message({.energy = 1.5}) == "extract: energy must lie in (0, 1], got 1.5");
  CHECK(message({.energy = std::numeric_limits<double>::quiet_NaN()}) == "extract: energy must lie in (0, 1], got nan");
  const auto small = random_columns<double>(4, m, random);
  CHECK(message_of<ShapeError>([&] { extract(ViewBase(W0), ViewBase(small), {.rank = 1}, random); }) ==
        "extract: the weight after training must be 60 x 45, got 4 x 45");
  CHECK(message_of<NumericalError>([&] { extract(ViewBase(W0), ViewBase(W0), {.rank = 1}, random); }) ==
        "extract: the weights must differ, got equal ones");
  W1(0, 0) = std::numeric_limits<double>::infinity();
  CHECK(message_of<NumericalError>([&] { extract(ViewBase(W0), ViewBase(W1), {.rank = 1}, random); }) ==
        "extract: both weights must be finite, got NaN or infinity");
}
