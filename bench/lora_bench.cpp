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
      times_[run.run_name.function_name] = lora::threads() > 1 ? run.GetAdjustedRealTime() : run.GetAdjustedCPUTime();
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

double ratio(double time, double yardstick) { return yardstick > 0 ? time / yardstick : 0; }

void print_cell(double value, const char* format) {
  if (value > 0) {
    std::printf(format, value);
  } else {
    std::printf("%10s", "-");
  }
}

/// The share of the peak that `flops` in `time` ms come to.
double share(double flops, double time, double peak) { return ratio(1e-6 * flops / peak, time); }

void print_products(const Medians& medians, double peak) {
  std::printf(
      "\nProducts with the frozen weight, in share of the peak (medians of one run; bf16 may exceed 1)\n"
      "%10s%6s%6s%10s%10s%10s%10s%10s%10s%10s%10s\n",
      "b", "n", "m", "eigen", "eigen T", "packed", "packed T", "once T", "widened", "bf16", "bf16 T");
  for (const bench::Shape& shape : bench::product_shapes()) {
    const auto cell = [&](const char* name) {
      print_cell(share(shape.product_flops(), medians[name + shape.product_name()], peak), "%10.3f");
    };
    if (medians["forward_product/packed" + shape.product_name()] == 0) continue;
    std::printf("%10td%6td%6td", shape.b, shape.n, shape.m);
    cell("forward_product/eigen");
    cell("backward_product/eigen");
    cell("forward_product/packed");
    cell("backward_product/packed");
    cell("backward_product/packed_once");
    cell("forward_product/bf16_widened");
    cell("forward_product/bf16");
    cell("backward_product/bf16");
    std::printf("\n");
  }
  std::printf("T: dY W0^T; once: from a single pack, that of X W0.\n");
}

void print_steps(const Medians& medians, double peak) {
  std::printf("\nTraining steps of a layer (medians of one run)\n%10s%6s%6s%5s%10s%10s%10s%10s%10s%10s\n", "b", "n",
              "m", "r", "ms", "bound", "adapter", "by flops", "view", "bf16");
  for (const bench::Shape& shape : bench::shapes()) {
    const auto time = [&](const char* name) { return medians[name + shape.name()]; };
    const double step = time("step/packed"), frozen = time("frozen_step/packed");
    if (step == 0) continue;
    std::printf("%10td%6td%6td%5td", shape.b, shape.n, shape.m, shape.r);
    print_cell(step, "%10.3f");
    print_cell(ratio(step, 1e-6 * shape.step_flops() / peak), "%10.2f");
    print_cell(ratio(step, frozen), "%10.3f");
    print_cell(shape.step_flops() / (2 * shape.product_flops()), "%10.3f");
    print_cell(ratio(time("step/view"), step), "%10.2f");
    print_cell(ratio(step, time("step/bf16")), "%10.2f");
    std::printf("\n");
  }
  std::printf(
      "ms: forward, backward with dX and AdamW on a packed base; bound: over all its flops at the peak; adapter: over "
      "the\n"
      "frozen products alone, and what that would be if all flops took the same time; view: the time on plain Eigen "
      "over\n"
      "the packed one; bf16: the packed time over that of a bf16 base.\n");
}

void print_methods(const Medians& medians) {
  struct Row {
    const char *name, *yardstick;
  };
  const auto table = [&](const char* title, const char* unit, const std::vector<Row>& rows) {
    std::printf("\n%s\n%-20s%6s%6s%5s%12s%12s\n", title, "", "n", "m", "r", "ms", unit);
    for (const auto& [name, yardstick] : rows) {
      for (const bench::Shape& shape : bench::weights()) {
        const auto time_of = [&](const std::string& what) {
          const bench::Shape batch{std::string(what).starts_with("mixed") ? 64 : 256, shape.n, shape.m, shape.r};
          return medians[what + (what.find('/') == std::string::npos ? shape.factors_name() : batch.name())];
        };
        const double time = time_of(name);
        if (time == 0) continue;
        std::printf("%-20s%6td%6td%5td%12.3f", name, shape.n, shape.m, shape.r, time);
        print_cell(ratio(time, time_of(yardstick)), "%12.3f");
        std::printf("\n");
      }
    }
  };
  const char* step = "frozen_step/packed";
  table("Optimizer steps, over the packed products of 256 tokens", "share",
        {{"adamw", step},
         {"lora_plus", step},
         {"riemannian", step},
         {"lora_fa", step},
         {"lora_pro_sgd", step},
         {"lora_pro_efficient", step},
         {"lora_pro_factored", step},
         {"lora_pro_full", step},
         {"view_adamw", step},
         {"view_lora_pro", step}});
  table("Starts, over forming the gradient of 512 tokens once", "ratio",
        {{"form_gradient", "form_gradient"},
         {"lora_ga_batches", "form_gradient"},
         {"lora_ga_dense", "form_gradient"},
         {"stream_batch", "form_gradient"},
         {"sketch_batch", "form_gradient"},
         {"pissa", "form_gradient"}});
  table("A mixed batch of 64 rows, over the same batch with one adapter", "ratio",
        {{"mixed/adapters:8", "mixed/adapters:1"}});
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
  std::printf("threads: %d\n", lora::threads());
  if (!lora::test::allocations_are_counted) std::printf("%s\n", lora::test::not_counted);
  std::printf("measuring in random order; results come at the end, after some minutes (the long list: an hour)\n");
  std::fflush(stdout);
  Medians medians;
  benchmark::RunSpecifiedBenchmarks(&medians);
  const double peak = flags.peak * lora::threads();
  print_products(medians, peak);
  print_steps(medians, peak);
  print_methods(medians);
  return medians.failed() ? 1 : 0;
}
