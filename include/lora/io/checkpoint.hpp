// SPDX-License-Identifier: MIT
// Exact resume: named parts of a training run in one file, all of them restored or none.
#pragma once

#include <lora/core/error.hpp>
#include <lora/io/checkpoint_parts.hpp>
#include <lora/io/crc64.hpp>
#include <lora/io/file.hpp>
#include <lora/io/safetensors.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace lora {

namespace detail {

/// The checksum of a whole file but for the eight bytes that hold it.
inline std::uint64_t checkpoint_checksum(std::span<const std::byte> file, std::size_t place) {
  io::Crc64 checksum;
  checksum.update(file.first(place));
  checksum.update(file.subspan(place + sizeof(std::uint64_t)));
  return checksum.value();
}

}  // namespace detail

/// The parts of a training run, by name and by reference: written to a file as often as wanted, and restored from one.
///
///     Checkpoint run;
///     run.add("layer", layer).add("optimizer", optimizer).add("random", random).add("step", step);
///     run.restore("run.checkpoint");  // all parts or, with a message of what differs, none
///     run.write("run.checkpoint");    // atomic: a crash leaves the old file
///
/// Parts are `LoraLinear`, `Optimizer`, `WeightSpace`, `Random`, states of `FullFineTuning`, hyper-parameters
/// (`Schedule`), integers, numbers, bools, Eigen matrices, views of foreign memory, and every type that lists its
/// fields (core/fields.hpp). Training then goes on with the bits of a run that was never stopped, in the same program
/// on the same kind of machine. Hyper-parameters are compared, states are restored; a frozen weight is neither: the
/// layer that is restored into has it already. Restoring needs no second copy of the state, but for the factors of
/// layers and for the weights of baked ones. \pre The parts outlive the checkpoint and stay where they are. \see
/// docs/resume.md
class Checkpoint {
 public:
  /// Names a part: "step", "layers/model.layers.0.q_proj". No part's name may be a folder of another's.
  /// \throws ConfigError  a name that is empty, is taken, lies in or around another one, or begins with "lora.".
  template <class Value>
  Checkpoint& add(const std::string& name, Value&& value) {
    using Type = std::remove_reference_t<Value>;
    if constexpr (detail::is_view<std::remove_const_t<Type>>) {
      return add_part(name, std::remove_const_t<Type>(value));
    } else {
      static_assert(std::is_lvalue_reference_v<Value> && !std::is_const_v<Type>,
                    "lora: a checkpoint refers to its parts and writes to them; give it a variable");
      return add_part(name, std::ref(value));
    }
  }

  /// Writes all parts, see `io::write_atomically`.
  /// \throws IoError  what the system refuses; the old file stays. \throws StateError  a merged layer.
  void write(const std::filesystem::path& path) const {
    detail::CheckpointWriter writer;
    std::uint64_t checksum = 0;
    gather(writer, checksum);
    safetensors::write(path, writer.tensors, writer.texts);
  }
  /// The same bytes in memory.
  std::vector<std::byte> to_bytes() const {
    detail::CheckpointWriter writer;
    std::uint64_t checksum = 0;
    gather(writer, checksum);
    return safetensors::to_bytes(writer.tensors, writer.texts);
  }

  /// Restores all parts.
  /// \throws FormatError  not a checkpoint, another version, truncated or damaged. \throws ConfigError  other parts or
  /// other hyper-parameters than here; the message lists the differences. \throws IoError  cannot be read. Nothing has
  /// changed then.
  void restore(const std::filesystem::path& path) {
    const io::MappedFile file(path);
    restore(file.bytes(), path.string());
  }
  /// The same from memory; `name` begins the messages.
  void restore(std::span<const std::byte> bytes, const std::string& name = "checkpoint") {
    const auto file = safetensors::File::parse(bytes, name);
    check(file, bytes);
    detail::CheckpointReader reader(file);
    for (const auto& [part, access] : parts_) {
      if (reader.begin(part)) access.read(reader);
    }
    reader.end();
    refuse(reader.differences(), name);
    reader.commit();
  }

 private:
  static constexpr std::string_view reserved = "lora.", version = "1";
  struct Access {
    std::function<void(detail::CheckpointWriter&)> write;
    std::function<void(detail::CheckpointReader&)> read;
  };

  /// `holder` is a view or a reference.
  template <class Holder>
  Checkpoint& add_part(const std::string& name, Holder holder) {
    const bool fits = !name.empty() && name.front() != '/' && name.back() != '/' && !name.starts_with(reserved);
    detail::require<ConfigError>(fits, "Checkpoint::add: a name must not be empty, have a / at an end or begin with ",
                                 reserved, ", got ", detail::quoted(name));
    detail::require<ConfigError>(!parts_.contains(name), "Checkpoint::add: names must differ, got a second ",
                                 detail::quoted(name));
    const auto inside = parts_.lower_bound(name + "/");
    const bool around = inside != parts_.end() && inside->first.starts_with(name + "/");
    detail::require<ConfigError>(!around && folder_in(parts_, name).empty(),
                                 "Checkpoint::add: no name may be a folder of another, got ", detail::quoted(name),
                                 " and ", detail::quoted(around ? inside->first : folder_in(parts_, name)));
    parts_[name] = {
        [name, holder](detail::CheckpointWriter& writer) { walk(writer, name, holder); },
        [name, holder](detail::CheckpointReader& reader) { walk(reader, name, holder); },
    };
    return *this;
  }
  template <class Archive, class Type>
  static void walk(Archive& archive, const std::string& name, std::reference_wrapper<Type> part) {
    detail::CheckpointWalk(archive).part(name, part.get());
  }
  template <class Archive, class ViewType>
  static void walk(Archive& archive, const std::string& name, ViewType view) {
    detail::CheckpointWalk(archive).part(name, view);
  }

  /// The key of `map` that names a folder which `name` lies in; empty where there is none.
  template <class Map>
  static std::string folder_in(const Map& map, const std::string& name) {
    for (std::size_t slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1)) {
      if (map.contains(name.substr(0, slash))) return name.substr(0, slash);
    }
    return {};
  }

  /// All that a file holds; `checksum` is where one of its tensors lies.
  void gather(detail::CheckpointWriter& writer, std::uint64_t& checksum) const {
    for (const auto& [name, access] : parts_) access.write(writer);
    writer.texts["lora.format"] = "checkpoint";
    writer.texts["lora.version"] = version;
    writer.tensors["lora.checksum"] = {safetensors::Type::U64, {}, std::as_bytes(std::span(&checksum, 1))};
    const std::string header = detail::file_header(writer.tensors, writer.texts);
    io::Crc64 sum;
    sum.update(std::as_bytes(std::span(header)));
    for (const auto* item : detail::file_order(writer.tensors)) {
      if (item->first != "lora.checksum") sum.update(item->second.bytes);
    }
    checksum = sum.value();
  }

  /// \throws FormatError  unless it is an undamaged checkpoint of this version.
  static void check(const safetensors::File& file, std::span<const std::byte> bytes) {
    const auto text = [&](const char* key) {
      const auto found = file.metadata().find(key);
      return found == file.metadata().end() ? std::string() : found->second;
    };
    detail::require<FormatError>(text("lora.format") == "checkpoint", file.name(),
                                 ": lora.format must be \"checkpoint\", got ", detail::quoted(text("lora.format")));
    detail::require<FormatError>(text("lora.version") == version, file.name(), ": lora.version must be ", version,
                                 ", got ", detail::quoted(text("lora.version")));
    const auto& tensor = file.at("lora.checksum");
    detail::require<FormatError>(tensor.type == safetensors::Type::U64 && tensor.shape.empty(), file.name(),
                                 ": lora.checksum must be one U64, got ", detail::shape_text(tensor.shape), " of ",
                                 safetensors::type_name(tensor.type));
    std::uint64_t stored = 0;
    std::memcpy(&stored, tensor.bytes.data(), sizeof stored);
    const auto place = static_cast<std::size_t>(tensor.bytes.data() - bytes.data());
    const std::uint64_t found = detail::checkpoint_checksum(bytes, place);
    detail::require<FormatError>(stored == found, file.name(), ": checksum must be ", hex(stored), ", got ", hex(found),
                                 ": the file is damaged");
  }

  static std::string hex(std::uint64_t word) {
    std::string digits(16, '0');
    for (std::size_t i = 16; i-- > 0; word >>= 4) digits[i] = "0123456789abcdef"[word & 15];
    return digits;
  }

  static void refuse(const std::vector<std::string>& differences, const std::string& name) {
    constexpr std::size_t most = 10;
    std::string list;
    for (std::size_t i = 0; i < differences.size() && i < most; ++i) list += (i > 0 ? "; " : "") + differences[i];
    if (differences.size() > most) {
      list += "; and ";
      detail::append(list, differences.size() - most);
      list += " more";
    }
    detail::require<ConfigError>(differences.empty(), name, ": must be of the configuration here, got ", list);
  }

  std::map<std::string, Access, std::less<>> parts_;
};

}  // namespace lora
