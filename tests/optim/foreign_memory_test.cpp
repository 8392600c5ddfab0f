// SPDX-License-Identifier: MIT
// A trainer's own buffers, gaps and all, take the same steps as ours: the same bits, and nothing written into the gaps.
#include "support/catch.hpp"
#include "support/matrices.hpp"

#include <lora/lora.hpp>

#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 37, m = 29, r = 5;  // odd, so that every column starts at another alignment

template <Real Scalar, class Method>
void check_strided(const Method& method) {
  Random random{3};
  Factors<Scalar> factors = random_factors<Scalar>(n, m, r, random);
  Strided<Scalar, Eigen::ColMajor> A(factors.A);
  Strided<Scalar, Eigen::RowMajor> B(factors.B);
  Optimizer<Method, Scalar> contiguous(method, n, m, r), strided(method, n, m, r);
  for (int step = 0; step < 20; ++step) {
    const Factors<Scalar> gradient = random_factors<Scalar>(n, m, r, random);
    const Strided<Scalar, Eigen::ColMajor> gradient_A(gradient.A);
    const Strided<Scalar, Eigen::RowMajor> gradient_B(gradient.B);
    contiguous.step(factors, gradient, 0.5, 1);
    strided.step({A.view(), B.view()}, {gradient_A.view(), gradient_B.view()}, 0.5, 1);
  }
  CHECK(same_bits(A.view(), factors.A));
  CHECK(same_bits(B.view(), factors.B));
  CHECK(A.border_untouched());
  CHECK(B.border_untouched());
  CHECK(strided.state() == contiguous.state());
}

}  // namespace

TEMPLATE_TEST_CASE("factors with gaps take the same steps, bit for bit", "[optim]", float, double) {
  SECTION("AdamW") { check_strided<TestType>(PerFactor{AdamW{.learning_rate = 0.01, .weight_decay = 0.1}}); }
  SECTION("LoRA+") { check_strided<TestType>(LoraPlus{AdamW{.learning_rate = 0.01}}); }
  SECTION("Sgd") { check_strided<TestType>(PerFactor{Sgd{.weight_decay = 0.1}}); }
  SECTION("momentum") { check_strided<TestType>(PerFactor{Sgd{.momentum = 0.9, .weight_decay = 0.1}}); }
  SECTION("Nesterov") {
    check_strided<TestType>(PerFactor{Sgd{.momentum = 0.9, .kind = Sgd::Momentum::Nesterov, .weight_decay = 0.1}});
  }
  SECTION("LoRA-Pro") {
    using Mode = LoraPro::Mode;
    const Mode mode = GENERATE(Mode::Sgd, Mode::Efficient, Mode::Full, Mode::Factored);
    check_strided<TestType>(LoraPro{.learning_rate = 0.01, .mode = mode, .weight_decay = 0.1, .trust = 0.01});
  }
  SECTION("Riemannian") { check_strided<TestType>(Riemannian<>{}); }
  SECTION("LoRA-FA") { check_strided<TestType>(LoraFa<>{}); }
}

TEMPLATE_TEST_CASE("a step does not depend on where the memory starts", "[optim]", float, double) {
  Random random{4};
  const auto start = random_columns<TestType>(101, 1, random), gradient = random_columns<TestType>(101, 1, random);
  const AdamW rule{.learning_rate = 0.1, .weight_decay = 0.1};
  const auto stepped_at = [&](Index offset) {
    Eigen::VectorX<TestType> p(101 + offset), g(101 + offset);
    p.tail(101) = start;
    g.tail(101) = gradient;
    auto state = rule.template init<TestType>(101, 1);
    for (int step = 0; step < 5; ++step) {
      rule.step(state, Columns<TestType>(p.data() + offset, 101, 1), ConstColumns<TestType>(g.data() + offset, 101, 1),
                1);
    }
    return ColMatrix<TestType>(p.tail(101));
  };
  const auto aligned = stepped_at(0);
  for (const Index offset : {1, 2, 3, 7}) {
    CAPTURE(offset);
    CHECK(same_bits(stepped_at(offset), aligned));
  }
}

TEMPLATE_TEST_CASE("a trainer's raw buffers are stepped through views of pointers", "[optim]", float, double) {
  Random random{5};
  const Factors<TestType> start = random_factors<TestType>(n, m, r, random);
  const Factors<TestType> gradient = random_factors<TestType>(n, m, r, random);
  const auto copy = [](const auto& matrix) {
    return std::vector<TestType>(matrix.data(), matrix.data() + matrix.size());
  };
  auto a = copy(start.A), b = copy(start.B);
  const auto gradient_a = copy(gradient.A), gradient_b = copy(gradient.B);

  Optimizer<LoraPlus<>, TestType> optimizer(LoraPlus{AdamW{}}, n, m, r);
  optimizer.step(FactorsView<TestType>{{a.data(), n, r}, {b.data(), r, m}},
                 ConstFactorsView<TestType>{{gradient_a.data(), n, r}, {gradient_b.data(), r, m}}, 2, 1);

  Factors<TestType> ours = start;
  Optimizer<LoraPlus<>, TestType>(LoraPlus{AdamW{}}, n, m, r).step(ours, gradient, 2, 1);
  CHECK(same_bits(ColMatrix<TestType>(Columns<TestType>(a.data(), n, r)), ours.A));
  CHECK(same_bits(RowMatrix<TestType>(Rows<TestType>(b.data(), r, m)), ours.B));
}
