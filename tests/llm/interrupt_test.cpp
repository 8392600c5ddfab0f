// SPDX-License-Identifier: MIT
// Ctrl-C: once, twice, and afterwards.
#include "support/catch.hpp"
#include "support/message.hpp"

#include "llm/interrupt.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <optional>

using llm::Interrupt;
using lora::test::message_of;

namespace {

volatile std::sig_atomic_t caught = 0;

/// How a process ends that does this; the test's own process stays out of it.
template <class Call>
int status_of(const Call& call) {
  const pid_t process = ::fork();
  REQUIRE(process >= 0);
  if (process == 0) {
    call();
    ::_exit(7);
  }
  int status = 0;
  REQUIRE(::waitpid(process, &status, 0) == process);
  return status;
}

}  // namespace

TEST_CASE("the first signal is noted", "[llm][interrupt]") {
  for (const int number : {SIGINT, SIGTERM}) {
    const Interrupt interrupt;
    CHECK_FALSE(interrupt.requested());
    CHECK(interrupt.signal() == 0);
    std::raise(number);
    CHECK(interrupt.requested());
    CHECK(interrupt.signal() == number);
  }
}

TEST_CASE("the second signal ends the program", "[llm][interrupt]") {
  for (const int first : {SIGINT, SIGTERM}) {
    for (const int second : {SIGINT, SIGTERM}) {
      const int status = status_of([&] {
        const Interrupt interrupt;
        std::raise(first);
        if (interrupt.requested()) std::raise(second);
      });
      CHECK(WIFSIGNALED(status));
      CHECK(WTERMSIG(status) == second);
    }
  }
}

TEST_CASE("the old handlers come back", "[llm][interrupt]") {
  caught = 0;
  const auto old = std::signal(SIGTERM, [](int number) { caught = number; });
  {
    const Interrupt interrupt;
    std::raise(SIGTERM);
    CHECK(caught == 0);
  }
  std::raise(SIGTERM);
  CHECK(caught == SIGTERM);
  std::signal(SIGTERM, old);
}

TEST_CASE("a signal that was ignored stays so", "[llm][interrupt]") {
  const auto old = std::signal(SIGINT, SIG_IGN);
  {
    const Interrupt interrupt;
    std::raise(SIGINT);
    CHECK_FALSE(interrupt.requested());
  }
  std::signal(SIGINT, old);
}

TEST_CASE("there is one at a time, and then another", "[llm][interrupt]") {
  std::optional<Interrupt> interrupt(std::in_place);
  CHECK(message_of<lora::StateError>([] { const Interrupt second; }) ==
        "Interrupt: there must be one at a time, got a second");
  std::raise(SIGINT);
  CHECK(interrupt->requested());
  interrupt.reset();
  const Interrupt next;
  CHECK_FALSE(next.requested());
}
