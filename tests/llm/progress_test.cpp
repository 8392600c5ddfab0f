// SPDX-License-Identifier: MIT
// What a terminal and what a log file see of a run, by a clock that the test turns.
#include "support/catch.hpp"
#include "support/message.hpp"

#include "llm/progress.hpp"

#include <cmath>
#include <limits>
#include <optional>
#include <sstream>
#include <string>

using namespace llm;
using lora::test::message_of;

namespace {

/// A run whose steps take half a second for 512 tokens.
struct Run {
  std::ostringstream out;
  double now = 1000;
  Progress progress;

  Run(Index total, Index done, const Display& display) : progress(out, total, done, display, [this] { return now; }) {}
  /// What the step printed.
  std::string step(Index step, double loss, double seconds = 0.5) {
    now += seconds;
    return printed([&] { progress.step({step, loss, 1e-4, 512, 0.5}); });
  }
  template <class Call>
  std::string printed(const Call& call) {
    out.str("");
    call();
    return out.str();
  }
};

constexpr Display lines{Display::Kind::Lines, 80, 2}, terminal{Display::Kind::Terminal, 100, 0};

}  // namespace

TEST_CASE("a log gets the first step, the last one, and a line every so many seconds", "[llm][progress]") {
  Run run(10, 0, lines);
  CHECK(run.step(1, 3) == "step  1/10  loss 3.0000 (last 3.0000)  1024 tokens/s  0:05 left  rate 1.00e-04\n");
  CHECK(run.step(2, 2).empty());
  CHECK(run.step(3, 2).empty());
  CHECK(run.step(4, 2).empty());
  CHECK(run.step(5, 2) == "step  5/10  loss 2.1800 (last 2.0000)  1024 tokens/s  0:03 left  rate 1.00e-04\n");
  CHECK(run.printed([&] { run.progress.note("validation loss 2.1"); }) == "validation loss 2.1\n");
  CHECK(run.step(6, 2).empty());
  CHECK(run.step(10, 1) == "step 10/10  loss 1.9561 (last 1.0000)  1024 tokens/s  0:00 left  rate 1.00e-04\n");
  CHECK(run.printed([&] { run.progress.finish(); }).empty());
}

TEST_CASE("a terminal gets a line that rewrites itself", "[llm][progress]") {
  Run run(10, 0, terminal);
  const std::string first = "step  1/10  loss 3.0000 (last 3.0000)  1024 tokens/s  0:05 left  rate 1.00e-04";
  CHECK(run.step(1, 3) == first);
  CHECK(run.step(2, 3, 0.05).empty());  // faster than anybody reads
  CHECK(run.step(3, 3) == "\r\033[Kstep  3/10  loss 3.0000 (last 3.0000)  1024 tokens/s  0:02 left  rate 1.00e-04");
  CHECK(run.printed([&] { run.progress.note("saved"); }) ==
        "\r\033[Ksaved\nstep  3/10  loss 3.0000 (last 3.0000)  1024 tokens/s  0:02 left  rate 1.00e-04");
  CHECK(run.step(4, 3, 0).empty());
  CHECK(run.printed([&] { run.progress.finish(); }) ==
        "\r\033[Kstep  4/10  loss 3.0000 (last 3.0000)  1024 tokens/s  0:02 left  rate 1.00e-04\n");
}

TEST_CASE("a narrow terminal shows what fits", "[llm][progress]") {
  Run run(10, 0, {Display::Kind::Terminal, 40, 0});
  CHECK(run.step(1, 3) == "step  1/10  loss 3.0000 (last 3.0000)  ");  // 39: the last column would begin a line
}

TEST_CASE("a resumed run reckons with its own steps", "[llm][progress]") {
  Run run(1000, 990, lines);
  CHECK(run.step(991, 3, 4) == "step  991/1000  loss 3.0000 (last 3.0000)  1024 tokens/s  0:36 left  rate 1.00e-04\n");
}

TEST_CASE("what comes after a broken run begins a line", "[llm][progress]") {
  std::ostringstream out;
  {
    Progress progress(out, 10, 0, terminal, [] { return 0.0; });
    progress.step({1, 3, 1e-4, 0, 0});
  }
  CHECK(out.str() == "step  1/10  loss 3.0000 (last 3.0000)  0.0 tokens/s  0:00 left  rate 1.00e-04\n");
  out.str("");
  {
    const Progress silent(out, 10, 0, terminal, [] { return 0.0; });
  }
  CHECK(out.str().empty());
}

TEST_CASE("a loss that is no number is shown as it is", "[llm][progress]") {
  Run run(10, 0, lines);
  CHECK(run.step(1, std::numeric_limits<double>::quiet_NaN()).find("loss nan (last nan)") != std::string::npos);
}

TEST_CASE("durations read as clocks do", "[llm][progress]") {
  CHECK(duration_text(0) == "0:00");
  CHECK(duration_text(59.6) == "1:00");
  CHECK(duration_text(754) == "12:34");
  CHECK(duration_text(3723) == "1:02:03");
  CHECK(duration_text(360000) == "100:00:00");
  CHECK(duration_text(-1) == "?");
  CHECK(duration_text(std::numeric_limits<double>::quiet_NaN()) == "?");
  CHECK(duration_text(std::numeric_limits<double>::infinity()) == "?");
}

TEST_CASE("progress beyond the end is refused", "[llm][progress]") {
  std::ostringstream out;
  CHECK(message_of<lora::ConfigError>([&] { Progress(out, 10, 11, lines); }) ==
        "Progress: done must lie in [0, total = 10], got 11");
}
