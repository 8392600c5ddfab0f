// SPDX-License-Identifier: MIT
// Says how far a long run is: a line that rewrites itself on a terminal, now and then a line elsewhere.
#pragma once

#include "smoothed.hpp"

#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <functional>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>

namespace llm {

using lora::Index;

/// Seconds from an arbitrary origin.
using Clock = std::function<double()>;
inline double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// "0:07", "12:34", "1:02:03"; "?" where nobody knows.
inline std::string duration_text(double seconds) {
  if (!(seconds >= 0 && seconds < 1e9)) return "?";
  const auto whole = std::llround(seconds);
  char text[32];
  if (whole >= 3600) {
    std::snprintf(text, sizeof text, "%lld:%02lld:%02lld", whole / 3600, whole / 60 % 60, whole % 60);
  } else {
    std::snprintf(text, sizeof text, "%lld:%02lld", whole / 60, whole % 60);
  }
  return text;
}

/// How progress is shown.
struct Display {
  enum class Kind { Terminal, Lines };

  Kind kind = Kind::Lines;
  Index columns = 80;    ///< of the terminal: a longer line would break and not be rewritten
  double interval = 10;  ///< seconds between lines, where it is no terminal

  /// What suits an open file: STDERR_FILENO.
  static Display of(int descriptor) {
    Display display;
    if (::isatty(descriptor) == 0) return display;
    display.kind = Kind::Terminal;
    struct winsize size {};
    if (::ioctl(descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) display.columns = size.ws_col;
    return display;
  }
};

/// What a step of training did.
struct StepReport {
  Index step = 0;  ///< how many steps are done with this one
  double loss = 0, learning_rate = 0;
  Index tokens = 0;    ///< of this step
  double seconds = 0;  ///< of this step, without evaluation
};

/// Shows step, loss (smoothed, and of the last step), speed, time left and learning rate. The time left follows from
/// all the time since the start, pauses for evaluation included: there will be more of them.
class Progress {
 public:
  /// \param total  steps of the run. \param done  steps that an earlier process did. \pre `out` outlives this.
  /// \throws ConfigError  unless 0 <= done <= total.
  Progress(std::ostream& out, Index total, Index done, Display display, Clock clock = steady_seconds)
      : out_(out), total_(total), done_(done), display_(display), clock_(std::move(clock)), start_(clock_()) {
    lora::detail::require<lora::ConfigError>(done >= 0 && done <= total,
                                             "Progress: done must lie in [0, total = ", total, "], got ", done);
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// What comes after, perhaps an error message, begins a line.
  ~Progress() {
    try {
      end_line();
    } catch (...) {  // a stream that throws: there is nobody to tell
    }
  }

  void step(const StepReport& report) {
    last_ = report;
    loss_.add(report.loss);
    tokens_.add(static_cast<double>(report.tokens));
    seconds_.add(report.seconds);
    const double now = clock_();
    const double interval = display_.kind == Display::Kind::Terminal ? refresh : display_.interval;
    const bool is_due = !shown_ || now - shown_at_ >= interval || report.step == total_;
    if (is_due) show(now);
  }
  /// A line of its own: "validation loss 2.31".
  void note(std::string_view text) {
    clear_line();
    out_ << text << '\n' << std::flush;
    if (display_.kind == Display::Kind::Terminal && shown_) show(clock_());
  }
  /// Shows the last step, where it has not been, and ends the line.
  void finish() {
    if (shown_ && shown_step_ != last_.step) show(clock_());
    end_line();
  }

  /// Over the last twenty steps or so.
  double smoothed_loss() const { return loss_.value(); }
  double tokens_per_second() const { return seconds_.value() > 0 ? tokens_.value() / seconds_.value() : 0; }

 private:
  static constexpr double refresh = 0.1;  // seconds; faster than that nobody reads

  void show(double now) {
    clear_line();
    std::string text = line(now);
    if (display_.kind == Display::Kind::Terminal) {
      text.resize(std::min(text.size(), static_cast<std::size_t>(std::max(display_.columns - 1, Index{1}))));
      is_open_ = true;
    } else {
      text += '\n';
    }
    out_ << text << std::flush;
    shown_ = true;
    shown_at_ = now;
    shown_step_ = last_.step;
  }
  /// What matters least stands last: a narrow terminal cuts it off.
  std::string line(double now) const {
    const auto steps = static_cast<double>(last_.step - done_);
    const double left = static_cast<double>(total_ - last_.step) * (now - start_) / steps;
    const double speed = tokens_per_second();
    const std::string total = std::to_string(total_);
    char text[256];
    std::snprintf(text, sizeof text, "step %*lld/%s  loss %.4f (last %.4f)  %.*f tokens/s  %s left  rate %.2e",
                  static_cast<int>(total.size()), static_cast<long long>(last_.step), total.c_str(), loss_.value(),
                  last_.loss, speed < 100 ? 1 : 0, speed, duration_text(left).c_str(), last_.learning_rate);
    return text;
  }
  void clear_line() {
    if (is_open_) out_ << "\r\033[K";
    is_open_ = false;
  }
  void end_line() {
    if (is_open_) out_ << '\n' << std::flush;
    is_open_ = false;
  }

  std::ostream& out_;
  Index total_, done_;
  Display display_;
  Clock clock_;
  double start_ = 0, shown_at_ = 0;
  Index shown_step_ = 0;
  bool shown_ = false, is_open_ = false;
  StepReport last_;
  Smoothed loss_, tokens_, seconds_;
};

}  // namespace llm
