// SPDX-License-Identifier: MIT
// Plain text tables for descriptions: the first column to the left, the others to the right.
#pragma once

#include <lora/core/error.hpp>

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace lora::detail {

/// Rows of cells; every row has as many as the first.
class Table {
 public:
  template <class... Cells>
  void add(const Cells&... cells) {
    std::vector<std::string> row;
    (row.push_back(text(cells)), ...);
    rows_.push_back(std::move(row));
  }

  /// Two spaces between columns, a line feed after each row.
  std::string text() const {
    std::vector<std::size_t> widths;
    for (const auto& row : rows_) {
      widths.resize(std::max(widths.size(), row.size()));
      for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
    }
    std::string result;
    for (const auto& row : rows_) {
      for (std::size_t i = 0; i < row.size(); ++i) {
        const std::string gap(widths[i] - row[i].size(), ' ');
        result += i == 0 ? row[i] + (row.size() > 1 ? gap : "") : "  " + gap + row[i];
      }
      result += '\n';
    }
    return result;
  }

 private:
  template <class Cell>
  static std::string text(const Cell& cell) {
    std::string result;
    append(result, cell);
    return result;
  }

  std::vector<std::vector<std::string>> rows_;
};

}  // namespace lora::detail
