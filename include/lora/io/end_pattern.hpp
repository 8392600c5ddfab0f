// SPDX-License-Identifier: MIT
// PEFT's `rank_pattern` and `alpha_pattern`: values for the modules whose names end in what an expression describes.
#pragma once

#include <lora/core/error.hpp>
#include <lora/io/safetensors_header.hpp>
#include <lora/model/name_pattern.hpp>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lora::peft {

/// Entries by pattern, in the order in which they are tried; the first that matches counts.
template <class Value>
using Pattern = std::vector<std::pair<std::string, Value>>;

}  // namespace lora::peft

namespace lora::detail {

/// One entry of a pattern. Plain names, the usual case, are compared letter by letter instead of by an automaton: a
/// model has hundreds of modules and may have as many entries.
class EndPattern {
 public:
  /// \throws FormatError  an expression that Python and std::regex do not read alike; `place` begins the message.
  EndPattern(std::string_view pattern, const std::string& place) {
    std::string_view rest = pattern;
    whole_ = rest.starts_with('^');
    if (whole_) rest.remove_prefix(1);
    bool plain = true;
    while (plain && !rest.empty()) {
      const bool escaped = rest.size() > 1 && rest[0] == '\\';
      if (escaped) rest.remove_prefix(1);
      const char c = rest.front();
      const bool letter = is_letter(c);
      plain = escaped ? !letter && static_cast<unsigned char>(c) < 0x80 : letter || c == '_' || c == '-' || c == '.';
      letters_ += !escaped && c == '.' ? any : c;
      rest.remove_prefix(1);
    }
    if (plain && !letters_.empty()) return;
    letters_.clear();
    try {
      regex_.emplace("(?:.*\\.)?", pattern, "", "pattern");
    } catch (const ConfigError& error) {
      const std::string text = error.what();  // "plan: pattern must ..."
      throw FormatError(place + text.substr(std::min(text.size(), text.find(' ', text.find(' ') + 1))));
    }
  }
  std::size_t size() const { return regex_ ? regex_->size() : 0; }  ///< of what is compiled
  bool matches(std::string_view name) const {
    if (regex_) return name.size() <= most_name && regex_->matches(name);
    if (name.size() < letters_.size() || (whole_ && name.size() > letters_.size())) return false;
    const std::size_t start = name.size() - letters_.size();
    if (start > 0 && name[start - 1] != '.') return false;
    return std::equal(letters_.begin(), letters_.end(), name.begin() + static_cast<std::ptrdiff_t>(start),
                      [](char pattern, char c) { return pattern == any ? c != '\n' : pattern == c; });
  }

 private:
  static constexpr char any = '\xFF';  // no byte of UTF-8
  static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'); }

  bool whole_ = false;
  std::string letters_;
  std::optional<NamePattern<char>> regex_;
};

/// A pattern's entries, made ready once and then asked for each module.
template <class Value>
class PatternTable {
 public:
  /// \throws FormatError  an entry that `EndPattern` refuses; entries that take too much together.
  PatternTable(const peft::Pattern<Value>& entries, const std::string& place) : entries_(entries), place_(place) {
    patterns_.reserve(entries.size());
    std::size_t size = 0;
    for (const auto& [pattern, value] : entries) {
      size += patterns_.emplace_back(pattern, place + " " + detail::quoted(pattern)).size();
      require<FormatError>(size <= most_patterns, place, " must have patterns of at most ", most_patterns,
                           " letters, counted as often as they repeat, got more by ", detail::quoted(pattern));
    }
  }
  Value of(std::string_view name, Value otherwise) const {
    for (std::size_t i = 0; i < patterns_.size(); ++i) {
      if (patterns_[i].matches(name)) return entries_[i].second;
    }
    return otherwise;
  }
  /// Throws FormatError where an entry matches none of the names, the keys of `modules`.
  template <class Modules>
  void require_use(const Modules& modules) const {
    for (std::size_t i = 0; i < patterns_.size(); ++i) {
      const bool used = std::any_of(modules.begin(), modules.end(),
                                    [&](const auto& item) { return patterns_[i].matches(item.first); });
      require<FormatError>(used, place_, " must match a module of the adapter, got none for ",
                           detail::quoted(entries_[i].first));
    }
  }

 private:
  const peft::Pattern<Value>& entries_;
  std::string place_;
  std::vector<EndPattern> patterns_;
};

}  // namespace lora::detail
