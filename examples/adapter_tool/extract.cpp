// SPDX-License-Identifier: MIT
// extract: an adapter out of two full models, by a truncated SVD of what differs.
#include "adapter.hpp"
#include "text.hpp"
#include "weights.hpp"

#include <lora/base/view_base.hpp>
#include <lora/core/random.hpp>
#include <lora/io/model_files.hpp>
#include <lora/io/safetensors_matrix.hpp>
#include <lora/model/extract.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <utility>

namespace adapter_tool {
namespace {

using lora::safetensors::File;
using lora::safetensors::Tensor;

bool same_bytes(const Tensor& left, const Tensor& right) {
  return left.type == right.type && left.bytes.size() == right.bytes.size() &&
         std::equal(left.bytes.begin(), left.bytes.end(), right.bytes.begin());
}

/// Both files must be of one model.
void require_same_names(const File& before, const File& after) {
  std::vector<std::string> alone;
  for (const auto& [name, tensor] : before.tensors()) {
    const Tensor* other = after.find(name);
    if (other == nullptr) alone.push_back(name + " (not in " + after.name() + ")");
    if (other != nullptr && other->shape != tensor.shape) alone.push_back(name + " (of another shape)");
  }
  for (const auto& [name, tensor] : after.tensors()) {
    if (before.find(name) == nullptr) alone.push_back(name + " (not in " + before.name() + ")");
  }
  if (!alone.empty()) throw Mismatch("both models must have the same tensors, got " + list(alone));
}

/// The module of a tensor that may get an adapter, else nothing.
std::string module_of(const std::string& tensor_name, const Tensor& tensor) {
  const auto suffix = Weights::suffix;
  if (!tensor_name.ends_with(suffix) || tensor.shape.size() != 2 || tensor.bytes.empty()) return {};
  const std::string module = tensor_name.substr(0, tensor_name.size() - suffix.size());
  return is_embedding(module) ? std::string() : module;
}

/// Notes which entries of the list have met a module.
class Targets {
 public:
  explicit Targets(const std::vector<std::string>& entries) : entries_(entries), met_(entries.size(), false) {}

  bool contain(const std::string& module) {
    bool any = entries_.empty();
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      const auto& entry = entries_[i];
      const bool same = module == entry || module.ends_with("." + entry);
      met_[i] = met_[i] || same;
      any = any || same;
    }
    return any;
  }
  void require_use() const {
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (!met_[i]) throw Mismatch("--target: " + shown(entries_[i]) + " must name a weight of the model, got none");
    }
  }

 private:
  const std::vector<std::string>& entries_;
  std::vector<bool> met_;
};

/// Whether the weight is [n, m] in the file. A GPT-2's block tells; a name that is not of one is what the options say.
bool lies_by_inputs(const std::string& module, const Tensor& weight, const File& model, const ExtractOptions& options) {
  const bool option = options.fan_in_fan_out;
  const auto found = stored_by_inputs(
      module, option, [&](const std::string& name) { return model.find(name + std::string(Weights::suffix)); });
  if (found || option || options.not_fan_in_fan_out) return found.value_or(option);
  throw lora::FormatError(model.name() + ": the " + (weight.shape[0] == weight.shape[1] ? "square " : "") +
                          "weight of " + shown(module) +
                          " must be [in, out] or [out, in]: its name is one of GPT-2's Conv1D, and no other weight of "
                          "its block tells; give --fan-in-fan-out if the model is a GPT-2, --no-fan-in-fan-out if not");
}

lora::ColMatrix<float> weight_of(const Tensor& tensor, bool by_inputs, const std::string& where) {
  using lora::safetensors::Layout;
  if (!lora::safetensors::is_floating(tensor.type))  // packed numbers are not those of the weight
    throw lora::FormatError(where + ": type must be F64, F32, F16 or BF16, got " +
                            std::string(lora::safetensors::type_name(tensor.type)));
  return lora::safetensors::to_matrix<float, Eigen::ColMajor>(tensor, by_inputs ? Layout::AsStored : Layout::Transposed,
                                                              where);
}

}  // namespace

Status extract(const ExtractOptions& options) {
  if (options.rank == 0 && options.energy >= 1)
    throw UsageError("--rank or --energy must be given: what would be cut off without?");
  const auto before = File::open(options.before), after = File::open(options.after);
  require_same_names(before, after);

  lora::ModelAdapter<float> adapter;
  Targets targets(options.targets);
  std::vector<std::string> left_out;
  Table table;
  table.add({"layer", "n", "m", "rank", "change", "captured", "error"});
  bool any_by_inputs = false;
  double changed = 0, captured = 0;
  lora::Random random{1};
  for (const auto& [name, tensor] : before.tensors()) {
    const Tensor& other = after.at(name);
    const std::string module = module_of(name, tensor);
    const bool wanted = !module.empty() && targets.contain(options.prefix + module);
    if (same_bytes(tensor, other)) continue;
    if (!wanted) {
      left_out.push_back(name);
      continue;
    }
    const std::string place = ": tensor " + lora::detail::quoted(name);
    const bool by_inputs = lies_by_inputs(module, tensor, before, options);
    any_by_inputs = any_by_inputs || by_inputs;
    const auto W0 = weight_of(tensor, by_inputs, before.name() + place);
    const auto W1 = weight_of(other, by_inputs, after.name() + place);
    if (W0 == W1) continue;  // in two types, or zeros of two signs
    const lora::Index most = std::min(W0.rows(), W0.cols());
    const lora::Index rank = std::min<lora::Index>(static_cast<lora::Index>(options.rank), most);
    lora::Extraction<float> found;
    try {
      const lora::ViewBase base{W0}, tuned{W1};
      found = lora::extract(base, tuned, {.rank = rank, .energy = options.energy}, random);
    } catch (const lora::NumericalError& error) {
      throw lora::NumericalError(after.name() + place + ": " + error.what());
    }
    const double energy = found.change * found.change;
    changed += energy;
    captured += found.captured * energy;
    table.add({shown(module), std::to_string(W0.rows()), std::to_string(W0.cols()),
               std::to_string(found.adapter.config.rank), number(found.change), number(found.captured, 3),
               number(found.error, 3)});
    adapter.emplace(options.prefix + module, std::move(found.adapter));
  }
  targets.require_use();
  if (adapter.empty())
    throw Mismatch(after.name() + ": a weight of a linear layer must differ from " + before.name() + ", got none" +
                   (left_out.empty() ? "" : " but " + list(left_out)));
  lora::peft::AdapterConfig config;
  config.fan_in_fan_out = any_by_inputs;
  lora::peft::save(options.out, lora::peft::adapter_of(adapter, config),
                   {.adapter_name = "default", .type = stored_type(options.type)});
  std::cout << table.text() << options.out.string() << ": " << count(adapter.size(), "layer") << ", "
            << number(100 * captured / changed, 3) << " % of the squared change\n";
  if (!left_out.empty())
    std::cout << count(left_out.size(), "other tensor") << " changed, not in the adapter: " << list(left_out) << '\n';
  return Status::Fine;
}

}  // namespace adapter_tool
