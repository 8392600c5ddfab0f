// SPDX-License-Identifier: MIT
// Views of memory that somebody else owns: what every function of the library takes and no function copies.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>

#include <Eigen/Core>

#include <cstdint>
#include <type_traits>

namespace lora {

namespace detail {

template <class Derived>
const Derived& eigen_matrix(const Eigen::MatrixBase<Derived>& matrix) {
  return matrix.derived();
}

template <class Type>
concept EigenMatrix = requires(const std::remove_cvref_t<Type>& matrix) {
  detail::eigen_matrix(matrix);
};

template <class Type>
using EigenType = std::remove_cvref_t<decltype(detail::eigen_matrix(std::declval<const std::remove_cvref_t<Type>&>()))>;

/// What is true of a matrix expression at compile time, as far as a view of it is concerned.
template <class Dense, class Element, int Order>
struct ViewRules {
  using Matrix = EigenType<Dense>;
  static constexpr bool plain = std::is_base_of_v<Eigen::PlainObjectBase<Matrix>, Matrix>;
  static constexpr bool in_memory = (int(Matrix::Flags) & Eigen::DirectAccessBit) != 0;
  static constexpr bool same_scalar = std::is_same_v<typename Matrix::Scalar, std::remove_const_t<Element>>;
  static constexpr bool lasting = !(plain && std::is_rvalue_reference_v<Dense&&>);
  static constexpr bool writable =
      std::is_const_v<Element> ||
      ((int(Matrix::Flags) & Eigen::LvalueBit) != 0 && !(plain && std::is_const_v<std::remove_reference_t<Dense>>));
  /// A vector across the order (one column seen as rows) is a view with one element a row.
  static constexpr bool across =
      Order == Eigen::RowMajor ? Matrix::ColsAtCompileTime == 1 : Matrix::RowsAtCompileTime == 1;
  static constexpr bool same_order = across || bool(Matrix::IsRowMajor) == (Order == Eigen::RowMajor);
};

}  // namespace detail

/// A matrix in foreign memory: contiguous along `Order`, any stride across it. Costs four words and never copies.
///
/// It is an `Eigen::Map`, so it takes part in Eigen expressions; assigning to it writes through. It converts from every
/// Eigen matrix, map or block **of the same storage order**. The wrong order does not compile: `Eigen::Ref<const ...>`
/// would copy it in silence. Nor do a temporary, an unevaluated expression, another scalar type.
/// Callers without Eigen types write `{pointer, rows, cols, stride}`.
///
/// \tparam Element  `float`, `double`, or their const forms for a view that is only read.
/// \throws ShapeError  negative size, stride shorter than a row (column), null pointer to a matrix that is not empty.
template <class Element, int Order>
class View
    : public Eigen::Map<
          std::conditional_t<std::is_const_v<Element>,
                             const Eigen::Matrix<std::remove_const_t<Element>, Eigen::Dynamic, Eigen::Dynamic, Order>,
                             Eigen::Matrix<Element, Eigen::Dynamic, Eigen::Dynamic, Order>>,
          Eigen::Unaligned, Eigen::OuterStride<>> {
  using Plain = Eigen::Matrix<std::remove_const_t<Element>, Eigen::Dynamic, Eigen::Dynamic, Order>;

 public:
  using Map = Eigen::Map<std::conditional_t<std::is_const_v<Element>, const Plain, Plain>, Eigen::Unaligned,
                         Eigen::OuterStride<>>;
  using Map::operator=;

  /// `stride`: elements from the start of one row (`Order` RowMajor) or column (ColMajor) to the next.
  View(Element* data, Index rows, Index cols, Index stride)
      : Map(checked(data, rows, cols, stride), rows, cols, Eigen::OuterStride<>(stride)) {}
  /// Without gaps.
  View(Element* data, Index rows, Index cols) : View(data, rows, cols, Order == Eigen::RowMajor ? cols : rows) {}

  View(const View&) = default;
  View(View&&) noexcept = default;
  /// Copies the elements, like every assignment to a view.
  View& operator=(const View& other) requires(!std::is_const_v<Element>) {
    Map::operator=(other);
    return *this;
  }

  template <detail::EigenMatrix Dense>
  // NOLINTNEXTLINE(bugprone-forwarding-reference-overload): a View of another View is this constructor's work too
  View(Dense&& dense) : View(bind(static_cast<Dense&&>(dense))) {}

 private:
  template <class Dense>
  static View bind(Dense&& dense) {
    using Rules = detail::ViewRules<Dense, Element, Order>;
    static_assert(Rules::same_scalar, "lora: the scalar type differs (float and double are never mixed or converted)");
    static_assert(Rules::in_memory, "lora: an expression has no memory to view; evaluate it into a matrix first");
    static_assert(Rules::lasting, "lora: a temporary matrix would be gone before it is used; give it a name");
    static_assert(Rules::writable, "lora: a read-only matrix cannot be written to");
    static_assert(
        Rules::same_order,
        "lora: wrong storage order; activations and B are row-major, A is column-major (never copied in silence)");
    if constexpr (Rules::same_scalar && Rules::in_memory && Rules::lasting && Rules::writable && Rules::same_order) {
      if constexpr (Rules::across) {
        return View(dense.data(), dense.rows(), dense.cols(), dense.innerStride());
      } else {
        detail::require<ShapeError>(dense.innerStride() == 1 || dense.innerSize() < 2,
                                    "View: elements of a row (column) must be adjacent, got an inner stride of ",
                                    dense.innerStride());
        return View(dense.data(), dense.rows(), dense.cols(), dense.outerStride());
      }
    } else {
      return View(nullptr, 0, 0);
    }
  }

  static Element* checked(Element* data, Index rows, Index cols, Index stride) {
    const Index inner = Order == Eigen::RowMajor ? cols : rows;
    const Index outer = Order == Eigen::RowMajor ? rows : cols;
    detail::require<ShapeError>(rows >= 0 && cols >= 0, "View: sizes must not be negative, got ", rows, " x ", cols);
    detail::require<ShapeError>(stride >= inner || outer < 2, "View: stride must be at least ", inner, ", got ",
                                stride);
    detail::require<ShapeError>(data != nullptr || rows == 0 || cols == 0, "View: pointer must not be null for ", rows,
                                " x ", cols, " elements, got null");
    return data;
  }
};

namespace detail {

/// Do two views have an element in common? Exact where their strides are equal; where they differ, views whose address
/// ranges meet count as overlapping.
template <class Left, int LeftOrder, class Right, int RightOrder>
bool overlap(const View<Left, LeftOrder>& left, const View<Right, RightOrder>& right) {
  static_assert(sizeof(Left) == sizeof(Right));
  if (left.size() == 0 || right.size() == 0) return false;
  const auto size = static_cast<std::intptr_t>(sizeof(Left));
  const auto first = [](const auto& view) { return reinterpret_cast<std::intptr_t>(view.data()); };
  const auto last = [&](const auto& view) {
    return first(view) + size * ((view.outerSize() - 1) * view.outerStride() + view.innerSize());
  };
  if (last(left) <= first(right) || last(right) <= first(left)) return false;
  const Index stride = left.outerStride();
  if (stride < 1 || right.outerStride() != stride || (first(right) - first(left)) % size != 0) return true;
  const auto apart = (first(right) - first(left)) / size;
  const auto shift = static_cast<Index>((apart % stride + stride) % stride);  // of right's lines behind left's
  return shift < left.innerSize() || shift + right.innerSize() > stride;
}

}  // namespace detail

/// Activations and `B`: b x n, row-major, PyTorch's bytes; strided rows (a slice of a fused output) are welcome.
template <Real Scalar>
using Rows = View<Scalar, Eigen::RowMajor>;
template <Real Scalar>
using ConstRows = View<const Scalar, Eigen::RowMajor>;

/// `A`, and any matrix that an update rule walks column by column.
template <Real Scalar>
using Columns = View<Scalar, Eigen::ColMajor>;
template <Real Scalar>
using ConstColumns = View<const Scalar, Eigen::ColMajor>;

/// The same memory seen as its transpose: rows become columns, nothing moves.
template <class Element, int Order>
auto transposed(const View<Element, Order>& view) {
  constexpr int other = Order == Eigen::RowMajor ? Eigen::ColMajor : Eigen::RowMajor;
  return View<Element, other>(const_cast<Element*>(view.data()), view.cols(), view.rows(), view.outerStride());
}

}  // namespace lora
