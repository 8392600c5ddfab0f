// SPDX-License-Identifier: MIT
// Tensors of a file as matrices, and matrices as tensors: views where the bytes allow it, else copies that convert.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/views.hpp>
#include <lora/io/safetensors.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

namespace lora::safetensors {

/// Which way round a matrix stands in a file.
enum class Layout {
  AsStored,    ///< rows x cols is a tensor [rows, cols]
  Transposed,  ///< rows x cols is a tensor [cols, rows]: PyTorch's `weight` seen as our W0, and both factors of PEFT
};

/// The type whose bytes are a Scalar's.
template <Real Scalar>
inline constexpr Type type_of = sizeof(Scalar) == 4 ? Type::F32 : Type::F64;

/// F64, F32, F16, BF16: the types that weights and factors are stored in.
constexpr bool is_floating(Type type) {
  return type == Type::F64 || type == Type::F32 || type == Type::F16 || type == Type::BF16;
}

}  // namespace lora::safetensors

namespace lora::detail {

/// One stored number; bytes in files may lie at any address.
template <class Stored>
Stored load(const std::byte* bytes) {
  Stored value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

/// Calls `visit` with a value of the C++ type of numbers of `type`. \throws FormatError  a type that is none of them.
template <class Visit>
void visit_number(safetensors::Type type, std::string_view where, const Visit& visit) {
  using safetensors::Type;
  switch (type) {
    case Type::F64:
      return visit(double{});
    case Type::F32:
      return visit(float{});
    case Type::F16:
      return visit(Eigen::half{});
    case Type::BF16:
      return visit(Eigen::bfloat16{});
    case Type::I64:
      return visit(std::int64_t{});
    case Type::I32:
      return visit(std::int32_t{});
    case Type::I16:
      return visit(std::int16_t{});
    case Type::I8:
      return visit(std::int8_t{});
    case Type::U64:
      return visit(std::uint64_t{});
    case Type::U32:
      return visit(std::uint32_t{});
    case Type::U16:
      return visit(std::uint16_t{});
    case Type::U8:
      return visit(std::uint8_t{});
    case Type::Bool:
      return visit(bool{});
    default:
      require<FormatError>(false, where, ": type must be F64, F32, F16, BF16, an integer or BOOL, got ",
                           safetensors::type_name(type));
  }
}

template <Real Scalar, class Stored>
Scalar number(const std::byte* bytes) {
  if constexpr (std::is_same_v<Stored, bool>) {
    return bytes[0] != std::byte{0} ? Scalar{1} : Scalar{0};
  } else if constexpr (std::is_class_v<Stored>) {
    return static_cast<Scalar>(static_cast<float>(load<Stored>(bytes)));
  } else {
    return static_cast<Scalar>(load<Stored>(bytes));
  }
}

/// [rows, cols] of a tensor with at most two dimensions: a vector is one row, a number is 1 x 1.
inline Shape matrix_shape(const safetensors::Tensor& tensor, std::string_view where) {
  std::uint64_t rows = 1, cols = 1;
  require<FormatError>(tensor.shape.size() <= 2, where, ": tensor must have at most 2 dimensions, got shape ",
                       shape_text(tensor.shape));
  if (!tensor.shape.empty()) cols = tensor.shape.back();
  if (tensor.shape.size() == 2) rows = tensor.shape.front();
  constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<Index>::max());
  require<FormatError>(rows <= most && cols <= most, where, ": sizes must fit a matrix, got shape ",
                       shape_text(tensor.shape));
  require<FormatError>(tensor.bytes.size() == tensor_bytes(tensor.type, tensor.shape, where), where,
                       ": bytes must fit the shape ", shape_text(tensor.shape), " of ",
                       safetensors::type_name(tensor.type), ", got ", tensor.bytes.size());
  return {static_cast<std::ptrdiff_t>(rows), static_cast<std::ptrdiff_t>(cols)};
}

}  // namespace lora::detail

namespace lora::safetensors {

/// A copy of a tensor of at most two dimensions (a vector is one row, a number 1 x 1), in either storage order.
///
/// F16 and BF16 widen exactly; F64 to float and wide integers round to the nearest; BOOL gives 0 and 1. One pass.
/// Without a change of order the elements are read and written in sequence: so is PyTorch's `weight` [m, n] into a
/// column-major W0 (n x m), `to_matrix<float, Eigen::ColMajor>(weight, Layout::Transposed)`.
/// \param where  begins the messages.
/// \throws FormatError  more than two dimensions; a type that is no number of C++ (F8, F6, F4, C64).
template <Real Scalar, int Order = Eigen::RowMajor>
Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Order> to_matrix(
    const Tensor& tensor, Layout layout = Layout::AsStored, std::string_view where = "safetensors::to_matrix") {
  const auto [rows, cols] = detail::matrix_shape(tensor, where);
  const bool turned = layout == Layout::Transposed;
  Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Order> matrix;
  const bool in_sequence = turned == (Order == Eigen::ColMajor);
  const Index lines = rows, length = cols;  // of the tensor
  const std::byte* from = tensor.bytes.data();
  detail::visit_number(tensor.type, where, [&](auto kind) {
    using Stored = decltype(kind);
    matrix.resize(turned ? length : lines, turned ? lines : length);
    if (matrix.size() == 0) return;  // lines without numbers may be more than anyone can count
    Scalar* to = matrix.data();
    if (in_sequence) {
      for (Index i = 0; i < matrix.size(); ++i) {
        to[i] = detail::number<Scalar, Stored>(from + static_cast<std::size_t>(i) * sizeof(Stored));
      }
    } else {  // tiles, so that neither side strides through all of its memory at once
      constexpr Index tile = 32;
      for (Index first = 0; first < lines; first += tile) {
        for (Index start = 0; start < length; start += tile) {
          for (Index i = first; i < std::min(first + tile, lines); ++i) {
            for (Index j = start; j < std::min(start + tile, length); ++j) {
              const auto place = static_cast<std::size_t>(i * length + j);
              to[j * lines + i] = detail::number<Scalar, Stored>(from + place * sizeof(Stored));
            }
          }
        }
      }
    }
  });
  return matrix;
}

/// Row `row` alone of a tensor of at most two dimensions, converted as `to_matrix` converts all of it.
/// \throws FormatError  as `to_matrix`.
/// \throws ShapeError   no such row; `numbers` not as many as it has.
template <Real Scalar>
void copy_row(const Tensor& tensor, Index row, std::span<Scalar> numbers,
              std::string_view where = "safetensors::copy_row") {
  const auto [rows, cols] = detail::matrix_shape(tensor, where);
  detail::require<ShapeError>(row >= 0 && row < rows, where, ": row must lie in [0, ", rows, "), got ", row);
  detail::require<ShapeError>(std::ssize(numbers) == cols, where, ": a row must have ", cols, " numbers, got room for ",
                              numbers.size());
  const std::byte* from = tensor.bytes.data();
  detail::visit_number(tensor.type, where, [&](auto kind) {
    using Stored = decltype(kind);
    from += static_cast<std::size_t>(row) * numbers.size() * sizeof(Stored);
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      numbers[i] = detail::number<Scalar, Stored>(from + i * sizeof(Stored));
    }
  });
}

/// The tensor where it is, where its type is Scalar's own and its address aligned; else none (copy with `to_matrix`).
/// `transposed(*view)` is the same memory as a column-major matrix. The memory must outlive the view.
/// \throws FormatError  more than two dimensions.
template <Real Scalar>
std::optional<ConstRows<Scalar>> view(const Tensor& tensor, std::string_view where = "safetensors::view") {
  const auto [rows, cols] = detail::matrix_shape(tensor, where);
  const bool aligned = reinterpret_cast<std::uintptr_t>(tensor.bytes.data()) % alignof(Scalar) == 0;
  if (tensor.type != type_of<Scalar> || !aligned) return std::nullopt;
  return std::optional<ConstRows<Scalar>>(std::in_place, reinterpret_cast<const Scalar*>(tensor.bytes.data()), rows,
                                          cols);
}

/// A matrix without gaps as a tensor, without a copy: a row-major one [rows, cols]; a column-major one [cols, rows],
/// its transpose (A, n x r, becomes PEFT's lora_A [r, n]). The memory must outlive the tensor.
/// \throws ShapeError  the matrix has gaps.
template <class Element, int Order>
Tensor as_tensor(const View<Element, Order>& matrix) {
  detail::require<ShapeError>(matrix.outerStride() == matrix.innerSize() || matrix.outerSize() < 2,
                              "safetensors::as_tensor: matrix must have no gaps, got a stride of ",
                              matrix.outerStride(), " for ", matrix.innerSize());
  const auto size = [](Index value) { return static_cast<std::uint64_t>(value); };
  return {type_of<std::remove_const_t<Element>>,
          {size(matrix.outerSize()), size(matrix.innerSize())},
          std::as_bytes(std::span(matrix.data(), static_cast<std::size_t>(matrix.size())))};
}
template <Real Scalar, int Order>
Tensor as_tensor(const Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Order>& matrix) {
  return as_tensor(View<const Scalar, Order>(matrix));
}

/// The bytes of a matrix as a tensor of `type` (F64, F32, F16, BF16), row by row, or column by column as its
/// transpose. Rounds to the nearest, ties to even; F16 and BF16 by way of float, as PyTorch does.
/// \throws FormatError  another type; a finite value that becomes infinite in `type`.
template <class Element, int Order>
std::vector<std::byte> encode(const View<Element, Order>& matrix, Type type, Layout layout = Layout::AsStored,
                              std::string_view where = "safetensors::encode") {
  detail::require<FormatError>(is_floating(type), where, ": type must be F64, F32, F16 or BF16, got ", type_name(type));
  const bool turned = layout == Layout::Transposed;
  const Index lines = turned ? matrix.cols() : matrix.rows(), length = turned ? matrix.rows() : matrix.cols();
  std::vector<std::byte> bytes(static_cast<std::size_t>(matrix.size()) * bits(type) / 8);
  std::byte* to = bytes.data();
  if (bytes.empty()) return bytes;
  detail::visit_number(type, where, [&](auto kind) {
    using Stored = decltype(kind);
    if constexpr (std::is_floating_point_v<Stored> || std::is_class_v<Stored>) {
      for (Index i = 0; i < lines; ++i) {
        for (Index j = 0; j < length; ++j, to += sizeof(Stored)) {
          const auto value = turned ? matrix(j, i) : matrix(i, j);
          Stored stored;
          if constexpr (std::is_class_v<Stored>) {
            stored = Stored(static_cast<float>(value));
          } else {
            stored = static_cast<Stored>(value);
          }
          std::memcpy(to, &stored, sizeof stored);
          using Wide = std::conditional_t<std::is_class_v<Stored>, float, Stored>;
          detail::require<FormatError>(std::isfinite(static_cast<Wide>(stored)) || !std::isfinite(value), where,
                                       ": values must fit ", type_name(type), ", got ", value);
        }
      }
    }
  });
  return bytes;
}

}  // namespace lora::safetensors
