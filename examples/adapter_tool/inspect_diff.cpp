// SPDX-License-Identifier: MIT
// inspect: what an adapter is, layer by layer. diff: whether two compute the same.
#include "adapter.hpp"
#include "text.hpp"

#include <lora/linalg/thin_qr.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <limits>
#include <set>
#include <string>
#include <vector>

namespace adapter_tool {
namespace {

using Modules = decltype(lora::peft::Adapter<float>::modules);

/// s A B, or the difference of two such products: a pair in double, its scale in A.
struct Pair {
  Eigen::MatrixXd A, B;

  static Pair of(const lora::peft::Module<float>& module) {
    return {module.scale * module.factors.A.cast<double>(), module.factors.B.cast<double>()};
  }
  Pair minus(const Pair& other) const {
    Pair both{Eigen::MatrixXd(A.rows(), A.cols() + other.A.cols()),
              Eigen::MatrixXd(B.rows() + other.B.rows(), B.cols())};
    both.A << A, other.A;
    both.B << B, -other.B;
    return both;
  }
  /// ||A B||_F without A B (n x m): with A = Q R and B^T = P S it is ||R S^T||_F, of r x r. The Gram matrices R^T R and
  /// S^T S would do too, with half of the digits where two products cancel.
  double norm() const {
    return (lora::thin_qr<double>(A).R * lora::thin_qr<double>(B.transpose()).R.transpose()).norm();
  }
};

std::string joined(const std::set<std::string>& names) {
  return list(std::vector<std::string>(names.begin(), names.end()));
}

/// Of one layer in two adapters; null where one does not have it.
struct Comparison {
  double left = 0, right = 0, difference = 0;
  bool same_shape = true;

  double relative() const {
    constexpr double rounding = 1e-14;  // of the computation itself
    if (!same_shape || !std::isfinite(difference)) return std::numeric_limits<double>::infinity();
    const double size = std::max(left, right);
    return difference > rounding * size ? difference / size : 0;
  }
};

Comparison compare(const lora::peft::Module<float>* left, const lora::peft::Module<float>* right) {
  Comparison result;
  if (left != nullptr) result.left = Pair::of(*left).norm();
  if (right != nullptr) result.right = Pair::of(*right).norm();
  if (left == nullptr || right == nullptr) {
    result.difference = std::max(result.left, result.right);
    return result;
  }
  const auto &one = left->factors, &two = right->factors;
  result.same_shape = one.in_features() == two.in_features() && one.out_features() == two.out_features();
  if (result.same_shape) result.difference = Pair::of(*left).minus(Pair::of(*right)).norm();
  return result;
}

const lora::peft::Module<float>* find(const Modules& modules, const std::string& name) {
  const auto position = modules.find(name);
  return position == modules.end() ? nullptr : &position->second;
}

}  // namespace

Status inspect(const InspectOptions& options) {
  const auto [adapter, kind, types, is_gguf] = load(options.adapter, {}, Order::DoesNotMatter);
  Table table;
  table.add({"layer", "n", "m", "rank", "scale", "norm"});
  double squares = 0;
  lora::Index parameters = 0;
  for (const auto& [name, module] : adapter.modules) {
    const auto& factors = module.factors;
    const double norm = Pair::of(module).norm();
    squares += norm * norm;
    parameters += factors.parameters();
    table.add({shown(name), std::to_string(factors.in_features()), std::to_string(factors.out_features()),
               std::to_string(factors.rank()), number(module.scale), number(norm)});
  }
  std::cout << kind << ", " << joined(types) << '\n'
            << table.text() << count(adapter.modules.size(), "layer") << ", "
            << count(static_cast<std::size_t>(parameters), "parameter") << ", norm " << number(std::sqrt(squares))
            << '\n';
  if (is_gguf) return Status::Fine;
  const auto& config = adapter.config;
  if (config.scaling == lora::Scaling::RankStabilized) std::cout << "rank-stabilised\n";
  if (config.fan_in_fan_out) std::cout << "fan_in_fan_out: the base keeps its weights as [in, out]\n";
  const auto start = config.other.find("lora_ga_config");
  if (start != config.other.end() && !start->is_null())
    std::cout << "offset: of LoRA-GA's start, folded into the factors (their rank is 2r)\n";
  const auto unknown = config.unknown_keys();
  if (!unknown.empty()) std::cout << "unknown in adapter_config.json: " << list(unknown) << '\n';
  return Status::Fine;
}

Status diff(const DiffOptions& options) {
  const bool given = !options.base.gguf.empty() || !options.base.config.empty();
  // Two files of llama.cpp agree about the order of outputs, whatever it is.
  const auto is_file = [](const std::filesystem::path& path) { return std::filesystem::is_regular_file(path); };
  const auto order = !given && is_file(options.left) && is_file(options.right) ? Order::DoesNotMatter : Order::Matters;
  const auto left = load(options.left, options.base, order), right = load(options.right, options.base, order);

  std::set<std::string> names;
  for (const auto* loaded : {&left, &right}) {
    for (const auto& item : loaded->adapter.modules) names.insert(item.first);
  }
  Table table;
  table.add({"layer", "left", "right", "difference"});
  double largest = 0;
  std::size_t above = 0;
  for (const auto& name : names) {
    const auto *one = find(left.adapter.modules, name), *two = find(right.adapter.modules, name);
    const auto comparison = compare(one, two);
    const double relative = comparison.relative();
    largest = std::max(largest, relative);
    if (!(relative <= options.tolerance)) ++above;
    table.add({shown(name), one == nullptr ? "none" : number(comparison.left),
               two == nullptr ? "none" : number(comparison.right),
               comparison.same_shape ? number(relative, 3) : "other shape"});
  }
  std::cout << table.text() << count(names.size(), "layer") << ", " << above << " above " << number(options.tolerance)
            << ", the largest " << number(largest, 3) << '\n';
  return above == 0 ? Status::Fine : Status::DoesNotMatch;
}

}  // namespace adapter_tool
