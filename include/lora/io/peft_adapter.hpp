// SPDX-License-Identifier: MIT
// An adapter as PEFT knows it: read strictly from a directory's two files, folded into a plain or a portable one.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/finite.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/scaling.hpp>
#include <lora/io/file.hpp>
#include <lora/io/peft_config.hpp>
#include <lora/io/peft_targets.hpp>
#include <lora/io/safetensors.hpp>
#include <lora/io/safetensors_matrix.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lora::peft {

/// An adapter on one linear layer: W = W0 + scale (A B - A0 B0).
template <Real Scalar>
struct Module {
  Factors<Scalar> factors;    ///< A (n x r), B (r x m)
  double scale = 1;           ///< s, what counts
  double alpha = 0;           ///< as a file has it; a writer uses it where it gives `scale`, and works it out elsewhere
  Factors<Scalar> initial{};  ///< A0, B0 of an offset start (LoRA-GA, PiSSA); of rank 0 where there is none

  bool operator==(const Module&) const = default;
};

/// Adapters of a model by the names of its modules ("model.layers.0.self_attn.q_proj"), and what the config says.
template <Real Scalar>
struct Adapter {
  AdapterConfig config;
  std::map<std::string, Module<Scalar>, std::less<>> modules;

  bool operator==(const Adapter&) const = default;
};

}  // namespace lora::peft

namespace lora::detail {

inline constexpr std::string_view peft_prefix = "base_model.model.";

/// The sub-directory of an adapter. A name is one component of a path: it cannot lead elsewhere.
inline std::filesystem::path adapter_folder(const std::filesystem::path& directory, const std::string& name) {
  const bool component = !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
                         std::none_of(name.begin(), name.end(), [](char c) {
                           return c == '/' || c == '\\' || static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
                         });
  require<FormatError>(component, "peft: adapter name must be one component of a path, got ", detail::quoted(name));
  return name == "default" ? directory : directory / name;
}

/// The module and which half, of a key that is one; else a FormatError that says what it is.
struct PeftKey {
  std::string module;
  bool is_A;
};
inline PeftKey parse_key(const std::string& key, const std::string& file) {
  const std::string place = file + ": tensor " + detail::quoted(key);
  const std::string_view whole = key;
  require<FormatError>(whole.starts_with(peft_prefix), place, ": must begin with base_model.model., got another name");
  const std::string_view name = whole.substr(peft_prefix.size());
  for (const bool is_A : {true, false}) {
    const std::string_view end = is_A ? ".lora_A.weight" : ".lora_B.weight";
    if (!name.ends_with(end)) continue;
    require<FormatError>(name.size() > end.size(), place, ": must name a module, got none");
    return {std::string(name.substr(0, name.size() - end.size())), is_A};
  }
  const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
  require<FormatError>(!has("lora_magnitude_vector"), place, ": must be plain LoRA, got DoRA's magnitudes");
  require<FormatError>(!has("lora_embedding_"), place, ": must be on a linear layer, got an embedding");
  require<FormatError>(!has("lora_E") && !has("ranknum") && !name.ends_with("lora_A") && !name.ends_with("lora_B"),
                       place, ": must be plain LoRA, got AdaLoRA");
  require<FormatError>(!name.ends_with(".bias"), place, ": must have no bias of its own, got one");
  require<FormatError>(!has(".base_layer.") && !has("modules_to_save"), place,
                       ": must be a factor, got a weight of the base");
  require<FormatError>(!has(".lora_A.") && !has(".lora_B."), place,
                       ": must end with lora_A.weight or lora_B.weight, got an adapter's name between");
  throw FormatError(place + ": must be lora_A.weight or lora_B.weight of a module, got another tensor");
}

/// What alpha is divided by to give s, for an alpha of either sign.
inline double divisor(Index rank, Scaling scaling) {
  const auto r = static_cast<double>(rank);
  return scaling == Scaling::Standard ? r : std::sqrt(r);
}
/// The alpha that a file must have for the module's scale: its own where that gives it.
template <Real Scalar>
double alpha_for(const peft::Module<Scalar>& module, Scaling scaling) {
  constexpr double rounding = 1e-14;
  const double by = divisor(module.factors.rank(), scaling);
  const double error = module.alpha / by - module.scale;
  return std::abs(error) <= rounding * std::abs(module.scale) ? module.alpha : module.scale * by;
}

}  // namespace lora::detail

namespace lora::peft {

/// An adapter from a config and a file of tensors.
///
/// F64, F32, F16 and BF16 factors become Scalars; F16 and BF16 exactly. r and alpha of a module come from the config's
/// patterns by PEFT's own rule, and the factors must be of that rank.
/// \throws FormatError  a tensor that is no half of a pair, or of another type, by its key; a half without the other;
/// a wrong shape or rank; NaN or infinity; an entry of a pattern that matches no module, or too large patterns.
template <Real Scalar>
Adapter<Scalar> read(AdapterConfig config, const safetensors::File& file, const std::string& config_name) {
  struct Halves {
    const safetensors::Tensor *A = nullptr, *B = nullptr;
  };
  std::map<std::string, Halves, std::less<>> pairs;
  for (const auto& [key, tensor] : file.tensors()) {
    const auto [module, is_A] = detail::parse_key(key, file.name());
    detail::require<FormatError>(safetensors::is_floating(tensor.type), file.name(), ": tensor ", detail::quoted(key),
                                 ": type must be F64, F32, F16 or BF16, got ", safetensors::type_name(tensor.type));
    (is_A ? pairs[module].A : pairs[module].B) = &tensor;
  }
  detail::require<FormatError>(!pairs.empty(), file.name(), ": must hold an adapter, got no tensor");

  Adapter<Scalar> adapter{std::move(config), {}};
  const auto& rules = adapter.config;
  const detail::PatternTable<Index> ranks(rules.rank_pattern, config_name + ": rank_pattern");
  const detail::PatternTable<double> alphas(rules.alpha_pattern, config_name + ": alpha_pattern");
  for (const auto& [name, halves] : pairs) {
    const std::string place = file.name() + ": module " + detail::quoted(name);
    detail::require<FormatError>(halves.A != nullptr && halves.B != nullptr, place,
                                 ": must have lora_A.weight and lora_B.weight, got only ",
                                 halves.A != nullptr ? "lora_A" : "lora_B");
    const Index rank = ranks.of(name, rules.r);
    const auto &a = halves.A->shape, &b = halves.B->shape;
    detail::require<FormatError>(a.size() == 2 && b.size() == 2, place,
                                 ": factors must be [r, in] and [out, r] of a linear layer, got ",
                                 detail::shape_text(a), " and ", detail::shape_text(b));
    detail::require<FormatError>(a[0] == static_cast<std::uint64_t>(rank) && b[1] == a[0] && a[1] > 0 && b[0] > 0,
                                 place, ": factors must be [r, in] and [out, r] at the r = ", rank,
                                 " of the config, got ", detail::shape_text(a), " and ", detail::shape_text(b));
    Module<Scalar> module;
    module.alpha = alphas.of(name, rules.lora_alpha);
    module.scale = module.alpha / detail::divisor(rank, rules.scaling);
    module.factors.A =
        safetensors::to_matrix<Scalar, Eigen::ColMajor>(*halves.A, safetensors::Layout::Transposed, place + " lora_A");
    module.factors.B =
        safetensors::to_matrix<Scalar, Eigen::RowMajor>(*halves.B, safetensors::Layout::Transposed, place + " lora_B");
    detail::require<FormatError>(
        all_finite(ConstColumns<Scalar>(module.factors.A)) && all_finite(ConstRows<Scalar>(module.factors.B)), place,
        ": factors must be finite, got NaN or infinity");
    adapter.modules.emplace(name, std::move(module));
  }
  ranks.require_use(adapter.modules);
  alphas.require_use(adapter.modules);
  return adapter;
}

/// Reads an adapter that PEFT, or `save`, wrote: `auto adapter = peft::load<float>("my-adapter");`.
/// \param adapter_name  other than "default": it is in the sub-directory of that name.
/// \throws IoError  a file is missing or unreadable, or was replaced meanwhile. \throws FormatError  see `read`.
template <Real Scalar>
Adapter<Scalar> load(const std::filesystem::path& directory, const std::string& adapter_name = "default") {
  const auto folder = detail::adapter_folder(directory, adapter_name);
  const auto path = folder / "adapter_config.json";
  const auto bytes = io::read_file(path, longest_config);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  auto config = AdapterConfig::parse(text, path.string());
  const auto file = safetensors::File::open(folder / "adapter_model.safetensors");
  // A writer replaces the tensors while no config is there: the same config afterwards, and both are of one save.
  detail::require<IoError>(io::read_file(path, longest_config) == bytes, path.string(),
                           ": must stay as it is while it is read, got another one");
  return read<Scalar>(std::move(config), file, path.string());
}

/// Without initial factors: A B - A0 B0 becomes one pair of rank r + r0, [A A0] and [B; -B0], at the same scale and
/// without a rounding, as PEFT converts PiSSA and LoRA-GA. Fits the base as it was. A start in the config that would
/// change the base, or that is over with this, becomes "true".
template <Real Scalar>
Adapter<Scalar> to_plain(Adapter<Scalar> adapter) {
  const auto& harmless = detail::harmless_starts;
  bool keep = std::find(harmless.begin(), harmless.end(), adapter.config.init_lora_weights) != harmless.end();
  for (auto& [name, module] : adapter.modules) {
    if (module.initial.rank() == 0) continue;
    keep = false;
    const Scaling scaling = adapter.config.scaling;
    const double alpha = detail::alpha_for(module, scaling), before = detail::divisor(module.factors.rank(), scaling);
    module.factors = difference(module.factors, module.initial);
    module.initial = {};
    module.alpha = alpha * detail::divisor(module.factors.rank(), scaling) / before;
  }
  if (!keep) adapter.config.init_lora_weights = "true";
  return adapter;
}

/// The same adapter as all of PEFT, vLLM and llama.cpp's converter read it alike: one rank r, the largest (smaller
/// factors are padded with zeros), every scale in B, alpha = r, nothing else in the config. s B is computed in double
/// and rounded to Scalar where s is no power of two. Where the config has exceptions (`exclude_modules`,
/// `layers_to_transform`), the modules' full names become the targets. To go on training, keep the other one: the scale
/// decides how large a step on B is.
template <Real Scalar>
Adapter<Scalar> to_portable(Adapter<Scalar> adapter) {
  adapter = to_plain(std::move(adapter));
  Index rank = 1;
  for (const auto& [name, module] : adapter.modules) rank = std::max(rank, module.factors.rank());
  for (auto& [name, module] : adapter.modules) {
    const auto& [A, B] = module.factors;
    auto padded = Factors<Scalar>::zero(A.rows(), B.cols(), rank);
    padded.A.leftCols(A.cols()) = A;
    padded.B.topRows(B.rows()) = (module.scale * B.template cast<double>()).template cast<Scalar>();
    module = {std::move(padded), 1, static_cast<double>(rank), {}};
  }
  AdapterConfig config;
  config.r = rank;
  config.lora_alpha = static_cast<double>(rank);
  if (detail::has_exceptions(adapter.config)) {
    for (const auto& [name, module] : adapter.modules) config.target_modules.push_back(name);
  } else {
    config.target_modules = adapter.config.target_modules;
    config.target_pattern = adapter.config.target_pattern;
  }
  config.fan_in_fan_out = adapter.config.fan_in_fan_out;
  config.base_model_name_or_path = adapter.config.base_model_name_or_path;
  config.task_type = adapter.config.task_type;
  adapter.config = std::move(config);
  return adapter;
}

}  // namespace lora::peft
