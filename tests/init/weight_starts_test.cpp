// SPDX-License-Identifier: MIT
// The starts that need the weight or its shape alone: PiSSA, OLoRA, orthogonal.
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/base/owned_base.hpp>
#include <lora/base/view_base.hpp>
#include <lora/init/orthogonal.hpp>
#include <lora/init/principal_svd.hpp>
#include <lora/init/qr_init.hpp>
#include <lora/linalg/dense.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

using namespace lora;
using namespace lora::test;

namespace {

using Dense = ColMatrix<double>;

/// Small integers without a pattern of low rank.
Dense example_weight() {
  Dense W0(5, 4);
  for (Index i = 0; i < 20; ++i) W0.data()[i] = static_cast<double>((7 * i * i + i) % 11) - 5;
  return W0;
}

}  // namespace

TEST_CASE("the product of PiSSA's factors is the principal part of the weight for any scale", "[init][pissa]") {
  constexpr Index r = 3;
  struct Sizes {
    Index n, m;
  };
  Random random{1};
  for (const auto& [n, m] : {Sizes{24, 16}, {16, 24}}) {
    const auto W0 = random_columns<double>(n, m, random);
    const auto svd = truncated_svd(ViewBase<double>(W0), r, random, SvdEffort::exact());
    for (const double scale : {0.5, 1.0, 4.0}) {
      for (const auto& init : {PrincipalSvd{}, PrincipalSvd{SvdEffort::exact()}}) {
        const auto start = init(ViewBase<double>(W0), r, scale, random);
        CHECK(start.offset == Offset::SubtractInitial);
        const auto& [A, B] = start.factors;
        const Eigen::VectorXd root = (svd.S / scale).cwiseSqrt();
        INFO("scale " << scale << ": off by " << relative_error(scale * A * B, to_dense(svd)));
        CHECK(relative_error(scale * A * B, to_dense(svd)) <= decomposition<double>);
        CHECK(relative_error(A.colwise().norm().transpose(), root) <= decomposition<double>);
        CHECK(relative_error(B.rowwise().norm(), root) <= decomposition<double>);
      }
    }
  }
}

TEST_CASE("PiSSA's fast form, far narrower than the weight, comes close to the exact one", "[init][pissa]") {
  constexpr Index n = 120, m = 90, r = 4;
  Random random{2};
  const auto U = thin_qr(random_columns<double>(n, m, random)).Q, V = thin_qr(random_columns<double>(m, m, random)).Q;
  const Eigen::VectorXd sigma = Eigen::VectorXd::LinSpaced(m, 1, m).cwiseInverse();
  const Dense W0 = U * sigma.asDiagonal() * V.transpose();
  const Dense principal = U.leftCols(r) * sigma.head(r).asDiagonal() * V.leftCols(r).transpose();
  const auto [A, B] = PrincipalSvd{}(ViewBase<double>(W0), r, 1, random).factors;
  INFO("off by " << relative_error(A * B, principal));
  CHECK(relative_error(A * B, principal) <= fast_decomposition);
}

TEMPLATE_TEST_CASE("OLoRA's factors are the first part of the QR decomposition of W0^T", "[init][qr]", float, double) {
  struct Sizes {
    Index n, m;
  };
  constexpr Index r = 4;
  Random random{3};
  for (const auto& [n, m] : {Sizes{18, 11}, {11, 18}, {4, 4}}) {
    const auto W0 = random_columns<TestType>(n, m, random);
    const auto start = QrInit{}(ViewBase<TestType>(W0), r, 2.5, random);
    CHECK(start.offset == Offset::SubtractInitial);
    const auto& [A, B] = start.factors;
    const auto qr = thin_qr<TestType>(W0.transpose());
    const ColMatrix<TestType> expected = (qr.Q.leftCols(r) * qr.R.topRows(r)).transpose();
    INFO(n << " x " << m << ": off by " << relative_error(A * B, expected));
    CHECK(relative_error(A * B, expected) <= decomposition<TestType>);
    CHECK(off_orthonormal(ColMatrix<TestType>(B.transpose())) <= 2 * qr_bound<TestType>(m, r));
    // R_r^T is lower triangular, up to rounding: no diagonal of R can be told from the products alone.
    const ColMatrix<TestType> above = A.template triangularView<Eigen::StrictlyUpper>();
    CHECK(static_cast<double>(above.norm()) <= decomposition<TestType> * static_cast<double>(W0.norm()));
    CHECK(relative_error(A.cwiseAbs(), qr.R.topRows(r).transpose().cwiseAbs()) <= decomposition<TestType>);
  }
}

TEST_CASE("OLoRA's B0 is orthonormal although the first rows of the weight are equal or zero", "[init][qr]") {
  Random random{4};
  auto W0 = random_columns<double>(9, 7, random);
  W0.row(1) = W0.row(0);
  W0.row(2).setZero();
  const auto [A, B] = QrInit{}(ViewBase<double>(W0), 3, 1, random).factors;
  CHECK(off_orthonormal(Dense(B.transpose())) <= 2 * qr_bound<double>(7, 3));
  CHECK(relative_error(A, W0 * B.transpose()) <= decomposition<double>);
}

TEMPLATE_TEST_CASE("the orthogonal start has both factors at work and a product of zero up to rounding",
                   "[init][orthogonal]", float, double) {
  constexpr Index n = 300, m = 200, r = 8;
  Random random{5};
  const OwnedBase<TestType> base(ColMatrix<TestType>::Zero(n, m));
  const auto start = Orthogonal{}(base, r, 1, random);
  CHECK(start.offset == Offset::None);
  const auto& [A, B] = start.factors;
  // P and Q are orthonormal up to qr_bound, and the sum over r of the product rounds once a term.
  const Wide bound = Wide::Constant(n, m, qr_bound<TestType>(r, r)) * wide(A).cwiseAbs().maxCoeff() *
                     wide(B).cwiseAbs().maxCoeff() * static_cast<long double>(r);
  const double ratio = worst_ratio(product(wide(A), wide(B)), Wide::Zero(n, m), bound);
  INFO("A0 B0 is " << ratio << " of the bound from zero");
  CHECK(ratio <= 1);
  // N(0, 0.01) seen through orthonormal rows: a mean square of 0.01 / 2, its standard error sqrt(2 / count) of that.
  for (const double mean_square : {static_cast<double>(A.squaredNorm()) / static_cast<double>(n * r),
                                   static_cast<double>(B.squaredNorm()) / static_cast<double>(r * m)}) {
    CHECK(std::abs(mean_square / 0.005 - 1) <= standard_errors * std::sqrt(2.0 / static_cast<double>(r / 2 * m)));
  }
}

TEST_CASE("these starts, too, repeat by seed, and their first factors are pinned up to rounding", "[init]") {
  const Dense W0 = example_weight();
  const ViewBase<double> base(W0);
  // Not bit for bit: a decomposition adds up in an order that the compiler and the vector width choose.
  const auto check = [&](const auto& init, const Eigen::Vector4d& first, const Eigen::Vector4d& last) {
    Random one{42}, two{42};
    const auto [A, B] = init(base, 2, 1.0, one).factors;
    CHECK(same_bits(init(base, 2, 1.0, two).factors, {A, B}));
    CHECK(one == two);
    INFO("A0 starts with " << A.col(0).head(4).transpose() << ", B0 ends with " << B.row(1));
    CHECK(relative_error(A.col(0).head(4), first) <= decomposition<double>);
    CHECK(relative_error(B.row(1).transpose(), last) <= decomposition<double>);
  };
  check(PrincipalSvd{}, {0x1.5e2e7155c2ac8p+0, -0x1.ba5f0f7c598cep+0, -0x1.f80eeaad5dc12p-5, 0x1.084a4a82241bfp+1},
        {-0x1.725b6a99fb648p+0, -0x1.727e39348a618p+0, -0x1.bdf9d1a41dfeap+0, 0x1.3205ef95d409ep-2});
  check(QrInit{}, {0x1.52a7fa9d2f8e9p+2, -0x1.fbfbf7ebc755ep+1, -0x1.83091e6a7f7e7p+1, 0x1.83091e6a7f7e7p+2},
        {-0x1.5e163e7b21224p-3, -0x1.5e163e7b21224p-3, -0x1.eff4d883c445ep-1, -0x1.d2c8534ed6d88p-5});
  check(Orthogonal{}, {-0x1.28a733b44638cp-4, -0x1.42bcebc7ad57fp-6, 0x1.a03c335814b08p-4, -0x1.8279bc8fa19e6p-6},
        {0x1.0ffed534015d7p-3, 0x1.b245acc092fc6p-7, 0x1.779f0dd1a1dc4p-4, 0x1.52f9b84cbd049p-5});
}

TEST_CASE("what these starts cannot use is named, and the layer stays as it was", "[init][errors]") {
  Random random{6};
  auto W0 = random_columns<double>(9, 7, random);
  LoraLinear layer{W0, {.rank = 3}};
  layer.initialize(QrInit{}, random);
  const auto before = layer;
  CHECK(message_of<ConfigError>([&] { layer.initialize(Orthogonal{}, random); }) ==
        "Orthogonal: rank must be even, got 3");
  CHECK(layer == before);
  W0(4, 4) = std::numeric_limits<double>::quiet_NaN();
  CHECK(message_of<NumericalError>([&] { layer.initialize(PrincipalSvd{}, random); }) ==
        "truncated_svd: the operator's products must be finite, got NaN or infinity");
  CHECK(message_of<NumericalError>([&] { layer.initialize(QrInit{}, random); }) ==
        "LoraLinear::initialize: start A must be finite, got NaN or infinity");
  W0(4, 4) = 0;
  for (const double scale : {0.0, -2.0}) {
    layer.set_scale(scale);
    const auto as_set = layer;
    CHECK(message_of<ConfigError>([&] { layer.initialize(PrincipalSvd{}, random); }) ==
          std::string("PrincipalSvd: scale must be positive, got ") + (scale == 0 ? "0" : "-2"));
    CHECK(layer == as_set);
  }
}
