// SPDX-License-Identifier: MIT
// Reads and writes safetensors files: named arrays behind a checked header, without copies.
#pragma once

#include <lora/core/error.hpp>
#include <lora/io/file.hpp>
#include <lora/io/safetensors_header.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lora::safetensors {

static_assert(std::endian::native == std::endian::little, "lora: the files hold little-endian numbers, and so must we");

/// An array somewhere in memory, elements without gaps, the last dimension fastest. Its address may be unaligned.
struct Tensor {
  Type type = Type::F32;
  Shape shape;
  std::span<const std::byte> bytes;
};
using Tensors = std::map<std::string, Tensor, std::less<>>;

/// A safetensors file, checked as a whole before anything is handed out.
///
/// Held to every rule of the reference reader: the header's length, UTF-8 and JSON; whole, non-negative sizes and
/// offsets; sizes that overflow; tensors that overlap, leave holes or do not fill the file. Stricter than it in one
/// rule of the format: a name that stands twice (and a metadata key) is refused. Cost O(header), whatever the tensors
/// hold: their values are not looked at.
///
///     const auto file = safetensors::File::open("model.safetensors");
///     const auto W = safetensors::to_matrix<float>(file.at("lm_head.weight"));     // io/safetensors_matrix.hpp
///
/// The tensors point into the file's memory and live as long as the `File`; moving it leaves them in place.
class File {
 public:
  /// Maps a file. \throws IoError  cannot be read. \throws FormatError  breaks a rule; the message names file and
  /// place.
  static File open(const std::filesystem::path& path) {
    File file;
    file.mapped_ = io::MappedFile(path);
    file.read(file.mapped_.bytes(), path.string());
    return file;
  }
  /// Reads a buffer that outlives the `File`; `name` begins the messages.
  static File parse(std::span<const std::byte> bytes, const std::string& name = "safetensors") {
    File file;
    file.read(bytes, name);
    return file;
  }
  /// Takes a buffer over.
  static File parse(std::vector<std::byte>&& bytes, const std::string& name = "safetensors") {
    File file;
    file.owned_ = std::move(bytes);
    file.read(file.owned_, name);
    return file;
  }

  /// All tensors, by name.
  const Tensors& tensors() const { return tensors_; }
  /// In alphabetical order.
  std::vector<std::string> names() const {
    std::vector<std::string> result;
    result.reserve(tensors_.size());
    for (const auto& [name, tensor] : tensors_) result.push_back(name);
    return result;
  }
  /// Null where there is none.
  const Tensor* find(std::string_view name) const {
    const auto position = tensors_.find(name);
    return position == tensors_.end() ? nullptr : &position->second;
  }
  /// \throws FormatError  no tensor of that name.
  const Tensor& at(std::string_view name) const {
    const Tensor* const tensor = find(name);
    detail::require<FormatError>(tensor != nullptr, name_, ": must hold the tensor ", detail::quoted(name),
                                 ", got none of that name");
    return *tensor;
  }
  /// The tensor's bytes need not stay in memory, if the file is mapped; see `io::MappedFile::release`.
  void release(const Tensor& tensor) const { mapped_.release(tensor.bytes); }
  const Metadata& metadata() const { return metadata_; }
  /// The path, or what `parse` was told.
  const std::string& name() const { return name_; }

 private:
  File() = default;

  void read(std::span<const std::byte> file, const std::string& name) {
    name_ = name;
    detail::require<FormatError>(file.size() >= 8, name_, ": file must hold at least 8 bytes, got ", file.size());
    std::uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof length);
    detail::require<FormatError>(length <= longest_header, name_, ": header length must be at most ", longest_header,
                                 ", got ", length);
    detail::require<FormatError>(length <= file.size() - 8, name_, ": header of ", length,
                                 " bytes must lie inside the file, got a file of ", file.size());
    const auto header_bytes = file.subspan(8, static_cast<std::size_t>(length));
    const std::string_view text(reinterpret_cast<const char*>(header_bytes.data()), header_bytes.size());
    detail::SafetensorsHeader header(text, name_);
    metadata_ = std::move(header.metadata);
    place(header, file.subspan(8 + header_bytes.size()));
  }

  /// Gives each entry its bytes: in the order of their offsets, each begins where the one before it ended.
  void place(detail::SafetensorsHeader& header, std::span<const std::byte> data) {
    using Item = std::pair<const std::string, detail::SafetensorsHeader::Entry>;
    std::vector<Item*> order;
    order.reserve(header.tensors.size());
    for (auto& item : header.tensors) order.push_back(&item);
    std::sort(order.begin(), order.end(),
              [](const Item* left, const Item* right) { return left->second.offsets < right->second.offsets; });
    std::uint64_t end = 0;
    for (Item* item : order) {
      auto& [tensor_name, entry] = *item;
      const std::string where = name_ + ": tensor " + detail::quoted(tensor_name);
      const std::uint64_t first = entry.offsets[0], last = entry.offsets[1];
      detail::require<FormatError>(first == end && last >= first, where,
                                   ": data_offsets must begin where the tensor before ended, ", end, ", got [", first,
                                   ", ", last, "]");
      detail::require<FormatError>(last <= data.size(), where, ": data_offsets must lie inside the data of ",
                                   data.size(), " bytes, got [", first, ", ", last, "]");
      const std::uint64_t size = detail::tensor_bytes(*entry.type, *entry.shape, where);
      detail::require<FormatError>(last - first == size, where, ": data_offsets must span ", size, " bytes for shape ",
                                   detail::shape_text(*entry.shape), " of ", type_name(*entry.type), ", got ",
                                   last - first);
      const auto bytes = data.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(size));
      tensors_.emplace(tensor_name, Tensor{*entry.type, std::move(*entry.shape), bytes});
      end = last;
    }
    detail::require<FormatError>(end == data.size(), name_, ": tensors must fill the data of ", data.size(),
                                 " bytes, got ", end);
  }

  std::string name_;
  io::MappedFile mapped_;
  std::vector<std::byte> owned_;
  Tensors tensors_;
  Metadata metadata_;
};

}  // namespace lora::safetensors

namespace lora::detail {

/// Tensors in the order in which a file holds them: wide types first, so that all are aligned; then by name.
inline std::vector<const safetensors::Tensors::value_type*> file_order(const safetensors::Tensors& tensors) {
  std::vector<const safetensors::Tensors::value_type*> order;
  order.reserve(tensors.size());
  for (const auto& item : tensors) order.push_back(&item);
  std::stable_sort(order.begin(), order.end(),
                   [](const auto* left, const auto* right) { return left->second.type > right->second.type; });
  return order;
}

inline std::string json_string(const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::type_error&) {
    throw FormatError("safetensors: names and metadata must be UTF-8, got other bytes");
  }
}

/// The length and the header, padded with blanks to a multiple of 8 bytes.
inline std::string file_header(const safetensors::Tensors& tensors, const safetensors::Metadata& metadata) {
  std::string text = "{";
  const auto begin_item = [&text] {
    if (text.back() != '{') text += ',';
  };
  if (!metadata.empty()) {
    text += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      begin_item();
      text += json_string(key) + ':' + json_string(value);
    }
    text += '}';
  }
  std::uint64_t offset = 0;
  for (const auto* item : file_order(tensors)) {
    const auto& [name, tensor] = *item;
    require<FormatError>(name != "__metadata__", "safetensors: a tensor must not be called __metadata__, got one");
    const std::string where = "safetensors: tensor " + detail::quoted(name);
    const std::uint64_t size = tensor_bytes(tensor.type, tensor.shape, where);
    require<FormatError>(size == tensor.bytes.size(), where, ": must hold ", size, " bytes for shape ",
                         shape_text(tensor.shape), " of ", type_name(tensor.type), ", got ", tensor.bytes.size());
    begin_item();
    text += json_string(name) + R"(:{"dtype":")";
    text += safetensors::type_name(tensor.type);
    text += R"(","shape":[)";
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
      if (i > 0) text += ',';
      append(text, tensor.shape[i]);
    }
    text += R"(],"data_offsets":[)";
    append(text, offset);
    text += ',';
    append(text, offset += size);
    text += "]}";
  }
  text += '}';
  text.append((8 - text.size() % 8) % 8, ' ');
  const std::uint64_t length = text.size();
  require<FormatError>(length <= safetensors::longest_header, "safetensors: header must hold at most ",
                       safetensors::longest_header, " bytes, got ", length);
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text;
}

inline void write_tensors(io::AtomicFile& file, const std::string& header, const safetensors::Tensors& tensors) {
  file.write(header);
  for (const auto* item : file_order(tensors)) file.write(item->second.bytes);
}

}  // namespace lora::detail

namespace lora::safetensors {

/// Writes a file as a whole or not at all, see `io::write_atomically`; byte for byte what the reference writes (which
/// leaves open the order of several metadata keys: here it is alphabetical).
///
/// The tensors may lie in a mapping of the very file that is replaced.
/// \throws FormatError  before a byte is written: bytes that do not fit the shape, a name that is not UTF-8.
/// \throws IoError  what the system refuses; the old file stays.
inline void write(const std::filesystem::path& path, const Tensors& tensors, const Metadata& metadata = {}) {
  const std::string header = detail::file_header(tensors, metadata);
  io::write_atomically(path, [&](io::AtomicFile& file) { detail::write_tensors(file, header, tensors); });
}

/// The same bytes in memory. \throws FormatError  as `write`.
inline std::vector<std::byte> to_bytes(const Tensors& tensors, const Metadata& metadata = {}) {
  const std::string header = detail::file_header(tensors, metadata);
  const auto head = std::as_bytes(std::span(header));
  std::vector<std::byte> bytes(head.begin(), head.end());
  for (const auto* item : detail::file_order(tensors)) {
    bytes.insert(bytes.end(), item->second.bytes.begin(), item->second.bytes.end());
  }
  return bytes;
}

}  // namespace lora::safetensors
