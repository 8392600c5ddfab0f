// SPDX-License-Identifier: MIT
// Our side of compare.py: does what standard input says, line by line, and answers each line with one line.
//
//     peft_worker THREADS
//
//     info                               what this program was built with
//     load PATH b n m                    "ok"; floats by rows, X (b x n) and then dY (b x m), for `start` and `energy`
//     clear                              "ok"; forgets the problems made so far
//     WHAT VARIANT b n m r repetitions   the median time of one call in seconds; the problem is made at its first use
//
//     WHAT                                                      VARIANT
//     step                                                      plain, packed, bf16: forward, backward with dX, AdamW
//     step_sgd, step_efficient, step_factored, step_full        the same with LoRA-Pro of that mode
//     forward, backward                                         the same bases: X W0; dY W0^T
//     merged                                                    the same: forward with the adapter in the base
//     pro                                                       sgd, efficient, factored, full: LoRA-Pro's step alone
//     start                                                     power iterations: the 2r triplets of LoRA-GA
//     energy                                                    the same; answers with their share of ||G||^2
//     bound                                                     step, forward: what its flops take at the rate that
//                                                               multiply-adds in registers have now, on all threads
//
// An answer that starts with "error: " says what went wrong. Calls are repeated untimed for 5 ms, once at least, before
// they are timed.
#include "../peak.hpp"

#include <lora/lora.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using lora::Index;
using Call = std::function<void()>;

struct Shape {
  Index b, n, m, r;
};

[[noreturn]] void fail(const std::string& text) { throw std::invalid_argument(text); }

template <class Matrix>
Matrix random_matrix(Index rows, Index cols, double size) {
  static lora::Random random{1};
  Matrix matrix(rows, cols);
  for (float& element : matrix.reshaped()) element = static_cast<float>(size * (2 * random.uniform() - 1));
  return matrix;
}

lora::Factors<float> random_factors(const Shape& shape, double size) {
  auto A = random_matrix<lora::ColMatrix<float>>(shape.n, shape.r, size);
  auto B = random_matrix<lora::RowMatrix<float>>(shape.r, shape.m, size);
  return {std::move(A), std::move(B)};
}

constexpr double learning_rate = 1e-6;  // so that a thousand steps leave the numbers where they are

lora::LoraPro pro(const std::string& mode) {
  using Mode = lora::LoraPro::Mode;
  static const std::map<std::string, Mode> modes{
      {"sgd", Mode::Sgd}, {"efficient", Mode::Efficient}, {"factored", Mode::Factored}, {"full", Mode::Full}};
  const auto found = modes.find(mode);
  if (found == modes.end()) fail("no mode " + mode + " of LoRA-Pro");
  return {.learning_rate = learning_rate, .mode = found->second};
}

/// A layer in training, with room for everything that it writes.
template <class Base>
struct Problem {
  explicit Problem(const Shape& shape)
      : W0(random_matrix<lora::ColMatrix<float>>(shape.n, shape.m, 1 / std::sqrt(static_cast<double>(shape.n)))),
        X(random_matrix<lora::RowMatrix<float>>(shape.b, shape.n, 1)),
        dY(random_matrix<lora::RowMatrix<float>>(shape.b, shape.m, 1)),
        Y(dY),
        dX(X),
        layer(Base(W0), {.rank = shape.r, .alpha = 2 * static_cast<double>(shape.r)}),
        gradient(layer.zero_gradient()) {
    layer.set_factors(random_factors(shape, 0.02));
  }
  Problem(const Problem&) = delete;

  lora::ColMatrix<float> W0;
  lora::RowMatrix<float> X, dY, Y, dX;
  lora::LoraLinear<Base> layer;
  lora::Factors<float> gradient;
  lora::SavedState<float> saved;
};

template <class Base, class Method>
Call step_call(const std::shared_ptr<Problem<Base>>& problem, const Method& method) {
  auto optimizer = std::make_shared<lora::Optimizer<Method, float>>(method, problem->layer);
  return [problem, optimizer] {
    problem->layer.forward(problem->X, problem->Y, problem->saved);
    problem->gradient.set_zero();
    problem->layer.backward(problem->dY, problem->saved, problem->gradient, problem->dX);
    optimizer->step(problem->layer, problem->gradient);
  };
}

template <class Base>
Call merged_call(const Shape& shape) {
  auto problem = std::make_shared<Problem<Base>>(shape);
  if constexpr (lora::MergeableBase<Base>) {
    problem->layer.merge();
    return [problem] { problem->layer.forward(problem->X, problem->Y, problem->saved); };
  } else {  // a base made from the merged weight
    auto base = std::make_shared<Base>(problem->layer.merged_weight());
    return [problem, base] { base->multiply(problem->X, problem->Y); };
  }
}

template <class Base>
Call layer_call(const std::string& what, const Shape& shape) {
  auto problem = std::make_shared<Problem<Base>>(shape);
  if (what == "step") return step_call(problem, lora::PerFactor{lora::AdamW{.learning_rate = learning_rate}});
  if (what.starts_with("step_")) return step_call(problem, pro(what.substr(5)));
  if (what == "forward") return [problem] { problem->layer.base().multiply(problem->X, problem->Y); };
  if (what == "backward") return [problem] { problem->layer.base().multiply_transposed(problem->dY, problem->dX); };
  fail("cannot do " + what);
}

Call pro_call(const std::string& mode, const Shape& shape) {
  struct Pair {
    lora::Factors<float> factors, gradient;
    lora::Optimizer<lora::LoraPro, float> optimizer;
  };
  const auto factors = random_factors(shape, 0.02);
  const auto gradient = random_factors(shape, 1);
  auto pair = std::make_shared<Pair>(Pair{factors, gradient, {pro(mode), shape.n, shape.m, shape.r}});
  return [pair] { pair->optimizer.step(pair->factors, pair->gradient, 2, 1); };
}

/// The start of LoRA-GA from a batch that compare.py made.
struct Batch {
  Batch() = default;
  Batch(const std::string& path, const Shape& shape) : X(shape.b, shape.n), dY(shape.b, shape.m) {
    std::ifstream file(path, std::ios::binary);
    for (auto* matrix : {&X, &dY}) {
      file.read(reinterpret_cast<char*>(matrix->data()), matrix->size() * Index{sizeof(float)});
    }
    if (!file) fail("cannot read " + path);
  }

  lora::TruncatedSvd<float> triplets(const std::string& power_iterations, Index rank) const {
    lora::Random random{2};
    lora::SvdEffort effort = lora::GradientSvd{}.effort;
    effort.power_iterations = std::stoi(power_iterations);
    return lora::truncated_svd(lora::BatchGradient<float>(X, dY), 2 * rank, random, effort);
  }
  /// 1 - ||G - U S Vt||^2 / ||G||^2
  double energy(const std::string& power_iterations, Index rank) const {
    const auto svd = triplets(power_iterations, rank);
    const lora::BatchGradient<float> G(X, dY);
    const lora::RowMatrix<float> Ut = svd.U.transpose(), SVt = svd.S.asDiagonal() * svd.Vt;
    lora::RowMatrix<float> UtG(Ut.rows(), G.cols());
    G.multiply(Ut, UtG);
    const auto inner = [](const auto& left, const auto& right) {
      return left.template cast<double>().cwiseProduct(right.template cast<double>()).sum();
    };
    return (2 * inner(UtG, SVt) - inner(svd.S, svd.S)) / G.squared_norm();
  }

  lora::RowMatrix<float> X, dY;
};

double median_seconds(const Call& call, Index repetitions) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point from) { return std::chrono::duration<double>(Clock::now() - from).count(); };
  const auto begin = Clock::now();
  do call();
  while (since(begin) < 5e-3);
  std::vector<double> times;
  while (std::ssize(times) < repetitions) {
    const auto start = Clock::now();
    call();
    times.push_back(since(start));
  }
  std::sort(times.begin(), times.end());
  return (times[times.size() / 2] + times[(times.size() - 1) / 2]) / 2;
}

/// The time of the flops of a step or a product, if every multiply-add ran as in `bench::multiply_add`.
double bound_seconds(const std::string& what, const Shape& shape, Index repetitions) {
  const auto number = [](Index value) { return static_cast<double>(value); };
  const double product = 2 * number(shape.b) * number(shape.n) * number(shape.m);
  const double branch = 6 * number(shape.b) * number(shape.r) * number(shape.n + shape.m);
  if (what != "step" && what != "forward") fail("no bound of " + what);
  std::atomic<double> flops = 0;  // of all threads, of the last call
  const auto call = [&] {
    flops = 0;
    lora::parallel_for(lora::threads(), 1e9, [&](Index first, Index last) {
      for (Index i = first; i < last; ++i) flops += bench::multiply_add(500'000);
    });
  };
  const double seconds = median_seconds(call, repetitions);
  return seconds * (what == "step" ? 2 * product + branch : product) / flops;
}

class Worker {
 public:
  std::string answer(const std::string& line) {
    std::istringstream words(line);
    std::string what, variant;
    words >> what;
    if (what == "info") return info();
    if (what == "clear") {
      calls_.clear();
      return "ok";
    }
    Shape shape{0, 0, 0, 1};
    words >> variant >> shape.b >> shape.n >> shape.m;
    if (what == "load") {
      batch_ = Batch(variant, shape);
      return "ok";
    }
    Index repetitions = 0;
    if (!(words >> shape.r >> repetitions) || repetitions < 1) fail("cannot read: " + line);
    if (what == "bound") return number(bound_seconds(variant, shape, repetitions));
    if (what == "energy") return number(batch_.energy(variant, shape.r));
    Call& call = calls_[line.substr(0, line.rfind(' '))];
    if (!call) call = make(what, variant, shape);
    return number(median_seconds(call, repetitions));
  }

 private:
  Call make(const std::string& what, const std::string& variant, const Shape& shape) {
    if (what == "pro") return pro_call(variant, shape);
    if (what == "start") return [this, variant, shape] { batch_.triplets(variant, shape.r); };
    if (what == "merged") {
      if (variant == "plain") return merged_call<lora::OwnedBase<float>>(shape);
      if (variant == "packed") return merged_call<lora::PackedBase<float>>(shape);
      if (variant == "bf16") return merged_call<lora::PackedBf16Base>(shape);
    }
    if (variant == "plain") return layer_call<lora::ViewBase<float>>(what, shape);
    if (variant == "packed") return layer_call<lora::PackedBase<float>>(what, shape);
    if (variant == "bf16") return layer_call<lora::PackedBf16Base>(what, shape);
    fail("cannot do " + what + " with " + variant);
  }

  static std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", value);
    return text;
  }

  static std::string info() {
    std::ostringstream text;
    text << "compiler " << __VERSION__ << "; Eigen " << EIGEN_WORLD_VERSION << '.' << EIGEN_MAJOR_VERSION << '.'
         << EIGEN_MINOR_VERSION << " with " << Eigen::SimdInstructionSetsInUse() << "; " << lora::threads()
         << " threads; bf16 base: " << lora::PackedBf16Base(lora::ColMatrix<float>::Zero(1, 1)).describe();
    return text.str();
  }

  Batch batch_;
  std::map<std::string, Call> calls_;
};

}  // namespace

int main(int argc, char** argv) {
  Worker worker;
  try {
    const int threads = argc == 2 ? std::atoi(argv[1]) : 0;
    if (threads < 1) fail("usage: peft_worker THREADS, commands on standard input");
    lora::set_threads(threads);
    Eigen::setNbThreads(threads);
  } catch (const std::exception& exception) {
    std::cerr << exception.what() << '\n';
    return 1;
  }
  for (std::string line; std::getline(std::cin, line);) {
    try {
      std::cout << worker.answer(line) << std::endl;
    } catch (const std::exception& exception) {
      std::cout << "error: " << exception.what() << std::endl;
    }
  }
}
