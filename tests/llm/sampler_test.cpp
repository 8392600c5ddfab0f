// SPDX-License-Identifier: MIT
// How the next token is chosen.
#include "llm/sampler.hpp"
#include "support/catch.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <cmath>
#include <vector>

using llm::Sampler;
using lora::test::message_of;

namespace {

std::vector<int> counts(Sampler sampler, const Eigen::RowVectorXf& logits, int draws) {
  std::vector<int> result(static_cast<std::size_t>(logits.size()));
  for (int i = 0; i < draws; ++i) ++result[static_cast<std::size_t>(sampler(logits))];
  return result;
}

}  // namespace

TEST_CASE("at temperature 0 the likeliest token is taken", "[llm][sampler]") {
  const Eigen::RowVectorXf logits{{0.5F, 3, -1, 2.9F}};
  CHECK(counts({0, 1, 1}, logits, 100) == std::vector{0, 100, 0, 0});
}

TEST_CASE("draws follow the softmax of the logits over the temperature", "[llm][sampler]") {
  const Eigen::RowVectorXf logits{{1, 2, 0, -400}};
  const double temperature = 0.7;
  const Eigen::RowVectorXd weights = (logits.cast<double>() / temperature).array().exp();
  constexpr int draws = 20'000;
  const auto seen = counts({temperature, 1, 7}, logits, draws);
  for (Eigen::Index i = 0; i < logits.size(); ++i) {
    const double p = weights(i) / weights.sum();
    INFO(i << ": " << seen[static_cast<std::size_t>(i)] << " of " << draws << ", expected " << p * draws);
    CHECK(std::abs(seen[static_cast<std::size_t>(i)] - p * draws) <= lora::test::count_deviation(draws, p));
  }
  CHECK(counts({temperature, 1, 7}, logits, 50) == counts({temperature, 1, 7}, logits, 50));
}

TEST_CASE("top_p keeps the smallest set of the likeliest tokens that reaches it", "[llm][sampler]") {
  const Eigen::RowVectorXf logits = Eigen::RowVector4f(0.4F, 0.3F, 0.2F, 0.1F).array().log();
  constexpr int draws = 20'000;
  const auto two = counts({1, 0.65, 3}, logits, draws);  // 0.4 is not enough, 0.4 + 0.3 is
  CHECK(two[2] + two[3] == 0);
  CHECK(std::abs(two[0] - draws * 4 / 7.0) <= lora::test::count_deviation(draws, 4 / 7.0));
  CHECK(counts({1, 1e-9, 3}, logits, 100) == std::vector{100, 0, 0, 0});
}

TEST_CASE("a sampler refuses what is no temperature and no share", "[llm][sampler]") {
  CHECK(message_of<lora::ConfigError>([] { Sampler(-1, 1, 0); }) ==
        "--temperature: must be finite and not negative, got -1");
  CHECK(message_of<lora::ConfigError>([] { Sampler(1, 0, 0); }) == "--top-p: must lie in (0, 1], got 0");
  CHECK(message_of<lora::ConfigError>([] { Sampler(1, 1.5, 0); }) == "--top-p: must lie in (0, 1], got 1.5");
}
