// SPDX-License-Identifier: MIT
// LoRA adapters as GGUF files that llama.cpp loads, for models of the llama and gpt2 architectures.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/finite.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/views.hpp>
#include <lora/io/gguf.hpp>
#include <lora/io/gguf_names.hpp>
#include <lora/io/quantised_blocks.hpp>

#include <Eigen/Core>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lora::gguf {

/// One adapted module: Y = X W0 + scale (X A) B. An adapter is a list of them, in any order.
struct AdapterModule {
  std::string name;        ///< Hugging Face's: "model.layers.0.self_attn.q_proj", "transformer.h.0.attn.c_attn"
  Factors<float> factors;  ///< after LoRA-GA or PiSSA `difference(factors, initial)`, of rank 2r, on the original base
  double scale = 1;        ///< s itself, whichever rule it comes from; may differ from module to module

  bool operator==(const AdapterModule&) const = default;
};

/// The model that an adapter belongs to, as far as the file depends on it. `describe` reads it from the model's file.
struct BaseModel {
  Architecture architecture = Architecture::Llama;
  Index head_count = 0;            ///< llama: attention heads, needed for q_proj
  Index head_count_kv = 0;         ///< llama: key and value heads, needed for k_proj
  bool has_output_weight = false;  ///< the model's GGUF has `output.weight`; a tied model has none
};

struct AdapterFormat {
  Type type = Type::F32;  ///< or F16
  std::string name;       ///< `general.name`; left out where empty
};

/// What a model's GGUF file says about itself.
/// \throws FormatError  an architecture other than llama and gpt2; llama without head counts.
inline BaseModel describe(const Contents& model) {
  const auto& metadata = model.metadata();
  const auto& architecture = metadata.get<std::string>("general.architecture");
  detail::require<FormatError>(architecture == "llama" || architecture == "gpt2", model.file(),
                               R"(: key "general.architecture" must be "llama" or "gpt2", got )",
                               detail::Quoted{architecture});
  BaseModel base;
  base.has_output_weight = model.find(detail::gguf_output_tensor) != nullptr;
  if (architecture == "gpt2") {
    base.architecture = Architecture::Gpt2;
  } else {
    const auto heads = metadata.get<std::uint32_t>("llama.attention.head_count");
    base.head_count = heads;
    base.head_count_kv = metadata.get_or<std::uint32_t>("llama.attention.head_count_kv", heads);
  }
  return base;
}

}  // namespace lora::gguf

namespace lora::detail {

/// The outputs of a head where llama.cpp keeps them in another order (see `rotary_source`), 0 where it does not.
template <class ErrorType>
Index rotary_head_dim(const gguf::BaseModel& base, std::string_view module, Index m, std::string_view where) {
  if (base.architecture != gguf::Architecture::Llama) return 0;
  const bool query = module.ends_with(".q_proj"), key = module.ends_with(".k_proj");
  if (!query && !key) return 0;
  const Index heads = query ? base.head_count : base.head_count_kv;
  const std::string_view count = query ? "head_count" : "head_count_kv";
  require<ConfigError>(heads >= 1, where, ": ", module, ": ", count, " of the base model must be given, got ", heads);
  require<ErrorType>(m % heads == 0 && m / heads % 2 == 0, where, ": ", module, ": its ", m,
                     " outputs must be an even number for each of ", heads, " heads (", count, ")");
  return m / heads;
}

/// One alpha for a file in which the scale of a tensor is alpha over its rank, and what B must be multiplied with.
struct SharedAlpha {
  float alpha = 1;
  std::vector<double> factors;
};

/// The alpha that leaves most modules as they are: 1 for them, what is missing for the others.
inline SharedAlpha shared_alpha(const std::vector<gguf::AdapterModule>& modules) {
  const auto own = [](const gguf::AdapterModule& module) {
    return module.scale * static_cast<double>(module.factors.rank());
  };
  SharedAlpha shared;
  std::map<float, Index> votes;
  Index most = 0;
  for (const auto& module : modules) {
    const auto alpha = static_cast<float>(own(module));
    if (!std::isnormal(alpha)) continue;  // llama.cpp takes 0 for a scale of 1
    ++votes[alpha];
  }
  for (const auto& module : modules) {
    const auto vote = votes.find(static_cast<float>(own(module)));
    if (vote == votes.end() || vote->second <= most) continue;
    shared.alpha = vote->first;
    most = vote->second;
  }
  for (const auto& module : modules) {
    const double alpha = own(module);
    shared.factors.push_back(static_cast<float>(alpha) == shared.alpha ? 1 : alpha / static_cast<double>(shared.alpha));
  }
  return shared;
}

/// The tensors of an adapter with the bytes that they view.
struct AdapterTensors {
  gguf::Metadata metadata;
  std::vector<gguf::Tensor> tensors;
  std::vector<std::vector<std::byte>> memory;
};

inline constexpr std::string_view save_adapter_name = "gguf::save_adapter";

/// `values` in the file's type, all finite.
inline std::vector<std::byte> adapter_bytes_of(gguf::Type type, const RowMatrix<float>& values, std::string_view module,
                                               std::string_view factor) {
  const auto size = static_cast<std::size_t>(values.size());
  const bool narrow = type == gguf::Type::F16;
  std::vector<std::byte> bytes(size * (narrow ? 2 : 4));
  bool finite = true;
  for (std::size_t i = 0; i < size; ++i) {
    const float value = values.data()[i];
    if (narrow) {
      const std::uint16_t bits = Eigen::half_impl::float_to_half_rtne(value).x;
      finite = finite && (bits & 0x7C00U) != 0x7C00U;
      std::memcpy(bytes.data() + 2 * i, &bits, 2);
    } else {
      finite = finite && std::isfinite(value);
      std::memcpy(bytes.data() + 4 * i, &value, 4);
    }
  }
  require<NumericalError>(finite, save_adapter_name, ": ", module, ": ", factor, " must be finite in ",
                          gguf::type_name(type), ", got NaN, infinity or a number beyond it");
  return bytes;
}

/// Rows of llama.cpp's lora_b: output after output, each with r numbers.
inline RowMatrix<float> adapter_rows_of_B(const RowMatrix<float>& B, Index head_dim, double factor) {
  RowMatrix<float> rows(B.cols(), B.rows());
  for (Index i = 0; i < rows.rows(); ++i) {
    const Index source = head_dim == 0 ? i : rotary_source(i, head_dim);
    for (Index k = 0; k < rows.cols(); ++k) {
      rows(i, k) = factor == 1 ? B(k, source) : static_cast<float>(factor * static_cast<double>(B(k, source)));
    }
  }
  return rows;
}

inline AdapterTensors adapter_tensors(const std::vector<gguf::AdapterModule>& modules, const gguf::BaseModel& base,
                                      const gguf::AdapterFormat& format) {
  constexpr auto where = save_adapter_name;
  require<ConfigError>(!modules.empty(), where, ": an adapter must have at least one module, got none");
  require<ConfigError>(format.type == gguf::Type::F32 || format.type == gguf::Type::F16, where,
                       ": the type must be F32 or F16, got ", gguf::type_name(format.type));
  for (const auto& [name, factors, scale] : modules) {
    require<ShapeError>(factors.A.cols() == factors.B.rows(), where, ": ", name,
                        ": A (n x r) and B (r x m) must share the rank, got A ", shape(factors.A), " and B ",
                        shape(factors.B));
    require<ShapeError>(factors.A.size() > 0 && factors.B.size() > 0, where, ": ", name,
                        ": A and B must not be empty, got A ", shape(factors.A), " and B ", shape(factors.B));
    require<ConfigError>(std::isfinite(scale), where, ": ", name, ": the scale must be finite, got ", scale);
  }

  const SharedAlpha shared = shared_alpha(modules);
  AdapterTensors file;
  file.metadata.set("general.architecture", std::string(gguf::name(base.architecture)));
  file.metadata.set("general.type", std::string("adapter"));
  if (!format.name.empty()) file.metadata.set("general.name", format.name);
  file.metadata.set("adapter.type", std::string("lora"));
  file.metadata.set("adapter.lora.alpha", shared.alpha);

  const auto add = [&](const std::string& name, const RowMatrix<float>& rows, const std::string& module,
                       std::string_view factor) {
    file.memory.push_back(adapter_bytes_of(format.type, rows, module, factor));
    file.tensors.push_back({name, format.type, 2, {rows.cols(), rows.rows(), 1, 1}, file.memory.back()});
  };
  Index head_dim = 0;
  for (std::size_t i = 0; i < modules.size(); ++i) {
    const auto& module = modules[i];
    const auto tensor = gguf::tensor_name(base.architecture, module.name);
    require<ConfigError>(tensor.has_value(), where, ": ", module.name, ": a module of the ",
                         gguf::name(base.architecture), " architecture must be ",
                         base.architecture == gguf::Architecture::Llama
                             ? "lm_head or model.layers.<number>.{self_attn.{q,k,v,o}_proj, mlp.{gate,up,down}_proj}"
                             : "lm_head or transformer.h.<number>.{attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj}");
    require<ConfigError>(module.name != gguf_output_module || base.has_output_weight, where,
                         ": lm_head: the base model must have an output weight of its own, got a tied one, which "
                         "llama.cpp cannot adapt alone");
    const Index own = rotary_head_dim<ShapeError>(base, module.name, module.factors.out_features(), where);
    require<ShapeError>(own == 0 || head_dim == 0 || own == head_dim, where, ": ", module.name,
                        ": all heads must have the same number of outputs, got ", own, " after ", head_dim,
                        " (head_count ", base.head_count, ", head_count_kv ", base.head_count_kv, ")");
    if (own != 0) head_dim = own;
    add(*tensor + ".lora_a", module.factors.A.transpose(), module.name, "A");
    add(*tensor + ".lora_b", adapter_rows_of_B(module.factors.B, own, shared.factors[i]), module.name, "B");
  }
  return file;
}

}  // namespace lora::detail

namespace lora::gguf {

/// Writes an adapter for `llama-cli --lora`; where that fails, the old file stays.
///
/// llama.cpp adds (alpha / r) B' (A' x) with one alpha for the file and r the rank of each tensor. So alpha = scale r
/// of most modules (of rank-stabilised adapters as of patterns of ranks), and where a module needs another, the ratio
/// is multiplied into its B, which rounds once. The rows of B of llama's q_proj and k_proj are put into llama.cpp's
/// order; gpt2's factors are written as they are (the weights of its Conv1D, stored transposed, are turned by the
/// converter). \throws ConfigError  no modules; a module that llama.cpp does not adapt (embeddings, norms, lm_head of a
/// tied
///                      model); missing head counts; a scale that is not finite; a type other than F32 and F16.
/// \throws ShapeError   empty or mismatched factors; outputs that do not fit the head counts.
/// \throws NumericalError  a number that is not finite in the type of the file.
/// \throws FormatError  the same module twice.
/// \throws IoError      what the system refuses.
inline void save_adapter(const std::filesystem::path& path, const std::vector<AdapterModule>& modules,
                         const BaseModel& base, const AdapterFormat& format = {}) {
  const auto file = detail::adapter_tensors(modules, base, format);
  write(path, file.metadata, file.tensors);
}
/// The same file in memory.
inline std::vector<std::byte> adapter_bytes(const std::vector<AdapterModule>& modules, const BaseModel& base,
                                            const AdapterFormat& format = {}) {
  const auto file = detail::adapter_tensors(modules, base, format);
  return to_bytes(file.metadata, file.tensors, std::string(detail::save_adapter_name));
}

/// The adapter in a file of llama.cpp, in the file's order of lora_a, with scale = alpha / r; any type that can be
/// dequantised. Strict where llama.cpp is lenient: norm weights in the file are refused, it ignores them.
/// \throws FormatError  not a LoRA adapter, or an activated one; another architecture than `base`; a tensor that is no
///                      half of a pair for a known module; a type that cannot be dequantised; shapes that do not fit;
///                      NaN or infinity. The message names file and tensor.
/// \throws ConfigError  q_proj or k_proj of llama without the head count.
inline std::vector<AdapterModule> read_adapter(const Contents& file, const BaseModel& base) {
  const auto& metadata = file.metadata();
  const auto require_text = [&](std::string_view key, std::string_view expected) {
    const auto& found = metadata.get<std::string>(key);
    detail::require<FormatError>(found == expected, file.file(), ": key \"", key, "\" must be \"", expected, "\", got ",
                                 detail::Quoted{found});
  };
  require_text("general.type", "adapter");
  require_text("adapter.type", "lora");
  require_text("general.architecture", name(base.architecture));
  detail::require<FormatError>(metadata.find("adapter.alora.invocation_tokens") == nullptr, file.file(),
                               ": an adapter that certain tokens activate (aLoRA) cannot be read");
  const auto alpha = metadata.get_or<float>("adapter.lora.alpha", 0);
  detail::require<FormatError>(std::isfinite(alpha), file.file(), ": key \"adapter.lora.alpha\" must be finite, got ",
                               alpha);

  std::vector<AdapterModule> modules;
  const std::string_view end_of_a = ".lora_a", end_of_b = ".lora_b";
  for (const Tensor& a : file.tensors()) {
    const bool is_a = a.name.ends_with(end_of_a), is_b = a.name.ends_with(end_of_b);
    const auto weight = std::string_view(a.name).substr(0, is_a || is_b ? a.name.size() - end_of_a.size() : 0);
    const auto module = module_name(base.architecture, weight);
    detail::require<FormatError>(module.has_value(), file.file(), ": tensor ", detail::Quoted{a.name},
                                 " must be .lora_a or .lora_b of a weight of the ", name(base.architecture),
                                 " architecture");
    const std::string other = std::string(weight) + std::string(is_a ? end_of_b : end_of_a);
    const Tensor* b = file.find(other);
    detail::require<FormatError>(b != nullptr, file.file(), ": tensor ", detail::Quoted{a.name},
                                 " must have its other half, got no tensor ", detail::Quoted{other});
    if (is_b) continue;  // its a will do, or has done
    for (const Tensor* half : {&a, b}) {
      detail::require<FormatError>(half->ne[2] == 1 && half->ne[3] == 1 && half->elements() > 0, file.file(),
                                   ": tensor ", detail::Quoted{half->name}, " must be a matrix that is not empty, got ",
                                   sizes(*half));
      detail::require<FormatError>(can_dequantise(half->type), file.file(), ": tensor ", detail::Quoted{half->name},
                                   " must have a type that can be dequantised, got ", type_name(half->type));
    }
    const Index r = b->ne[0], m = b->ne[1];
    detail::require<FormatError>(a.ne[1] == r, file.file(), ": tensors ", detail::Quoted{a.name}, " and ",
                                 detail::Quoted{b->name}, " must share the rank, got ", sizes(a), " and ", sizes(*b));
    const Index head_dim = detail::rotary_head_dim<FormatError>(base, *module, m, file.file());
    AdapterModule read{
        *module, {dequantised(a), {}}, alpha == 0 ? 1 : static_cast<double>(alpha) / static_cast<double>(r)};
    const ColMatrix<float> rows = dequantised(*b);  // column i: output i of llama.cpp
    const auto require_finite = [&](const ColMatrix<float>& numbers, const Tensor& half) {
      detail::require<FormatError>(all_finite(ConstColumns<float>(numbers)), file.file(), ": tensor ",
                                   detail::Quoted{half.name}, " must be finite, got NaN or infinity");
    };
    require_finite(read.factors.A, a);
    require_finite(rows, *b);
    read.factors.B.resize(r, m);
    for (Index i = 0; i < m; ++i) {
      read.factors.B.col(head_dim == 0 ? i : detail::rotary_source(i, head_dim)) = rows.col(i);
    }
    modules.push_back(std::move(read));
  }
  detail::require<FormatError>(!modules.empty(), file.file(), ": an adapter must have at least one pair, got none");
  return modules;
}
/// \throws IoError  the file cannot be opened; and as `read_adapter`.
inline std::vector<AdapterModule> load_adapter(const std::filesystem::path& path, const BaseModel& base) {
  return read_adapter(open(path).contents(), base);
}

}  // namespace lora::gguf
