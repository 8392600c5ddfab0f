// SPDX-License-Identifier: MIT
// Alignment against the dense matrices that it never forms, and what theory says of the methods' first steps.
#include "optim/dense_reference.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/analysis/alignment.hpp>
#include <lora/base/view_base.hpp>
#include <lora/init/dense_gradient.hpp>
#include <lora/init/gradient_svd.hpp>
#include <lora/init/kaiming_uniform.hpp>
#include <lora/linalg/batch_gradient.hpp>
#include <lora/optim/full_fine_tuning.hpp>
#include <lora/optim/lora_pro.hpp>
#include <lora/optim/optimizer.hpp>
#include <lora/optim/per_factor.hpp>
#include <lora/optim/sgd.hpp>

#include <algorithm>
#include <limits>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 23, m = 17, r = 4;
constexpr double s = 1.7;

/// The same of formed matrices.
Alignment dense_alignment(const Dense& D, const Dense& F) {
  return {D.cwiseProduct(F).sum() / (D.norm() * F.norm()), (D - F).norm() / F.norm()};
}
void check_equal(const Alignment& found, const Alignment& expected, double bound) {
  INFO("cosine " << found.cosine << " and " << expected.cosine << ", relative error " << found.relative_error << " and "
                 << expected.relative_error);
  CHECK(std::abs(found.cosine - expected.cosine) < bound);
  CHECK(std::abs(found.relative_error - expected.relative_error) < bound * std::max(1.0, expected.relative_error));
}

template <Real Scalar>
Dense product_of(const Factors<Scalar>& f) {
  return f.A.template cast<double>() * f.B.template cast<double>();
}

/// One step of a factor optimizer, measured against -lr G.
template <class Method>
Alignment first_step(const Method& method, double lr, Factors<double> f, const Dense& G) {
  AlignmentMeter<double> meter;
  meter.begin(f);
  Optimizer<Method, double> optimizer(method, n, m, r);
  const auto raw = factor_gradient(f, G, s);
  optimizer.step(f, raw, s, 1);
  return meter.measure(f, s, ViewBase(G), -lr);
}

}  // namespace

TEMPLATE_TEST_CASE("alignment is the cosine and the relative error of the dense steps, for every kind of operator",
                   "[analysis]", float, double) {
  using Scalar = TestType;
  Random random{1};
  const auto step = random_factors<Scalar>(n, m, r, random);
  const auto X = random_rows<Scalar>(2 * 6, n, random), dY = random_rows<Scalar>(2 * 6, m, random);
  const Dense G = 0.5 * X.template cast<double>().transpose() * dY.template cast<double>();  // the mean of two batches
  ColMatrix<Scalar> formed(n, m);
  formed = G.template cast<Scalar>();

  DenseGradient<Scalar> dense(n, m);
  BatchGradient<Scalar> batches(n, m);
  for (const Index first : {0, 6}) {
    dense.add(X.middleRows(first, 6), dY.middleRows(first, 6));
    batches.add(X.middleRows(first, 6), dY.middleRows(first, 6));
  }
  for (const double factor : {1.0, -0.01, -3.0}) {
    const auto expected = dense_alignment(s * product_of(step), factor * G);
    check_equal(alignment(step, s, dense, factor), expected, alignment_bound<Scalar>);
    check_equal(alignment(step, s, batches, factor), expected, alignment_bound<Scalar>);
    check_equal(alignment(step, s, ViewBase(formed), factor), expected, alignment_bound<Scalar>);
  }
}

TEST_CASE("a step is aligned with itself, against its negative, and not at all where it is zero", "[analysis]") {
  Random random{2};
  const auto step = random_factors<double>(n, m, r, random);
  const Dense full = s * product_of(step);
  const auto same = alignment(step, s, ViewBase(full));
  CHECK(std::abs(same.cosine - 1) < alignment_bound<double>);
  CHECK(same.relative_error < std::sqrt(alignment_bound<double>));
  const auto opposed = alignment(step, s, ViewBase(full), -1);
  CHECK(std::abs(opposed.cosine + 1) < alignment_bound<double>);
  CHECK(std::abs(opposed.relative_error - 2) < alignment_bound<double>);
  const auto none = alignment(Factors<double>::zero(n, m, r), s, ViewBase(full));
  CHECK(none.cosine == 0);
  CHECK(none.relative_error == 1);
}

TEST_CASE("the meter compares one step, or several, with full fine-tuning's", "[analysis]") {
  for (const int steps : {1, 7}) {
    Random random{3};
    const Dense W0 = random_columns<double>(n, m, random), target = random_columns<double>(n, m, random);
    const auto start = random_factors<double>(n, m, r, random);
    auto f = start;
    const LoraPro method{.learning_rate = 0.01, .mode = LoraPro::Mode::Efficient};
    Optimizer<LoraPro, double> optimizer(method, n, m, r);
    AlignmentMeter<double> meter;
    meter.begin(f);
    Dense W = W0;
    const FullFineTuning full{AdamW{.learning_rate = 0.01}};
    auto state = full.init(W);
    for (int step = 0; step < steps; ++step) {
      const Dense adapted = W0 + s * (product_of(f) - product_of(start));
      const auto raw = factor_gradient<double>(f, adapted - target, s);
      optimizer.step(f, raw, s, 1);
      const Dense G = W - target;
      full.step(state, W, G);
    }
    const Dense change = W - W0;
    check_equal(meter.measure(f, s, ViewBase(change)), dense_alignment(s * (product_of(f) - product_of(start)), change),
                alignment_bound<double>);
    meter.begin(f);  // from here on
    CHECK(meter.measure(f, s, ViewBase(change)).cosine == 0);
  }
}

TEMPLATE_TEST_CASE("the captured share is ||Gt||^2 / ||G||^2, in [0, 1]", "[analysis]", float, double) {
  using Scalar = TestType;
  Random random{4};
  const double bound = sizeof(Scalar) == 4 ? float_direction_bound : closed_form_bound;
  for (int trial = 0; trial < 50; ++trial) {
    auto f = random_factors<Scalar>(n, m, r, random);
    if (trial % 5 == 1) f.B.setZero();
    if (trial % 5 == 2) f.A.col(1) = f.A.col(0);
    if (trial % 5 == 3) f.A.setZero();
    if (trial % 5 == 4) f.B.row(2) = 2 * f.B.row(0);
    const auto G = random_columns<Scalar>(n, m, random);
    Dense wide_G(n, m);
    wide_G = G.template cast<double>();
    const Dense left = orthonormal_basis(f.A.template cast<double>()),
                right = orthonormal_basis(f.B.template cast<double>().transpose());
    const Dense in_rows = wide_G * right * right.transpose();
    const Dense Gt = in_rows + left * left.transpose() * (wide_G - in_rows);
    const double share = captured_share(f, factor_gradient<Scalar>(f, G, s), s, squared_norm(ViewBase(G)));
    CHECK(std::abs(share - Gt.squaredNorm() / wide_G.squaredNorm()) < bound);
    CHECK(share >= 0);
    CHECK(share <= 1);
  }
  const auto nothing = Factors<Scalar>::zero(n, m, r);
  CHECK(captured_share(nothing, nothing, s, 1) == 0);
  const auto complete = random_factors<Scalar>(n, m, m, random);
  const auto G = random_columns<Scalar>(n, m, random);
  const double whole = captured_share(complete, factor_gradient<Scalar>(complete, G, s), s, squared_norm(ViewBase(G)));
  CHECK(std::abs(whole - 1) < full_rank_share<Scalar>);
}

TEST_CASE("LoRA-GA's start aligns the first step with full fine-tuning's as no other pair of its rank can",
          "[analysis]") {
  constexpr double lr = 0x1p-20;
  Random random{5};
  const Dense W0 = random_columns<double>(n, m, random), G = random_columns<double>(n, m, random);
  const GradientSvd init{.size = GradientSvd::Size::Unit, .effort = SvdEffort::exact()};
  const auto lora_ga = init(ViewBase(W0), ViewBase(G), r, s, random).factors;
  const auto kaiming = KaimingUniform{}(ViewBase(W0), r, s, random).factors;
  const PerFactor plain{Sgd{.learning_rate = lr}};
  const auto aligned = first_step(plain, lr, lora_ga, G), usual = first_step(plain, lr, kaiming, G);
  INFO("cosine " << aligned.cosine << " after LoRA-GA, " << usual.cosine << " after kaiming");
  CHECK(aligned.cosine > 1.5 * usual.cosine);

  // No D of rank 2r does better than the leading 2r triplets.
  const auto sigma = truncated_svd(ViewBase(G), m, random, SvdEffort::exact()).S;
  const double best = sigma.head(2 * r).squaredNorm() / sigma.squaredNorm();
  CHECK(std::abs(aligned.cosine * aligned.cosine - best) < first_order(lr));
}

TEST_CASE("LoRA-Pro's Sgd step has the cosine that the captured share allows, and full fine-tuning's length within it",
          "[analysis]") {
  constexpr double lr = 0x1p-20;
  Random random{6};
  for (int trial = 0; trial < 5; ++trial) {
    auto f = random_factors<double>(n, m, r, random);
    if (trial == 4) f.B.setZero();
    const Dense G = random_columns<double>(n, m, random);
    const double share = captured_share(f, factor_gradient(f, G, s), s, squared_norm(ViewBase(G)));
    const auto pro = first_step(LoraPro{.learning_rate = lr, .mode = LoraPro::Mode::Sgd}, lr, f, G);
    CHECK(std::abs(pro.cosine * pro.cosine - share) < first_order(lr));
    CHECK(std::abs(pro.relative_error * pro.relative_error - (1 - share)) < first_order(lr));
    CHECK(pro.cosine >= first_step(PerFactor{Sgd{.learning_rate = lr}}, lr, f, G).cosine - first_order(lr));
  }
}

TEST_CASE("alignment says what it cannot compare", "[analysis]") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Random random{7};
  const auto step = random_factors<double>(n, m, r, random);
  const Dense fitting = random_columns<double>(n, m, random), wrong = random_columns<double>(m, n, random),
              zero = Dense::Zero(n, m);
  CHECK(message_of<ShapeError>([&] { alignment(step, s, ViewBase(wrong)); }) ==
        "alignment: full step must be 23 x 17, got 17 x 23");
  CHECK(message_of<NumericalError>([&] { alignment(step, s, ViewBase(zero)); }) ==
        "alignment: the full step must be finite and not zero, got a squared norm of 0");
  CHECK(message_of<NumericalError>([&] { alignment(step, s, ViewBase(fitting), 0); }) ==
        "alignment: the full step must be finite and not zero, got a squared norm of 0");
  Dense broken = fitting;
  broken(0, 0) = nan;
  CHECK(message_of<NumericalError>([&] { alignment(step, s, ViewBase(broken)); }) ==
        "alignment: the full step must be finite and not zero, got a squared norm of nan");
  auto lost = step;
  lost.B(0, 0) = nan;
  CHECK(message_of<NumericalError>([&] { alignment(lost, s, ViewBase(fitting)); }) ==
        "alignment: step B must be finite, got NaN or infinity");
  const BatchGradient<double> empty(n, m);
  CHECK(message_of<StateError>([&] { alignment(step, s, empty); }) ==
        "BatchGradient: needs at least one batch, got none");

  AlignmentMeter<double> meter;
  CHECK(message_of<StateError>([&] { meter.measure(step, s, ViewBase(fitting)); }) ==
        "AlignmentMeter::measure: begin first, got no factors yet");
  meter.begin(step);
  const auto other = Factors<double>::zero(n, m, r + 1);
  CHECK(message_of<ShapeError>([&] { meter.measure(other, s, ViewBase(fitting)); }) ==
        "AlignmentMeter::measure: factors A must be 23 x 4, got 23 x 5");
}

TEST_CASE("captured_share says what is wrong with its arguments", "[analysis]") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Random random{8};
  const auto f = random_factors<double>(n, m, r, random);
  auto bad = f;
  bad.A(0, 0) = nan;
  CHECK(message_of<ShapeError>([&] { captured_share(f, Factors<double>::zero(n, m, 2), s, 1); }) ==
        "captured_share: gradient A must be 23 x 4, got 23 x 2");
  CHECK(message_of<NumericalError>([&] { captured_share(bad, f, s, 1); }) ==
        "captured_share: factors A must be finite, got NaN or infinity");
  CHECK(message_of<NumericalError>([&] { captured_share(f, bad, s, 1); }) ==
        "captured_share: gradient A must be finite, got NaN or infinity");
  CHECK(message_of<ConfigError>([&] { captured_share(f, f, 0, 1); }) ==
        "captured_share: scale must be finite and not zero, got 0");
  CHECK(message_of<ConfigError>([&] { captured_share(f, f, s, 0); }) ==
        "captured_share: squared norm of G must be positive and finite, got 0");
  CHECK(message_of<ConfigError>([&] { captured_share(f, f, s, nan); }) ==
        "captured_share: squared norm of G must be positive and finite, got nan");
}
