// SPDX-License-Identifier: MIT
// Ctrl-C and SIGTERM ask a run to end in order; asked twice, it ends at once.
#pragma once

#include <lora/core/error.hpp>

#include <csignal>

namespace llm {

/// While one lives, the first SIGINT or SIGTERM sets a flag, and a second one, of either kind, ends the program as if
/// nobody had caught it. A signal that was ignored stays so (a job in the background of a script). One at a time.
class Interrupt {
 public:
  /// \throws StateError  there is one already.
  Interrupt() {
    lora::detail::require<lora::StateError>(!exists, "Interrupt: there must be one at a time, got a second");
    exists = true;
    received = 0;
    for (auto& watched : signals_) install(watched);
  }
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;
  ~Interrupt() {
    for (const auto& watched : signals_) {
      if (watched.is_ours) ::sigaction(watched.number, &watched.old, nullptr);
    }
    exists = false;
  }

  bool requested() const { return received != 0; }
  /// Which signal it was, 0 without one; a shell expects 128 + this as the exit code.
  int signal() const { return received; }

 private:
  struct Signal {
    int number;
    bool is_ours = false;
    struct sigaction old {};
  };

  static void install(Signal& watched) {
    struct sigaction action {};
    action.sa_handler = handle;
    action.sa_flags = SA_RESTART;  // reads and writes go on
    ::sigemptyset(&action.sa_mask);
    if (::sigaction(watched.number, nullptr, &watched.old) != 0 || watched.old.sa_handler == SIG_IGN) return;
    watched.is_ours = ::sigaction(watched.number, &action, nullptr) == 0;
  }
  /// Only what a handler may do.
  static void handle(int number) {
    if (received != 0) {
      std::signal(number, SIG_DFL);
      std::raise(number);  // delivered as soon as this returns
    }
    received = number;
  }

  static inline volatile std::sig_atomic_t received = 0;
  static inline bool exists = false;
  Signal signals_[2] = {{SIGINT}, {SIGTERM}};
};

}  // namespace llm
