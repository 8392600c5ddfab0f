// SPDX-License-Identifier: MIT
// What the demo shows: progress, the table, CSV files, a plot by gnuplot and a chart for the terminal.
#pragma once

#include "experiment.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <unistd.h>

namespace digits {

/// A bar that redraws itself on a terminal; elsewhere one plain line a phase. Goes to stderr: results go to stdout.
class Progress {
 public:
  void begin(const std::string& phase, int expected) {
    phase_ = phase;
    expected_ = expected;
    done_ = 0;
    if (!terminal_) std::cerr << phase_ << " ...\n";
    draw();
  }
  void tick() {
    ++done_;
    draw();
  }
  void end(const std::string& outcome) {
    if (terminal_) std::cerr << "\r\033[K";
    std::cerr << "  " << phase_ << ": " << outcome << "\n";
  }

 private:
  void draw() const {
    if (!terminal_) return;
    constexpr int width = 30;
    const int most = std::max(expected_, done_ + 1);  // a sweep that wanders takes longer than expected
    const int filled = width * done_ / most;
    std::cerr << "\r\033[K  [" << std::string(static_cast<std::size_t>(filled), '#')
              << std::string(static_cast<std::size_t>(width - filled), '.') << "] " << phase_ << "  " << done_ << "/"
              << most << std::flush;
  }

  bool terminal_ = isatty(STDERR_FILENO) != 0;
  std::string phase_;
  int expected_ = 0, done_ = 0;
};

struct Statistics {
  double mean = 0, deviation = 0;
};

inline Statistics statistics(const std::vector<double>& values) {
  Statistics result;
  for (const double value : values) result.mean += value / static_cast<double>(values.size());
  for (const double value : values) result.deviation += (value - result.mean) * (value - result.mean);
  result.deviation = values.size() < 2 ? 0 : std::sqrt(result.deviation / static_cast<double>(values.size() - 1));
  return result;
}

template <class Field>
Statistics over_seeds(const Result& result, Field field) {
  std::vector<double> values;
  for (const auto& run : result.runs) values.push_back(field(run));
  return statistics(values);
}

/// One of a run's curves, as a mean over the seeds; empty where a method has none.
inline std::vector<double> mean_curve(const Result& result, std::vector<double> Run::*which) {
  std::vector<double> curve((result.runs.front().*which).size(), 0.0);
  for (const auto& run : result.runs)
    for (std::size_t i = 0; i < curve.size(); ++i)
      curve[i] += (run.*which)[i] / static_cast<double>(result.runs.size());
  return curve;
}

inline std::string with_spread(const Statistics& value, int digits) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(digits) << value.mean << " +- " << value.deviation;
  return text.str();
}

inline std::string rate_text(double rate) {
  std::ostringstream text;
  text << std::setprecision(2) << rate;
  return text.str();
}

/// Steps to plain LoRA's final loss as a share of the steps that LoRA itself took.
inline double share_of_lora(const Result& lora_result, const Result& result) {
  return statistics(result.steps_to_lora).mean / statistics(lora_result.steps_to_lora).mean;
}

/// The table, in Markdown, which is also what a terminal shows well.
inline void print_table(std::ostream& out, const std::vector<Result>& results) {
  std::vector<std::vector<std::string>> rows{{"method", "trainable", "tuned rate", "training loss", "test loss",
                                              "test accuracy", "steps to LoRA's loss", "share", "alignment"}};
  for (const auto& result : results) {
    const auto steps = statistics(result.steps_to_lora);
    std::ostringstream share;
    share << std::fixed << std::setprecision(2) << share_of_lora(results.front(), result);
    std::string steps_text = with_spread(steps, 1);
    if (result.reached < std::ssize(result.runs))
      steps_text += " (" + std::to_string(result.reached) + " of " + std::to_string(result.runs.size()) + " seeds)";
    const auto alignment = over_seeds(result, [](const Run& run) { return statistics(run.alignment).mean; });
    rows.push_back({result.method->name, std::to_string(result.method->trainable), rate_text(result.rate),
                    with_spread(over_seeds(result, [](const Run& run) { return run.final_loss(); }), 4),
                    with_spread(over_seeds(result, [](const Run& run) { return run.test.loss; }), 3),
                    with_spread(over_seeds(result, [](const Run& run) { return run.test.accuracy; }), 3), steps_text,
                    share.str(), result.runs.front().alignment.empty() ? "-" : with_spread(alignment, 2)});
  }
  std::vector<std::size_t> widths(rows.front().size(), 0);
  for (const auto& row : rows)
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  const auto print = [&](const std::vector<std::string>& row) {
    for (std::size_t i = 0; i < row.size(); ++i)
      out << "| " << row[i] << std::string(widths[i] - row[i].size() + 1, ' ');
    out << "|\n";
  };
  print(rows.front());
  for (const std::size_t width : widths) out << "|" << std::string(width + 2, '-');
  out << "|\n";
  for (std::size_t i = 1; i < rows.size(); ++i) print(rows[i]);
}

/// The mean curves as a chart of characters: loss on a logarithmic axis over steps.
inline void print_chart(std::ostream& out, const std::vector<Result>& results) {
  constexpr int width = 72, height = 18;
  constexpr std::string_view marks = "*+ox#@%&=~^s";
  double low = std::numeric_limits<double>::infinity(), high = 0;
  for (const auto& result : results)
    for (const double loss : mean_curve(result, &Run::training_loss)) {
      if (!std::isfinite(loss) || loss <= 0) continue;  // a diverged run has no place on the axis
      low = std::min(low, std::log10(loss));
      high = std::max(high, std::log10(loss));
    }
  std::vector<std::string> canvas(height, std::string(width, ' '));
  for (std::size_t k = 0; k < results.size(); ++k) {
    const auto curve = mean_curve(results[k], &Run::training_loss);
    for (int column = 0; column < width; ++column) {
      const double position = static_cast<double>(column) / (width - 1) * static_cast<double>(curve.size() - 1);
      const double loss = std::log10(curve[static_cast<std::size_t>(std::lround(position))]);
      if (!std::isfinite(loss)) continue;
      const auto row =
          static_cast<std::size_t>(std::lround((high - loss) / std::max(high - low, 1e-12) * (height - 1)));
      canvas[row][static_cast<std::size_t>(column)] = marks[k % marks.size()];
    }
  }
  for (int row = 0; row < height; ++row) {
    const double level = high - (high - low) * row / (height - 1);
    out << std::setw(9) << std::fixed << std::setprecision(4) << std::pow(10.0, level) << " |"
        << canvas[static_cast<std::size_t>(row)] << "\n";
  }
  out << "          +" << std::string(width, '-') << "\n           step 0" << std::string(width - 8 - 7, ' ') << "step "
      << results.front().runs.front().training_loss.size() - 1;
  for (std::size_t k = 0; k < results.size(); ++k)
    out << (k % 4 == 0 ? "\n          " : " ") << " " << marks[k % marks.size()] << " " << results[k].method->name
        << " ";
  out << "\n";
}

inline std::ofstream create(const std::filesystem::path& path) {
  std::ofstream file(path);
  if (!file) throw std::runtime_error("cannot write " + path.string());
  file << std::setprecision(9);
  return file;
}

/// summary.csv, sweep.csv, curves.csv, alignment.csv (all seeds) in `folder`.
inline void write_csv(const std::filesystem::path& folder, const std::vector<Result>& results) {
  auto summary = create(folder / "summary.csv"), sweep = create(folder / "sweep.csv"),
       curves = create(folder / "curves.csv"), alignment = create(folder / "alignment.csv");
  summary << "method,trainable,rate,seed,training_loss,test_loss,test_accuracy,steps_to_lora\n";
  sweep << "method,rate,training_loss\n";
  curves << "method,seed,step,training_loss\n";
  alignment << "method,seed,step,cosine\n";
  for (const auto& result : results) {
    std::string name = result.method->name;
    std::replace(name.begin(), name.end(), ',', ' ');
    for (const auto& [rate, loss] : result.sweep) sweep << name << "," << rate << "," << loss << "\n";
    for (std::size_t seed = 0; seed < result.runs.size(); ++seed) {
      const auto& run = result.runs[seed];
      summary << name << "," << result.method->trainable << "," << result.rate << "," << seed << "," << run.final_loss()
              << "," << run.test.loss << "," << run.test.accuracy << "," << result.steps_to_lora[seed] << "\n";
      for (std::size_t step = 0; step < run.training_loss.size(); ++step)
        curves << name << "," << seed << "," << step << "," << run.training_loss[step] << "\n";
      for (std::size_t step = 0; step < run.alignment.size(); ++step)
        alignment << name << "," << seed << "," << step + 1 << "," << run.alignment[step] << "\n";
    }
  }
}

/// A picture of one of the runs' curves, mean over the seeds.
struct Plot {
  std::string name, title, ylabel, axes;
  std::vector<double> Run::*curve = nullptr;
  std::size_t first_step = 0;
};

inline std::vector<Plot> plots() {
  return {{"loss", "Digits 5-9 from a network for digits 0-4: mean training loss at tuned rates", "training loss",
           "set logscale y", &Run::training_loss, 0},
          {"alignment", "Cosine between the step of the weights and that of full fine-tuning (AdamW)",
           "cosine, mean over layers and seeds", "set yrange [0:1]", &Run::alignment, 1}};
}

/// NAME.gp and its data; runs gnuplot where it is installed. Returns the picture's path, empty without gnuplot.
inline std::filesystem::path write_plot(const std::filesystem::path& folder, const std::vector<Result>& results,
                                        const Plot& plot) {
  auto data = create(folder / (plot.name + ".dat")), script = create(folder / (plot.name + ".gp"));
  script << "set terminal svg size 1000,560 font 'sans,14' background '#ffffff'\nset output '" << plot.name
         << ".svg'\nset title '" << plot.title << "'\nset xlabel 'step'\nset ylabel '" << plot.ylabel << "'\n"
         << plot.axes << "\nset grid\nset key outside right\nplot ";
  constexpr std::array colours{"#000000", "#e69f00", "#56b4e9", "#009e73", "#d55e00",
                               "#0072b2", "#cc79a7", "#8c564b", "#999999", "#2ca02c"};
  int blocks = 0;
  for (const auto& result : results) {
    const auto curve = mean_curve(result, plot.curve);
    if (curve.empty()) continue;
    data << "# " << result.method->name << ": step, " << plot.ylabel << "\n";
    for (std::size_t step = 0; step < curve.size(); ++step)
      data << step + plot.first_step << " " << curve[step] << "\n";
    data << "\n\n";
    script << (blocks > 0 ? ", " : "") << "'" << plot.name << ".dat' index " << blocks
           << " with lines linewidth 2 linecolor rgb '" << colours[static_cast<std::size_t>(blocks) % colours.size()]
           << "' title '" << result.method->name << "'";
    ++blocks;
  }
  script << "\n";
  data.close();
  script.close();
  const auto here = std::filesystem::current_path();
  std::filesystem::current_path(folder);  // so that no name of the user's passes through a shell
  const std::string command = "gnuplot " + plot.name + ".gp >/dev/null 2>&1";
  const bool drawn = std::system(command.c_str()) == 0;  // NOLINT(cert-env33-c)
  std::filesystem::current_path(here);
  return drawn ? folder / (plot.name + ".svg") : std::filesystem::path();
}

}  // namespace digits
