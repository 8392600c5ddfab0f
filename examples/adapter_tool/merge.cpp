// SPDX-License-Identifier: MIT
// merge: puts an adapter into the weights of a model, in one file or several.
#include "adapter.hpp"
#include "match.hpp"
#include "new_folder.hpp"
#include "text.hpp"
#include "weights.hpp"

#include <lora/io/config_json.hpp>
#include <lora/io/file.hpp>
#include <lora/io/safetensors_matrix.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iostream>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace adapter_tool {
namespace {

namespace fs = std::filesystem;
using lora::FormatError;
using lora::safetensors::File;
using lora::safetensors::Tensor;
using lora::safetensors::Type;

/// A model as it lies in memory: one file, or those that an index names.
struct Model {
  static constexpr const char* index_name = "model.safetensors.index.json";

  std::vector<std::byte> index;    ///< the bytes of the index, empty without one
  std::vector<std::string> names;  ///< of the files in its folder
  std::vector<lora::io::MappedFile> mapped;
  std::vector<File> files;  ///< of `mapped`

  explicit Model(const fs::path& path) {
    if (!fs::is_directory(path)) {
      add(path, path.filename().string());
      return;
    }
    const fs::path index_path = path / index_name;
    if (!fs::exists(index_path))
      throw lora::IoError(path.string() + ": must be a safetensors file or a folder with " + index_name +
                          ", got a folder without");
    read_index(path, index_path);
  }
  std::size_t tensors() const {
    std::size_t sum = 0;
    for (const File& file : files) sum += file.tensors().size();
    return sum;
  }

 private:
  void add(const fs::path& path, const std::string& name) {
    names.push_back(name);
    mapped.emplace_back(path);
    files.push_back(File::parse(mapped.back().bytes(), path.string()));
  }
  void read_index(const fs::path& folder, const fs::path& path) {
    const std::string where = path.string();
    index = lora::io::read_file(path, std::uint64_t{1} << 26);
    std::map<std::string, std::vector<std::string>> order;
    const auto json = lora::detail::parse_config(
        std::string_view(reinterpret_cast<const char*>(index.data()), index.size()), where, order);
    const auto map = json.find("weight_map");
    if (map == json.end() || !map->is_object() || map->empty())
      throw FormatError(where + ": weight_map must name a file for each tensor, got none");
    std::map<std::string, std::vector<std::string>> tensors_of;
    for (const auto& [tensor, file] : map->items()) {
      const std::string name = file.is_string() ? file.get<std::string>() : "";
      if (!name.ends_with(".safetensors") || fs::path(name).filename() != name)
        throw FormatError(where + ": the file of " + lora::detail::quoted(tensor) +
                          " must be a name that ends with .safetensors, got " +
                          lora::detail::ConfigReader::shown(std::optional(file)));
      tensors_of[name].push_back(tensor);
    }
    for (const auto& [name, tensors] : tensors_of) {
      add(folder / name, name);
      for (const auto& tensor : tensors) files.back().at(tensor);
    }
  }
};

/// A weight that gets a product.
struct Job {
  const Tensor* weight;
  const lora::peft::Module<float>* module;
  std::string name;
  bool by_inputs;  ///< the weight is [n, m]
};
using Jobs = std::map<const std::byte*, Job>;  // in the order of the file, by where the weight begins

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

/// All but the weights of the adapter is copied as it stands, the header too: types and shapes stay.
void write_file(const fs::path& path, std::span<const std::byte> bytes, const std::string& file_name, const Jobs& jobs,
                double factor) {
  lora::io::write_atomically(path, [&](lora::io::AtomicFile& out) {
    std::size_t at = 0;
    const auto end = jobs.lower_bound(bytes.data() + bytes.size());
    for (auto job = jobs.lower_bound(bytes.data()); job != end; ++job) {
      const auto& [weight, module, name, by_inputs] = job->second;
      const auto first = static_cast<std::size_t>(job->first - bytes.data());
      out.write(bytes.subspan(at, first - at));
      const auto write = weight->type == Type::F64 ? write_merged<double> : write_merged<float>;
      write(out, *weight, *module, factor, by_inputs, file_name + ": the weight of " + shown(name));
      at = first + weight->bytes.size();
    }
    out.write(bytes.subspan(at));
  });
}

std::string in_one_line(const std::string& text) {
  std::string line;
  for (const char letter : text) line += letter == '\n' ? "; " : std::string(1, letter);
  return line;
}

}  // namespace

Status merge(const MergeOptions& options) {
  if (!std::isfinite(options.scale)) throw UsageError("--scale: must be finite, got " + number(options.scale));
  const auto loaded = load(options.adapter, options.base, Order::Matters);
  const auto& adapter = loaded.adapter;
  const Model model(options.model);
  const std::string model_name = options.model.string();
  const Weights weights(model.files, adapter);

  auto report = match_model(adapter, weights, options.adapter);
  report.missing.clear();  // a part of the model is merged; `check` tells
  if (!report.complete())
    throw Mismatch(model_name + ": every module must have its weight, got " + in_one_line(report.describe()));
  Jobs jobs;
  for (const auto& [name, module] : adapter.modules) {
    const Tensor* weight = weights.find(name);
    if (!lora::safetensors::is_floating(weight->type))
      throw FormatError(model_name + ": the weight of " + shown(name) + " must be F64, F32, F16 or BF16, got " +
                        std::string(lora::safetensors::type_name(weight->type)));
    jobs.emplace(weight->bytes.data(), Job{weight, &module, name, weights.by_inputs(name, *weight)});
  }
  const auto write = [&](const fs::path& path, std::size_t i) {
    write_file(path, model.mapped[i].bytes(), model.files[i].name(), jobs, options.scale);
  };
  if (model.index.empty()) {
    write(options.out, 0);
  } else {
    NewFolder folder(options.out);
    for (std::size_t i = 0; i < model.files.size(); ++i) write(folder / model.names[i], i);
    lora::io::write_atomically(folder / Model::index_name,
                               [&](lora::io::AtomicFile& out) { out.write(std::span(model.index)); });
    folder.commit();
  }
  std::cout << options.out.string() << ": " << count(jobs.size(), "weight") << " merged, the other "
            << count(model.tensors() - jobs.size(), "tensor") << " as before"
            << (model.index.empty() ? "" : ", in " + count(model.files.size(), "file") + " and an index") << '\n';
  return Status::Fine;
}

}  // namespace adapter_tool
