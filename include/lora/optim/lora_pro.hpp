// SPDX-License-Identifier: MIT
// LoRA-Pro (Wang et al., arXiv:2407.18242): factor steps whose effect on W is nearest to full fine-tuning's.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/fields.hpp>
#include <lora/linalg/product.hpp>
#include <lora/optim/adamw.hpp>
#include <lora/optim/equivalent_gradient.hpp>
#include <lora/optim/factor_optimizer.hpp>
#include <lora/optim/lora_pro_state.hpp>
#include <lora/optim/per_factor.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace lora {

namespace detail {

/// sums_i += sum_j left_ij right_ij
template <Real Scalar>
void add_products(const ConstColumns<Scalar>& left, const ConstColumns<Scalar>& right, Eigen::VectorX<Scalar>& sums) {
  for (Index j = 0; j < left.cols(); ++j) sums += left.col(j).cwiseProduct(right.col(j));
}

}  // namespace detail

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
  static constexpr const char* name = "LoraPro";
  using Mode = LoraProMode;
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

  static void fields(auto& self, const auto& visit) {
    visit("learning_rate", self.learning_rate);
    visit("mode", self.mode);
    visit("freedom", self.freedom);
    visit("beta1", self.beta1);
    visit("beta2", self.beta2);
    visit("epsilon", self.epsilon);
    visit("weight_decay", self.weight_decay);
    visit("damping", self.damping);
    visit("trust", self.trust);
    visit("compat", self.compat);
  }
  friend constexpr const char* name_of(Compat value) {
    switch (value) {
      case Compat::None:
        return "None";
      case Compat::Peta:
        return "Peta";
      case Compat::DeepSpeed:
        return "DeepSpeed";
    }
    return "unknown";
  }

  template <Real Scalar>
  using State = LoraProState<Scalar>;

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
  void squares(State<Scalar>& state, const FactorsView<Scalar>& factors, double scale) const;
  template <Real Scalar>
  void carry(State<Scalar>& state, const FactorsView<Scalar>& factors, double scale) const;
  template <Real Scalar>
  void factored_direction(State<Scalar>& state, const FactorsView<Scalar>& factors, double scale) const;
  template <Real Scalar>
  void descend(State<Scalar>& state, const FactorsView<Scalar>& factors, double rate) const;
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
    if (mode == Mode::Full) {
      full_moments(state, factors, scale);
      state.nearest_.direction(factors, state.gradient_, scale, freedom, state.H_);
    } else if (mode == Mode::Factored) {
      squares(state, factors, scale);
      carry(state, factors, scale);
      factored_direction(state, factors, scale);
    }
    descend(state, factors, rate);
  }
  ++state.steps;
}

/// From H (C = 0): moments of Gt = s [H_A A] [B; H_B], then g; leaves s g B^T and s A^T g in `gradient_`. By blocks of
/// columns, so that the moments are the only n x m arrays and Gt stays in the second-level cache.
template <Real Scalar>
void LoraPro::full_moments(State<Scalar>& state, const FactorsView<Scalar>& factors, double scale) const {
  AdamW rule = adam();
  rule.learning_rate = rule.weight_decay = 1;  // a step from Gt ends at -m^ / (sqrt v^ + epsilon), as all of Gt decays
  auto& [GA, GB] = state.gradient_;
  const Index n = state.n, m = state.m, r = state.r;
  GA.setZero(n, r);
  GB.setZero(r, m);
  // Columns a power of two apart would compete for few places of the cache.
  constexpr Index gap = 64 / sizeof(Scalar);
  state.tall_.resize(n + gap, 2 * r);
  state.block_.resize(n, state.block_width);
  state.wide_.resize(2 * r, m);
  auto tall = state.tall_.topRows(n);
  tall << state.H_.A, factors.A;
  state.wide_ << factors.B, state.H_.B;
  for (Index first = 0; first < m; first += state.block_width) {
    const Index count = std::min(state.block_width, m - first);
    auto block = state.block_.leftCols(count);
    set_product(block, scale, tall, state.wide_.middleCols(first, count));
    rule.step(state.blocks[static_cast<std::size_t>(first / state.block_width)], block, block, 1);
    add_product(GA, -scale, block, factors.B.middleCols(first, count).transpose());
    // Transposed for the shape of the tiles: the block has more columns than A.
    add_product(GB.middleCols(first, count).transpose(), -scale, block.transpose(), factors.A);
  }
}

/// Moves R and K towards the row and column sums of Gt o Gt, Gt = s (H_A B + A H_B) with the H of C = 0.
template <Real Scalar>
void LoraPro::squares(State<Scalar>& state, const FactorsView<Scalar>& factors, double scale) const {
  const auto& A = factors.A;
  const auto& B = factors.B;
  const auto& nearest = state.nearest_;
  auto& [HA, HB] = state.H_;
  auto& tall = state.tall_;
  auto& wide = state.wide_;
  tall.resize(state.n, state.r);
  wide.resize(state.r, state.m);
  auto &rows = state.row_weights_, &columns = state.column_weights_;
  rows.setZero(state.n);
  columns.setZero(state.m);

  set_product(tall, 1, HA, nearest.output_product());
  // H_B B^T = 0, up to rounding, where H_B was projected by all of B B^T and its very inverse.
  if (damping > 0 || compat != Compat::None || nearest.output().rank() < state.r) {
    add_product(tall, 2, A, state.inner(HB, B.transpose()));
  }
  detail::add_products<Scalar>(tall, HA, rows);
  detail::set_symmetric_product(state.left_, HB, HB.transpose());
  set_product(tall, 1, A, state.left_);
  detail::add_products<Scalar>(tall, A, rows);

  detail::set_symmetric_product(state.left_, HA.transpose(), HA);
  set_product(wide, 1, state.left_, B);
  add_product(wide, 2, state.inner(HA.transpose(), A), HB);
  detail::add_products<Scalar>(transposed(ConstRows<Scalar>(wide)), transposed(ConstRows<Scalar>(B)), columns);
  set_product(wide, 1, nearest.input_product(), HB);
  detail::add_products<Scalar>(transposed(ConstRows<Scalar>(wide)), transposed(ConstRows<Scalar>(HB)), columns);

  const auto s2 = static_cast<Scalar>(scale * scale);
  rows *= s2;
  columns *= s2;
  detail::require<NumericalError>(all_finite(ConstColumns<Scalar>(rows)) && all_finite(ConstColumns<Scalar>(columns)),
                                  "LoraPro::step: squares of the equivalent gradient must be finite, got an overflow");
  rows = rows.cwiseMax(Scalar{0});  // rounding may leave less than zero
  columns = columns.cwiseMax(Scalar{0});
  detail::blend<Scalar>(state.row_squares, beta2, rows, 1 - beta2);
  detail::blend<Scalar>(state.column_squares, beta2, columns, 1 - beta2);
}

/// The momentum s (M_A Bo + Ao M_B), seen from the new factors as a gradient and projected on what they can do; then H
/// blends in.
template <Real Scalar>
void LoraPro::carry(State<Scalar>& state, const FactorsView<Scalar>& factors, double scale) const {
  const auto& [A, B] = factors;
  auto& [MA, MB] = state.momentum;
  auto& [Ao, Bo] = state.previous;
  auto& [carried_A, carried_B] = state.gradient_;
  auto& seen = state.seen_;
  seen.MA = state.inner(Bo, B.transpose()).template cast<double>();
  seen.Ao = state.inner(MB, B.transpose()).template cast<double>();
  seen.Bo = state.inner(A.transpose(), MA).template cast<double>();
  seen.MB = state.inner(A.transpose(), Ao).template cast<double>();
  const auto& nearest = state.see(scale * scale, scale, Freedom::Zero);
  carried_A.resize(state.n, state.r);
  carried_B.resize(state.r, state.m);
  set_product(carried_A, 1, MA, state.right(seen.MA));
  add_product(carried_A, 1, Ao, state.right(seen.Ao));
  set_product(carried_B, 1, state.left(seen.Bo), Bo);
  add_product(carried_B, 1, state.left(seen.MB), MB);
  add_product(carried_B, -1, state.left(nearest.L), B);
  MA.swap(carried_A);
  MB.swap(carried_B);
  detail::blend<Scalar>(MA, beta1, state.H_.A, 1 - beta1);
  detail::blend<Scalar>(transposed(Rows<Scalar>(MB)), beta1, transposed(ConstRows<Scalar>(state.H_.B)), 1 - beta1);
  Ao = A;
  Bo = B;
}

/// H for g = D_R m^ D_K.
template <Real Scalar>
void LoraPro::factored_direction(State<Scalar>& state, const FactorsView<Scalar>& factors, double scale) const {
  const auto& [A, B] = factors;
  const auto& [MA, MB] = state.momentum;
  auto& [HA, HB] = state.H_;
  auto& tall = state.tall_;
  auto& wide = state.wide_;
  const auto t = static_cast<double>(state.steps + 1);
  const double c1 = 1 - std::pow(beta1, t), c2 = 1 - std::pow(beta2, t);
  const double total = state.row_squares.template cast<double>().sum() / c2;
  using Lanes = detail::Lanes<Scalar>;
  const auto one = Lanes::all(1), eps = Lanes::all(epsilon);
  const auto spread = Lanes::all(total > 0 ? 1 / (c2 * std::sqrt(total)) : 0);
  const auto weigh = [&](const Eigen::VectorX<Scalar>& sums, Eigen::VectorX<Scalar>& weights) {
    detail::for_each_lanes<Scalar>(weights, sums, [&](Scalar* to, const Scalar* from, Index /*offset*/, auto count) {
      (one / sqrt(multiply_add(Lanes::load(from, count), spread, eps))).store(to, count);
    });
  };
  auto &DR = state.row_weights_, &DK = state.column_weights_;
  weigh(state.row_squares, DR);
  weigh(state.column_squares, DK);

  auto& seen = state.seen_;
  tall = DR.asDiagonal() * A;
  wide = B * DK.asDiagonal();
  detail::set_symmetric_product(state.left_, wide, B.transpose());
  seen.MA = state.left_.template cast<double>();
  seen.Ao = state.inner(MB, wide.transpose()).template cast<double>();
  seen.Bo = state.inner(tall.transpose(), MA).template cast<double>();
  detail::set_symmetric_product(state.left_, tall.transpose(), A);
  seen.MB = state.left_.template cast<double>();
  const auto& nearest = state.see(scale * scale / c1, scale, freedom);
  set_product(HA, 1, MA, state.right(seen.MA));
  add_product(HA, 1, A, state.right(seen.Ao));
  HA.array().colwise() *= DR.array();
  if (freedom != Freedom::Zero) add_product(HA, 1, A, state.right(nearest.C));
  set_product(HB, 1, state.left(seen.Bo), B);
  add_product(HB, 1, state.left(seen.MB), MB);
  HB.array().rowwise() *= DK.transpose().array();
  add_product(HB, -1, state.left(nearest.L), B);
}

template <Real Scalar>
void LoraPro::descend(State<Scalar>& state, const FactorsView<Scalar>& factors, double rate) const {
  double step = rate * learning_rate;
  if (std::isfinite(trust)) {
    const double length = step * static_cast<double>(state.H_.A.norm());
    const double most = trust * static_cast<double>(factors.A.norm());
    if (most > 0 && length > most) step *= most / length;
  }
  const double keep = std::sqrt(std::max(0.0, 1 - rate * learning_rate * weight_decay));
  detail::blend<Scalar>(factors.A, keep, state.H_.A, -step);
  detail::blend<Scalar>(transposed(factors.B), keep, transposed(ConstRows<Scalar>(state.H_.B)), -step);
}

static_assert(FactorOptimizer<LoraPro, float> && FactorOptimizer<LoraPro, double>);

}  // namespace lora
