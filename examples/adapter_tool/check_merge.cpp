// SPDX-License-Identifier: MIT
// check: whether an adapter finds its layers in a model. merge: puts it into their weights.
#include "adapter.hpp"
#include "text.hpp"
#include "weights.hpp"

#include <lora/io/file.hpp>
#include <lora/io/peft_match.hpp>
#include <lora/io/safetensors_matrix.hpp>

#include <Eigen/Core>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iostream>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace adapter_tool {
namespace {

using lora::safetensors::Tensor;
using lora::safetensors::Type;

/// A string or strings under a key of the config that is none of the library's; empty where there is neither.
std::vector<std::string> strings(const nlohmann::json& other, const char* key) {
  std::vector<std::string> result;
  const auto position = other.find(key);
  if (position == other.end()) return result;
  if (position->is_string()) result.push_back(position->get<std::string>());
  if (!position->is_array()) return result;
  for (const auto& entry : *position) {
    if (entry.is_string()) result.push_back(entry.get<std::string>());
  }
  return result;
}

/// Which of the layers PEFT would adapt by the config.
std::set<std::string> targeted(const lora::peft::AdapterConfig& config, const std::vector<lora::ModuleShape>& layers) {
  lora::TargetConfig rules{.targets = config.target_modules, .pattern = config.target_pattern};
  rules.lora = {.rank = 1, .alpha = 1};  // not what is asked here, and valid for any layer
  rules.unmatched = lora::Unmatched::Report;
  const auto excluded = config.other.find("exclude_modules");
  auto exclude = strings(config.other, "exclude_modules");
  if (excluded != config.other.end() && excluded->is_string()) {
    rules.exclude_pattern = exclude.front();
  } else {
    rules.exclude = std::move(exclude);
  }
  const auto numbers = config.other.find("layers_to_transform");
  if (numbers != config.other.end() && rules.pattern.empty()) {
    for (const auto& number : numbers->is_array() ? *numbers : nlohmann::json::array({*numbers})) {
      if (number.is_number_unsigned()) rules.layers_to_transform.push_back(number.get<lora::Index>());
    }
    if (!rules.layers_to_transform.empty()) rules.layers_pattern = strings(config.other, "layers_pattern");
  }
  if (rules.pattern == "all-linear" && rules.exclude_pattern.empty()) rules.exclude.emplace_back("lm_head");
  std::set<std::string> names;
  for (const auto& layer : lora::plan(layers, rules).layers) names.insert(layer.name);
  return names;
}

bool has_targets(const lora::peft::AdapterConfig& config) {
  return !config.target_modules.empty() || !config.target_pattern.empty();
}

/// Layers that the config adapts and layers that have factors, against the factors.
lora::peft::MatchReport match_model(const lora::peft::Adapter<float>& adapter, const Weights& weights) {
  auto layers = weights.linear_layers();
  std::set<std::string> wanted;
  if (has_targets(adapter.config)) wanted = targeted(adapter.config, layers);
  std::erase_if(layers, [&](const lora::ModuleShape& layer) {
    return adapter.modules.count(layer.name) == 0 && wanted.count(layer.name) == 0;
  });
  return lora::peft::match(adapter, layers);
}

/// Factors on modules that are no targets, which PEFT drops in silence.
std::vector<std::string> untargeted(const lora::peft::Adapter<float>& adapter) {
  std::vector<std::string> names;
  if (!has_targets(adapter.config)) return names;
  std::vector<lora::ModuleShape> layers;
  for (const auto& [name, module] : adapter.modules) {
    layers.push_back({name, module.factors.in_features(), module.factors.out_features()});
  }
  const auto wanted = targeted(adapter.config, layers);
  for (const auto& layer : layers) {
    if (wanted.count(layer.name) == 0) names.push_back(layer.name);
  }
  return names;
}

/// A report with names from a file; `separator` stands where it begins a new line.
std::string describe(const lora::peft::MatchReport& report, const std::string& separator) {
  std::string text;
  for (const char letter : report.describe()) text += letter == '\n' ? separator : shown(std::string(1, letter));
  return text;
}

/// Rows of W + f s (A B), W (n x m) as the file has it, in the type of the file; computed in Scalar, 64 rows at a time.
template <class Scalar>
void write_merged(lora::io::AtomicFile& out, const Tensor& weight, const lora::peft::Module<float>& module,
                  double factor, bool by_inputs, const std::string& where) {
  constexpr lora::Index most = 64;
  const auto rows = static_cast<lora::Index>(weight.shape[0]);
  const std::size_t row_bytes = weight.bytes.size() / static_cast<std::size_t>(rows);
  const lora::ColMatrix<Scalar> A = module.factors.A.template cast<Scalar>();
  const lora::RowMatrix<Scalar> B =
      (factor * module.scale * module.factors.B.template cast<double>()).template cast<Scalar>();
  for (lora::Index first = 0; first < rows; first += most) {
    const lora::Index count = std::min(most, rows - first);
    const Tensor part{
        weight.type,
        {static_cast<std::uint64_t>(count), weight.shape[1]},
        weight.bytes.subspan(static_cast<std::size_t>(first) * row_bytes, static_cast<std::size_t>(count) * row_bytes)};
    lora::RowMatrix<Scalar> W = lora::safetensors::to_matrix<Scalar>(part, lora::safetensors::Layout::AsStored, where);
    if (by_inputs) {
      W.noalias() += A.middleRows(first, count) * B;
    } else {
      W.noalias() += B.middleCols(first, count).transpose() * A.transpose();
    }
    if (!W.allFinite()) throw lora::NumericalError(where + ": must be finite when merged, got NaN or infinity");
    out.write(
        lora::safetensors::encode(lora::ConstRows<Scalar>(W), weight.type, lora::safetensors::Layout::AsStored, where));
  }
}

}  // namespace

Status check(const CheckOptions& options) {
  const auto [adapter, kind, types, is_gguf] = load(options.adapter, {}, Order::DoesNotMatter);
  std::cout << kind << ", " << count(adapter.modules.size(), "module") << ": reads without a fault\n";
  const auto stray = untargeted(adapter);
  if (!stray.empty()) std::cout << stray.size() << " not among the targets, PEFT drops them: " << list(stray) << '\n';
  if (options.model.empty()) return stray.empty() ? Status::Fine : Status::DoesNotMatch;
  const auto files = open_model(options.model);
  const auto report = match_model(adapter, Weights(files, adapter));
  std::cout << describe(report, "\n") << '\n';
  return report.complete() && stray.empty() ? Status::Fine : Status::DoesNotMatch;
}

Status merge(const MergeOptions& options) {
  if (!std::isfinite(options.scale)) throw UsageError("--scale: must be finite, got " + number(options.scale));
  const auto loaded = load(options.adapter, options.base, Order::Matters);
  const auto& adapter = loaded.adapter;
  // All but the weights of the adapter is copied as it stands, the header too: types and shapes stay.
  const lora::io::MappedFile mapped(options.model);
  const std::string file_name = options.model.string();
  std::vector<lora::safetensors::File> files;
  files.push_back(lora::safetensors::File::parse(mapped.bytes(), file_name));
  const Weights weights(files, adapter);

  auto report = match_model(adapter, weights);
  report.missing.clear();  // a part of the model is merged; `check` tells
  if (!report.complete())
    throw Mismatch(file_name + ": every module must have its weight, got " + describe(report, "; "));
  struct Job {
    const Tensor* weight;
    const lora::peft::Module<float>* module;
    std::string name;
  };
  std::map<const std::byte*, Job> jobs;  // in the order of the file
  for (const auto& [name, module] : adapter.modules) {
    const Tensor* weight = weights.find(name);
    const bool can = weight->type == Type::F64 || weight->type == Type::F32 || weight->type == Type::F16 ||
                     weight->type == Type::BF16;
    if (!can)
      throw lora::FormatError(file_name + ": the weight of " + shown(name) + " must be F64, F32, F16 or BF16, got " +
                              std::string(lora::safetensors::type_name(weight->type)));
    jobs.emplace(weight->bytes.data(), Job{weight, &module, name});
  }
  lora::io::write_atomically(options.out, [&](lora::io::AtomicFile& out) {
    std::size_t at = 0;
    for (const auto& [start, job] : jobs) {
      const auto first = static_cast<std::size_t>(start - mapped.bytes().data());
      out.write(mapped.bytes().subspan(at, first - at));
      const bool by_inputs = stored_by_inputs(job.name, adapter.config.fan_in_fan_out);
      const auto write = job.weight->type == Type::F64 ? write_merged<double> : write_merged<float>;
      write(out, *job.weight, *job.module, options.scale, by_inputs, file_name + ": the weight of " + shown(job.name));
      at = first + job.weight->bytes.size();
    }
    out.write(mapped.bytes().subspan(at));
  });
  std::cout << options.out.string() << ": " << count(jobs.size(), "weight") << " merged, the other "
            << count(files[0].tensors().size() - jobs.size(), "tensor") << " as before\n";
  return Status::Fine;
}

}  // namespace adapter_tool
