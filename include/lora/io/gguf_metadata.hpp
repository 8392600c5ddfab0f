// SPDX-License-Identifier: MIT
// The metadata of a GGUF file: an ordered list of keys with typed values, and getters that check the type.
#pragma once

#include <lora/core/error.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace lora::gguf {

/// Numbers, booleans or strings, all of one type. Arrays of arrays are refused, as ggml refuses them.
struct Array {
  struct Nested {
    bool operator==(const Nested&) const = default;
  };
  /// The index of the alternative is the type's number in the file.
  using Elements = std::variant<std::vector<std::uint8_t>, std::vector<std::int8_t>, std::vector<std::uint16_t>,
                                std::vector<std::int16_t>, std::vector<std::uint32_t>, std::vector<std::int32_t>,
                                std::vector<float>, std::vector<bool>, std::vector<std::string>, Nested,
                                std::vector<std::uint64_t>, std::vector<std::int64_t>, std::vector<double>>;
  Elements elements;

  bool operator==(const Array&) const = default;
};

/// The index of the alternative is the type's number in the file. Written with the exact type: `std::uint32_t{8}`.
using Value = std::variant<std::uint8_t, std::int8_t, std::uint16_t, std::int16_t, std::uint32_t, std::int32_t, float,
                           bool, std::string, Array, std::uint64_t, std::int64_t, double>;

}  // namespace lora::gguf

namespace lora::detail {

inline constexpr std::array<std::string_view, 13> gguf_type_names{"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                                  "bool", "string", "array", "u64", "i64", "f64"};

/// The number of `Type` among the alternatives of a variant.
template <class Type, class Variant>
struct AlternativeIndex;
template <class Type, class... Types>
struct AlternativeIndex<Type, std::variant<Types...>> {
  static constexpr std::size_t value = [] {
    constexpr bool same[] = {std::is_same_v<Type, Types>...};
    return static_cast<std::size_t>(std::find(std::begin(same), std::end(same), true) - std::begin(same));
  }();
};

template <class Type>
struct IsVector : std::false_type {};
template <class Element>
struct IsVector<std::vector<Element>> : std::true_type {};

/// "u32", "string", "array of f32".
template <class Type>
std::string gguf_type_name() {
  if constexpr (IsVector<Type>::value) {
    return "array of " + gguf_type_name<typename Type::value_type>();
  } else {
    return std::string(gguf_type_names[AlternativeIndex<Type, gguf::Value>::value]);
  }
}
inline std::string gguf_type_name(const gguf::Value& value) {
  if (const auto* array = std::get_if<gguf::Array>(&value)) {
    return "array of " + std::string(gguf_type_names[array->elements.index()]);
  }
  return std::string(gguf_type_names[value.index()]);
}

}  // namespace lora::detail

namespace lora::gguf {

/// Keys and values in the order of the file. `find` takes time linear in their number.
class Metadata {
 public:
  using Item = std::pair<std::string, Value>;

  Metadata() = default;
  /// `file` is what messages begin with. \pre no key stands twice.
  Metadata(std::string file, std::vector<Item> items) : file_(std::move(file)), items_(std::move(items)) {}

  const std::string& file() const { return file_; }
  const std::vector<Item>& items() const { return items_; }

  const Value* find(std::string_view key) const {
    const auto item = std::find_if(items_.begin(), items_.end(), [&](const Item& each) { return each.first == key; });
    return item == items_.end() ? nullptr : &item->second;
  }

  /// The value of exactly this type, a `std::vector` for an array: `get<std::vector<std::string>>(key)`.
  /// \throws FormatError  no such key; a value of another type (no conversion, for ggml makes none).
  template <class Type>
  const Type& get(std::string_view key) const {
    const Value* value = find(key);
    detail::require<FormatError>(value != nullptr, file_, ": key \"", key, "\" must be ",
                                 detail::gguf_type_name<Type>(), ", got no such key");
    return as<Type>(*value, key);
  }
  /// The same, or `fallback` where there is no such key. \throws FormatError  a value of another type.
  template <class Type>
  Type get_or(std::string_view key, Type fallback) const {
    const Value* value = find(key);
    return value == nullptr ? std::move(fallback) : as<Type>(*value, key);
  }

  /// Adds a key at the end, or gives it a new value where it stands.
  void set(std::string_view key, Value value) {
    const auto item = std::find_if(items_.begin(), items_.end(), [&](const Item& each) { return each.first == key; });
    if (item == items_.end()) {
      items_.emplace_back(std::string(key), std::move(value));
    } else {
      item->second = std::move(value);
    }
  }

  /// Same keys, types and values in the same order, whatever the file.
  friend bool operator==(const Metadata& left, const Metadata& right) { return left.items_ == right.items_; }

 private:
  template <class Type>
  const Type& as(const Value& value, std::string_view key) const {
    const Type* found = nullptr;
    if constexpr (detail::IsVector<Type>::value) {
      if (const auto* array = std::get_if<Array>(&value)) found = std::get_if<Type>(&array->elements);
    } else {
      found = std::get_if<Type>(&value);
    }
    if (found == nullptr) {
      throw FormatError(file_ + ": key \"" + std::string(key) + "\" must be " + detail::gguf_type_name<Type>() +
                        ", got " + detail::gguf_type_name(value));
    }
    return *found;
  }

  std::string file_ = "gguf";
  std::vector<Item> items_;
};

}  // namespace lora::gguf
