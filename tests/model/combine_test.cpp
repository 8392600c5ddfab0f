// SPDX-License-Identifier: MIT
// Combined adapters against dense sums and against what PEFT's add_weighted_adapter made.
#define LORA_GOLDEN_DIR LORA_MODEL_DATA
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/model/combine.hpp>

#include <cmath>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

using namespace lora;
using namespace lora::test;
using enum Combination;

namespace {

const Golden& golden() {
  static const Golden data = [] {
    std::ifstream text(std::string(LORA_MODEL_DATA) + "/combine.txt");
    return Golden::parse(text, "combine.txt");
  }();
  return data;
}

template <Real Scalar>
Factors<Scalar> golden_factors(const std::string& name) {
  return {golden().rows<Scalar>(name + ".A"), golden().rows<Scalar>(name + ".B")};
}

template <Real Scalar>
std::vector<WeightedAdapter<Scalar>> golden_adapters() {
  std::vector<WeightedAdapter<Scalar>> adapters;
  Index i = 0;
  for (const std::string name : {"first", "second", "third"}) {
    const double scale = golden()["scales"](0, i), weight = golden()["weights"](0, i);
    const auto factors = golden_factors<Scalar>(name);
    adapters.push_back({AdapterState<Scalar>::of({.rank = 3, .alpha = 3 * scale}, factors), weight});
    ++i;
  }
  return adapters;
}

template <Real Scalar>
Wide sum_of(const std::vector<WeightedAdapter<Scalar>>& adapters) {
  Wide sum;
  for (const auto& [state, weight] : adapters) {
    const auto pair = state.delta();
    const Wide term = static_cast<long double>(weight * state.scale) * product(wide(pair.A), wide(pair.B));
    sum = sum.size() == 0 ? term : Wide(sum + term);
  }
  return sum;
}
template <Real Scalar>
Wide dense(const AdapterState<Scalar>& state) {
  return static_cast<long double>(state.scale) * product(wide(state.factors.A), wide(state.factors.B));
}

template <Real Scalar>
AdapterState<Scalar> random_state(Index n, Index m, Index r, Random& random) {
  return AdapterState<Scalar>::of({.rank = r, .alpha = 1.5, .dropout = 0.1}, random_factors<Scalar>(n, m, r, random));
}

}  // namespace

TEMPLATE_TEST_CASE("combinations equal PEFT's, factor by factor", "[model][combine][parity]", float, double) {
  struct Case {
    const char* name;
    CombineConfig config;
  };
  const double density = golden().number("density");
  const auto frequency = MajoritySign::Frequency;
  for (const auto& [name, config] :
       std::vector<Case>{{"cat", {}},
                         {"linear", {.method = Linear}},
                         {"magnitude_prune", {.method = MagnitudePrune, .density = density}},
                         {"ties", {.method = Ties, .density = density}},
                         {"ties_frequency", {.method = Ties, .density = density, .sign = frequency}},
                         {"dare_linear", {.method = DareLinear, .density = density}},
                         {"dare_ties", {.method = DareTies, .density = density}},
                         {"dare_ties_frequency", {.method = DareTies, .density = density, .sign = frequency}}}) {
    Random random{static_cast<std::uint64_t>(golden().number("draws_seed"))};
    const auto result = combine(golden_adapters<TestType>(), config, random);
    const auto expected = golden_factors<double>(name);
    CHECK(result.scale == 1);
    CHECK(result.config == LoraConfig{.rank = expected.rank(), .alpha = static_cast<double>(expected.rank())});
    const double A = relative_error(wide(result.factors.A), wide(expected.A)),
                 B = relative_error(wide(result.factors.B), wide(expected.B));
    INFO(name << ": A differs by " << A << ", B by " << B);
    CHECK(A <= parity<TestType>);
    CHECK(B <= parity<TestType>);
  }
}

TEMPLATE_TEST_CASE("the re-compressed sum is PEFT's", "[model][combine][parity]", float, double) {
  for (const auto& [name, rank] : {std::pair<const char*, Index>{"svd", 4}, {"svd_default", 0}}) {
    Random random{1};
    const auto result = combine(golden_adapters<TestType>(), {.method = Svd, .rank = rank}, random);
    const auto expected = golden_factors<double>(name);
    CHECK(result.config.rank == expected.rank());
    const double error = relative_error(dense(result), product(wide(expected.A), wide(expected.B)));
    INFO(name << " differs by " << error);
    CHECK(error <= decomposition<TestType>);
  }
}

TEMPLATE_TEST_CASE("cat is the weighted sum, with offsets, negative weights and any ranks", "[model][combine]", float,
                   double) {
  Random random{2};
  std::vector<WeightedAdapter<TestType>> adapters{{random_state<TestType>(20, 15, 2, random), 0.5},
                                                  {random_state<TestType>(20, 15, 5, random), -2},
                                                  {random_state<TestType>(20, 15, 1, random), 1}};
  adapters[1].state.initial = random_factors<TestType>(20, 15, 5, random);
  adapters[2].state.scale = -0.25;
  const auto result = combine(adapters, {}, random);
  CHECK(result.config == LoraConfig{.rank = 13, .alpha = 13, .dropout = 0.1});
  CHECK(result.initial.rank() == 0);
  const double error = relative_error(dense(result), sum_of(adapters));
  INFO("cat differs by " << error);
  CHECK(error <= rounding_bound<TestType>(8));
}

TEMPLATE_TEST_CASE("svd of full rank loses nothing, and of less is the nearest product", "[model][combine]", float,
                   double) {
  Random random{3};
  const std::vector<WeightedAdapter<TestType>> adapters{{random_state<TestType>(60, 50, 4, random), 0.5},
                                                        {random_state<TestType>(60, 50, 3, random), -1.5}};
  const Wide sum = sum_of(adapters);
  const auto all = combine(adapters, {.method = Svd, .rank = 7}, random);
  const double error = relative_error(dense(all), sum);
  INFO("re-compressed to its own rank, the sum differs by " << error);
  CHECK(error <= decomposition<TestType>);
  const auto more = combine(adapters, {.method = Svd, .rank = 50}, random);  // zeros beyond the rank
  CHECK(relative_error(dense(more), sum) <= decomposition<TestType>);

  const Eigen::JacobiSVD<Eigen::MatrixXd> svd(sum.cast<double>());
  for (const Index rank : {1, 3, 6}) {
    const auto result = combine(adapters, {.method = Svd, .rank = rank}, random);
    const double least = svd.singularValues().tail(50 - rank).norm();
    const double found = static_cast<double>((dense(result) - sum).norm());
    INFO("rank " << rank << ": error " << found << ", the least possible " << least);
    CHECK(found <= least * (1 + decomposition<TestType>));
    CHECK(found >= least * (1 - decomposition<TestType>));
  }
}

TEST_CASE("svd never forms an n x m matrix", "[model][combine][allocations]") {
  if (!allocations_are_counted) {
    WARN(not_counted);
    return;
  }
  constexpr Index n = 3000, m = 2000;
  Random random{4};
  const std::vector<WeightedAdapter<float>> adapters{{random_state<float>(n, m, 4, random), 0.5},
                                                     {random_state<float>(n, m, 4, random), 1}};
  const long peak = peak_bytes_in([&] { combine(adapters, {.method = Svd}, random); });
  INFO("peak of the heap " << peak << " bytes, a dense weight has " << 4 * n * m);
  CHECK(static_cast<double>(peak) < far_from_dense * 4 * n * m);
}

TEST_CASE("linear has the cross terms that its note warns of", "[model][combine]") {
  Random random{5};
  const auto first = random_state<double>(9, 8, 2, random), second = random_state<double>(9, 8, 2, random);
  const auto result = combine<double>({{first, 1}, {second, 1}}, {.method = Linear}, random);
  const Wide expected =
      0.75L * product(wide(first.factors.A) + wide(second.factors.A), wide(first.factors.B) + wide(second.factors.B));
  CHECK(relative_error(dense(result), expected) <= rounding_bound<double>(16));
  auto shared = second;  // with one A the cross terms are right
  shared.factors.A = first.factors.A;
  const auto exact = combine<double>({{first, 0.25}}, {.method = Linear}, random);
  CHECK(relative_error(dense(exact), sum_of<double>({{first, 0.25}})) <= rounding_bound<double>(16));
}

TEST_CASE("DARE keeps its share, the same for the same seed, and is right in the mean", "[model][combine]") {
  Random random{6};
  const auto state = AdapterState<double>::of({.rank = 40, .alpha = 40}, {ColMatrix<double>::Ones(500, 40),  //
                                                                          RowMatrix<double>::Ones(40, 400)});
  Random first{7}, second{7}, third{8};
  const CombineConfig config{.method = DareLinear, .density = 0.25};
  const auto result = combine<double>({{state, 1}}, config, first);
  CHECK(result == combine<double>({{state, 1}}, config, second));
  CHECK(first == second);
  CHECK_FALSE(result == combine<double>({{state, 1}}, config, third));
  const auto& A = result.factors.A;
  CHECK(((A.array() == 0) || (A.array() == 4)).all());
  const double share = static_cast<double>((A.array() != 0).count()) / 20000;
  CHECK(std::abs(share - 0.25) <= standard_errors * std::sqrt(0.25 * 0.75 / 20000));
}

TEST_CASE("pruning keeps the largest elements, of equal ones the first", "[model][combine]") {
  ColMatrix<double> A(4, 1);
  A << 1, -3, 2, -2;
  const RowMatrix<double> B = RowMatrix<double>::Constant(1, 4, 5);
  const auto state = AdapterState<double>::of({.rank = 1, .alpha = 1}, {A, B});
  Random random{9};
  const auto pruned = [&](double density) {
    return combine<double>({{state, 1}}, {.method = MagnitudePrune, .density = density}, random).factors;
  };
  CHECK(pruned(0.5).A == Eigen::Vector4d(0, -3, 2, 0));
  CHECK(pruned(0.5).B == Eigen::RowVector4d(5, 5, 0, 0));
  CHECK(pruned(0.9).A == Eigen::Vector4d(0, -3, 2, -2));
  CHECK(pruned(1).A == A);
  CHECK(pruned(0.1).A == Eigen::Vector4d::Zero());
}

TEST_CASE("TIES elects a sign by sum or by count, and averages those that agree", "[model][combine]") {
  const auto state = [](double a, double b, double c) {
    ColMatrix<double> A(3, 1);
    A << a, b, c;
    return AdapterState<double>::of({.rank = 1, .alpha = 1}, {A, RowMatrix<double>::Ones(1, 3)});
  };
  const std::vector<WeightedAdapter<double>> adapters{
      {state(4, 5, 0), 1}, {state(-1, -2, 0), 1}, {state(-2, 3, -6), 1}};
  Random random{10};
  const auto total = combine(adapters, {.method = Ties}, random).factors.A;
  CHECK(total == Eigen::Vector3d(4, 4, -6));
  const auto count = combine(adapters, {.method = Ties, .sign = MajoritySign::Frequency}, random).factors.A;
  CHECK(count == Eigen::Vector3d(-1.5, 4, -6));
}

TEST_CASE("whole models are combined by layer, on the layers that any of them has", "[model][combine]") {
  Random random{11};
  ModelAdapter<double> german, french;
  german.emplace("q", random_state<double>(6, 5, 2, random));
  german.emplace("k", random_state<double>(6, 5, 3, random));
  french.emplace("k", random_state<double>(6, 5, 1, random));
  french.emplace("v", random_state<double>(6, 5, 1, random));
  const auto both = combine<double>(std::vector<WeightedModelAdapter<double>>{{german, 0.5}, {french, 2}}, {}, random);
  CHECK(both.size() == 3);
  CHECK(both.at("q") == combine<double>({{german.at("q"), 0.5}}, {}, random));
  CHECK(both.at("k") == combine<double>({{german.at("k"), 0.5}, {french.at("k"), 2}}, {}, random));
  CHECK(both.at("v") == combine<double>({{french.at("v"), 2}}, {}, random));
  CHECK(message_of<ConfigError>([&] { combine<double>(std::vector<WeightedModelAdapter<double>>{}, {}, random); }) ==
        "combine: needs at least one adapter with a layer, got none");
  CHECK(message_of<ConfigError>([&] {
          combine<double>(std::vector<WeightedModelAdapter<double>>{{german, 0.5}, {french, 2}}, {.method = Linear},
                          random);
        }) == "combine: layer k: this method needs adapters of one rank (Cat and Svd do not), got 3 and 1");
  german.at("k").factors.A(0, 0) = 1e300;
  CHECK(message_of<NumericalError>([&] {
          combine<double>(std::vector<WeightedModelAdapter<double>>{{german, 1e20}}, {}, random);
        }) == "combine: layer k: result A must be finite, got NaN or infinity");
  CHECK(message_of<NumericalError>([&] {
          combine<double>(std::vector<WeightedModelAdapter<double>>{{german, 1e20}}, {.method = Svd}, random);
        }) == "combine: layer k: truncated_svd: the operator's products must be finite, got NaN or infinity");
}

TEST_CASE("combine says what is wrong with its arguments", "[model][combine][errors]") {
  Random random{12};
  const auto state = random_state<double>(6, 5, 2, random);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto message = [&](const std::vector<WeightedAdapter<double>>& adapters, const CombineConfig& config = {}) {
    return message_of<ConfigError>([&] { combine(adapters, config, random); });
  };
  CHECK(message({}) == "combine: needs at least one adapter, got none");
  CHECK(message({{state, nan}}) == "combine: weights and scales must be finite, got nan and 0.75");
  CHECK(message({{state, 1}}, {.density = 0}) == "combine: density must lie in (0, 1], got 0");
  CHECK(message({{state, 1}}, {.density = 1.5}) == "combine: density must lie in (0, 1], got 1.5");
  CHECK(message({{state, 1}}, {.density = nan}) == "combine: density must lie in (0, 1], got nan");
  CHECK(message({{state, 1}}, {.method = Svd, .rank = 6}) ==
        "combine: rank must lie in [1, min(n, m)] = [1, 5], got 6");
  CHECK(message({{state, 1}}, {.method = Svd, .rank = -1}) ==
        "combine: rank must lie in [1, min(n, m)] = [1, 5], got -1");
  CHECK(message({{state, 1}, {random_state<double>(6, 5, 3, random), 1}}, {.method = Ties}) ==
        "combine: this method needs adapters of one rank (Cat and Svd do not), got 2 and 3");
  CHECK(message_of<ShapeError>([&] {
          combine<double>({{state, 1}, {random_state<double>(5, 5, 2, random), 1}}, {}, random);
        }) == "combine: A must be 6 x 2, got 5 x 2");
  auto large = state;
  large.factors.A(0, 0) = 1e300;
  CHECK(message_of<NumericalError>([&] {
          combine<double>({{large, 1e20}}, {}, random);
        }) == "combine: result A must be finite, got NaN or infinity");
}
