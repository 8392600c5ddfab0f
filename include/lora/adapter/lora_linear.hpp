// SPDX-License-Identifier: MIT
// LoRA on a linear layer, Y = X W0 + s (X A) B (Hu et al., arXiv:2106.09685).
#pragma once

#include <lora/adapter/adapter.hpp>
#include <lora/adapter/adapter_state.hpp>
#include <lora/adapter/anchor.hpp>
#include <lora/adapter/lora_config.hpp>
#include <lora/adapter/low_rank_branch.hpp>
#include <lora/base/base_of.hpp>
#include <lora/base/frozen_base.hpp>
#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/random.hpp>
#include <lora/core/saved_state.hpp>
#include <lora/init/initializer.hpp>
#include <lora/linalg/dense.hpp>
#include <lora/linalg/product.hpp>

#include <Eigen/Core>

#include <cmath>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace lora {

/// A frozen base with trainable factors: Y = X W0 (+ bias) + s (X A) B.
///
/// X is b x n, Y is b x m, A is n x r, B is r x m; all activations may be strided rows. Backward from dY:
///
///     Q = s dY B^T,   G_A += X^T Q,   G_B += s (X A)^T dY,   dX = dY W0^T + Q A^T
///
/// Cost over the frozen products: 6 b r (n + m) flops a step. Never forms A B or any other n x m matrix; allocates
/// nothing once `saved` has seen the largest batch. Starts with A = B = 0: call `initialize`, or `set_factors`. A base
/// with a bias of its own (a stacked adapter) hands it on. After an initializer with an offset (LoRA-GA, PiSSA) the
/// branch is s ((X A) B - (X A0) B0), 4 b r (n + m) flops more a step; `bake` moves the offset into an owned base.
///
/// `forward` and `backward` are const: one layer may run in several threads, each with a `Saved` and a gradient of its
/// own. With the weight in a matrix that outlives the layer: `LoraLinear layer{W0, {.rank = 8}};`.
/// \see docs/methods/lora.md
template <FrozenBase Base>
class LoraLinear {
 public:
  using Scalar = typename Base::Scalar;
  using Saved = SavedState<Scalar>;
  using State = LoraState<Scalar>;

  /// \throws ConfigError  rank outside [1, min(n, m)]; alpha not positive, or the scale not finite; dropout outside [0,
  /// 1).
  LoraLinear(Base base, LoraConfig config) : base_(std::move(base)) {
    config.check(in_features(), out_features(), "LoraLinear");
    adapter_ = AdapterState<Scalar>::zero(in_features(), out_features(), config);
    detail::require<ConfigError>(std::isfinite(static_cast<Scalar>(scale())),
                                 "LoraLinear: scale must be finite in the weight's scalar, got ", scale());
    if constexpr (requires { base_.bias(); }) bias_.assign(base_.bias().begin(), base_.bias().end());
  }

  // ---- what it is ----

  Index in_features() const { return base_.rows(); }   ///< n
  Index out_features() const { return base_.cols(); }  ///< m
  Index rank() const { return config().rank; }         ///< r
  const LoraConfig& config() const { return adapter_.config; }
  const Base& base() const { return base_; }
  std::string describe() const {
    return detail::joined("LoRA of rank ", rank(), ", scale ", scale(), " on ", base_.describe());
  }
  bool operator==(const LoraLinear&) const requires std::equality_comparable<Base>
  = default;

  // ---- factors ----

  /// Sets the factors to the initializer's start. Equal seeds give equal bits in one program, and on every platform
  /// where the start is made of draws alone (not LoRA-GA, PiSSA). \throws StateError  while merged, or baked. \throws
  /// ShapeError, NumericalError  the initializer's result is unfit.
  template <Initializer<Base> Init>
  void initialize(const Init& init, Random& random) {
    require_base_as_given("initialize");
    begin(init(base_, rank(), scale(), random));
  }
  /// The same for an initializer that needs the gradient G (n x m) with respect to the weight.
  /// \throws ShapeError  the gradient is not n x m.
  template <LinearOperator Gradient, GradientInitializer<Base, Gradient> Init>
  void initialize(const Init& init, const Gradient& gradient, Random& random) {
    require_base_as_given("initialize");
    detail::require_shape(gradient, in_features(), out_features(), "LoraLinear::initialize: gradient");
    begin(init(base_, gradient, rank(), scale(), random));
  }

  /// The trainable pair, as a view: values can be written, shapes cannot. The memory stays in place until a `swap`.
  /// \throws StateError  while merged: the base would keep the old product.
  FactorsView<Scalar> factors() {
    require_unmerged("factors");
    return adapter_.factors;
  }
  const Factors<Scalar>& factors() const { return adapter_.factors; }
  /// Takes over factors from elsewhere (a file, another layer).
  /// \throws ShapeError  not n x r and r x m. \throws NumericalError  not finite. \throws StateError  while merged.
  void set_factors(const ConstFactorsView<Scalar>& factors) {
    require_unmerged("set_factors");
    detail::require_factors(factors, in_features(), out_features(), rank(), "LoraLinear::set_factors:");
    detail::require_finite(factors, "LoraLinear::set_factors:");
    adapter_.factors.A = factors.A;
    adapter_.factors.B = factors.B;
  }
  /// A0 and B0 of an offset start; of rank 0 where there is none.
  const Factors<Scalar>& initial_factors() const { return adapter_.initial; }

  /// The adapter without the base, as a value; relates to the base as it was given (before `bake`).
  AdapterState<Scalar> adapter() const { return adapter_; }
  /// Exchanges the adapter for another one of any rank, in O(1): no factor is copied or searched for NaN. What was
  /// saved by a forward before does not fit a backward after. \throws StateError  while merged; once baked. \throws
  /// ConfigError, ShapeError  the other one does not fit the weight.
  void swap(AdapterState<Scalar>& other) {
    require_base_as_given("swap");
    other.check(in_features(), out_features(), "LoraLinear::swap");
    std::swap(adapter_, other);
  }
  Anchor& anchor() { return anchor_; }  ///< by which an `AdapterSet` notices that the layer was moved

  /// A gradient of the right shape, all zeros. `backward` adds to it; `set_zero()` clears it.
  Factors<Scalar> zero_gradient() const { return Factors<Scalar>::zero(in_features(), out_features(), rank()); }

  // ---- state, for checkpoints ----

  /// \throws StateError  while merged.
  State state() const {
    require_unmerged("state");
    return {adapter_, enabled_, baked_};
  }
  /// Goes on from a state of a layer with this base and configuration; where that one was baked, bakes the offset.
  /// \throws as `prepare`; nothing has changed then.
  void set_state(const State& state) { commit(prepare(state)); }

  /// A state that fits this layer, to be taken over without a failure: for those who change many layers or none.
  class Prepared {
    friend LoraLinear;
    State state_;
    std::optional<Base> baked_;
  };
  /// The part of `set_state` that may fail; an offset to bake takes a copy of the base. \throws as `LoraState::check`,
  /// and StateError  while merged; an offset to be baked into a base that is not owned, or that holds another one.
  Prepared prepare(const State& state) const;
  /// The other part. The factors stay where they are in memory.
  void commit(Prepared&& prepared) noexcept {
    auto& [state, baked] = prepared;
    adapter_.factors = state.adapter.factors;  // copied, not moved: views of the factors stay where they were
    adapter_.initial = std::move(state.adapter.initial);
    adapter_.scale = state.adapter.scale;
    enabled_ = state.enabled;
    if (baked) base_ = std::move(*baked);
    baked_ = state.baked;
  }

  // ---- scale and switch ----

  double scale() const { return adapter_.scale; }
  /// Overrides s at run time (0 silences the branch, a negative s subtracts it); a forward keeps its own s for its
  /// backward. \throws ConfigError  not finite. \throws StateError  while merged; once baked, for the base holds s A0
  /// B0.
  void set_scale(double scale) {
    require_base_as_given("set_scale");
    detail::require<ConfigError>(std::isfinite(static_cast<Scalar>(scale)),
                                 "LoraLinear::set_scale: scale must be finite, got ", scale);
    adapter_.scale = scale;
  }
  void enable() { enabled_ = true; }
  /// From now on the base alone; nothing is lost. \throws StateError  while merged, the branch is in the base; once
  /// baked, the base is no longer the one that was given.
  void disable() {
    require_base_as_given("disable");
    enabled_ = false;
  }
  bool enabled() const { return enabled_; }

  /// The bias of the frozen layer (m numbers, or none to remove it), passed through and never trained.
  /// \throws ShapeError  not m numbers.
  void set_bias(std::span<const Scalar> bias) {
    detail::require_bias(bias, out_features(), "LoraLinear::set_bias");
    bias_.assign(bias.begin(), bias.end());
  }
  std::span<const Scalar> bias() const { return bias_; }

  // ---- the layer ----

  /// Y = X W0 + bias + s (X A) B, without dropout (evaluation, or training at p = 0).
  /// \throws ShapeError  X not b x n, Y not b x m, or overlapping X.
  void forward(const ConstRows<Scalar>& X, Rows<Scalar> Y, Saved& saved) const { run(X, Y, saved, nullptr); }

  /// The same in training: the branch sees X with a share p of its elements dropped and the others divided by 1 - p.
  /// Draws b n numbers from `random`, none at p = 0.
  void forward(const ConstRows<Scalar>& X, Rows<Scalar> Y, Saved& saved, Random& random) const {
    run(X, Y, saved, &random);
  }

  /// Adds the gradients of A and B to `gradient`, without computing dX (the first layer of a network). A gradient view
  /// with an A of 0 x r asks for B's alone (LoRA-FA): X is not read again and may be gone.
  /// \throws StateError  `saved` holds no forward of this layer; the layer is merged; a layer with dropout ran without
  /// a generator. \throws ShapeError  dY not b x m, gradient not n x r and r x m.
  void backward(const ConstRows<Scalar>& dY, Saved& saved, FactorsView<Scalar> gradient) const {
    run_backward(dY, saved, gradient, nullptr);
  }
  /// The same, and writes dX (b x n). \throws ShapeError  dX not b x n, or overlapping X or dY.
  void backward(const ConstRows<Scalar>& dY, Saved& saved, FactorsView<Scalar> gradient, Rows<Scalar> dX) const {
    run_backward(dY, saved, gradient, &dX);
  }

  // ---- the layer as an operator: no bias, no dropout ----

  Index rows() const { return in_features(); }
  Index cols() const { return out_features(); }
  void multiply(const ConstRows<Scalar>& X, Rows<Scalar> Y) const {
    base_.multiply(X, Y);
    if (active()) branch(scale()).forward(X, Y, scratch().P.reshape(X.rows(), rank()), scratch().Q);
  }
  void multiply_transposed(const ConstRows<Scalar>& dY, Rows<Scalar> dX) const {
    base_.multiply_transposed(dY, dX);
    if (!active()) return;
    auto& Q = scratch().Q;
    branch(scale()).input_side(dY, Q);
    branch(scale()).add_input_gradient(dY, Q, dX);
  }

  // ---- merging ----

  /// The low-rank difference to the base as an ordinary pair: (A, B), after an offset start ([A A0], [B; -B0]) of rank
  /// 2r. The layer's weight is W0 + scale() A B of this pair, for the base as it was given (before `bake`).
  Factors<Scalar> delta() const { return adapter_.delta(); }
  /// W0 + s A B (n x m), in memory of its own.
  ColMatrix<Scalar> merged_weight() const {
    ColMatrix<Scalar> weight = to_dense(base_);
    if (merged()) return weight;
    const auto change = difference_to_base();
    add_product(weight, scale(), change.A, change.B);
    return weight;
  }
  /// Puts the offset of a start (LoRA-GA, PiSSA) into the owned base for good, W0 <- W0 - s A0 B0, so that the branch
  /// costs rank r again; the weight of the layer changes by one rounding an element. From then on the base belongs to
  /// this adapter. \throws StateError  merged; baked already; switched off; a start without an offset.
  void bake() {
    static_assert(
        requires(Base & base, const Factors<Scalar>& pair) { base.bake(pair, 1.0); },
        "lora: bake needs a base that owns its weight (OwnedBase); a view is never written");
    require_base_as_given("bake");
    detail::require<StateError>(enabled_, "LoraLinear::bake: enable first, got a layer that is switched off");
    detail::require<StateError>(adapter_.has_offset(), "LoraLinear::bake: needs a start with an offset, got none");
    base_.bake(adapter_.initial, -scale());
    baked_ = true;
  }
  bool baked() const { return baked_; }
  /// Puts the adapter into the owned base, so that forward costs the base product alone. Training needs `unmerge`.
  /// \throws StateError  merged already; switched off.
  void merge() {
    static_assert(MergeableBase<Base>,
                  "lora: merge needs a base that can be written and restored (OwnedBase, PackedBase)");
    detail::require<StateError>(enabled_, "LoraLinear::merge: enable first, got a layer that is switched off");
    base_.merge(difference_to_base(), scale());
  }
  /// Restores the base bit for bit. \throws StateError  not merged.
  void unmerge() {
    static_assert(MergeableBase<Base>,
                  "lora: unmerge needs a base that can be written and restored (OwnedBase, PackedBase)");
    base_.unmerge();
  }
  bool merged() const {
    if constexpr (MergeableBase<Base>) return base_.merged();
    return false;
  }

 private:
  using Branch = typename Saved::Branch;

  void require_unmerged(const char* function) const {
    detail::require<StateError>(!merged(), "LoraLinear::", function, ": unmerge first, got a merged layer");
  }
  void require_base_as_given(const char* function) const {
    require_unmerged(function);
    detail::require<StateError>(!baked_, "LoraLinear::", function,
                                ": needs the base as it was given, got one with an offset baked into it");
  }
  bool active() const { return enabled_ && !merged(); }
  /// What the layer adds to the base as it is now: as a pair, and as formulas at some scale.
  Factors<Scalar> difference_to_base() const { return baked_ ? factors() : delta(); }
  LowRankBranch<Scalar> branch(double scale) const {
    return baked_ ? LowRankBranch<Scalar>(factors(), scale)
                  : LowRankBranch<Scalar>(factors(), initial_factors(), scale);
  }

  void begin(Start<Scalar> start) {
    const ConstFactorsView<Scalar> factors(start.factors);
    detail::require_factors(factors, in_features(), out_features(), rank(), "LoraLinear::initialize: start");
    detail::require_finite(factors, "LoraLinear::initialize: start");
    adapter_.initial = start.offset == Offset::SubtractInitial ? start.factors : Factors<Scalar>();
    adapter_.factors = start.factors;  // copied, not moved: views of the factors stay where they were
  }

  void run(const ConstRows<Scalar>& X, Rows<Scalar> Y, Saved& saved, Random* random) const {
    detail::require_activations(X, Y, in_features(), out_features(), "LoraLinear::forward");
    saved.branch = Branch::NoForward;  // until all is there
    base_.multiply(X, Y);
    if (!bias_.empty()) Y.rowwise() += Eigen::Map<const Eigen::RowVectorX<Scalar>>(bias_.data(), out_features());
    saved.remember(X);
    saved.scale = scale();
    if (!active()) {
      saved.branch = Branch::Off;
      return;
    }
    const bool drop = random != nullptr && config().dropout > 0;
    if (drop) saved.draw_mask(config().dropout, *random);
    branch(scale()).forward(drop ? saved.drop(X) : X, Y, saved.P.reshape(X.rows(), rank()), saved.Q);
    saved.branch = drop ? Branch::Dropped : Branch::Plain;
  }

  void run_backward(const ConstRows<Scalar>& dY, Saved& saved, FactorsView<Scalar> gradient, Rows<Scalar>* dX) const {
    detail::require<StateError>(saved.branch != Branch::NoForward && saved.in_features == in_features() &&
                                    (saved.branch == Branch::Off || saved.P.view().cols() == rank()),
                                "LoraLinear::backward: needs the saved state of a forward of this layer, got none");
    detail::require<StateError>(!merged(), "LoraLinear::backward: unmerge before training, got a merged layer");
    detail::require<StateError>(config().dropout == 0 || saved.branch != Branch::Plain,
                                "LoraLinear::backward: training with dropout needs forward(X, Y, saved, random), got a "
                                "forward without a generator");
    detail::require_shape(dY, saved.tokens, out_features(), "LoraLinear::backward: dY");
    const bool A_moves = gradient.A.rows() > 0;
    detail::require_factors(ConstFactorsView<Scalar>(gradient), A_moves ? in_features() : 0, out_features(), rank(),
                            "LoraLinear::backward: gradient");
    if (dX != nullptr) {
      const auto X = A_moves ? saved.input() : ConstRows<Scalar>(nullptr, 0, 0);
      detail::require_input_gradient(X, dY, *dX, in_features(), "LoraLinear::backward");
      base_.multiply_transposed(dY, *dX);
    }
    if (saved.branch == Branch::Off) return;

    const bool dropped = saved.branch == Branch::Dropped;
    const auto branch = this->branch(saved.scale);
    const auto X = [&] { return dropped ? saved.drop(saved.input()) : saved.input(); };
    branch.add_gradient(dY, saved.P.view(), X, gradient, saved.Q);
    if (dX == nullptr) return;
    if (!A_moves) branch.input_side(dY, saved.Q);
    if (dropped) {
      auto part = saved.masked.view();
      part.setZero();
      branch.add_input_gradient(dY, saved.Q, part);
      dX->array() += part.array() * saved.mask.view().array();
    } else {
      branch.add_input_gradient(dY, saved.Q, *dX);
    }
  }

  /// For uses of the layer as an operator, in which nothing outlives the call.
  static Saved& scratch() {
    thread_local Saved saved;
    return saved;
  }

  Base base_;
  AdapterState<Scalar> adapter_;
  std::vector<Scalar> bias_;
  bool enabled_ = true, baked_ = false;
  Anchor anchor_;
};

template <FrozenBase Base>
auto LoraLinear<Base>::prepare(const State& state) const -> Prepared {
  require_unmerged("set_state");
  state.check(config(), in_features(), out_features(), "LoraLinear::set_state");
  const auto& [config, s, factors, initial] = state.adapter;
  detail::require<StateError>(
      !baked_ || (state.baked && initial == adapter_.initial && s == scale()),
      "LoraLinear::set_state: needs the base as it was given, got one with another offset baked into it");
  Prepared prepared;
  prepared.state_ = state;
  if (!state.baked || baked_) return prepared;
  if constexpr (requires(Base & base) { base.bake(adapter_.initial, 1.0); }) {
    prepared.baked_ = base_;
    prepared.baked_->bake(initial, -s);
  } else {
    detail::require<StateError>(false, "LoraLinear::set_state: a baked state needs a base that owns its weight, got ",
                                base_.describe());
  }
  return prepared;
}

// A matrix that outlives the layer is viewed, a temporary one is taken over.
template <class Weight>
LoraLinear(Weight&&, LoraConfig) -> LoraLinear<typename detail::BaseOf<Weight>::Type>;

static_assert(Adapter<LoraLinear<ViewBase<float>>> && FrozenBase<LoraLinear<ViewBase<float>>>);

}  // namespace lora
