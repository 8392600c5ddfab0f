// SPDX-License-Identifier: MIT
// Included into every test by the build: the expensive templates are compiled once, in instances.cpp,
// instead of in every file. Saves 2 s in each file, 10 s in those with decompositions; nothing else depends on it.
#pragma once

#include <lora/kernel/bf16.hpp>
#include <lora/kernel/product.hpp>
#include <lora/linalg/gram.hpp>
#include <lora/linalg/product.hpp>
#include <lora/linalg/thin_qr.hpp>
#include <lora/linalg/truncated_svd.hpp>
#include <lora/optim/lora_pro.hpp>

#ifndef LORA_TEST_INSTANCE
#define LORA_TEST_INSTANCE extern template
#endif

#define LORA_TEST_PRODUCT(Scalar, Y, L, R)                                   \
  LORA_TEST_INSTANCE void lora::detail::add_viewed_product<Scalar, Y, L, R>( \
      lora::View<Scalar, Y>, Scalar, const lora::View<const Scalar, L>&, const lora::View<const Scalar, R>&);
#define LORA_TEST_PRODUCTS(Scalar, Y) \
  LORA_TEST_PRODUCT(Scalar, Y, 0, 0)  \
  LORA_TEST_PRODUCT(Scalar, Y, 0, 1)  \
  LORA_TEST_PRODUCT(Scalar, Y, 1, 0)  \
  LORA_TEST_PRODUCT(Scalar, Y, 1, 1)
#define LORA_TEST_PACKED(Scalar, Weights, Padding)                                                             \
  LORA_TEST_INSTANCE void lora::kernel::multiply<lora::kernel::TileKernel<lora::kernel::Weights, Padding>>(    \
      const lora::ConstRows<Scalar>&, const lora::kernel::TileKernel<lora::kernel::Weights, Padding>::Panels&, \
      lora::Rows<Scalar>);
#define LORA_TEST_SCALAR(Scalar)                                                                                       \
  LORA_TEST_PACKED(Scalar, DenseWeights<Scalar>, 1)                                                                    \
  LORA_TEST_PRODUCTS(Scalar, 0)                                                                                        \
  LORA_TEST_PRODUCTS(Scalar, 1)                                                                                        \
  LORA_TEST_INSTANCE lora::ThinQr<Scalar> lora::thin_qr<Scalar>(const lora::ColMatrix<Scalar>&);                       \
  LORA_TEST_INSTANCE lora::TruncatedSvd<Scalar> lora::detail::wide_svd<Scalar>(const lora::RowMatrix<Scalar>&);        \
  LORA_TEST_INSTANCE class lora::Gram<Scalar>;                                                                         \
  LORA_TEST_INSTANCE class lora::EquivalentGradient<Scalar>;                                                           \
  LORA_TEST_INSTANCE lora::LoraPro::State<Scalar> lora::LoraPro::init<Scalar>(lora::Index, lora::Index, lora::Index)   \
      const;                                                                                                           \
  LORA_TEST_INSTANCE void lora::LoraPro::step<Scalar>(lora::LoraPro::State<Scalar>&, const lora::FactorsView<Scalar>&, \
                                                      const lora::ConstFactorsView<Scalar>&, double, double) const;

LORA_TEST_SCALAR(float)
LORA_TEST_SCALAR(double)
LORA_TEST_PACKED(float, WideningWeights, 32)
