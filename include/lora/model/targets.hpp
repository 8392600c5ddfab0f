// SPDX-License-Identifier: MIT
// Which layers of a model get an adapter, of which rank and alpha: PEFT's rules, and a report of what they matched.
#pragma once

#include <lora/adapter/adapter_state.hpp>
#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/scaling.hpp>
#include <lora/model/model_adapter.hpp>
#include <lora/model/name_pattern.hpp>
#include <lora/model/table.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <iterator>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

namespace lora {

/// A linear layer of a model by name: W0 is n x m.
struct ModuleShape {
  std::string name;
  Index in_features = 0;   ///< n
  Index out_features = 0;  ///< m
};

/// What becomes of a pattern that matches nothing.
enum class Unmatched {
  Refuse,  ///< an error that names it: mostly it is misspelt
  Report,  ///< stands in the report with no modules, as PEFT lets it pass
};

/// Targets and exceptions, in PEFT's words and with its meaning (LoraConfig, "target_modules" and so on).
///
/// An entry of a list of names is met by a module of that name, or whose name ends with "." and the entry. A pattern is
/// a regular expression over the whole name; those of `rank_pattern`, `alpha_pattern` over its end, from a dot on.
/// Exclusion wins over targets. Rank and alpha come from the first entry that matches, in the order given, or from
/// `lora`. (PEFT's files sort them by name: let no two match the same module.)
///
/// \note std::regex in its ECMAScript dialect stands for Python's `re`. What both know and read differently is refused:
/// references to groups, \A and \Z, POSIX classes, classes that begin with ], quantifiers behind quantifiers. So is
/// what only Python knows: named groups, look-behind, inline flags. Letters and digits are ASCII's, a name is bytes,
/// and `.` is one of them. Bounds: names 500 bytes, patterns 4000, groups 50 deep, length times repeat counts 10,000,
/// and 200,000 for all patterns of a field.
struct TargetConfig {
  std::vector<std::string> targets{};  ///< names; or
  std::string pattern{};               ///< a pattern, or "all-linear": every module (exclude the head of the model)
  std::vector<std::string> exclude{};
  std::string exclude_pattern{};
  std::vector<std::string> modules_to_save{};  ///< trained as a whole: they and what is in them get no adapter
  std::vector<Index> layers_to_transform{};    ///< with ends of names: only in these layers, by a name's first number
  std::vector<std::string> layers_pattern{};   ///< what stands before that number, "layers" say; any name if empty
  LoraConfig lora{};                           ///< for all that no entry below matches
  std::vector<std::pair<std::string, Index>> rank_pattern{};
  std::vector<std::pair<std::string, double>> alpha_pattern{};
  Unmatched unmatched = Unmatched::Refuse;

  bool operator==(const TargetConfig&) const = default;
};

/// What one entry of a config met. Of `exclude`, what it keeps out; of rank and alpha, where it was the first.
struct PatternMatches {
  std::string field;    ///< "targets", "rank_pattern", ...
  std::string pattern;  ///< as it was given
  std::vector<std::string> modules;

  Index count() const { return std::ssize(modules); }
  bool operator==(const PatternMatches&) const = default;
};

/// The layers to adapt, in the order of the modules, and what each entry of the config met.
struct TargetPlan {
  std::vector<AdaptedLayer> layers;
  std::vector<PatternMatches> matches;

  bool operator==(const TargetPlan&) const = default;

  /// Sum of r (n + m).
  Index parameters() const {
    Index sum = 0;
    for (const auto& layer : layers) sum += layer.config.rank * (layer.in_features + layer.out_features);
    return sum;
  }
  /// Two tables: the entries with how many modules each met, the layers.
  std::string describe() const {
    detail::Table entries, table;
    entries.add("entry", "modules");
    for (const auto& match : matches) entries.add(match.field + " " + match.pattern, match.count());
    table.add("layer", "n", "m", "r", "scale", "parameters");
    for (const auto& [name, n, m, config] : layers) {
      table.add(name, n, m, config.rank, scale(config.alpha, config.rank, config.scaling), config.rank * (n + m));
    }
    return entries.text() + "\n" + table.text();
  }
};

namespace detail {

/// PEFT's rule for lists of names.
inline bool is_named(std::string_view module, std::string_view entry) {
  return module.ends_with(entry) && (module.size() == entry.size() || module[module.size() - entry.size() - 1] == '.');
}

/// A whole number without a sign, where it fits.
inline std::optional<Index> layer_number(std::string_view text) {
  Index number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (text.empty() || text.front() == '-' || error != std::errc() || end != text.data() + text.size()) return {};
  return number;
}

/// The work of `plan`; templates in it are instantiated where a program plans.
template <class Character>
class Planner {
 public:
  explicit Planner(const TargetConfig& config) : config_(config) {
    const bool list = !config.targets.empty(), pattern = !config.pattern.empty();
    require<ConfigError>(list != pattern, "plan: needs either targets or a pattern, got ", list ? "both" : "neither");
    require<ConfigError>(config.exclude.empty() || config.exclude_pattern.empty(),
                         "plan: needs either exclude or exclude_pattern, got both");
    require<ConfigError>(list || config.layers_to_transform.empty(),
                         "plan: layers_to_transform goes with targets, got a pattern");
    require<ConfigError>(config.layers_pattern.empty() || !config.layers_to_transform.empty(),
                         "plan: layers_pattern goes with layers_to_transform, got it alone");
    for (const auto& entry : config.targets) add("targets", entry);
    if (pattern) add("pattern", config.pattern);
    for (const auto& entry : config.exclude) add("exclude", entry);
    if (!config.exclude_pattern.empty()) add("exclude_pattern", config.exclude_pattern);
    for (const Index number : config.layers_to_transform) add("layers_to_transform", std::to_string(number));
    for (const auto& entry : config.rank_pattern) add("rank_pattern", entry.first);
    for (const auto& entry : config.alpha_pattern) add("alpha_pattern", entry.first);

    if (pattern && !all_linear()) targets_.emplace("", config.pattern, "", "pattern");
    if (!config.exclude_pattern.empty()) exclude_.emplace("", config.exclude_pattern, "", "exclude_pattern");
    const std::string_view from_dot = "(?:.*\\.)?", to_dot = "(?:\\..*)?";
    const auto text = [](const std::string& entry) { return entry; };
    const auto first = [](const auto& entry) { return entry.first; };
    compile(saved_, from_dot, config.modules_to_save, text, to_dot, "modules_to_save");
    compile(layers_, "", config.layers_pattern, text, "", "layers_pattern");
    compile(ranks_, from_dot, config.rank_pattern, first, "", "rank_pattern");
    compile(alphas_, from_dot, config.alpha_pattern, first, "", "alpha_pattern");
  }

  void visit(const ModuleShape& module) {
    const std::string& name = module.name;
    require<ConfigError>(!name.empty() && name.size() <= most_name, "plan: a module's name must have 1 to ", most_name,
                         " bytes, got ", name.size(), name.empty() ? "" : " in ", name.substr(0, 40));
    require<ConfigError>(std::ranges::none_of(name, [](char c) { return static_cast<unsigned char>(c) < 32; }),
                         "plan: a module's name must not hold control characters, got one in module ",
                         std::ssize(names_));
    require<ConfigError>(names_.insert(name).second, "plan: names must differ, got a second module ", name);
    require<ShapeError>(module.in_features >= 1 && module.out_features >= 1, "plan: module ", name,
                        " must be at least 1 x 1, got ", Shape{module.in_features, module.out_features});
    if (excluded(name) || !targeted(name)) return;
    AdaptedLayer layer{name, module.in_features, module.out_features, config_.lora};
    const auto first = [&](const Patterns& patterns, const char* field, const auto& entries, auto& value) {
      for (std::size_t i = 0; i < patterns.size(); ++i) {
        if (!patterns[i].matches(name)) continue;
        note(field, i, name);
        value = entries[i].second;
        return;
      }
    };
    first(ranks_, "rank_pattern", config_.rank_pattern, layer.config.rank);
    first(alphas_, "alpha_pattern", config_.alpha_pattern, layer.config.alpha);
    layer.config.check(layer.in_features, layer.out_features, "plan: module ", name);
    plan_.layers.push_back(std::move(layer));
  }

  TargetPlan finish() {
    for (const auto& match : plan_.matches) {
      require<ConfigError>(match.count() > 0 || config_.unmatched == Unmatched::Report,
                           "plan: every entry must match a module, got none for ", match.field, " ",
                           Printable{match.pattern});
    }
    return std::move(plan_);
  }

 private:
  using Patterns = std::vector<NamePattern<Character>>;

  /// The patterns of a field, `text` of each of its entries, as long as they do not take too much together.
  template <class Entries, class Text>
  void compile(Patterns& patterns, std::string_view before, const Entries& entries, const Text& text,
               std::string_view after, std::string_view field) {
    std::size_t size = 0;
    for (const auto& entry : entries) {
      size += patterns.emplace_back(before, text(entry), after, field).size();
      require<ConfigError>(size <= most_patterns, "plan: ", field, " must have patterns of at most ", most_patterns,
                           " letters, counted as often as they repeat, got more by ", Printable{text(entry)});
    }
  }
  void add(const char* field, const std::string& pattern) {
    require<ConfigError>(!pattern.empty(), "plan: an entry must not be empty, got an empty one in ", field);
    plan_.matches.push_back({field, pattern, {}});
  }
  /// Notes that entry i of a field met a module.
  void note(std::string_view field, std::size_t i, const std::string& name) {
    auto match = std::ranges::find(plan_.matches, field, &PatternMatches::field);
    (match + static_cast<std::ptrdiff_t>(i))->modules.push_back(name);
  }
  bool all_linear() const {
    return std::ranges::equal(config_.pattern, std::string_view("all-linear"),
                              [](char a, char b) { return (a >= 'A' && a <= 'Z' ? a - 'A' + 'a' : a) == b; });
  }
  bool note_named(const std::vector<std::string>& entries, const char* field, const std::string& name) {
    bool any = false;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (!is_named(name, entries[i])) continue;
      note(field, i, name);
      any = true;
    }
    return any;
  }

  bool excluded(const std::string& name) {
    bool any = note_named(config_.exclude, "exclude", name);
    if (exclude_ && exclude_->matches(name)) {
      note("exclude_pattern", 0, name);
      any = true;
    }
    return any || std::ranges::any_of(saved_, [&](const auto& pattern) { return pattern.matches(name); });
  }
  bool targeted(const std::string& name) {
    if (config_.targets.empty()) {
      if (targets_ && !targets_->matches(name)) return false;
      note("pattern", 0, name);
      return true;
    }
    const auto& numbers = config_.layers_to_transform;
    const bool in_full = std::ranges::find(config_.targets, name) != config_.targets.end();
    if (numbers.empty() || in_full) return note_named(config_.targets, "targets", name);
    const auto number = layer_of(name);
    const auto found = number ? std::ranges::find(numbers, *number) : numbers.end();
    if (found == numbers.end() || !note_named(config_.targets, "targets", name)) return false;
    note("layers_to_transform", static_cast<std::size_t>(found - numbers.begin()), name);
    return true;
  }
  /// The first number between two dots with two names before it; or, behind what a `layers_pattern` matches from a
  /// dot on, as early as it can begin and as long as it can be.
  std::optional<Index> layer_of(std::string_view name) const {
    std::vector<std::size_t> starts{0};  // of the parts
    for (std::size_t dot = name.find('.'); dot != std::string_view::npos; dot = name.find('.', dot + 1)) {
      starts.push_back(dot + 1);
    }
    const auto number = [&](std::size_t k) {
      return layer_number(name.substr(starts[k], starts[k + 1] - starts[k] - 1));
    };
    for (std::size_t k = 2; layers_.empty() && k + 1 < starts.size(); ++k) {
      if (number(k)) return number(k);
    }
    for (const auto& pattern : layers_) {
      for (std::size_t first = 0; first < starts.size(); ++first) {
        for (std::size_t k = starts.size() - 1; k-- > first + 1;) {
          const auto before = name.substr(starts[first], starts[k] - 1 - starts[first]);
          if (number(k) && pattern.matches(before)) return number(k);
        }
      }
    }
    return {};
  }

  const TargetConfig& config_;
  std::optional<NamePattern<Character>> targets_, exclude_;
  Patterns saved_, layers_, ranks_, alphas_;
  std::set<std::string> names_;
  TargetPlan plan_;
};

}  // namespace detail

/// Which of the modules (any range of `ModuleShape`, the linear layers of a model) get an adapter, with which config.
///
///     const auto plan = lora::plan(modules, {.targets = {"q_proj", "v_proj"}, .rank_pattern = {{"layers.0.*", 4}}});
///
/// \throws ConfigError  an entry that matches nothing (unless it is only to be reported), a pattern that is broken or
/// not common to both dialects, a name that is empty, too long or there twice, a rank above min(n, m) or another
/// value that the layer cannot have, by its name. \throws ShapeError  a module below 1 x 1.
template <class Modules>
TargetPlan plan(const Modules& modules, const TargetConfig& config) {
  using Character = std::remove_cvref_t<decltype(std::begin(modules)->name[0])>;
  detail::Planner<Character> planner(config);
  for (const ModuleShape& module : modules) planner.visit(module);
  return planner.finish();
}

}  // namespace lora
