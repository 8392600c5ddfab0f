// SPDX-License-Identifier: MIT
// The main demo: a network that knows the digits 0-4 learns 5-9, by every method at its own tuned learning rate.

#include "report.hpp"

#include <CLI/CLI.hpp>

#include <charconv>
#include <chrono>
#include <exception>
#include <iostream>
#include <set>

namespace {

using namespace digits;

/// Of `--require`: the largest share of LoRA's steps that a method may take, or the largest multiple of another
/// method's training loss that it may end with.
struct Bound {
  std::string key, other;
  double most = 0;
};

Bound parse_bound(const std::string& text) {
  const auto equals = text.find('=');
  const auto slash = std::min(text.substr(0, equals).find('/'), equals);
  Bound bound{text.substr(0, slash), slash < equals ? text.substr(slash + 1, equals - slash - 1) : "", 0};
  const char* end = text.data() + text.size();
  if (equals == std::string::npos || std::from_chars(text.data() + equals + 1, end, bound.most).ptr != end)
    throw CLI::ValidationError("--require", "expected KEY=SHARE or KEY/KEY=FACTOR, got '" + text + "'");
  return bound;
}

struct Options {
  Settings settings;
  std::filesystem::path data = DIGITS_DATA, out = "digits-results";
  std::vector<std::string> methods;
  std::vector<Bound> bounds;
};

/// Reads the command line; a stranger should understand `--help`.
Options parse(CLI::App& app, int argc, char** argv) {
  Options options;
  Settings& settings = options.settings;
  bool quick = false;
  std::vector<std::string> bounds;
  app.add_option("--seeds", settings.seeds, "final runs of each method, each with its own start and order of batches")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  app.add_option("--steps", settings.steps, "optimizer steps of a run")
      ->capture_default_str()
      ->check(CLI::Range(2, 100000));
  app.add_option("--warmup", settings.warmup, "steps of linear warm-up before the cosine")
      ->capture_default_str()
      ->check(CLI::Range(0, 99999));
  app.add_option("--batch", settings.batch, "images in a batch")->capture_default_str()->check(CLI::Range(1, 700));
  app.add_option("--rank", settings.rank, "rank r of the adapters; LoRA-GA needs 2r <= 10 classes")
      ->capture_default_str()
      ->check(CLI::Range(1, 5));
  app.add_option("--alpha", settings.alpha, "the adapters' scale is alpha / sqrt(rank)")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--pretrain-steps", settings.pretrain_steps, "steps on the digits 0-4 before all else")
      ->capture_default_str()
      ->check(CLI::Range(21, 100000));
  app.add_option("--methods", options.methods,
                 "only these, by key (lora, lora+, ga, pissa, pro, pro-factored, pro-efficient, ga+pro, riemannian,\n"
                 "full); lora always runs, as the yardstick")
      ->delimiter(',');
  app.add_option("--data", options.data, "the digits as CSV: 64 pixels 0..16 and the class a line")
      ->capture_default_str();
  app.add_option("--out", options.out, "folder for the CSV files and the plot; made if missing")->capture_default_str();
  app.add_option("--require", bounds,
                 "a regression check: KEY=SHARE fails unless that method needs at most this share of LoRA's steps,\n"
                 "KEY/KEY=FACTOR unless it ends with at most this multiple of the other's training loss")
      ->delimiter(',');
  app.add_flag("--quick", quick, "a coarse sweep over 2 seeds, then 2 final seeds: for a first look or a test");
  app.parse(argc, argv);
  if (quick) {
    settings.seeds = 2;
    settings.sweep_seeds = 2;
    settings.rates_per_decade = 3;
  }
  if (settings.warmup >= settings.steps) throw CLI::ValidationError("--warmup", "must be smaller than --steps");
  for (const auto& bound : bounds) options.bounds.push_back(parse_bound(bound));
  return options;
}

std::vector<Method> chosen(const std::vector<Method>& methods, const std::vector<std::string>& keys) {
  std::set<std::string> wanted(keys.begin(), keys.end());
  std::vector<Method> result;
  std::string known;
  for (const auto& method : methods) {
    known += (known.empty() ? "" : ", ") + method.key;
    if (wanted.erase(method.key) > 0 || keys.empty() || result.empty()) result.push_back(method);
  }
  if (!wanted.empty())
    throw CLI::ValidationError("--methods", "unknown method '" + *wanted.begin() + "'; there are " + known);
  return result;
}

Result compare(const Method& method, const Settings& settings, Progress& progress) {
  Result result{.method = &method, .sweep = {}, .rate = 0, .runs = {}, .steps_to_lora = {}};
  progress.begin(method.name + ", tuning the rate", settings.rates_per_decade + 5);
  result.sweep = tune(method, settings, [&] { progress.tick(); });
  result.rate = best_rate(result.sweep);
  progress.end(std::to_string(result.sweep.size()) + " rates from " + rate_text(result.sweep.begin()->first) + " to " +
               rate_text(result.sweep.rbegin()->first) + ", best " + rate_text(result.rate));
  progress.begin(method.name + ", final runs", settings.seeds);
  for (int seed = 0; seed < settings.seeds; ++seed) {
    result.runs.push_back(method.run(result.rate, static_cast<std::uint64_t>(seed), Record::EveryStep));
    progress.tick();
  }
  progress.end("training loss " + with_spread(over_seeds(result, [](const Run& run) { return run.final_loss(); }), 4));
  return result;
}

/// Throws where a method took a larger share of LoRA's steps, or ended with a larger loss, than it may.
void enforce(const std::vector<Bound>& bounds, const std::vector<Result>& results) {
  const auto result_of = [&](const std::string& key) {
    return *std::find_if(results.begin(), results.end(), [&](const Result& one) { return one.method->key == key; });
  };
  const auto loss_of = [&](const std::string& key) {
    return over_seeds(result_of(key), [](const Run& run) { return run.final_loss(); }).mean;
  };
  for (const auto& bound : bounds) {
    const bool steps = bound.other.empty();
    const double value =
        steps ? share_of_lora(results.front(), result_of(bound.key)) : loss_of(bound.key) / loss_of(bound.other);
    if (!(value <= bound.most))
      throw std::runtime_error("--require: " + bound.key + (steps ? " took " : " ended with ") + std::to_string(value) +
                               (steps ? " of LoRA's steps" : " of the loss of " + bound.other) + ", not " +
                               std::to_string(bound.most) + " at most");
  }
}

void demonstrate(const Options& options) {
  const auto started = std::chrono::steady_clock::now();
  std::filesystem::create_directories(options.out);
  Progress progress;
  const auto all = load(options.data);
  const Task known = make_task(all, 0, 4), unknown = make_task(all, 5, 9);

  progress.begin("pre-training 64-256-256-10 on digits 0-4", 1);
  Base base = pretrain(known, options.settings.pretrain_steps);
  const auto before = base.evaluate(known.test);
  progress.end("accuracy on unseen images " + with_spread({before.accuracy, 0}, 3).substr(0, 5));

  const auto methods = chosen(all_methods(base, unknown, options.settings), options.methods);
  for (const auto& bound : options.bounds) {
    for (const auto& key : {bound.key, bound.other}) {
      if (!key.empty() &&
          std::none_of(methods.begin(), methods.end(), [&](const Method& method) { return method.key == key; }))
        throw CLI::ValidationError("--require", "no method '" + key + "' runs");
    }
  }
  std::vector<Result> results;
  results.reserve(methods.size());
  for (const auto& method : methods) results.push_back(compare(method, options.settings, progress));
  for (auto& result : results) measure_against(results.front(), result);

  const auto& settings = options.settings;
  std::cout << "\nDigits 5-9 from a network for 0-4: " << settings.steps << " steps of batch " << settings.batch
            << ", rank " << settings.rank << ", alpha " << settings.alpha << " rank-stabilised, " << settings.seeds
            << " seeds, each method at its tuned rate.\nMean +- standard deviation; losses over all "
            << unknown.train.size() << " training and " << unknown.test.size() << " unseen images.\n\n";
  print_table(std::cout, results);
  std::cout << "\nMean training loss (logarithmic)\n";
  print_chart(std::cout, results);
  write_csv(options.out, results);
  std::cout << "\nwritten: " << (options.out / "summary.csv").string()
            << ", sweep.csv, curves.csv, alignment.csv; pictures:";
  for (const auto& plot : plots()) {
    const auto picture = write_plot(options.out, results, plot);
    std::cout << " "
              << (picture.empty() ? "(no " + plot.name + ".svg: gnuplot is missing or failed; `gnuplot " + plot.name +
                                        ".gp` in that folder makes it later)"
                                  : picture.string());
  }
  std::cout << "\n";
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - started;
  std::cerr << "took " << std::lround(taken.count()) << " s\n";
  enforce(options.bounds, results);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "A small network that was trained on the handwritten digits 0-4 is adapted to 5-9 by every method that the\n"
      "library has, and by full fine-tuning. Each method first finds its own best learning rate, then runs with\n"
      "several seeds. The end is a table, CSV files and two pictures: loss and alignment over the steps."};
  try {
    demonstrate(parse(app, argc, argv));
    return 0;
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  } catch (const std::exception& error) {
    std::cerr << "digits: " << error.what() << "\n";
    return 1;
  }
}
