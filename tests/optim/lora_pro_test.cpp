// SPDX-License-Identifier: MIT
// Every mode of LoRA-Pro against its formulas on dense matrices, and what it keeps, allocates and refuses.
#include "optim/dense_reference.hpp"
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/base/view_base.hpp>
#include <lora/init/gradient_svd.hpp>
#include <lora/init/principal_svd.hpp>
#include <lora/optim/lora_pro.hpp>
#include <lora/optim/optimizer.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

using namespace lora;
using namespace lora::test;

namespace {

using Mode = LoraPro::Mode;
using Compat = LoraPro::Compat;
constexpr Index n = 13, m = 9, r = 3;
constexpr double s = 1.7;
constexpr Mode every_mode[] = {Mode::Sgd, Mode::Efficient, Mode::Full, Mode::Factored};

/// The loss 1/2 ||W0 + s A B - T||^2, and a start.
struct Problem {
  Random random{1};
  Dense target;
  Factors<double> start;

  Problem(Index rows, Index cols, Index rank)
      : target(random_columns<double>(rows, cols, random)), start(random_factors<double>(rows, cols, rank, random)) {}
  template <Real Scalar>
  ColMatrix<Scalar> gradient(const Factors<Scalar>& f) const {
    return static_cast<Scalar>(s) * f.A * f.B - target.template cast<Scalar>();
  }
};
Problem from_zero(Index rows = n, Index cols = m, Index rank = r) {
  Problem problem(rows, cols, rank);
  problem.start.B.setZero();
  return problem;
}

/// How far `steps` steps lead from the reference, relative in norm, the worse of A and B.
template <Real Scalar>
double distance(const LoraPro& method, const Problem& problem, int steps) {
  Factors<double> expected = problem.start;
  Factors<Scalar> f{expected.A.template cast<Scalar>(), expected.B.template cast<Scalar>()};
  Optimizer<LoraPro, Scalar> optimizer(method, f.in_features(), f.out_features(), f.rank());
  DenseLoraPro reference(method);
  for (int t = 0; t < steps; ++t) {
    const double rate = 1 - 0.5 * t / steps;
    const auto raw = factor_gradient<Scalar>(f, problem.gradient(f), s);
    optimizer.step(f, raw, s, rate);
    reference.step(expected, problem.gradient(expected), s, rate);
  }
  return std::max(relative_error(f.A.template cast<double>(), expected.A),
                  relative_error(f.B.template cast<double>(), expected.B));
}

std::string describe(const LoraPro& method) {
  return "mode " + std::to_string(static_cast<int>(method.mode)) + ", freedom " +
         std::to_string(static_cast<int>(method.freedom)) + ", compat " +
         std::to_string(static_cast<int>(method.compat));
}

template <Real Scalar>
void check_reference(const LoraPro& method, const Problem& problem, int steps = 30) {
  const double found = distance<Scalar>(method, problem, steps);
  INFO(describe(method) << ": distance from the dense reference " << found);
  CHECK(found < pair_run<Scalar>);
}

/// One step from `f` for a gradient of the weight.
Factors<double> stepped(const LoraPro& method, Factors<double> f, const Dense& G, double rate = 1) {
  Optimizer<LoraPro, double> optimizer(method, f.in_features(), f.out_features(), f.rank());
  const auto raw = factor_gradient(f, G, s);
  optimizer.step(f, raw, s, rate);
  return f;
}

}  // namespace

TEMPLATE_TEST_CASE("every mode and choice of C follows its formulas on dense matrices, from B = 0 on", "[optim]", float,
                   double) {
  const auto problem = from_zero();
  for (const auto mode : every_mode) {
    for (const auto freedom : {Freedom::Sylvester, Freedom::Symmetric, Freedom::Zero}) {
      check_reference<TestType>({.learning_rate = 0.02, .mode = mode, .freedom = freedom}, problem);
    }
  }
}

TEST_CASE("decay, damping and the trust region do what they say in every mode", "[optim]") {
  for (const auto& problem : {from_zero(), Problem(n, m, r)}) {
    for (const auto mode : every_mode) {
      check_reference<double>({.learning_rate = 0.02, .mode = mode, .weight_decay = 0.5}, problem);
      check_reference<double>({.learning_rate = 0.02, .mode = mode, .damping = 0.1}, problem);
      check_reference<double>({.learning_rate = 0.02, .mode = mode, .trust = 0.01}, problem);
      check_reference<double>(
          {.learning_rate = 0.05, .mode = mode, .beta1 = 0.5, .beta2 = 0.8, .epsilon = 1e-3, .weight_decay = 0.1},
          problem);
    }
  }
}

TEST_CASE("Full takes weights of any width", "[optim]") {
  for (const Index cols : {5, 32, 48, 49, 70, 96, 100}) {
    CAPTURE(cols);
    check_reference<double>({.learning_rate = 0.02, .mode = Mode::Full}, from_zero(11, cols, 2));
  }
}

TEMPLATE_TEST_CASE("every mode follows its formulas from LoRA-GA's and PiSSA's starts", "[optim]", float, double) {
  Problem problem(n, m, r);
  const auto W0 = random_columns<double>(n, m, problem.random);
  const Dense G = W0 - problem.target;
  const auto lora_ga = GradientSvd{.effort = SvdEffort::exact()}(ViewBase(W0), ViewBase(G), r, s, problem.random);
  const auto pissa = PrincipalSvd{SvdEffort::exact()}(ViewBase(W0), r, s, problem.random);
  for (const auto& start : {lora_ga, pissa}) {
    REQUIRE(start.offset == Offset::SubtractInitial);
    problem.start = start.factors;
    problem.target = -G + s * start.factors.A * start.factors.B;  // the gradient of the first step is G
    for (const auto mode : every_mode) check_reference<TestType>({.learning_rate = 0.02, .mode = mode}, problem);
  }
}

TEST_CASE("after B = 0 the first step moves B alone, onto the gradient's part that A can carry", "[optim]") {
  auto problem = from_zero();
  const auto moved = stepped({.learning_rate = 0.5, .mode = Mode::Sgd}, problem.start, problem.target, 0.2);
  CHECK(same_bits(moved.A, problem.start.A));
  const Dense Q = orthonormal_basis(problem.start.A);
  CHECK(relative_error(s * moved.A * moved.B, -0.1 * Q * (Q.transpose() * problem.target)) < closed_form_bound);
  for (const auto mode : {Mode::Full, Mode::Factored}) {
    CHECK(same_bits(stepped({.mode = mode}, problem.start, problem.target).A, problem.start.A));
  }
}

TEST_CASE("the trust region shortens both parts of a step to lr ||H_A|| = trust ||A||, and only a longer one",
          "[optim]") {
  Problem problem(n, m, r);
  const auto& start = problem.start;
  for (const auto mode : {Mode::Sgd, Mode::Full, Mode::Factored}) {
    const LoraPro free{.learning_rate = 0.5, .mode = mode};
    LoraPro bound = free;
    const auto far = stepped(free, start, 1e3 * problem.target);
    bound.trust = 0.125;
    const auto near = stepped(bound, start, 1e3 * problem.target);
    CHECK(std::abs((near.A - start.A).norm() / (0.125 * start.A.norm()) - 1) < closed_form_bound);
    const double share = (near.A - start.A).norm() / (far.A - start.A).norm();
    CHECK(share < 1);
    CHECK(relative_error(near.A - start.A, share * (far.A - start.A)) < closed_form_bound);
    CHECK(relative_error(near.B - start.B, share * (far.B - start.B)) < closed_form_bound);
    bound.trust = 2 * (far.A - start.A).norm() / start.A.norm();
    CHECK(same_bits(stepped(bound, start, 1e3 * problem.target), far));
  }
  const LoraPro efficient{.learning_rate = 0.5, .mode = Mode::Efficient};
  LoraPro bound = efficient;
  bound.trust = 1e-6;
  CHECK(same_bits(stepped(bound, start, problem.target), stepped(efficient, start, problem.target)));
}

TEST_CASE("weight decay shrinks the product by 1 - rate lr decay, in Efficient each factor", "[optim]") {
  Problem problem(n, m, r);
  const auto& start = problem.start;
  for (const auto mode : every_mode) {
    const auto decayed =
        stepped({.learning_rate = 0.5, .mode = mode, .weight_decay = 0.25}, start, Dense::Zero(n, m), 0.5);
    const double keep = mode == Mode::Efficient ? 0.9375 : std::sqrt(0.9375);
    CHECK(relative_error(decayed.A, keep * start.A) < rounding_bound<double>(4));
    CHECK(relative_error(decayed.B, keep * start.B) < rounding_bound<double>(4));
  }
  const auto gone = stepped({.learning_rate = 1, .mode = Mode::Sgd, .weight_decay = 2}, start, Dense::Zero(n, m));
  CHECK(gone.A.isZero(0));  // not a square root of a negative number
}

TEST_CASE("Peta adds 1e-8 to A^T A and B B^T where it inverts them", "[optim]") {
  const Problem problem(n, m, r);
  Problem small = problem;
  small.start.B *= 1e-4;  // B B^T as large as the shift
  for (const auto mode : every_mode) {
    const LoraPro peta{.learning_rate = 0.02, .mode = mode, .compat = Compat::Peta};
    check_reference<double>(peta, problem);
    for (const auto freedom : {Freedom::Sylvester, Freedom::ReleasedSymmetric}) {
      LoraPro first = peta, right = peta;
      first.freedom = right.freedom = freedom;
      right.compat = Compat::None;
      check_reference<double>(first, small, 1);
      CHECK(relative_error(stepped(first, small.start, problem.target).A,
                           stepped(right, small.start, problem.target).A) > 1e-3);
    }
  }
}

TEST_CASE("DeepSpeed counts steps from 1: its first update is 0.744 of Adam's", "[optim]") {
  Problem problem(n, m, r);
  const auto& start = problem.start;
  // The share of (1 - b1) / sqrt(1 - b2) that bias correction by t = 2 leaves of that by t = 1.
  const double share = (1 - 0.9) / (1 - 0.9 * 0.9) / std::sqrt((1 - 0.999) / (1 - 0.999 * 0.999));
  CHECK(std::round(1000 * share) == 744);
  for (const auto mode : {Mode::Efficient, Mode::Full, Mode::Factored}) {
    const LoraPro peta{.learning_rate = 0.5, .mode = mode, .epsilon = 1e-30, .compat = Compat::Peta};
    LoraPro released = peta;
    released.compat = Compat::DeepSpeed;
    const auto right = stepped(peta, start, problem.target), wrong = stepped(released, start, problem.target);
    CAPTURE(describe(released));
    CHECK(relative_error(wrong.A - start.A, share * (right.A - start.A)) < closed_form_bound);
    CHECK(relative_error(wrong.B - start.B, share * (right.B - start.B)) < closed_form_bound);
    check_reference<double>({.learning_rate = 0.02, .mode = mode, .compat = Compat::DeepSpeed}, problem);
  }
}

TEMPLATE_TEST_CASE("every mode learns a low-rank target, from B = 0 and from rank-deficient factors", "[optim]", float,
                   double) {
  using Matrix = ColMatrix<TestType>;
  Random random{5};
  const auto scale = static_cast<TestType>(s);
  const auto pair = random_factors<TestType>(n, m, 2, random);
  const Matrix target = pair.A * pair.B;
  for (const auto mode : every_mode) {
    for (const bool deficient : {false, true}) {
      auto f = random_factors<TestType>(n, m, r, random);
      f.B.setZero();
      if (deficient) f.A.col(1) = f.A.col(0);
      const double start = target.norm();
      Optimizer<LoraPro, TestType> optimizer(LoraPro{.learning_rate = 0.03, .mode = mode}, n, m, r);
      for (int step = 0; step < 400; ++step) {
        const Matrix G = scale * f.A * f.B - target;
        const auto raw = factor_gradient<TestType>(f, G, s);
        optimizer.step(f, raw, s, 1 - step / 400.0);
      }
      const double left = (scale * f.A * f.B - target).norm() / start;
      INFO("mode " << static_cast<int>(mode) << (deficient ? ", dependent columns" : "") << ": left " << left);
      // Efficient's second moment long remembers the H_A of small B, so it is in no hurry.
      CHECK(left < (mode == Mode::Efficient ? 1 : learnt));
    }
  }
}

TEMPLATE_TEST_CASE("no mode allocates after its first step, and only Full keeps n m scalars", "[optim]", float,
                   double) {
  if (!allocations_are_counted) WARN(not_counted);
  constexpr Index rows = 500, cols = 400, rank = 4;
  Random random{6};
  auto factors = random_factors<TestType>(rows, cols, rank, random);
  const auto gradient = random_factors<TestType>(rows, cols, rank, random);
  for (const auto mode : every_mode) {
    Optimizer<LoraPro, TestType> warm(LoraPro{.mode = mode}, rows, cols, rank);
    warm.step(factors, gradient, s, 1);  // the thread's packing memory
    CAPTURE(static_cast<int>(mode));
    CHECK(allocations_in([&] {
            warm.step(factors, gradient, s, 1);
            warm.step(factors, gradient, s, 0.5);
          }) == 0);
    auto from_zero = factors;
    from_zero.B.setZero();
    Optimizer<LoraPro, TestType> cold(LoraPro{.mode = mode}, rows, cols, rank);
    cold.step(from_zero, gradient, s, 1);  // every eigenvalue of B B^T is cut, and none in the next step
    CHECK(allocations_in([&] { cold.step(from_zero, gradient, s, 1); }) == 0);

    const long peak = peak_bytes_in([&] {
      Optimizer<LoraPro, TestType> optimizer(LoraPro{.mode = mode}, rows, cols, rank);
      for (int step = 0; step < 3; ++step) optimizer.step(factors, gradient, s, 1);
    });
    const double share = static_cast<double>(peak) / static_cast<double>(sizeof(TestType) * rows * cols);
    INFO("heap at most " << share << " of an n x m array");
    if (!allocations_are_counted) continue;
    if (mode == Mode::Full) {
      CHECK(share > 2);
    } else {
      CHECK(share < far_from_dense);
    }
  }
}

TEST_CASE("a state compares by what outlives a step, and goes on where a copy of it was taken", "[optim]") {
  Random random{7};
  for (const auto mode : every_mode) {
    const LoraPro method{.learning_rate = 0.01, .mode = mode, .weight_decay = 0.1};
    auto factors = random_factors<float>(n, m, r, random);
    Optimizer<LoraPro, float> optimizer(method, n, m, r);
    const auto start = optimizer.state();
    CHECK(start == method.init<float>(n, m, r));
    CHECK_FALSE(start == method.init<float>(n, m, r + 1));
    for (int step = 0; step < 5; ++step) optimizer.step(factors, random_factors<float>(n, m, r, random), s, 1);
    CHECK_FALSE(optimizer.state() == start);
    CHECK(optimizer.state().steps == 5);

    // A state as a file would bring it: what is compared, and nothing else.
    const auto& ran = optimizer.state();
    auto saved = method.init<float>(n, m, r);
    saved.steps = ran.steps;
    saved.pair = ran.pair;
    saved.blocks = ran.blocks;
    saved.momentum = ran.momentum;
    saved.previous = ran.previous;
    saved.row_squares = ran.row_squares;
    saved.column_squares = ran.column_squares;
    CHECK(saved == ran);
    auto resumed_factors = factors;
    Optimizer<LoraPro, float> resumed(method, saved);
    CHECK(resumed == optimizer);
    for (int step = 0; step < 100; ++step) {
      const auto gradient = random_factors<float>(n, m, r, random);
      optimizer.step(factors, gradient, s, 1);
      resumed.step(resumed_factors, gradient, s, 1);
    }
    CHECK(same_bits(factors, resumed_factors));
    CHECK(resumed == optimizer);
  }
}

TEST_CASE("LoRA-Pro's states differ by every part of them", "[optim]") {
  const auto differ = [](Mode mode, auto change) {
    const auto state = LoraPro{.mode = mode}.init<double>(n, m, r);
    auto other = state;
    CHECK(other == state);
    change(other);
    CHECK_FALSE(other == state);
  };
  differ(Mode::Sgd, [](auto& state) { state.steps = 1; });
  differ(Mode::Sgd, [](auto& state) { state.mode = Mode::Full; });
  differ(Mode::Efficient, [](auto& state) { state.pair.B.square(0, 0) = 1; });
  differ(Mode::Full, [](auto& state) { state.blocks[0].mean(0, 0) = 1; });
  differ(Mode::Factored, [](auto& state) { state.momentum.B(0, 0) = 1; });
  differ(Mode::Factored, [](auto& state) { state.previous.A(0, 0) = 1; });
  differ(Mode::Factored, [](auto& state) { state.row_squares(0) = 1; });
  differ(Mode::Factored, [](auto& state) { state.column_squares(0) = 1; });
}

TEST_CASE("LoRA-Pro refuses hyper-parameters out of range at init and at every step", "[optim]") {
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  auto factors = Factors<double>::zero(n, m, r);
  const auto refused = [&](const LoraPro& method) {
    auto state = LoraPro{}.init<double>(n, m, r);
    auto at_init = message_of<ConfigError>([&] { method.init<double>(n, m, r); });
    CHECK(at_init == message_of<ConfigError>([&] { method.step(state, factors, factors, s, 1); }));
    return at_init;
  };
  CHECK(refused({.damping = -1}) == "LoraPro: damping must be finite and not negative, got -1");
  CHECK(refused({.damping = nan}) == "LoraPro: damping must be finite and not negative, got nan");
  CHECK(refused({.damping = infinity}) == "LoraPro: damping must be finite and not negative, got inf");
  CHECK(refused({.trust = 0}) == "LoraPro: trust must be positive, got 0");
  CHECK(refused({.trust = -2}) == "LoraPro: trust must be positive, got -2");
  CHECK(refused({.trust = nan}) == "LoraPro: trust must be positive, got nan");
  CHECK(refused({.learning_rate = -1}) == "AdamW: learning_rate must be finite and not negative, got -1");
  CHECK(refused({.beta1 = 1}) == "AdamW: beta1 must lie in [0, 1), got 1");
  CHECK(refused({.beta2 = -0.5}) == "AdamW: beta2 must lie in [0, 1), got -0.5");
  CHECK(refused({.epsilon = 0}) == "AdamW: epsilon must be positive, in float too, and finite, got 0");
  CHECK(refused({.weight_decay = -1}) == "AdamW: weight_decay must be finite and not negative, got -1");
  CHECK(message_of<ShapeError>([] { LoraPro{}.init<double>(n, m, 0); }) ==
        "LoraPro::init: n, m and r must be at least 1, got 13, 9, 0");
  CHECK(message_of<ShapeError>([] { LoraPro{}.init<double>(0, m, r); }) ==
        "LoraPro::init: n, m and r must be at least 1, got 0, 9, 3");
}

TEST_CASE("LoRA-Pro names what is wrong with a step, and changes nothing", "[optim]") {
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  Random random{8};
  for (const auto mode : every_mode) {
    const LoraPro method{.mode = mode};
    auto factors = random_factors<double>(n, m, r, random);
    const auto gradient = random_factors<double>(n, m, r, random);
    auto state = method.init<double>(n, m, r);
    method.step(state, factors, gradient, s, 1);
    const auto check = [&]<class ErrorType>(ErrorType, Factors<double> f, const Factors<double>& g, double scale,
                                            double rate) {
      const auto before = f;
      const auto state_before = state;
      auto message = message_of<ErrorType>([&] { method.step(state, f, g, scale, rate); });
      CHECK(same_bits(f, before));
      CHECK(state == state_before);
      return message;
    };
    const auto with = [](Factors<double> f, double value, bool in_A) {
      (in_A ? f.A(n - 1, r - 1) : f.B(r - 1, 0)) = value;
      return f;
    };
    const ShapeError shape("");
    const ConfigError config("");
    const NumericalError numerical("");
    CHECK(check(shape, Factors<double>::zero(n + 1, m, r), gradient, s, 1) ==
          "LoraPro::step: factors A must be 13 x 3, got 14 x 3");
    CHECK(check(shape, Factors<double>::zero(n, m + 1, r), gradient, s, 1) ==
          "LoraPro::step: factors B must be 3 x 9, got 3 x 10");
    CHECK(check(shape, factors, Factors<double>::zero(n, m, r - 1), s, 1) ==
          "LoraPro::step: gradient A must be 13 x 3, got 13 x 2");
    CHECK(check(shape, factors, Factors<double>::zero(n, m - 1, r), s, 1) ==
          "LoraPro::step: gradient B must be 3 x 9, got 3 x 8");
    CHECK(check(config, factors, gradient, 0, 1) == "LoraPro::step: scale must be finite and not zero, got 0");
    CHECK(check(config, factors, gradient, nan, 1) == "LoraPro::step: scale must be finite and not zero, got nan");
    CHECK(check(config, factors, gradient, s, -1) == "LoraPro::step: rate must be finite and not negative, got -1");
    CHECK(check(config, factors, gradient, s, infinity) ==
          "LoraPro::step: rate must be finite and not negative, got inf");
    CHECK(check(numerical, factors, with(gradient, nan, true), s, 1) ==
          "LoraPro::step: gradient A must be finite, got NaN or infinity");
    CHECK(check(numerical, factors, with(gradient, infinity, false), s, 1) ==
          "LoraPro::step: gradient B must be finite, got NaN or infinity");
    CHECK(check(numerical, with(factors, infinity, true), gradient, s, 1) ==
          "LoraPro::step: factors A must be finite, got NaN or infinity");
    CHECK(check(numerical, with(factors, nan, false), gradient, s, 1) ==
          "LoraPro::step: factors B must be finite, got NaN or infinity");
    Factors<double> huge = gradient;
    huge *= 1e308;
    CHECK(check(numerical, factors, huge, 1e-3, 1) ==
          "LoraPro::step: adjusted gradient A must be finite, got NaN or infinity");
  }
}

TEST_CASE("LoRA-Pro refuses a state of another mode or of other shapes", "[optim]") {
  auto factors = Factors<double>::zero(n, m, r);
  const auto refused = [&]<class ErrorType>(ErrorType, const LoraPro& method, LoraPro::State<double> state) {
    const auto before = state;
    auto message = message_of<ErrorType>([&] { method.step(state, factors, factors, s, 1); });
    CHECK(state == before);
    return message;
  };
  const StateError state("");
  const ShapeError shape("");
  for (const auto mode : every_mode) {
    const auto other = mode == Mode::Sgd ? Mode::Factored : Mode::Sgd;
    CHECK(refused(state, {.mode = mode}, LoraPro{.mode = other}.init<double>(n, m, r)) ==
          "LoraPro::step: the state must be one of this mode, got another's");
    CHECK(refused(shape, {.mode = mode}, LoraPro{.mode = mode}.init<double>(n + 1, m, r)) ==
          "LoraPro::step: factors A must be 14 x 3, got 13 x 3");
  }
  const auto spoiled = [&](Mode mode, auto spoil) {
    auto fitting = LoraPro{.mode = mode}.init<double>(n, m, r);
    spoil(fitting);
    return refused(shape, {.mode = mode}, fitting);
  };
  CHECK(spoiled(Mode::Efficient, [](auto& bad) { bad.pair.B.mean.setZero(m, 2); }) ==
        "AdamW: mean of the state must be 9 x 3, got 9 x 2");
  CHECK(spoiled(Mode::Full, [](auto& bad) { bad.blocks.clear(); }) ==
        "LoraPro: moments of the state must have m = 9 columns, got 0");
  CHECK(spoiled(Mode::Full, [](auto& bad) { bad.blocks[0].square.setZero(n, m + 1); }) ==
        "AdamW: square of the state must be 13 x 9, got 13 x 10");
  CHECK(spoiled(Mode::Factored, [](auto& bad) { bad.momentum.A.setZero(n + 1, r); }) ==
        "LoraPro: momentum of the state, A must be 13 x 3, got 14 x 3");
  CHECK(spoiled(Mode::Factored, [](auto& bad) { bad.previous.B.setZero(r, 2); }) ==
        "LoraPro: previous factors of the state, B must be 3 x 9, got 3 x 2");
  CHECK(spoiled(Mode::Factored, [](auto& bad) { bad.row_squares.setZero(m); }) ==
        "LoraPro: row squares of the state must be 13 x 1, got 9 x 1");
  CHECK(spoiled(Mode::Factored, [](auto& bad) { bad.column_squares.setZero(n); }) ==
        "LoraPro: column squares of the state must be 9 x 1, got 13 x 1");
}

TEST_CASE("squares that overflow are named before anything moves", "[optim][errors]") {
  auto factors = Factors<float>::zero(n, m, r);
  factors.A.setOnes();
  factors.B.setIdentity();
  factors.B *= 1e-12F;
  auto gradient = factors;
  gradient.A.setConstant(1e10F);
  gradient.B.setConstant(1e10F);
  const LoraPro method{.mode = Mode::Factored};
  auto state = method.init<float>(n, m, r);
  const auto before = factors;
  const auto start = state;
  CHECK(message_of<NumericalError>([&] { method.step(state, factors, gradient, s, 1); }) ==
        "LoraPro::step: squares of the equivalent gradient must be finite, got an overflow");
  CHECK(same_bits(factors, before));
  CHECK(state == start);
}
