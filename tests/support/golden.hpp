// SPDX-License-Identifier: MIT
// Reads golden data: comments (#), then items, each a line `name rows cols` and one line per matrix row.
#pragma once

#include <lora/core/matrix.hpp>

#include <cstdlib>
#include <fstream>
#include <istream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace lora::test {

/// The named matrices of one file. Every number is a decimal of float or double precision, held as double.
class Golden {
 public:
  /// Errors name the file and the line: `lora.txt:12: ...`.
  static Golden parse(std::istream& text, const std::string& file) {
    Golden golden;
    std::string line;
    int number = 0;
    const auto fail = [&](const std::string& rule) {
      throw std::runtime_error(file + ":" + std::to_string(number) + ": " + rule);
    };
    while (std::getline(text, line)) {
      ++number;
      if (line.starts_with('#')) {
        golden.comments_.push_back(line.substr(line.find_first_not_of("# ")));
        continue;
      }
      std::istringstream header(line);
      std::string name, rest;
      Index rows = 0, cols = 0;
      if (!(header >> name >> rows >> cols) || header >> rest || rows < 1 || cols < 1) {
        fail("an item must start with `name rows cols`, got `" + line + "`");
      }
      RowMatrix<double> values(rows, cols);
      for (Index i = 0; i < rows; ++i) {
        ++number;
        if (!std::getline(text, line))
          fail(name + " must have " + std::to_string(rows) + " rows, got the end of the file");
        std::istringstream row(line);
        for (Index j = 0; j < cols; ++j) {
          if (!(row >> values(i, j)))
            fail(name + " must have " + std::to_string(cols) + " numbers a row, got `" + line + "`");
        }
        if (row >> rest) fail(name + " must have " + std::to_string(cols) + " numbers a row, got `" + line + "`");
      }
      if (!golden.items_.emplace(name, std::move(values)).second) fail("an item must stand once, got a second " + name);
    }
    golden.file_ = file;
    return golden;
  }

  /// A file of the folder in the environment variable LORA_GOLDEN_DIR, or of the one that the build knows.
  static Golden read(const std::string& name) {
    const char* folder = std::getenv("LORA_GOLDEN_DIR");
    const std::string path = std::string(folder != nullptr ? folder : LORA_GOLDEN_DIR) + "/" + name;
    std::ifstream text(path);
    if (!text) throw std::runtime_error(path + ": must be readable, got no such file");
    return parse(text, name);
  }

  const std::string& file() const { return file_; }
  const std::vector<std::string>& comments() const { return comments_; }

  const RowMatrix<double>& operator[](const std::string& name) const {
    const auto item = items_.find(name);
    if (item == items_.end()) throw std::runtime_error(file_ + ": must hold the item " + name);
    return item->second;
  }
  /// In the precision of the test, row-major; assign it to any other order.
  template <Real Scalar>
  RowMatrix<Scalar> rows(const std::string& name) const {
    return (*this)[name].template cast<Scalar>();
  }
  double number(const std::string& name) const { return (*this)[name](0, 0); }

 private:
  std::string file_;
  std::vector<std::string> comments_;
  std::map<std::string, RowMatrix<double>> items_;
};

}  // namespace lora::test
