// SPDX-License-Identifier: MIT
// What the library throws, and how it words it: `where: rule, got value`.
#pragma once

#include <charconv>
#include <concepts>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>

namespace lora {

/// The base of all that the library throws. Whatever throws has changed nothing.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Matrices whose sizes, strides or pointers do not fit together.
class ShapeError : public Error {
 public:
  using Error::Error;
};

/// A hyper-parameter outside its range.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// A value that is NaN or infinite where a finite one is needed.
class NumericalError : public Error {
 public:
  using Error::Error;
};

/// A call out of turn: `backward` without its `forward`, a second `merge`.
class StateError : public Error {
 public:
  using Error::Error;
};

/// The content of a file that breaks a rule of its format.
class FormatError : public Error {
 public:
  using Error::Error;
};

/// A file that cannot be opened, read or written.
class IoError : public Error {
 public:
  using Error::Error;
};

namespace detail {

inline void append(std::string& text, std::string_view part) { text += part; }

/// Numbers in the shortest form that reads back as the same value; independent of the locale.
template <class Number>
requires std::integral<Number> || std::floating_point<Number>
void append(std::string& text, Number number) {
  char digits[32];
  text.append(digits, std::to_chars(digits, digits + sizeof digits, number).ptr);
}

/// Text from a file in a message: without control characters, so that no file talks to a terminal.
struct Printable {
  std::string_view text;
};
inline void append(std::string& text, Printable part) {
  for (const char letter : part.text) {
    const bool control = static_cast<unsigned char>(letter) < 0x20 || letter == 0x7F;
    text += control ? '?' : letter;
  }
}

/// A shape, written "3 x 4" in every message; formatted only where a rule is broken.
struct Shape {
  std::ptrdiff_t rows, cols;
};
template <class Matrix>
Shape shape(const Matrix& matrix) {
  return {matrix.rows(), matrix.cols()};
}
inline void append(std::string& text, Shape shape) {
  append(text, shape.rows);
  append(text, " x ");
  append(text, shape.cols);
}

/// The parts as one text.
template <class... Parts>
std::string joined(const Parts&... parts) {
  std::string text;
  (append(text, parts), ...);
  return text;
}

/// Throws `ErrorType` with the parts joined to one message unless `rule` holds.
template <class ErrorType, class... Parts>
void require(bool rule, const Parts&... parts) {
  if (rule) [[likely]]
    return;
  throw ErrorType(joined(parts...));
}

/// Throws ShapeError unless `matrix` is rows x cols; `name` says where and which, as in "LoraLinear::forward: X".
template <class Matrix, class... Name>
void require_shape(const Matrix& matrix, std::ptrdiff_t rows, std::ptrdiff_t cols, const Name&... name) {
  require<ShapeError>(matrix.rows() == rows && matrix.cols() == cols, name..., " must be ", Shape{rows, cols}, ", got ",
                      shape(matrix));
}

}  // namespace detail
}  // namespace lora
