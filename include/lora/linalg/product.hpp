// SPDX-License-Identifier: MIT
// Dense products that allocate nothing once warm: our kernels where one dimension is a rank, Eigen's elsewhere, with
// packing memory that lives as long as the thread.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/threads.hpp>
#include <lora/core/views.hpp>
#include <lora/linalg/skinny_product.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <type_traits>

namespace lora {

namespace detail {

/// The block sizes that Eigen chooses for a product, over memory that we keep. Eigen's own holder of this memory goes
/// to the heap in every product whose packed panels exceed 128 KiB (EIGEN_STACK_ALLOCATION_LIMIT).
template <Real Scalar>
class PackingSpace : public Eigen::internal::level3_blocking<Scalar, Scalar> {
 public:
  PackingSpace(Index rows, Index cols, Index depth) {
    this->m_mc = rows;
    this->m_nc = cols;
    this->m_kc = depth;
    Eigen::internal::computeProductBlockingSizes<Scalar, Scalar>(this->m_kc, this->m_mc, this->m_nc, Index{1});
    thread_local Eigen::VectorX<Scalar> left, right;
    this->m_blockA = grown(left, this->m_mc * this->m_kc);
    this->m_blockB = grown(right, this->m_kc * this->m_nc);
  }

 private:
  static Scalar* grown(Eigen::VectorX<Scalar>& memory, Index size) {
    if (memory.size() < size) memory.resize(size);
    return memory.data();
  }
};

/// Throws ShapeError unless Y fits L R; `call` as in "add_product: Y += L R".
template <class Result, class Left, class Right>
void require_product(const Result& Y, const Left& L, const Right& R, const char* call) {
  require<ShapeError>(L.cols() == R.rows() && Y.rows() == L.rows() && Y.cols() == R.cols(), call,
                      " needs fitting sizes, got Y ", shape(Y), ", L ", shape(L), ", R ", shape(R));
}

/// y += alpha L R where L is a row or R a column: Eigen's matrix-vector kernel, called directly because it would miss
/// the factor of `(alpha * L) * R` and copy L to the heap. A vector that may have gaps it copies still, to the stack if
/// short.
template <class Vector, Real Scalar, class Left, class Right>
void add_vector_product(Vector y, Scalar alpha, const Eigen::MatrixBase<Left>& L, const Eigen::MatrixBase<Right>& R) {
  Eigen::internal::generic_product_impl<Left, Right, Eigen::DenseShape, Eigen::DenseShape,
                                        Eigen::GemvProduct>::scaleAndAddTo(y, L.derived(), R.derived(), alpha);
}

/// Y += alpha L R in the calling thread, by Eigen.
template <Real Scalar, int ResultOrder, int LeftOrder, int RightOrder>
void add_serial_product(View<Scalar, ResultOrder> Y, Scalar alpha, const View<const Scalar, LeftOrder>& L,
                        const View<const Scalar, RightOrder>& R) {
  constexpr bool row_major = ResultOrder == Eigen::RowMajor;
  const bool short_enough = std::max(Y.size(), L.cols()) * Index{sizeof(Scalar)} <= EIGEN_STACK_ALLOCATION_LIMIT;
  if (Y.rows() + Y.cols() + L.cols() < 20) {  // Eigen's own limit, below which packing does not pay
    for (Index i = 0; i < Y.rows(); ++i) {
      for (Index j = 0; j < Y.cols(); ++j) {
        Scalar sum = 0;
        for (Index k = 0; k < L.cols(); ++k) sum += L(i, k) * R(k, j);
        Y(i, j) += alpha * sum;
      }
    }
  } else if (Y.rows() == 1 && (short_enough || (row_major && LeftOrder == Eigen::RowMajor))) {
    add_vector_product(Y.row(0), alpha, L.row(0), R);
  } else if (Y.cols() == 1 && (short_enough || !(row_major || RightOrder == Eigen::RowMajor))) {
    add_vector_product(Y.col(0), alpha, L, R.col(0));
  } else {
    PackingSpace<Scalar> space(row_major ? Y.cols() : Y.rows(), row_major ? Y.rows() : Y.cols(), L.cols());
    Eigen::internal::general_matrix_matrix_product<Index, Scalar, LeftOrder, false, Scalar, RightOrder, false,
                                                   ResultOrder, 1>::run(Y.rows(), Y.cols(), L.cols(), L.data(),
                                                                        L.outerStride(), R.data(), R.outerStride(),
                                                                        Y.data(), 1, Y.outerStride(), alpha, space,
                                                                        nullptr);
  }
}

/// The one product behind all: sixteen instances in a program, whatever types its operands had.
template <Real Scalar, int ResultOrder, int LeftOrder, int RightOrder>
void add_viewed_product(View<Scalar, ResultOrder> Y, Scalar alpha, const View<const Scalar, LeftOrder>& L,
                        const View<const Scalar, RightOrder>& R) {
  constexpr int row_major = Eigen::RowMajor;
  constexpr Index rank = 64;      // up to here the kernels for small dimensions are ahead of Eigen's
  constexpr Index few_terms = 8;  // below, sums are too short for them
  if constexpr (LeftOrder == row_major && RightOrder != row_major) {
    if (Y.cols() <= rank && L.cols() >= few_terms) return add_dots<Scalar>(Y, alpha, L, transposed(R));
  }
  if (L.cols() >= few_terms) {
    if constexpr (ResultOrder == row_major && RightOrder == row_major) {
      if (std::min(Y.rows(), L.cols()) <= rank) return add_panels<Scalar>(Y, alpha, L, R);
    }
    if constexpr (ResultOrder != row_major && LeftOrder != row_major) {
      if (std::min(Y.cols(), L.cols()) <= rank) {
        return add_panels<Scalar>(transposed(Y), alpha, transposed(R), transposed(L));
      }
    }
  }
  const double flops = 2.0 * static_cast<double>(Y.size() * L.cols());
  constexpr Index unit = 48;  // a multiple of the rows and columns of Eigen's register tiles
  const bool by_rows = Y.rows() >= Y.cols();
  parallel_for((std::max(Y.rows(), Y.cols()) + unit - 1) / unit, flops, [&](Index first, Index last) {
    const Index begin = first * unit, size = std::min(last * unit, std::max(Y.rows(), Y.cols())) - begin;
    if (by_rows) {
      add_serial_product<Scalar, ResultOrder, LeftOrder, RightOrder>(Y.middleRows(begin, size), alpha,
                                                                     L.middleRows(begin, size), R);
    } else {
      add_serial_product<Scalar, ResultOrder, LeftOrder, RightOrder>(Y.middleCols(begin, size), alpha, L,
                                                                     R.middleCols(begin, size));
    }
  });
}

/// The storage order in which a matrix lies in memory.
template <class Matrix>
constexpr int order_of = bool(std::remove_cvref_t<Matrix>::IsRowMajor) ? int{Eigen::RowMajor} : int{Eigen::ColMajor};

}  // namespace detail

/// Y += alpha L R, with L (b x k), R (k x c), Y (b x c) in memory, any storage orders; Y overlaps neither factor.
///
/// b k c multiply-adds on up to `threads()` threads; no allocation after the first product of a size in a thread. The
/// result depends on the shapes, the machine's cache sizes and the number of threads alone: same shapes, same bits.
/// \throws ShapeError  sizes that do not fit.
template <class Result, class Left, class Right>
void add_product(Result&& Y, double alpha, const Left& L, const Right& R) {
  using Scalar = typename Left::Scalar;
  static_assert(std::is_same_v<Scalar, typename Right::Scalar> &&
                    std::is_same_v<Scalar, typename std::remove_cvref_t<Result>::Scalar>,
                "lora: the factors and the result of a product share one scalar type");
  detail::require_product(Y, L, R, "add_product: Y += L R");
  if (Y.size() == 0 || L.cols() == 0) return;
  detail::add_viewed_product<Scalar, detail::order_of<Result>, detail::order_of<Left>, detail::order_of<Right>>(
      Y, static_cast<Scalar>(alpha), L, R);
}

/// Y = alpha L R; see `add_product`.
template <class Result, class Left, class Right>
void set_product(Result&& Y, double alpha, const Left& L, const Right& R) {
  detail::require_product(Y, L, R, "set_product: Y = L R");
  Y.setZero();
  add_product(Y, alpha, L, R);
}

}  // namespace lora
