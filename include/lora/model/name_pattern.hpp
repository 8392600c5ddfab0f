// SPDX-License-Identifier: MIT
// Regular expressions over module names: what Python's `re` and std::regex read alike, and nothing else.
#pragma once

#include <lora/core/error.hpp>

#include <algorithm>
#include <cstddef>
#include <locale>
#include <regex>
#include <string>
#include <string_view>

namespace lora::detail {

inline constexpr std::size_t most_name = 500, most_pattern = 4000, most_depth = 50, most_repeats = 10'000,
                             most_patterns = 200'000;  // in all patterns of a list, each its length times its repeats

/// Refuses what std::regex (ECMAScript) would read in another way than Python, or at a price without bound.
class PatternRules {
 public:
  PatternRules(std::string_view pattern, std::string_view field) : pattern_(pattern), field_(field) {}

  /// The size of what is compiled, in letters: its length times its repeats.
  std::size_t check() const {
    require<ConfigError>(pattern_.size() <= most_pattern, "plan: ", field_, " must not be longer than ", most_pattern,
                         " characters, got ", pattern_.size());
    bool in_class = false;
    int quantifier = 0;  // 1: the last token was one, and `?` may still follow; 2: nothing may
    std::size_t depth = 0, repeats = 1;
    int ahead = 0;  // each inside another multiplies the time by the length of the name
    for (std::size_t i = 0; i < pattern_.size(); ++i) {
      const char c = pattern_[i];
      const int before = quantifier;
      quantifier = 0;
      if (c == '\\') {
        refuse_unless(i + 1 < pattern_.size(), "end with a backslash");
        const char next = pattern_[++i];
        const bool letter =
            (next >= 'a' && next <= 'z') || (next >= 'A' && next <= 'Z') || (next >= '0' && next <= '9');
        const bool common = std::string_view("dDwWsSnrtfvx").find(next) != std::string_view::npos ||
                            (!in_class && (next == 'b' || next == 'B'));
        refuse_unless(!letter || common,
                      "use an escape other than \\d \\w \\s \\b (or their opposites) and \\n \\r \\t "
                      "\\f \\v \\x; groups cannot be referred to");
      } else if (in_class) {
        const char next = i + 1 < pattern_.size() ? pattern_[i + 1] : '\0';
        refuse_unless(c != '[' || (next != ':' && next != '.' && next != '='), "use POSIX classes");
        in_class = c != ']';
      } else if (c == '[') {
        in_class = true;
        if (i + 1 < pattern_.size() && pattern_[i + 1] == '^') ++i;
        refuse_unless(i + 1 >= pattern_.size() || pattern_[i + 1] != ']', "use a class that begins with ]");
      } else if (c == '*' || c == '+' || c == '?' || c == '{') {
        refuse_unless(before == 0 || (before == 1 && c == '?'), "put one quantifier behind another");
        quantifier = before + 1;
        if (c == '{') {
          repeats *= std::max<std::size_t>(1, largest_count(i));
          i = std::min(pattern_.find('}', i), pattern_.size() - 1);
          refuse_unless(repeats * pattern_.size() <= most_repeats, "repeat as often as that");
        }
      } else if (c == '(') {
        refuse_unless(++depth <= most_depth, "nest groups as deeply as that");
        if (i + 1 < pattern_.size() && pattern_[i + 1] == '?') ++i;  // (?: (?= (?!, and what std::regex refuses itself
        if (i + 1 < pattern_.size() && pattern_[i] == '?' && (pattern_[i + 1] == '=' || pattern_[i + 1] == '!'))
          ++ahead;
        refuse_unless(ahead <= 2, "look ahead more than twice");
      } else if (c == ')' && depth > 0) {
        --depth;
      }
    }
    return repeats * pattern_.size();
  }

 private:
  void refuse_unless(bool rule, std::string_view what) const {
    require<ConfigError>(rule, "plan: ", field_, " must not ", what, ", got ", Printable{pattern_});
  }
  /// The largest number up to the next brace, as far as it matters.
  std::size_t largest_count(std::size_t i) const {
    std::size_t largest = 0, number = 0;
    for (++i; i < pattern_.size() && pattern_[i] != '}'; ++i) {
      const bool digit = pattern_[i] >= '0' && pattern_[i] <= '9';
      number = digit
                   ? std::min<std::size_t>(10 * number + static_cast<std::size_t>(pattern_[i] - '0'), most_repeats + 1)
                   : 0;
      largest = std::max(largest, number);
    }
    return largest;
  }

  std::string_view pattern_, field_;
};

/// `before` pattern `after` over whole names. A template, so that std::regex costs nothing where it is not used.
template <class Character = char>
class NamePattern {
 public:
  /// \throws ConfigError  the pattern is broken, or not common to both dialects; `field` names where it stands.
  NamePattern(std::string_view before, std::string_view pattern, std::string_view after, std::string_view field) {
    size_ = PatternRules(pattern, field).check();
    auto flags = std::regex_constants::ECMAScript;
#ifdef __GLIBCXX__
    flags |= std::regex_constants::__polynomial;  // no backtracking: time grows with name times pattern
#endif
    regex_.imbue(std::locale::classic());
    try {
      regex_.assign(std::string(pattern), flags);  // alone, so that its groups are balanced
      regex_.assign(std::string(before).append("(?:").append(pattern).append(")").append(after), flags);
    } catch (const std::regex_error& error) {
      throw ConfigError(
          joined("plan: ", field, " must be a regular expression, got ", Printable{pattern}, " (", error.what(), ")"));
    }
  }
  bool matches(std::string_view name) const { return std::regex_match(name.begin(), name.end(), regex_); }
  std::size_t size() const { return size_; }  ///< its length times its repeats, which its memory grows with

 private:
  std::size_t size_ = 0;
  std::basic_regex<Character> regex_;
};

}  // namespace lora::detail
