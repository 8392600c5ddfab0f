// SPDX-License-Identifier: MIT
// Text for reports: tables, numbers, and names from files that are safe to print.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace adapter_tool {

/// Without control characters, so that a file cannot talk to the terminal; line feeds stay where they are ours.
inline std::string shown(std::string text) {
  for (char& letter : text) {
    if (static_cast<unsigned char>(letter) < 0x20 || letter == 0x7F) letter = '?';
  }
  return text;
}

/// Five digits by default: what no order of summation changes.
inline std::string number(double value, int digits = 5) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*g", digits, value);
  return text;
}

/// "1 layer", "2 layers".
inline std::string count(std::size_t many, const std::string& what) {
  return std::to_string(many) + " " + what + (many == 1 ? "" : "s");
}

/// "a, b and 3 more".
inline std::string list(const std::vector<std::string>& names, std::size_t most = 10) {
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), most); ++i) text += (i == 0 ? "" : ", ") + shown(names[i]);
  if (names.size() > most) text += " and " + std::to_string(names.size() - most) + " more";
  return text;
}

/// The first column to the left, the others to the right, two blanks between.
class Table {
 public:
  void add(std::vector<std::string> row) {
    widths_.resize(std::max(widths_.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths_[i] = std::max(widths_[i], row[i].size());
    rows_.push_back(std::move(row));
  }
  std::string text() const {
    std::string result;
    for (const auto& row : rows_) {
      for (std::size_t i = 0; i < row.size(); ++i) {
        const std::string gap(widths_[i] - row[i].size(), ' ');
        result += i == 0 ? row[i] + gap : "  " + gap + row[i];
      }
      result += '\n';
    }
    return result;
  }

 private:
  std::vector<std::vector<std::string>> rows_;
  std::vector<std::size_t> widths_;
};

}  // namespace adapter_tool
