// SPDX-License-Identifier: MIT
// LoRA-Pro (Wang et al., arXiv:2407.18242): factor steps whose effect on W is nearest to full fine-tuning's.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/linalg/product.hpp>
#include <lora/optim/adamw.hpp>
#include <lora/optim/equivalent_gradient.hpp>
#include <lora/optim/factor_optimizer.hpp>
#include <lora/optim/per_factor.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

namespace lora {

/// Turns the factor gradients into the H of `EquivalentGradient` in every step; the modes differ in where the moments
/// live (how many scalars). Gt = s H_A B + s A H_B is the equivalent gradient, n x m and of rank 2r at most:
///
/// | mode | step | moments |
/// |---|---|---|
/// | `Sgd` | (A, B) -= lr H | none |
/// | `Efficient` | AdamW with H in the gradients' place | 2 (n + m) r |
/// | `Full` | Adam's m and v of Gt (C = 0), g = m^ / (sqrt v^ + epsilon), (A, B) -= lr H of s g B^T, s A^T g | 2 n m |
/// | `Factored` | the same, m a pair carried to the new factors, v_ij = R_i K_j / sum R | 2 (n + m) r + n + m |
///
/// In `Factored`, R and K are Adafactor's moving row and column sums of Gt o Gt, so that g = D_R m^ D_K with
/// (D_R)_i = (R_i / sqrt(sum R) + epsilon)^-1/2, likewise D_K, stays a product of rank 2r and no n x m array is needed.
///
/// Weight decay is decoupled and acts on the product: A and B both shrink by sqrt(1 - rate lr decay). In `Efficient` it
/// is AdamW's: each shrinks by 1 - rate lr decay. After an offset start s A B decays, not s (A B - A0 B0).
/// Cost of a step O((n + m) r^2 + r^3), `Full` O(n m r). Clip raw gradients before, not after.
/// \note Dropout and DoRA change what G is: H then answers the gradient of another weight. A ratio between the learning
/// rates of the factors (LoRA+) would correct twice, and does not compile.
/// \see docs/methods/lora_pro.md
struct LoraPro {
  enum class Mode { Sgd, Efficient, Full, Factored };
  /// Whose faults to reproduce, for comparisons. `Peta`: the authors' peta/optim.py adds 1e-8, absolute, to A^T A and
  /// B B^T where it inverts them. `DeepSpeed`: their patched DeepSpeed also counts steps from 2, so that its first
  /// update is 0.744 of Adam's (and has s = 2 written into it: pass that scale). See also
  /// `Freedom::ReleasedSymmetric`.
  enum class Compat { None, Peta, DeepSpeed };

  double learning_rate = 1e-3;  ///< >= 0
  Mode mode = Mode::Factored;
  Freedom freedom = Freedom::Sylvester;
  double beta1 = 0.9;       ///< in [0, 1)
  double beta2 = 0.999;     ///< in [0, 1)
  double epsilon = 1e-8;    ///< > 0
  double weight_decay = 0;  ///< >= 0
  double damping = 0;       ///< >= 0, relative: A^T A and B B^T gain damping tr(.) / r on their diagonals
  double trust = std::numeric_limits<double>::infinity();  ///< > 0: but in Efficient, lr ||H_A|| <= trust ||A||
  Compat compat = Compat::None;

  bool operator==(const LoraPro&) const = default;

  template <Real Scalar>
  struct State;

  void check() const {
    adam().check();
    detail::require<ConfigError>(std::isfinite(damping) && damping >= 0,
                                 "LoraPro: damping must be finite and not negative, got ", damping);
    detail::require<ConfigError>(trust > 0, "LoraPro: trust must be positive, got ", trust);
  }

  template <Real Scalar>
  State<Scalar> init(Index n, Index m, Index r) const;

  template <Real Scalar>
  void step(State<Scalar>& state, const std::type_identity_t<FactorsView<Scalar>>& factors,
            const std::type_identity_t<ConstFactorsView<Scalar>>& gradient, double scale, double rate) const;

 private:
  AdamW adam() const {
    return {.learning_rate = learning_rate,
            .beta1 = beta1,
            .beta2 = beta2,
            .epsilon = epsilon,
            .weight_decay = weight_decay};
  }
  template <Real Scalar>
  Regularisation<Scalar> regularisation() const {
    if (compat == Compat::None) return {.damping = damping};
    return {.cut = 0, .damping = damping, .shift = 1e-8};
  }
  template <Real Scalar>
  void check_state(const State<Scalar>& state) const;
  template <Real Scalar>
  void full_moments(State<Scalar>& state, const FactorsView<Scalar>& factors, double scale) const;
  template <Real Scalar>
  void factored_moments(State<Scalar>& state, const FactorsView<Scalar>& factors, double scale) const;
  template <Real Scalar>
  void descend(State<Scalar>& state, const FactorsView<Scalar>& factors, double rate) const;
};

/// What LoRA-Pro remembers between steps. The fields of other modes stay empty.
template <Real Scalar>
struct LoraPro::State {
  Index n = 0, m = 0, r = 0;
  Mode mode = Mode::Factored;
  std::int64_t steps = 0;
  detail::PairState<AdamW, Scalar> pair;               ///< Efficient: of H
  std::vector<AdamW::State<Scalar>> blocks;            ///< Full: of Gt, by blocks of 32 columns
  Factors<Scalar> momentum, previous;                  ///< Factored: s (M_A Bo + Ao M_B), and its (Ao, Bo)
  Eigen::VectorX<Scalar> row_squares, column_squares;  ///< Factored: R (n) and K (m), not corrected

  friend bool operator==(const State& left, const State& right) {
    return left.n == right.n && left.m == right.m && left.r == right.r && left.mode == right.mode &&
           left.steps == right.steps && left.pair == right.pair && left.blocks == right.blocks &&
           left.momentum == right.momentum && left.previous == right.previous &&
           detail::same_values(left.row_squares, right.row_squares) &&
           detail::same_values(left.column_squares, right.column_squares);
  }

 private:
  friend LoraPro;
  static constexpr Index block_width = 32;

  // Scratch, not state: nothing in it outlives a step.
  EquivalentGradient<Scalar> nearest_;
  Factors<Scalar> H_, gradient_;
  ColMatrix<Scalar> block_, small_, tall_;
  RowMatrix<Scalar> wide_;
  Eigen::VectorX<Scalar> row_weights_, column_weights_;
};

// ---- the steps, in the order of the formulas ------------------------------------------------------------------------

template <Real Scalar>
LoraPro::State<Scalar> LoraPro::init(Index n, Index m, Index r) const {
  check();
  detail::require<ShapeError>(n >= 1 && m >= 1 && r >= 1, "LoraPro::init: n, m and r must be at least 1, got ", n, ", ",
                              m, ", ", r);
  State<Scalar> state;
  state.n = n;
  state.m = m;
  state.r = r;
  state.mode = mode;
  const std::int64_t before = compat == Compat::DeepSpeed ? 1 : 0;
  switch (mode) {
    case Mode::Sgd:
      break;
    case Mode::Efficient:
      state.pair = detail::init_pair<Scalar>(adam(), n, m, r, "LoraPro");
      state.pair.A.steps = state.pair.B.steps = before;
      break;
    case Mode::Full:
      for (Index first = 0; first < m; first += state.block_width) {
        state.blocks.push_back(adam().init<Scalar>(n, std::min(state.block_width, m - first)));
        state.blocks.back().steps = before;
      }
      break;
    case Mode::Factored:
      state.momentum = state.previous = Factors<Scalar>::zero(n, m, r);
      state.row_squares = Eigen::VectorX<Scalar>::Zero(n);
      state.column_squares = Eigen::VectorX<Scalar>::Zero(m);
      state.steps = before;
      break;
  }
  return state;
}

template <Real Scalar>
void LoraPro::check_state(const State<Scalar>& state) const {
  detail::require<StateError>(mode == state.mode, "LoraPro::step: the state must be one of this mode, got another's");
  if (mode == Mode::Efficient) {
    detail::check_state(adam(), state.pair.A, state.n, state.r);
    detail::check_state(adam(), state.pair.B, state.m, state.r);
  }
  if (mode == Mode::Full) {
    Index columns = 0;
    for (const auto& block : state.blocks) {
      detail::check_state(adam(), block, state.n, std::min(state.block_width, state.m - columns));
      columns += block.mean.cols();
    }
    detail::require<ShapeError>(columns == state.m, "LoraPro: moments of the state must have m = ", state.m,
                                " columns, got ", columns);
  }
  if (mode == Mode::Factored) {
    detail::require_factors(ConstFactorsView<Scalar>(state.momentum), state.n, state.m, state.r,
                            "LoraPro: momentum of the state,");
    detail::require_factors(ConstFactorsView<Scalar>(state.previous), state.n, state.m, state.r,
                            "LoraPro: previous factors of the state,");
    detail::require_shape(state.row_squares, state.n, 1, "LoraPro: row squares of the state");
    detail::require_shape(state.column_squares, state.m, 1, "LoraPro: column squares of the state");
  }
}

template <Real Scalar>
void LoraPro::step(State<Scalar>& state, const std::type_identity_t<FactorsView<Scalar>>& factors,
                   const std::type_identity_t<ConstFactorsView<Scalar>>& gradient, double scale, double rate) const {
  check();
  check_state(state);
  detail::require_factors(ConstFactorsView<Scalar>(factors), state.n, state.m, state.r, "LoraPro::step: factors");
  detail::require_step(factors, gradient, rate, "LoraPro::step");
  detail::require_scale(scale, "LoraPro::step");
  detail::require_finite(ConstFactorsView<Scalar>(factors), "LoraPro::step: factors");

  const bool moments_of_product = mode == Mode::Full || mode == Mode::Factored;
  state.nearest_.at(factors, regularisation<Scalar>());
  state.nearest_.direction(factors, gradient, scale, moments_of_product ? Freedom::Zero : freedom, state.H_);
  detail::require_finite(ConstFactorsView<Scalar>(state.H_), "LoraPro::step: adjusted gradient");

  if (mode == Mode::Efficient) {
    adam().step(state.pair.A, factors.A, state.H_.A, rate);
    adam().step(state.pair.B, transposed(factors.B), transposed(ConstRows<Scalar>(state.H_.B)), rate);
  } else {
    if (mode == Mode::Full) full_moments(state, factors, scale);
    if (mode == Mode::Factored) factored_moments(state, factors, scale);
    if (moments_of_product) state.nearest_.direction(factors, state.gradient_, scale, freedom, state.H_);
    descend(state, factors, rate);
  }
  ++state.steps;
}

/// From H (C = 0): moments of Gt, then g; leaves s g B^T and s A^T g in `gradient_`. By blocks of columns, so that the
/// moments are the only n x m arrays.
template <Real Scalar>
void LoraPro::full_moments(State<Scalar>& state, const FactorsView<Scalar>& factors, double scale) const {
  AdamW rule = adam();
  rule.learning_rate = 1;
  rule.weight_decay = 0;
  auto& [GA, GB] = state.gradient_;
  GA.setZero(state.n, state.r);
  GB.setZero(state.r, state.m);
  auto& minus_g = state.tall_;
  state.block_.resize(state.n, state.block_width);
  minus_g.resize(state.n, state.block_width);
  for (Index first = 0; first < state.m; first += state.block_width) {
    const Index count = std::min(state.block_width, state.m - first);
    const auto B = factors.B.middleCols(first, count);
    auto block = state.block_.leftCols(count), step = minus_g.leftCols(count);
    set_product(block, scale, state.H_.A, B);
    add_product(block, scale, factors.A, state.H_.B.middleCols(first, count));
    step.setZero();  // a step of AdamW from zero at learning rate 1 is -m^ / (sqrt v^ + epsilon)
    rule.step(state.blocks[static_cast<std::size_t>(first / state.block_width)], step, block, 1);
    add_product(GA, -scale, step, B.transpose());
    add_product(GB.middleCols(first, count), -scale, factors.A.transpose(), step);
  }
}

/// The same without an n x m array.
template <Real Scalar>
void LoraPro::factored_moments(State<Scalar>& state, const FactorsView<Scalar>& factors, double scale) const {
  const auto& A = factors.A;
  const auto& B = factors.B;
  auto& [MA, MB] = state.momentum;
  const auto& [Ao, Bo] = state.previous;
  auto& [HA, HB] = state.H_;
  auto& [GA, GB] = state.gradient_;
  auto& tall = state.tall_;
  auto& wide = state.wide_;
  const double s2 = scale * scale;
  tall.resize(state.n, state.r);
  wide.resize(state.r, state.m);
  GA.resize(state.n, state.r);
  GB.resize(state.r, state.m);
  state.small_.resize(state.r, state.r);
  const auto inner = [&](const auto& left, const auto& right) -> const ColMatrix<Scalar>& {
    set_product(state.small_, 1, left, right);
    return state.small_;
  };

  // 1. Row and column sums of Gt o Gt, Gt = s (H_A B + A H_B); rounding may leave less than zero.
  auto &rows = state.row_weights_, &columns = state.column_weights_;
  const auto s2_rounded = static_cast<Scalar>(s2);
  set_product(tall, 1, HA, inner(B, B.transpose()));
  add_product(tall, 2, A, inner(HB, B.transpose()));
  rows = tall.cwiseProduct(HA).rowwise().sum();
  set_product(tall, 1, A, inner(HB, HB.transpose()));
  rows = s2_rounded * (rows + tall.cwiseProduct(A).rowwise().sum());
  set_product(wide, 1, inner(HA.transpose(), HA), B);
  add_product(wide, 2, inner(HA.transpose(), A), HB);
  columns = wide.cwiseProduct(B).colwise().sum().transpose();
  set_product(wide, 1, inner(A.transpose(), A), HB);
  columns = s2_rounded * (columns + wide.cwiseProduct(HB).colwise().sum().transpose());
  detail::require<NumericalError>(all_finite(ConstColumns<Scalar>(rows)) && all_finite(ConstColumns<Scalar>(columns)),
                                  "LoraPro::step: squares of the equivalent gradient must be finite, got an overflow");
  rows = rows.cwiseMax(Scalar{0});
  columns = columns.cwiseMax(Scalar{0});
  detail::blend<Scalar>(state.row_squares, beta2, rows, 1 - beta2);
  detail::blend<Scalar>(state.column_squares, beta2, columns, 1 - beta2);

  // 2. The momentum s (M_A Bo + Ao M_B), seen from the new factors as a gradient and projected on what they can do.
  set_product(GA, s2, MA, inner(Bo, B.transpose()));
  add_product(GA, s2, Ao, inner(MB, B.transpose()));
  set_product(GB, s2, inner(A.transpose(), MA), Bo);
  add_product(GB, s2, inner(A.transpose(), Ao), MB);
  state.nearest_.direction(factors, state.gradient_, scale, Freedom::Zero, state.momentum);
  detail::blend<Scalar>(MA, beta1, HA, 1 - beta1);
  detail::blend<Scalar>(transposed(Rows<Scalar>(MB)), beta1, transposed(ConstRows<Scalar>(HB)), 1 - beta1);

  // 3. g = D_R m^ D_K as s g B^T and s A^T g.
  const auto t = static_cast<double>(state.steps + 1);
  const double c1 = 1 - std::pow(beta1, t), c2 = 1 - std::pow(beta2, t);
  const double total = state.row_squares.template cast<double>().sum() / c2;
  const auto weigh = [&](const Eigen::VectorX<Scalar>& sums, Eigen::VectorX<Scalar>& weights) {
    weights.resizeLike(sums);
    for (Index i = 0; i < sums.size(); ++i) {
      const double spread = total > 0 ? static_cast<double>(sums(i)) / (c2 * std::sqrt(total)) : 0;
      weights(i) = static_cast<Scalar>(1 / std::sqrt(spread + epsilon));
    }
  };
  auto &DR = rows, &DK = columns;
  weigh(state.row_squares, DR);
  weigh(state.column_squares, DK);
  wide = B * DK.asDiagonal();
  set_product(GA, s2 / c1, MA, inner(wide, B.transpose()));
  add_product(GA, s2 / c1, A, inner(MB, wide.transpose()));
  GA.array().colwise() *= DR.array();
  tall = DR.asDiagonal() * A;
  set_product(GB, s2 / c1, inner(tall.transpose(), MA), B);
  add_product(GB, s2 / c1, inner(tall.transpose(), A), MB);
  GB.array().rowwise() *= DK.transpose().array();
  state.previous.A = A;
  state.previous.B = B;
}

template <Real Scalar>
void LoraPro::descend(State<Scalar>& state, const FactorsView<Scalar>& factors, double rate) const {
  double step = rate * learning_rate;
  const double length = step * static_cast<double>(state.H_.A.norm());
  const double most = trust * static_cast<double>(factors.A.norm());
  if (most > 0 && length > most) step *= most / length;
  const double keep = std::sqrt(std::max(0.0, 1 - rate * learning_rate * weight_decay));
  detail::blend<Scalar>(factors.A, keep, state.H_.A, -step);
  detail::blend<Scalar>(transposed(factors.B), keep, transposed(ConstRows<Scalar>(state.H_.B)), -step);
}

static_assert(FactorOptimizer<LoraPro, float> && FactorOptimizer<LoraPro, double>);

}  // namespace lora
