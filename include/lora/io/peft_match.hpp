// SPDX-License-Identifier: MIT
// Which modules of an adapter find their layer in a model, and which do not: a report, and an error by default.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>
#include <lora/io/peft.hpp>
#include <lora/io/safetensors_header.hpp>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace lora::peft {

/// What came of putting an adapter on the layers of a model, by names. PEFT only warns of missing factors and keeps
/// silent about unexpected ones, so a wrong prefix gives it an adapter that does nothing.
struct MatchReport {
  std::vector<std::string> matched;      ///< layers that get factors
  std::vector<std::string> missing;      ///< layers without factors
  std::vector<std::string> unexpected;   ///< factors without a layer
  std::vector<std::string> wrong_shape;  ///< "\"name\" (adapter 4 x 5, layer 4 x 6)", as `describe` shows it

  bool complete() const { return missing.empty() && unexpected.empty() && wrong_shape.empty(); }
  /// Counts in one line, and a line with up to ten names, in quotes, for whatever does not match. What a file put into
  /// its names does no harm to a terminal.
  std::string describe() const {
    std::string text;
    const auto count = [&](std::size_t number, std::string_view what) {
      if (!text.empty()) text += ", ";
      detail::append(text, number);
      text += ' ';
      text += what;
    };
    count(matched.size(), "matched");
    count(missing.size(), "missing");
    count(unexpected.size(), "unexpected");
    count(wrong_shape.size(), "of a wrong shape");
    const auto list = [&](const std::vector<std::string>& names, std::string_view what, const auto& shown) {
      if (names.empty()) return;
      constexpr std::size_t most = 10;
      text += '\n';
      text += what;
      for (std::size_t i = 0; i < std::min(names.size(), most); ++i) text += (i == 0 ? ": " : ", ") + shown(names[i]);
      if (names.size() > most) {
        text += " and ";
        detail::append(text, names.size() - most);
        text += " more";
      }
    };
    list(missing, "missing", &detail::quoted);
    list(unexpected, "unexpected", &detail::quoted);
    list(wrong_shape, "of a wrong shape", [](const std::string& entry) { return entry; });
    return text;
  }
  bool operator==(const MatchReport&) const = default;
};

/// Compares an adapter with layers, any range of values with a `name`, `in_features` and `out_features`.
///
///     const auto report = peft::match(adapter, layers);
///     if (!report.complete()) std::cerr << report.describe() << '\n';
template <Real Scalar, class Layers>
MatchReport match(const Adapter<Scalar>& adapter, const Layers& layers) {
  MatchReport report;
  std::set<std::string, std::less<>> names;
  for (const auto& layer : layers) {
    const std::string name(layer.name);
    names.insert(name);
    const auto position = adapter.modules.find(name);
    if (position == adapter.modules.end()) {
      report.missing.push_back(name);
      continue;
    }
    const auto& factors = position->second.factors;
    const Index n = layer.in_features, m = layer.out_features;
    if (factors.in_features() == n && factors.out_features() == m) {
      report.matched.push_back(name);
    } else {
      const detail::Shape has{factors.in_features(), factors.out_features()}, needs{n, m};
      report.wrong_shape.push_back(detail::joined(detail::quoted(name), " (adapter ", has, ", layer ", needs, ")"));
    }
  }
  for (const auto& [name, module] : adapter.modules) {
    if (names.find(name) == names.end()) report.unexpected.push_back(name);
  }
  return report;
}

/// The strict form: returns the report where everything matches. \throws FormatError  something does not; the message
/// is the report.
template <Real Scalar, class Layers>
MatchReport require_match(const Adapter<Scalar>& adapter, const Layers& layers) {
  auto report = match(adapter, layers);
  detail::require<FormatError>(report.complete(), "peft::require_match: every module must find its layer, got ",
                               report.describe());
  return report;
}

}  // namespace lora::peft
