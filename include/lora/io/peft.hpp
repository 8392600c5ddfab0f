// SPDX-License-Identifier: MIT
// Adapters in PEFT's directories: adapter_config.json and adapter_model.safetensors, saved whole.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/matrix.hpp>
#include <lora/io/file.hpp>
#include <lora/io/peft_adapter.hpp>
#include <lora/io/peft_config.hpp>
#include <lora/io/peft_targets.hpp>
#include <lora/io/safetensors.hpp>
#include <lora/io/safetensors_matrix.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace lora::peft {

/// How an adapter is written.
struct SaveOptions {
  std::string adapter_name = "default";     ///< another name goes into a sub-directory of that name
  std::optional<safetensors::Type> type{};  ///< F32, F16, BF16, F64; none: the Scalar's own
};

}  // namespace lora::peft

namespace lora::detail {

/// The value that most modules share, the smallest of several.
template <class Value>
Value most_common(const std::map<std::string, Value>& values) {
  std::map<Value, std::size_t> counts;
  for (const auto& [name, value] : values) ++counts[value];
  return std::max_element(counts.begin(), counts.end(),
                          [](const auto& left, const auto& right) { return left.second < right.second; })
      ->first;
}

/// Makes `common` and `pattern` say what `values` are. They stay where they do already, in alphabetical order, which
/// is how the file will have them; else each exception gets an entry that matches its module and no other. Entries that
/// match nothing, as the reader refuses them, go in any case.
template <class Value>
void describe_values(const std::map<std::string, Value>& values, Value& common, peft::Pattern<Value>& pattern) {
  std::erase_if(pattern, [&](const auto& entry) {
    const EndPattern test(entry.first, "peft::save: pattern " + detail::quoted(entry.first));
    return std::none_of(values.begin(), values.end(), [&](const auto& item) { return test.matches(item.first); });
  });
  std::sort(pattern.begin(), pattern.end());
  {
    const PatternTable<Value> table(pattern, "peft::save: pattern");
    const bool says = std::all_of(values.begin(), values.end(),
                                  [&](const auto& item) { return table.of(item.first, common) == item.second; });
    if (says) return;
  }
  common = most_common(values);
  pattern.clear();
  for (const auto& [name, value] : values) {
    if (value == common) continue;
    // The name itself, which every version of PEFT reads, unless it is also the end of another or not plain.
    const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.';
    });
    std::string entry = name;
    bool alone = plain;
    if (plain) {
      const EndPattern test(name, "peft::save");
      for (const auto& item : values) alone = alone && (item.first == name || !test.matches(item.first));
    }
    if (!alone) {
      entry = "^";
      for (const char c : name) {
        if (std::string_view("\\^$.|?*+()[]{}-").find(c) != std::string_view::npos) entry += '\\';
        entry += c;
      }
    }
    pattern.emplace_back(std::move(entry), value);
  }
}

/// The config that makes PEFT see the adapter as it is. \pre no initial factors.
template <Real Scalar>
peft::AdapterConfig config_for(const peft::Adapter<Scalar>& adapter) {
  peft::AdapterConfig config = adapter.config;
  const auto odd = [](const auto& item) { return item.second.factors.rank() % 2 == 1; };
  if (config.init_lora_weights == "orthogonal" && std::any_of(adapter.modules.begin(), adapter.modules.end(), odd))
    config.init_lora_weights = "true";  // PEFT starts at even ranks only, before it loads
  std::map<std::string, Index> ranks;
  std::map<std::string, double> alphas;
  for (const auto& [name, module] : adapter.modules) {
    ranks[name] = module.factors.rank();
    const double alpha = alphas[name] = alpha_for(module, config.scaling);
    require<NumericalError>(std::isfinite(alpha), "peft::save: module ", detail::quoted(name),
                            ": alpha must be finite, got ", alpha);
  }
  describe_values(ranks, config.r, config.rank_pattern);
  describe_values(alphas, config.lora_alpha, config.alpha_pattern);
  if (!config.target_pattern.empty()) {
    config.target_modules.clear();  // the file has one of them
  } else if (config.target_modules.empty()) {
    for (const auto& [name, module] : adapter.modules) config.target_modules.push_back(name);
  }
  require_targeted(config, adapter.modules);
  return config;
}

/// The old config goes, the new tensors come, then the new config. What fails before the tensors are replaced brings
/// the old config back, by `old_config`. \pre all files are prepared.
template <class File>
void replace_both(const std::filesystem::path& config_path, File& tensors, File& config,
                  std::optional<File>& old_config) {
  try {
    io::remove_file(config_path);
    tensors.commit();
  } catch (...) {
    if (!old_config || tensors.in_place()) throw;
    try {
      old_config->commit();
    } catch (const IoError&) {  // the first error says more
    }
    throw;
  }
  config.commit();
}

/// Puts both files in place so that nobody ever finds the config of one save with the tensors of another. Both are on
/// the disk before anything changes. Where the config stays the same, as in repeated saves of a run, the tensors are
/// replaced in one step. Else the old config goes first and the new one comes last: whoever looks, or is killed, in
/// between finds a directory without a config, which no loader takes.
inline void publish(const std::filesystem::path& folder, const std::string& config,
                    const safetensors::Tensors& tensors) {
  const auto config_path = folder / "adapter_config.json";
  const std::string header = file_header(tensors, {{"format", "pt"}});
  io::AtomicFile tensor_file(folder / "adapter_model.safetensors");
  write_tensors(tensor_file, header, tensors);
  tensor_file.prepare();
  io::AtomicFile config_file(config_path);
  config_file.write(config);
  config_file.prepare();
  std::optional<io::AtomicFile> old_config;
  std::error_code no_file;
  if (std::filesystem::exists(config_path, no_file)) {
    const auto old = io::read_file(config_path, peft::longest_config);
    const auto text = std::as_bytes(std::span(config));
    if (std::equal(old.begin(), old.end(), text.begin(), text.end())) return tensor_file.commit();
    old_config.emplace(config_path);
    old_config->write(std::span<const std::byte>(old));
    old_config->prepare();
  }
  replace_both(config_path, tensor_file, config_file, old_config);
}

}  // namespace lora::detail

namespace lora::peft {

/// Writes an adapter for PEFT, faithfully: its alphas, rank-stabilised scaling, ranks and alphas by pattern where they
/// differ (written so that no two entries match one module; those that match none are left out), keys of a config that
/// was read. Initial factors are folded in at rank r + r0, see `to_plain`; so the files fit the base as it was. For
/// other readers: `save_portable`.
///
/// `config.r`, `lora_alpha` and the patterns follow the modules: what the factors are counts. Without targets in the
/// config, the modules' full names are written. An adapter that is there is replaced; other files stay.
/// A kill or a power failure leaves the old adapter, the new one, or a directory without adapter_config.json, which
/// every loader refuses: never a mixture. An error leaves the old adapter; only where the system refuses the last step,
/// with the new tensors in place already, or the way back too, such a directory.
/// \throws FormatError  no module; a module that is not among the targets, as `targets` reads them with
/// `exclude_modules` and `layers_to_transform`, or targets that it cannot read; a value that does not fit `type`; a
/// name that is no component of a path. \throws ShapeError  factors that do not fit together. \throws NumericalError
/// NaN or infinity. \throws IoError  what the system refuses.
template <Real Scalar>
void save(const std::filesystem::path& directory, const Adapter<Scalar>& adapter, const SaveOptions& options = {}) {
  const auto folder = detail::adapter_folder(directory, options.adapter_name);
  detail::require<FormatError>(!adapter.modules.empty(), "peft::save: adapter must have a module, got none");
  const auto plain = to_plain(adapter);
  const auto type = options.type.value_or(safetensors::type_of<Scalar>);
  std::map<std::string, std::vector<std::byte>> memory;
  safetensors::Tensors tensors;
  for (const auto& item : plain.modules) {
    const std::string& name = item.first;
    const auto& module = item.second;
    const std::string place = "peft::save: module " + detail::quoted(name);
    detail::require<FormatError>(!name.empty(), place, ": must have a name, got none");
    const auto& [A, B] = module.factors;
    detail::require<ShapeError>(A.cols() == B.rows() && A.size() > 0 && B.size() > 0, place,
                                ": factors must be n x r and r x m, got ", detail::shape(A), " and ", detail::shape(B));
    detail::require<NumericalError>(std::isfinite(module.scale), place, ": scale must be finite, got ", module.scale);
    detail::require_finite(ConstFactorsView<Scalar>(module.factors), place, ": factor");
    const auto add = [&](const std::string& half, const auto& view, Index rows, Index cols) {
      const std::string key = std::string(detail::peft_prefix).append(name).append(half);
      const auto& bytes = memory[key] = safetensors::encode(view, type, safetensors::Layout::Transposed, place + half);
      const safetensors::Shape shape{static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(cols)};
      tensors.emplace(key, safetensors::Tensor{type, shape, bytes});
    };
    add(".lora_A.weight", ConstColumns<Scalar>(A), A.cols(), A.rows());
    add(".lora_B.weight", ConstRows<Scalar>(B), B.cols(), B.rows());
  }
  const std::string config = detail::config_for(plain).to_json();

  std::error_code failure;
  const bool is_new = std::filesystem::create_directories(folder, failure);
  detail::require<IoError>(!failure, folder.string(), ": must be a directory or be made one, got ", failure.message());
  try {
    detail::publish(folder, config, tensors);
  } catch (...) {
    if (is_new) std::filesystem::remove(folder, failure);  // only if it is empty
    throw;
  }
}

/// Writes `to_portable(adapter)`, in F32 unless `options` say otherwise. \throws  as `save`.
template <Real Scalar>
void save_portable(const std::filesystem::path& directory, const Adapter<Scalar>& adapter, SaveOptions options = {}) {
  if (!options.type) options.type = safetensors::Type::F32;
  save(directory, to_portable(adapter), options);
}

}  // namespace lora::peft
