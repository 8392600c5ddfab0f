// SPDX-License-Identifier: MIT
// One of every base over a given weight, together with the dense matrix that it stands for.
#pragma once

#include "support/allocations.hpp"
#include "support/matrices.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/base/callback_base.hpp>
#include <lora/base/owned_base.hpp>
#include <lora/base/packed_base.hpp>
#include <lora/base/packed_bf16_base.hpp>
#include <lora/base/view_base.hpp>
#include <lora/linalg/product.hpp>

#include <memory>
#include <string>
#include <utility>

namespace lora::test {

/// `base`; `dense`, its matrix in long double; `magnitude`, the absolute values of what that matrix is a sum of;
/// `roundings`, those of the base over the ones of a dense product; `description`.
template <class Base>
struct BaseCase;

template <Real Scalar, int Order>
struct BaseCase<OwnedBase<Scalar, Order>> {
  OwnedBase<Scalar, Order> base;
  Wide dense, magnitude;
  Index roundings = 0;
  std::string description = std::string("owned 37 x 29 ") + (sizeof(Scalar) == 4 ? "float" : "double") +
                            (Order == Eigen::RowMajor ? " row-major" : " column-major");

  BaseCase(Index n, Index m, Random& random)
      : base(random_columns<Scalar>(n, m, random)), dense(wide(base.weight())), magnitude(absolute(dense)) {}
};

/// Memory with gaps between the columns (rows).
template <Real Scalar, int Order>
struct BaseCase<ViewBase<Scalar, Order>> {
  std::shared_ptr<const Strided<Scalar, Order>> memory;
  ViewBase<Scalar, Order> base;
  Wide dense, magnitude;
  Index roundings = 0;
  std::string description = std::string("view of 37 x 29 ") + (sizeof(Scalar) == 4 ? "float" : "double") +
                            (Order == Eigen::RowMajor ? " row-major" : " column-major");

  BaseCase(Index n, Index m, Random& random)
      : memory(std::make_shared<const Strided<Scalar, Order>>(random_columns<Scalar>(n, m, random))),
        base(memory->view()),
        dense(wide(base.weight())),
        magnitude(absolute(dense)) {}
};

template <Real Scalar>
struct BaseCase<CallbackBase<Scalar>> {
  std::shared_ptr<const ColMatrix<Scalar>> memory;
  CallbackBase<Scalar> base;
  Wide dense, magnitude;
  Index roundings = 0;
  std::string description = std::string("callback 37 x 29 ") + (sizeof(Scalar) == 4 ? "float" : "double");

  BaseCase(Index n, Index m, Random& random)
      : memory(std::make_shared<const ColMatrix<Scalar>>(random_columns<Scalar>(n, m, random))),
        base(
            n, m, [W0 = memory](const ConstRows<Scalar>& X, Rows<Scalar> Y) { set_product(Y, 1, X, *W0); },
            [W0 = memory](const ConstRows<Scalar>& dY, Rows<Scalar> dX) { set_product(dX, 1, dY, W0->transpose()); }),
        dense(wide(*memory)),
        magnitude(absolute(dense)) {}
};

template <Real Scalar>
struct BaseCase<PackedBase<Scalar>> {
  ColMatrix<Scalar> weight;
  PackedBase<Scalar> base;
  Wide dense, magnitude;
  Index roundings = 0;
  std::string description = std::string("packed 37 x 29 ") + (sizeof(Scalar) == 4 ? "float" : "double") + " twice";

  BaseCase(Index n, Index m, Random& random)
      : weight(random_columns<Scalar>(n, m, random)), base(weight), dense(wide(weight)), magnitude(absolute(dense)) {}
};

/// Stands for the weight as it is held, and multiplies it in float; other kernels in packed_bf16_base_test.
template <>
struct BaseCase<PackedBf16Base> {
  PackedBf16Base base;
  Wide dense, magnitude;
  Index roundings = 0;
  std::string description = "packed 37 x 29 float bf16, widened";

  BaseCase(Index n, Index m, Random& random)
      : base(random_columns<float>(n, m, random), Bf16Kernel::Widening), dense(n, m) {
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < m; ++j) dense(i, j) = static_cast<long double>(base.weight(i, j));
    }
    magnitude = absolute(dense);
  }
};

/// An adapter on an adapter.
template <Real Scalar>
struct BaseCase<LoraLinear<OwnedBase<Scalar>>> {
  LoraLinear<OwnedBase<Scalar>> base;
  Wide dense, magnitude;
  Index roundings;
  std::string description = std::string("LoRA of rank 3, scale 0.5 on owned 37 x 29 ") +
                            (sizeof(Scalar) == 4 ? "float" : "double") + " column-major";

  BaseCase(Index n, Index m, Random& random)
      : base(OwnedBase<Scalar>(random_columns<Scalar>(n, m, random)), {.rank = 3, .alpha = 1.5}), roundings(2 * 3 + 8) {
    base.set_factors(random_factors<Scalar>(n, m, 3, random));
    const auto& factors = base.factors();
    const Wide W0 = wide(base.base().weight()), A = wide(factors.A), B = wide(factors.B);
    dense = W0 + 0.5L * product(A, B);
    magnitude = absolute(W0) + 0.5L * product(absolute(A), absolute(B));
  }
};

/// The heap allocations of both products at several batches, once 400 rows have been seen.
template <FrozenBase Base>
long allocations_of_warm_products(const Base& base, Random& random) {
  using Scalar = typename Base::Scalar;
  const auto X = random_rows<Scalar>(400, base.rows(), random);
  RowMatrix<Scalar> Y(400, base.cols()), dX(400, base.rows());
  const auto run = [&](Index b) {
    base.multiply(X.topRows(b), Y.topRows(b));
    base.multiply_transposed(Y.topRows(b), dX.topRows(b));
  };
  run(400);
  return allocations_in([&] {
    for (const Index b : {1, 13, 399, 400}) run(b);
  });
}

}  // namespace lora::test
