// SPDX-License-Identifier: MIT
// The program: flag check, measurements, and a closing table of ratios.
#include "flag_check.hpp"
#include "measure.hpp"
#include "shapes.hpp"

#include <algorithm>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

namespace {

/// Prints only the median of each measurement, in the order of registration (they run in random order), and remembers
/// it.
class Medians : public benchmark::ConsoleReporter {
 public:
  Medians() : ConsoleReporter(OO_Tabular) {}

  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      if (run.error_occurred) failed_ = true;
      if (!run.error_occurred && run.aggregate_name != "median") continue;
      shown_.push_back(run);
      times_[run.run_name.function_name] =
          Eigen::nbThreads() > 1 ? run.GetAdjustedRealTime() : run.GetAdjustedCPUTime();
    }
  }
  void Finalize() override {
    std::stable_sort(shown_.begin(), shown_.end(),
                     [](const Run& left, const Run& right) { return left.family_index < right.family_index; });
    if (!shown_.empty()) ConsoleReporter::ReportRuns(shown_);
  }
  bool failed() const { return failed_; }

  /// In milliseconds; 0 where it was not measured.
  double operator[](const std::string& name) const {
    const auto found = times_.find(name);
    return found == times_.end() ? 0 : found->second;
  }

 private:
  std::vector<Run> shown_;
  std::map<std::string, double> times_;
  bool failed_ = false;
};

void print_cell(double value, const char* format) {
  if (value > 0) {
    std::printf(format, value);
  } else {
    std::printf("%10s", "-");
  }
}

void print_ratios(const Medians& medians, const bench::FlagCheck& flags) {
  std::printf(
      "\nTimes over those of the frozen products alone (medians of one run)\n%5s %5s %3s%10s%10s%10s%10s%10s%10s\n",
      "b", "n=m", "r", "forward", "backward", "step", "by flops", "AdamW", "peak");
  for (const bench::Shape& shape : bench::shapes()) {
    const double frozen = medians["frozen_step" + shape.frozen_name()], step = medians["step" + shape.name()];
    const auto ratio = [](double time, double yardstick) { return yardstick > 0 ? time / yardstick : 0; };
    if (step == 0 && medians["forward" + shape.name()] == 0 && medians["backward" + shape.name()] == 0) continue;
    std::printf("%5td %5td %3td", shape.b, shape.n, shape.r);
    print_cell(ratio(medians["forward" + shape.name()], medians["frozen_forward" + shape.frozen_name()]), "%10.3f");
    print_cell(ratio(medians["backward" + shape.name()], medians["frozen_backward" + shape.frozen_name()]), "%10.3f");
    print_cell(ratio(step, frozen), "%10.3f");
    print_cell(shape.step_flops() / (2 * shape.product_flops()), "%10.3f");
    print_cell(ratio(medians["adamw" + shape.factors_name()], frozen), "%10.4f");
    print_cell(ratio(step, 1e-6 * shape.step_flops() / flags.peak), "%10.2f");
    std::printf("\n");
  }
  std::printf(
      "by flops: the step's ratio if all flops took the same time; AdamW: its part of the step's ratio;\n"
      "peak: the step over its flops at the peak of the flag check.\n");
}

void print_methods(const Medians& medians) {
  struct Row {
    const char *name, *yardstick;
  };
  const auto table = [&](const char* title, const char* unit, const std::vector<Row>& rows) {
    std::printf("\n%s\n%-20s%5s %3s%12s%12s\n", title, "", "n=m", "r", "ms", unit);
    for (const auto& [name, yardstick] : rows) {
      for (const bench::Shape& shape : bench::shapes()) {
        const double time = medians[name + shape.factors_name()];
        if (shape.b != 1 || time == 0) continue;
        const bench::Shape batch{256, shape.n, shape.r};
        const double other = std::string(yardstick) == "frozen_step" ? medians[yardstick + batch.frozen_name()]
                                                                     : medians[yardstick + shape.factors_name()];
        std::printf("%-20s%5td %3td%12.3f", name, shape.n, shape.r, time);
        print_cell(other > 0 ? time / other : 0, "%12.3f");
        std::printf("\n");
      }
    }
  };
  table("Optimizer steps, over the frozen products of 256 tokens", "share",
        {{"adamw", "frozen_step"},
         {"lora_plus", "frozen_step"},
         {"riemannian", "frozen_step"},
         {"lora_fa", "frozen_step"},
         {"lora_pro_sgd", "frozen_step"},
         {"lora_pro_efficient", "frozen_step"},
         {"lora_pro_factored", "frozen_step"},
         {"lora_pro_full", "frozen_step"},
         {"view_adamw", "frozen_step"},
         {"view_lora_pro", "frozen_step"}});
  table("Starts, over forming the gradient of 512 tokens once", "ratio",
        {{"form_gradient", "form_gradient"},
         {"lora_ga_batches", "form_gradient"},
         {"lora_ga_dense", "form_gradient"},
         {"stream_batch", "form_gradient"},
         {"sketch_batch", "form_gradient"},
         {"pissa", "form_gradient"}});
}

}  // namespace

int main(int argc, char** argv) {
  // Defaults first: a flag of the caller's comes later and counts.
  std::vector<std::string> defaults{"--benchmark_repetitions=5", "--benchmark_enable_random_interleaving=true",
                                    "--benchmark_min_time=0.05"};
  std::vector<char*> arguments{argv[0]};
  for (std::string& flag : defaults) arguments.push_back(flag.data());
  arguments.insert(arguments.end(), argv + 1, argv + argc);
  int count = static_cast<int>(arguments.size());
  arguments.push_back(nullptr);
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 1;

  const bench::FlagCheck flags = bench::check_flags();
  bench::print(flags);
  if (!lora::test::allocations_are_counted) std::printf("%s\n", lora::test::not_counted);
  std::printf("measuring in random order; results come at the end, after a minute or two (the long list: ten)\n");
  std::fflush(stdout);
  Medians medians;
  benchmark::RunSpecifiedBenchmarks(&medians);
  print_ratios(medians, flags);
  print_methods(medians);
  return medians.failed() ? 1 : 0;
}
