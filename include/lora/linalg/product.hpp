// SPDX-License-Identifier: MIT
// Dense products that allocate nothing once warm: Eigen's kernel with packing memory that lives as long as the thread.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>

#include <Eigen/Core>

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

}  // namespace detail

/// Y += alpha L R, with L (b x k), R (k x c), Y (b x c) in memory, any storage orders; Y overlaps neither factor.
///
/// Serial, b k c multiply-adds, no allocation after the first product of a size in a thread. Where Eigen has a pool of
/// threads (OpenMP, more than one thread), Eigen's own parallel product runs instead, and that one may allocate.
/// The result depends on the shapes and the machine's cache sizes alone: same shapes, same bits.
/// \throws ShapeError  sizes that do not fit.
template <class Result, class Left, class Right>
void add_product(Result&& Y, double alpha, const Left& L, const Right& R) {
  using Scalar = typename Left::Scalar;
  using Target = std::remove_cvref_t<Result>;
  static_assert(std::is_same_v<Scalar, typename Right::Scalar> && std::is_same_v<Scalar, typename Target::Scalar>,
                "lora: the factors and the result of a product share one scalar type");
  constexpr auto order = [](bool row_major) { return row_major ? int{Eigen::RowMajor} : int{Eigen::ColMajor}; };
  detail::require<ShapeError>(L.cols() == R.rows() && Y.rows() == L.rows() && Y.cols() == R.cols(),
                              "add_product: Y += L R needs fitting sizes, got Y ", detail::shape(Y), ", L ",
                              detail::shape(L), ", R ", detail::shape(R));
  if (Y.size() == 0 || L.cols() == 0) return;
  const auto factor = static_cast<Scalar>(alpha);
  // Vectors and tiny products have kernels of their own in Eigen, and none of them packs.
  const bool vector_or_tiny = Y.rows() == 1 || Y.cols() == 1 || Y.rows() + Y.cols() + L.cols() < 20;
  if (vector_or_tiny || Eigen::nbThreads() > 1) {
    Y.noalias() += (factor * L) * R;
    return;
  }
  constexpr bool row_major = bool(Target::IsRowMajor);
  detail::PackingSpace<Scalar> space(row_major ? Y.cols() : Y.rows(), row_major ? Y.rows() : Y.cols(), L.cols());
  Eigen::internal::general_matrix_matrix_product<Index, Scalar, order(Left::IsRowMajor), false, Scalar,
                                                 order(Right::IsRowMajor), false, order(row_major),
                                                 1>::run(Y.rows(), Y.cols(), L.cols(), L.data(), L.outerStride(),
                                                         R.data(), R.outerStride(), Y.data(), 1, Y.outerStride(),
                                                         factor, space, nullptr);
}

/// Y = alpha L R; see `add_product`.
template <class Result, class Left, class Right>
void set_product(Result&& Y, double alpha, const Left& L, const Right& R) {
  Y.setZero();
  add_product(Y, alpha, L, R);
}

}  // namespace lora
