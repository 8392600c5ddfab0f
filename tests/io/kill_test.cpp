// SPDX-License-Identifier: MIT
// A process that writes checkpoints is killed at random moments: an old or a new one is there, whole, every time.
#include "io/checkpoint_run.hpp"
#include "support/catch.hpp"

#include <lora/io/checkpoint.hpp>

#include <sys/wait.h>
#include <unistd.h>
#include <csignal>
#include <cstdint>

using namespace lora;
using namespace lora::test;

namespace {

/// A run of which every part follows from the step, so that a mixture of two steps would show.
struct Counting {
  std::int64_t step = 0;
  ColMatrix<float> small;
  RowMatrix<double> large;
  Checkpoint checkpoint;

  Counting() {
    checkpoint.add("large", large).add("small", small).add("step", step);
    at(0);
  }
  void at(std::int64_t now) {
    step = now;
    small.setConstant(7, 3, static_cast<float>(now));
    large.setConstant(200, 100, static_cast<double>(now));
  }
  bool whole() const {
    return (small.array() == static_cast<float>(step)).all() && (large.array() == static_cast<double>(step)).all();
  }
};

}  // namespace

TEST_CASE("whenever a writer is killed, the file is an old or a new checkpoint", "[io][checkpoint][kill]") {
  constexpr int kills = 200;
  const Folder folder("kill");
  const auto path = folder / "run";
  Counting run;
  run.checkpoint.write(path);
  Random random{9};
  int renewed = 0;
  for (int kill = 0; kill < kills; ++kill) {
    const std::int64_t before = run.step;
    const pid_t writer = ::fork();
    REQUIRE(writer >= 0);
    if (writer == 0) {
      try {
        for (std::int64_t step = before + 1;; ++step) {
          run.at(step);
          run.checkpoint.write(path);
        }
      } catch (...) {
        ::_exit(1);
      }
    }
    ::usleep(static_cast<useconds_t>(random.below(20'000)));
    ::kill(writer, SIGKILL);
    int status = 0;
    REQUIRE(::waitpid(writer, &status, 0) == writer);
    REQUIRE(WIFSIGNALED(status));  // it had not failed by itself
    run.at(-1);
    REQUIRE_NOTHROW(run.checkpoint.restore(path));
    REQUIRE(run.whole());
    REQUIRE(run.step >= before);
    renewed += run.step > before ? 1 : 0;
  }
  const int left = folder.files() - 1;
  WARN(kills << " kills: " << renewed << " times a newer checkpoint, " << left << " times in the middle of a file, "
             << run.step << " checkpoints in all");
  CHECK(left > 0);
  CHECK(renewed > 0);
}
