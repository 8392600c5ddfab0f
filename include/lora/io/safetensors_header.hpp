// SPDX-License-Identifier: MIT
// The header of a safetensors file: element types, shapes, and the JSON that names them.
#pragma once

#include <lora/core/error.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lora::safetensors {

/// Element types, in the reference's order: a file holds its tensors from the last type down to the first.
enum class Type {
  Bool,
  F4,
  F6E2M3,
  F6E3M2,
  U8,
  I8,
  F8E5M2,
  F8E4M3,
  F8E8M0,
  F8E4M3Fnuz,
  F8E5M2Fnuz,
  I16,
  U16,
  F16,
  BF16,
  I32,
  U32,
  F32,
  C64,
  F64,
  I64,
  U64,
};

struct TypeInfo {
  std::string_view name;  ///< in files
  unsigned bits;          ///< of one element
};
/// By `Type`.
inline constexpr std::array<TypeInfo, 22> types{{
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
    {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64},
}};
inline std::string_view type_name(Type type) { return types[static_cast<std::size_t>(type)].name; }
inline unsigned bits(Type type) { return types[static_cast<std::size_t>(type)].bits; }
/// The type of that name in a file, or none.
inline std::optional<Type> find_type(std::string_view name) {
  for (std::size_t i = 0; i < types.size(); ++i) {
    if (types[i].name == name) return static_cast<Type>(i);
  }
  return std::nullopt;
}

/// Sizes from the slowest dimension to the fastest; none for a single number.
using Shape = std::vector<std::uint64_t>;
/// Free text beside the tensors.
using Metadata = std::map<std::string, std::string>;

/// The longest header that anybody reads or writes, in bytes; the reference's bound.
inline constexpr std::uint64_t longest_header = 100'000'000;

}  // namespace lora::safetensors

namespace lora::detail {

/// A name from a file as messages show it: in quotes, cut where it is long, without control characters. (Call it with
/// its namespace: std::quoted is near.)
inline std::string quoted(std::string_view name) {
  constexpr std::size_t most = 200;
  std::string text = "\"";
  append(text, Printable{name.substr(0, most)});
  return text + (name.size() > most ? "...\"" : "\"");
}

inline std::string shape_text(std::span<const std::uint64_t> shape) {
  std::string text = "[";
  constexpr std::size_t most = 16;
  for (std::size_t i = 0; i < std::min(shape.size(), most); ++i) {
    if (i > 0) text += ", ";
    append(text, shape[i]);
  }
  return text + (shape.size() > most ? ", ...]" : "]");
}

/// The bytes that a shape takes. \throws FormatError  beyond 64 bits, or not whole bytes; `where` begins the message.
template <class... Where>
std::uint64_t tensor_bytes(safetensors::Type type, std::span<const std::uint64_t> shape, const Where&... where) {
  std::uint64_t size = 1;
  bool fits = true;
  const auto multiply = [&](std::uint64_t factor) {
    fits = fits && (factor == 0 || size <= std::numeric_limits<std::uint64_t>::max() / factor);
    size *= factor;
  };
  for (const std::uint64_t length : shape) multiply(length);
  multiply(safetensors::bits(type));
  require<FormatError>(fits, where..., ": size must fit 64 bits, got shape ", shape_text(shape), " of ",
                       safetensors::type_name(type));
  require<FormatError>(size % 8 == 0, where..., ": size must be whole bytes, got ", size, " bits");
  return size / 8;
}

/// Reads the JSON event by event, which shows duplicate names: a parser that builds a document keeps the last of them
/// in silence. Memory grows with what is kept, a multiple of the header at most.
class SafetensorsHeader {
 public:
  struct Entry {
    std::optional<safetensors::Type> type;
    std::optional<safetensors::Shape> shape;
    std::vector<std::uint64_t> offsets;
  };
  std::map<std::string, Entry> tensors;
  safetensors::Metadata metadata;

  /// \throws FormatError  anything but an object of tensors; `file` begins the message.
  SafetensorsHeader(std::string_view text, const std::string& file) : file_(file) {
    // The parser would take a byte-order mark for a blank and a zero byte for the end.
    const auto first = text.find_first_not_of(" \t\r\n");
    require<FormatError>(first != std::string_view::npos && text[first] == '{', file_,
                         ": header must be a JSON object, got something else");
    const auto zero = text.find('\0');
    require<FormatError>(zero == std::string_view::npos, file_, ": header must be JSON, got a zero byte at byte ",
                         zero);
    nlohmann::json::sax_parse(text.begin(), text.end(), this);
  }

  // ---- what the parser calls; each answers whether to go on

  bool null() { return other("null"); }
  bool boolean(bool /*value*/) { return other("a boolean"); }
  bool number_integer(std::int64_t /*value*/) { return other("a negative number"); }
  bool number_float(double /*value*/, const std::string& /*text*/) {
    return other("a number that is not a 64-bit one");
  }
  bool number_unsigned(std::uint64_t value) {
    if (expected_ == Expected::Size) {
      entry_->shape->push_back(value);
    } else if (expected_ == Expected::Offset && entry_->offsets.size() < 2) {
      entry_->offsets.push_back(value);
    } else {
      return other(expected_ == Expected::Offset ? "a third one" : "a number");
    }
    return true;
  }
  bool string(std::string& text) {
    if (expected_ == Expected::Text) {
      const bool is_new = metadata.emplace(key_, std::move(text)).second;
      require<FormatError>(is_new, file_, ": __metadata__ ", detail::quoted(key_),
                           " must stand once, got a second one");
    } else if (expected_ == Expected::TypeName) {
      entry_->type = safetensors::find_type(text);
      require<FormatError>(entry_->type.has_value(), place(), ": dtype must be a known one, got ",
                           detail::quoted(text));
      expected_ = Expected::Field;
    } else {
      return other("a string");
    }
    return true;
  }
  bool binary(nlohmann::json::binary_t& /*bytes*/) { return other("binary"); }
  bool start_object(std::size_t /*count*/) {
    switch (expected_) {
      case Expected::Document:
        expected_ = Expected::Tensor;
        return true;
      case Expected::Tensor:
        expected_ = Expected::Field;
        return true;
      case Expected::Metadata:
        expected_ = Expected::Text;
        return true;
      default:
        return nested("an object");
    }
  }
  bool start_array(std::size_t /*count*/) {
    switch (expected_) {
      case Expected::Shape:
        expected_ = Expected::Size;
        return true;
      case Expected::Offsets:
        expected_ = Expected::Offset;
        return true;
      default:
        return nested("an array");
    }
  }
  bool key(std::string& name) {
    if (expected_ == Expected::Anything) return true;
    if (expected_ == Expected::Field) return field(name);
    key_ = std::move(name);
    if (expected_ == Expected::Text) return true;
    if (key_ == "__metadata__") {
      require<FormatError>(!has_metadata_, file_, ": __metadata__ must stand once, got a second one");
      has_metadata_ = true;
      expected_ = Expected::Metadata;
      return true;
    }
    const auto [position, is_new] = tensors.try_emplace(key_);
    require<FormatError>(is_new, place(), ": a name must stand once, got a second one");
    entry_ = &position->second;
    return true;
  }
  bool end_object() {
    if (expected_ == Expected::Anything) return unnested();
    if (expected_ == Expected::Field) {
      require<FormatError>(entry_->type && entry_->shape && entry_->offsets.size() == 2, place(),
                           ": must have dtype, shape and data_offsets, got fewer");
    }
    expected_ = Expected::Tensor;  // or the end, which the parser knows
    return true;
  }
  bool end_array() {
    if (expected_ == Expected::Anything) return unnested();
    require<FormatError>(expected_ != Expected::Offset || entry_->offsets.size() == 2, place(),
                         ": data_offsets must be two whole numbers, got fewer");
    expected_ = Expected::Field;
    return true;
  }
  bool parse_error(std::size_t position, const std::string& /*token*/, const nlohmann::json::exception& /*error*/) {
    throw FormatError(file_ + ": header must be UTF-8 JSON, got a fault at byte " + std::to_string(position));
  }

 private:
  enum class Expected { Document, Tensor, Metadata, Text, Field, TypeName, Shape, Size, Offsets, Offset, Anything };
  static constexpr int deepest = 127;  // as in the reference's parser

  std::string place() const { return file_ + ": tensor " + detail::quoted(key_); }

  bool field(const std::string& name) {
    bool seen = false;
    if (name == "dtype") {
      seen = entry_->type.has_value();
      expected_ = Expected::TypeName;
    } else if (name == "shape") {
      seen = entry_->shape.has_value();
      entry_->shape.emplace();
      expected_ = Expected::Shape;
    } else if (name == "data_offsets") {
      seen = !entry_->offsets.empty();
      expected_ = Expected::Offsets;
    } else {
      expected_ = Expected::Anything;  // for fields of later versions; the reference skips them too
    }
    require<FormatError>(!seen, place(), ": ", name, " must stand once, got a second one");
    return true;
  }
  bool nested(std::string_view got) {
    if (expected_ != Expected::Anything) return other(got);
    require<FormatError>(++depth_ < deepest, place(), ": must not be nested deeper than ", deepest, ", got more");
    return true;
  }
  bool unnested() {
    if (--depth_ == 0) expected_ = Expected::Field;
    return true;
  }
  /// A value of no use: skipped in an unknown field, refused elsewhere.
  bool other(std::string_view got) {
    switch (expected_) {
      case Expected::Anything:
        if (depth_ == 0) expected_ = Expected::Field;
        return true;
      case Expected::Metadata:
        throw FormatError(file_ + ": __metadata__ must be an object, got " + std::string(got));
      case Expected::Text:
        throw FormatError(file_ + ": __metadata__ " + detail::quoted(key_) + " must be a string, got " +
                          std::string(got));
      case Expected::TypeName:
        return refuse("dtype must be a string", got);
      case Expected::Shape:
      case Expected::Size:
        return refuse("shape must be an array of whole numbers", got);
      case Expected::Offsets:
      case Expected::Offset:
        return refuse("data_offsets must be two whole numbers", got);
      default:
        return refuse("must be an object", got);
    }
  }
  bool refuse(std::string_view rule, std::string_view got) const {
    throw FormatError(place() + ": " + std::string(rule) + ", got " + std::string(got));
  }

  const std::string& file_;
  Expected expected_ = Expected::Document;
  std::string key_;
  Entry* entry_ = nullptr;
  bool has_metadata_ = false;
  int depth_ = 0;
};

}  // namespace lora::detail
