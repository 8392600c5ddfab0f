// SPDX-License-Identifier: MIT
// Draws the losses of one or more runs with gnuplot.
#pragma once

#include "log.hpp"
#include "smoothed.hpp"

#include <lora/core/error.hpp>
#include <lora/io/file.hpp>

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace llm {

/// A run in a picture.
struct RunCurve {
  std::string name;
  std::vector<LogRow> rows;
};

namespace detail {

/// In gnuplot's single quotes, where only the quote itself is special; no control characters.
inline std::string gnuplot_text(const std::string& text) {
  std::string result = "'";
  for (const char letter : text) {
    if (letter == '\'') result += '\'';
    result += static_cast<unsigned char>(letter) < 0x20 || letter == 0x7F ? ' ' : letter;
  }
  return result + '\'';
}

/// Losses over tokens: lines "tokens loss smoothed". At most about a thousand: more than that nobody sees.
inline std::string curve_points(const std::vector<LogRow>& rows, std::optional<double> LogRow::*loss) {
  std::vector<std::string> points;
  Smoothed smoothed;
  for (const auto& row : rows) {
    if (!(row.*loss) || !std::isfinite(*(row.*loss))) continue;
    smoothed.add(*(row.*loss));
    std::string& point = points.emplace_back();
    lora::detail::append(point, row.tokens);
    point += ' ';
    lora::detail::append(point, *(row.*loss));
    point += ' ';
    char mean[32];
    std::snprintf(mean, sizeof mean, "%.6g\n", smoothed.value());
    point += mean;
  }
  const std::size_t every = points.size() / 1000 + 1;
  std::string text;
  for (std::size_t i = 0; i < points.size(); ++i) {
    if (i % every == 0 || i + 1 == points.size()) text += points[i];
  }
  return text;
}

/// A script that has its data inside and draws `picture` in its own folder; empty where there is nothing to draw.
inline std::string plot_script(const std::vector<RunCurve>& runs, const std::string& title,
                               const std::string& picture) {
  constexpr std::array colours{"#000000", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#0072b2", "#cc79a7", "#8c564b"};
  std::string blocks, curves;
  int block = 0;
  const auto add = [&](const std::string& how, const std::string& label) {
    const std::string name = "$data" + std::to_string(block);
    curves += (curves.empty() ? "plot " : ", \\\n     ") + name + " using " + how + " title " + gnuplot_text(label);
  };
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const std::string colour = " linecolor rgb '" + std::string(colours[i % colours.size()]) + "'";
    for (const bool training : {true, false}) {
      const std::string points =
          curve_points(runs[i].rows, training ? &LogRow::training_loss : &LogRow::validation_loss);
      if (points.empty()) continue;
      blocks += "$data" + std::to_string(block) + " << END\n" + points + "END\n";
      if (training) {
        // Of one run also the losses of single steps; of several these would hide each other.
        if (runs.size() == 1) add("1:2 with lines linewidth 1 linecolor rgb '#cccccc'", "each step");
        add("1:3 with lines linewidth 2" + colour, runs[i].name + ", training");
      } else {
        add("1:2 with linespoints linewidth 2 dashtype 2 pointtype 7 pointsize 0.6" + colour,
            runs[i].name + ", validation");
      }
      ++block;
    }
  }
  if (curves.empty()) return {};
  return "set terminal svg size 1000,560 font 'sans,14' background '#ffffff' noenhanced\nset output " +
         gnuplot_text(picture) + "\nset title " + gnuplot_text(title) +
         "\nset xlabel 'tokens trained on'\nset ylabel 'loss, nats a token'\nset grid\nset key outside right\n" +
         blocks + curves + "\n";
}

/// Runs a script in its folder. No shell sees a name; says whether gnuplot is there and was content.
inline bool run_gnuplot(const std::filesystem::path& folder, const std::string& script) {
  const auto absolute = std::filesystem::absolute(folder.empty() ? "." : folder);  // a "~" would be expanded
  std::array<std::string, 4> words{"gnuplot", "-e", "cd " + gnuplot_text(absolute.string()), script};
  char* arguments[] = {words[0].data(), words[1].data(), words[2].data(), words[3].data(), nullptr};
  posix_spawn_file_actions_t actions;
  if (::posix_spawn_file_actions_init(&actions) != 0) return false;
  for (const int stream : {STDOUT_FILENO, STDERR_FILENO}) {
    ::posix_spawn_file_actions_addopen(&actions, stream, "/dev/null", O_WRONLY, 0);
  }
  pid_t process = 0;
  const bool is_started = ::posix_spawnp(&process, "gnuplot", &actions, nullptr, arguments, ::environ) == 0;
  ::posix_spawn_file_actions_destroy(&actions);
  int status = 0;
  while (is_started && ::waitpid(process, &status, 0) < 0) {
    if (errno != EINTR) return false;
  }
  return is_started && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace detail

/// Writes folder/name.gp, which has its data inside and can be edited and drawn again, and has gnuplot draw
/// folder/name.svg: training losses (smoothed; of a single run also those of each step) and validation losses over the
/// tokens trained on, every run in a colour. Returns the picture's path; an empty one where gnuplot is not installed or
/// fails.
/// \throws ConfigError  no run has a finite loss. \throws IoError  what the system refuses.
inline std::filesystem::path plot_losses(const std::filesystem::path& folder, const std::string& name,
                                         const std::vector<RunCurve>& runs, const std::string& title) {
  const std::string script = detail::plot_script(runs, title, name + ".svg");
  lora::detail::require<lora::ConfigError>(!script.empty(), (folder / name).string(),
                                           ": must have a loss to draw, got none");
  const auto path = folder / (name + ".gp");
  lora::io::write_atomically(path, [&](lora::io::AtomicFile& file) { file.write(script); });
  const bool is_drawn = detail::run_gnuplot(folder, name + ".gp");
  return is_drawn ? folder / (name + ".svg") : std::filesystem::path();
}

}  // namespace llm
