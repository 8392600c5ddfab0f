// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/message.hpp"

#include <lora/optim/schedule.hpp>

#include <limits>

using namespace lora;
using namespace lora::test;
using Tail = lora::Schedule::Tail;

namespace {

/// Equal up to the last bits of one cosine.
auto about(double value) { return Catch::Approx(value).epsilon(1e-15).margin(1e-16); }

}  // namespace

TEST_CASE("a schedule without settings is constant 1", "[optim]") {
  for (const Index step : {0, 1, 1000}) CHECK(Schedule{}(step) == 1);
}

TEST_CASE("warm-up rises from its first step to 1", "[optim]") {
  const auto tail = GENERATE(Tail::Constant, Tail::Linear, Tail::Cosine);
  const Schedule schedule{.warmup_steps = 4, .total_steps = 12, .tail = tail};
  CHECK(schedule(0) == 0.25);
  CHECK(schedule(1) == 0.5);
  CHECK(schedule(2) == 0.75);
  CHECK(schedule(3) == 1);
  CHECK(schedule(4) == 1);  // the first step of the tail
}

TEST_CASE("a constant tail stays at 1 and does not look at total_steps", "[optim]") {
  const Schedule schedule{.warmup_steps = 2};
  CHECK(schedule(0) == 0.5);
  for (const Index step : {1, 2, 3, 100000}) CHECK(schedule(step) == 1);
}

TEST_CASE("a linear tail falls to `last` and stays there", "[optim]") {
  const Schedule schedule{.warmup_steps = 4, .total_steps = 12, .tail = Tail::Linear};
  CHECK(schedule(6) == 0.75);
  CHECK(schedule(8) == 0.5);
  CHECK(schedule(11) == 0.125);
  for (const Index step : {12, 13, 1000}) CHECK(schedule(step) == 0);

  const Schedule raised{.total_steps = 8, .tail = Tail::Linear, .last = 0.5};
  CHECK(raised(0) == 1);
  CHECK(raised(4) == 0.75);
  for (const Index step : {8, 9}) CHECK(raised(step) == 0.5);
}

TEST_CASE("a cosine tail falls to `last` and stays there", "[optim]") {
  const Schedule schedule{.warmup_steps = 4, .total_steps = 16, .tail = Tail::Cosine};
  CHECK(schedule(7) == about(0.5 * (1 + std::numbers::sqrt2 / 2)));  // a quarter of the way
  CHECK(schedule(8) == about(0.75));                                 // a third
  CHECK(schedule(10) == about(0.5));                                 // half
  CHECK(schedule(12) == about(0.25));
  for (const Index step : {16, 17, 1000}) CHECK(schedule(step) == 0);

  const Schedule raised{.total_steps = 12, .tail = Tail::Cosine, .last = 0.1};
  CHECK(raised(0) == 1);
  CHECK(raised(4) == about(0.1 + 0.9 * 0.75));
  CHECK(raised(6) == about(0.55));
  CHECK(raised(12) == 0.1);
}

TEST_CASE("a tail of one step holds only the peak", "[optim]") {
  const auto tail = GENERATE(Tail::Linear, Tail::Cosine);
  const Schedule schedule{.warmup_steps = 3, .total_steps = 4, .tail = tail, .last = 0.25};
  CHECK(schedule(2) == 1);
  CHECK(schedule(3) == 1);
  CHECK(schedule(4) == 0.25);
}

TEST_CASE("a schedule never rises after its warm-up", "[optim]") {
  const auto tail = GENERATE(Tail::Constant, Tail::Linear, Tail::Cosine);
  const Schedule schedule{.warmup_steps = 10, .total_steps = 60, .tail = tail, .last = 0.05};
  for (Index step = 0; step < 70; ++step) {
    CAPTURE(step);
    CHECK((step < 9) == (schedule(step + 1) > schedule(step)));
  }
}

TEST_CASE("a schedule names the field out of range", "[optim]") {
  const auto refused = [](const Schedule& schedule, Index step = 0) {
    return message_of<ConfigError>([&] { schedule(step); });
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(refused({}, -1) == "Schedule: step must not be negative, got -1");
  CHECK(refused({.warmup_steps = -3}) == "Schedule: warmup_steps must not be negative, got -3");
  CHECK(refused({.last = -0.5}) == "Schedule: last must lie in [0, 1], got -0.5");
  CHECK(refused({.last = 1.5}) == "Schedule: last must lie in [0, 1], got 1.5");
  CHECK(refused({.last = nan}) == "Schedule: last must lie in [0, 1], got nan");
  CHECK(refused({.tail = Tail::Linear}) == "Schedule: total_steps must exceed warmup_steps = 0, got 0");
  CHECK(refused({.warmup_steps = 5, .total_steps = 5, .tail = Tail::Cosine}) ==
        "Schedule: total_steps must exceed warmup_steps = 5, got 5");
}
