// SPDX-License-Identifier: MIT
// Reads the JSON of a configuration file strictly: one key after the other, each of its type, none twice.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>
#include <lora/io/end_pattern.hpp>
#include <lora/io/safetensors_header.hpp>

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lora::detail {

/// Parses JSON in which no object has a key twice, and notes the order of the keys one level down. nlohmann's own
/// parser would keep the last of them in silence, and its ordered objects take quadratic time.
inline nlohmann::json parse_config(std::string_view text, const std::string& where,
                                   std::map<std::string, std::vector<std::string>>& order) {
  using nlohmann::json;
  constexpr std::size_t deepest = 32;
  const auto first = text.find_first_not_of(" \t\r\n");
  require<FormatError>(first != std::string_view::npos && text[first] == '{', where,
                       ": must be a JSON object, got something else");
  require<FormatError>(text.find('\0') == std::string_view::npos, where, ": must be JSON, got a zero byte");
  std::vector<std::set<std::string>> names;
  std::size_t depth = 0;
  std::string top;
  const auto watch = [&](int /*depth*/, json::parse_event_t event, json& parsed) {
    switch (event) {
      case json::parse_event_t::object_start:
        names.emplace_back();
        [[fallthrough]];
      case json::parse_event_t::array_start:
        require<FormatError>(++depth <= deepest, where, ": must not be nested deeper than ", deepest, ", got more");
        break;
      case json::parse_event_t::object_end:
        names.pop_back();
        [[fallthrough]];
      case json::parse_event_t::array_end:
        --depth;
        break;
      case json::parse_event_t::key: {
        const auto& name = parsed.get_ref<const std::string&>();
        const bool is_new = names.back().insert(name).second;
        require<FormatError>(is_new, where, ": ", detail::quoted(name), " must stand once, got a second one");
        if (depth == 1) top = name;
        if (depth == 2) order[top].push_back(name);
        break;
      }
      default:
        break;
    }
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), watch);
  } catch (const json::parse_error& error) {
    throw FormatError(where + ": must be UTF-8 JSON, got a fault at byte " + std::to_string(error.byte));
  } catch (const json::exception&) {
    throw FormatError(where + ": must hold numbers that fit 64 bits, got a larger one");
  }
}

/// Takes one key after the other out of a parsed object; null counts as absent.
class ConfigReader {
 public:
  ConfigReader(nlohmann::json object, const std::string& where) : object_(std::move(object)), where_(where) {}

  std::optional<nlohmann::json> take(const char* key) {
    const auto position = object_.find(key);
    if (position == object_.end()) return std::nullopt;
    std::optional<nlohmann::json> value;
    if (!position->is_null()) value = std::move(*position);
    object_.erase(position);
    return value;
  }
  template <class... Parts>
  void check(bool rule, std::string_view key, const Parts&... parts) const {
    require<FormatError>(rule, where_, ": ", key, parts...);
  }

  bool flag(const char* key) {
    const auto value = take(key);
    check(!value || value->is_boolean(), key, " must be true or false, got ", shown(value));
    return value && value->get<bool>();
  }
  std::string text(const char* key) {
    const auto value = take(key);
    check(!value || value->is_string(), key, " must be a string or null, got ", shown(value));
    return value ? value->get<std::string>() : std::string();
  }
  Index rank(const std::optional<nlohmann::json>& value, std::string_view key) const {
    constexpr std::uint64_t most = std::numeric_limits<std::int32_t>::max();
    const bool whole = value && value->is_number_unsigned();
    check(whole && value->get<std::uint64_t>() >= 1 && value->get<std::uint64_t>() <= most, key,
          " must be a whole number of at least 1, got ", shown(value));
    return static_cast<Index>(value->get<std::uint64_t>());
  }
  double real(const std::optional<nlohmann::json>& value, std::string_view key) const {
    check(value && value->is_number(), key, " must be a number, got ", shown(value));
    return value->get<double>();
  }
  template <class Value, class Read>
  peft::Pattern<Value> pattern(const char* key, const std::vector<std::string>& order, const Read& read) {
    const auto object = take(key);
    check(!object || object->is_object(), key, " must be an object, got ", shown(object));
    peft::Pattern<Value> entries;
    if (!object || object->empty()) return entries;
    for (const auto& name : order)
      entries.emplace_back(name, read(object->at(name), key + (" " + detail::quoted(name))));
    return entries;
  }

  nlohmann::json& rest() { return object_; }
  static std::string shown(const std::optional<nlohmann::json>& value) {
    if (!value) return "null";
    if (value->is_structured()) return value->is_array() ? "an array" : "an object";
    if (value->is_string()) return detail::quoted(value->get_ref<const std::string&>());
    return value->dump();
  }

 private:
  nlohmann::json object_;
  const std::string& where_;
};

/// Numbers as PEFT has them: 16, not 16.0.
inline nlohmann::json json_number(double value) {
  constexpr double exact = 9007199254740992;
  if (value == std::floor(value) && std::abs(value) <= exact) return static_cast<std::int64_t>(value);
  return value;
}

}  // namespace lora::detail
