// SPDX-License-Identifier: MIT
#include "support/allocations.hpp"
#include "support/bases.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/base/packed_bf16_base.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

using namespace lora;
using namespace lora::test;

namespace {

constexpr std::array every_kernel{Bf16Kernel::Widening, Bf16Kernel::DotProduct, Bf16Kernel::Amx};

/// The stated bound, with v = 2^-8: the rounding of W0, that of X where the kernel rounds it, the sum.
double bf16_bound(Bf16Kernel kernel, bool exact_weight, Index n) {
  const double v = 1.0 / 256, weight = exact_weight ? 0 : v, input = kernel == Bf16Kernel::Widening ? 0 : v;
  return weight + input + weight * input + rounding_bound<float>(n + 32);
}

double worst_error(Bf16Kernel kernel, Index b, Index n, Index m, Random& random) {
  const auto weight = random_columns<float>(n, m, random);
  const PackedBf16Base base(weight, kernel);
  const Strided<float> X(random_rows<float>(b, n, random)), dY(random_rows<float>(b, m, random));
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  Strided<float> Y(RowMatrix<float>::Constant(b, m, nan)), dX(RowMatrix<float>::Constant(b, n, nan));
  base.multiply(X.view(), Y.view());
  base.multiply_transposed(dY.view(), dX.view());
  CHECK(Y.border_untouched());
  CHECK(dX.border_untouched());
  Wide held(n, m);
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j < m; ++j) held(i, j) = static_cast<long double>(base.weight(i, j));
  }
  double worst = 0;
  for (const bool exact : {false, true}) {
    const Wide W0 = exact ? held : wide(weight), wide_X = wide(X.view()), wide_dY = wide(dY.view());
    worst =
        std::max({worst,
                  worst_ratio(Y.view(), product(wide_X, W0),
                              bf16_bound(kernel, exact, n) * product(absolute(wide_X), absolute(W0))),
                  worst_ratio(dX.view(), product(wide_dY, W0.transpose()),
                              bf16_bound(kernel, exact, m) * product(absolute(wide_dY), absolute(W0.transpose())))});
  }
  return worst;
}

}  // namespace

TEST_CASE("every bf16 kernel of this machine stays within its bound at every remainder of its tiles",
          "[base][packed][bf16]") {
  for (const Bf16Kernel kernel : every_kernel) {
    if (!available(kernel)) {
      WARN("bf16 kernel " << static_cast<int>(kernel) << " is not available here: NOT TESTED");
      continue;
    }
    Random random{61};
    double worst = 0;
    for (Index remainder = 0; remainder < 66; ++remainder) {  // rows of W by 32, columns by 32, rows of X by 12 or 32
      worst = std::max(worst, worst_error(kernel, remainder % 35, 1 + remainder, 1 + (7 * remainder) % 66, random));
    }
    worst = std::max({worst, worst_error(kernel, 70, 4200, 35, random), worst_error(kernel, 401, 40, 50, random)});
    INFO("kernel " << static_cast<int>(kernel) << ": worst error is " << worst << " of the bound");
    CHECK(worst <= 1);
    CHECK(worst > 1e-3);  // the bound says something
  }
}

TEST_CASE("a bf16 base takes bfloat16 as it is and rounds float to nearest even", "[base][packed][bf16]") {
  Random random{62};
  const auto weight = random_columns<float>(9, 40, random);
  const Eigen::Matrix<Eigen::bfloat16, Eigen::Dynamic, Eigen::Dynamic> narrow = weight.cast<Eigen::bfloat16>();
  CHECK(PackedBf16Base(weight) == PackedBf16Base(narrow));
  const PackedBf16Base base(narrow);
  for (Index i = 0; i < 9; ++i) {
    for (Index j = 0; j < 40; ++j) REQUIRE(base.weight(i, j) == static_cast<float>(narrow(i, j)));
  }
}

TEST_CASE("activations are rounded to bfloat16 as Eigen rounds them", "[base][packed][bf16]") {
  Random random{63};
  constexpr float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> values{0.0F, -0.0F, 1.0F, 1.00390625F, 1.01171875F, infinity, -infinity, 3.4e38F, 1e-45F};
  for (int i = 0; i < 10'000; ++i) {
    values.push_back(static_cast<float>((2 * random.uniform() - 1) * std::exp(80 * random.uniform() - 40)));
  }
  for (const float value : values) {
    REQUIRE(kernel::bf16_bits(value) == Eigen::bfloat16_impl::float_to_bfloat16_rtne<false>(value).value);
  }
  const std::uint32_t nan = kernel::bf16_bits(std::numeric_limits<float>::quiet_NaN());
  CHECK((nan & 0x7F80U) == 0x7F80U);
  CHECK((nan & 0x7FU) != 0);
}

TEST_CASE("NaN and infinity stay in their rows of a bf16 product", "[base][packed][bf16]") {
  Random random{64};
  for (const Bf16Kernel kernel : every_kernel) {
    if (!available(kernel)) continue;
    const PackedBf16Base base(random_columns<float>(19, 40, random), kernel);
    auto X = random_rows<float>(34, 19, random);
    X(3, 5) = std::numeric_limits<float>::quiet_NaN();
    X(20, 2) = std::numeric_limits<float>::infinity();
    RowMatrix<float> Y(34, 40);
    base.multiply(X, Y);
    for (Index i = 0; i < 34; ++i) CHECK(Y.row(i).allFinite() == (i != 3 && i != 20));
  }
}

TEST_CASE("a bf16 kernel that is not there is refused, and one is always there", "[base][packed][bf16][errors]") {
  const ColMatrix<float> weight = ColMatrix<float>::Ones(2, 2);
  CHECK(available(Bf16Kernel::Widening));
  CHECK(available(fastest_bf16_kernel()));
  CHECK(message_of<ConfigError>([&] { PackedBf16Base(weight, static_cast<Bf16Kernel>(7)); }) ==
        "PackedBf16Base: kernel must be one that this program and machine have, got none of them");
}

TEST_CASE("a bf16 product allocates nothing once the thread has seen its largest batch", "[base][packed][bf16]") {
  if (!allocations_are_counted) WARN(not_counted);
  Random random{65};
  for (const Bf16Kernel kernel : every_kernel) {
    if (!available(kernel)) continue;
    const PackedBf16Base base(random_columns<float>(300, 200, random), kernel);
    CHECK(allocations_of_warm_products(base, random) == 0);
  }
}
