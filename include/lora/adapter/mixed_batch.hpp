// SPDX-License-Identifier: MIT
// Several adapters on one frozen base in one batch, each row with its own (Punica, arXiv:2310.18547; S-LoRA,
// arXiv:2311.03285).
#pragma once

#include <lora/adapter/lora_linear.hpp>
#include <lora/adapter/low_rank_branch.hpp>
#include <lora/adapter/row_groups.hpp>
#include <lora/base/base_of.hpp>
#include <lora/base/frozen_base.hpp>
#include <lora/core/buffer.hpp>
#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/views.hpp>

#include <Eigen/Core>

#include <concepts>
#include <cstddef>
#include <iterator>
#include <span>
#include <utility>
#include <vector>

namespace lora {

/// What a mixed forward leaves behind for its backward, and scratch. The caller owns it: one per use in training; in
/// inference one is enough for all layers. Reuse it and it stops allocating.
///
/// Memory: sum of b_a r_a scalars and a copy of the groups; for the largest group with rows at uneven distances,
/// b_a (n + m) scalars more.
/// \pre X and the factors are not copied: they must stay in place until the backward.
template <Real Scalar>
struct MixedState {
  bool complete = false;  ///< is there a forward?
  RowGroups groups;
  std::vector<LowRankBranch<Scalar>> branches;  ///< of each group
  Index in_features = 0, out_features = 0;      ///< n, m
  const Scalar* X = nullptr;                    ///< where the activations are (b x n)
  Index X_stride = 0;
  Buffer<Scalar> P;        ///< s X_a A_a (b_a x r_a), group after group
  Buffer<Scalar> Q;        ///< s dY_a B_a^T (b_a x r_a), scratch
  Buffer<Scalar> inputs;   ///< X_a or dX_a (b_a x n), scratch
  Buffer<Scalar> outputs;  ///< Y_a or dY_a (b_a x m), scratch

  ConstRows<Scalar> input() const { return {X, groups.tokens(), in_features, X_stride}; }
};

namespace detail {

/// What is indexed from 0 and has elements that convert: a vector, an array, a span.
template <class List, class Element>
concept ListOf = requires(List& list, std::size_t i) {
  { std::ssize(list) } -> std::convertible_to<Index>;
  { list[i] } -> std::convertible_to<Element>;
};

}  // namespace detail

/// A frozen base under several adapters: Y_i = X_i W0 (+ bias) + s_a (X_i A_a) B_a, a the adapter of row i, if any.
///
///     const lora::MixedLinear layer{W0};
///     layer.forward(X, Y, adapters, groups, saved);       // groups: RowGroups{adapter_of_row, 3}
///     layer.backward(dY, saved, gradients, dX);           // one gradient an adapter
///
/// One product with W0 for the whole batch and one branch for each group of rows with b_a rows. For each group:
///
///     P = s X_a A,   Q = s dY_a B^T,   G_A += X_a^T Q,   G_B += P^T dY_a,   dX = dY W0^T + Q A^T
///
/// Cost over the frozen products: 6 sum b_a r_a (n + m) flops a step, as if each adapter had a batch of its own. Rows
/// at even distances (adjacent, every third) are used where they lie; others are copied, n + 2 m scalars a row forward
/// and 3 n + m backward. Where the rows lie changes no bit of the branch. Nothing is allocated once `saved` has seen
/// the largest batch and groups.
///
/// `adapters` is a list indexed by adapter: of `LoraLinear` over this base, or of `LowRankBranch` where they lie in
/// several places. Ranks may differ. Only adapters with rows in the batch are looked at. `forward` and `backward` are
/// const, as in `LoraLinear`, which is for batches with one adapter, and for dropout.
/// \see docs/guide.md#mixed-batches
template <FrozenBase Base>
class MixedLinear {
 public:
  using Scalar = typename Base::Scalar;
  using Saved = MixedState<Scalar>;

  explicit MixedLinear(Base base) : base_(std::move(base)) {
    if constexpr (requires { base_.bias(); }) bias_.assign(base_.bias().begin(), base_.bias().end());
  }

  Index in_features() const { return base_.rows(); }   ///< n
  Index out_features() const { return base_.cols(); }  ///< m
  const Base& base() const { return base_; }
  bool operator==(const MixedLinear&) const requires std::equality_comparable<Base>
  = default;

  /// The bias of the frozen layer, for all rows: the adapters' own is not looked at. m numbers, or none to remove it.
  /// \throws ShapeError  not m numbers.
  void set_bias(std::span<const Scalar> bias) {
    detail::require_bias(bias, out_features(), "MixedLinear::set_bias");
    bias_.assign(bias.begin(), bias.end());
  }
  std::span<const Scalar> bias() const { return bias_; }

  /// Y (b x m) from X (b x n), rows as in `groups`. \throws ShapeError  X, Y, the number of adapters or the factors of
  /// one with rows do not fit; Y overlaps X. \throws StateError  an adapter is merged, or has a bias and this layer has
  /// none.
  template <detail::ListOf<LowRankBranch<Scalar>> Adapters>
  void forward(const ConstRows<Scalar>& X, Rows<Scalar> Y, const Adapters& adapters, const RowGroups& groups,
               Saved& saved) const {
    detail::require<ShapeError>(Index{std::ssize(adapters)} == groups.adapters(), "MixedLinear::forward: needs the ",
                                groups.adapters(), " adapters that the groups were made for, got ",
                                std::ssize(adapters));
    detail::require_shape(X, groups.tokens(), in_features(), "MixedLinear::forward: X");
    detail::require_activations(X, Y, in_features(), out_features(), "MixedLinear::forward");
    Index P_size = 0;
    for (Index g = 0; g < groups.size(); ++g) {
      const LowRankBranch<Scalar> branch = branch_of(adapters, groups[g]);
      require_fit(branch, groups[g].adapter);
      P_size += std::ssize(groups[g].rows) * branch.factors.rank();
    }

    saved.complete = false;  // until all is there
    saved.groups = groups;
    saved.branches.clear();
    for (Index g = 0; g < groups.size(); ++g) saved.branches.push_back(branch_of(adapters, groups[g]));
    saved.in_features = in_features();
    saved.out_features = out_features();
    saved.X = X.data();
    saved.X_stride = X.outerStride();
    saved.P.reshape(P_size, 1);
    base_.multiply(X, Y);
    if (!bias_.empty()) Y.rowwise() += Eigen::Map<const Eigen::RowVectorX<Scalar>>(bias_.data(), out_features());
    for_each_branch(saved, [&](const RowGroups::Group& group, const LowRankBranch<Scalar>& branch, Rows<Scalar> P) {
      const auto X_a = detail::gathered(X, group, saved.inputs);
      auto Y_a = detail::gathered(Y, group, saved.outputs);
      branch.forward(X_a, Y_a, P, saved.Q);
      detail::scatter(Y_a, group, Y);
    });
    saved.complete = true;
  }

  /// Adds to the gradients of the adapters with rows in the batch; the others are left as they are. `gradients` is a
  /// list of `Factors` or `FactorsView`, indexed by adapter. An A of 0 x r asks for that adapter's B alone (LoRA-FA).
  /// \throws StateError  `saved` holds no forward of this layer; an adapter has dropout. \throws ShapeError  dY not
  /// b x m, the number of gradients, a gradient not n x r and r x m.
  template <detail::ListOf<FactorsView<Scalar>> Gradients>
  void backward(const ConstRows<Scalar>& dY, Saved& saved, Gradients&& gradients) const {
    run_backward(dY, saved, gradients, nullptr);
  }
  /// The same, and writes dX (b x n), of all rows. \throws ShapeError  dX not b x n, or overlapping X or dY.
  template <detail::ListOf<FactorsView<Scalar>> Gradients>
  void backward(const ConstRows<Scalar>& dY, Saved& saved, Gradients&& gradients, Rows<Scalar> dX) const {
    run_backward(dY, saved, gradients, &dX);
  }

 private:
  template <class Adapters>
  static LowRankBranch<Scalar> branch_of(const Adapters& adapters, const RowGroups::Group& group) {
    return adapters[static_cast<std::size_t>(group.adapter)];
  }
  template <class Gradients>
  static FactorsView<Scalar> gradient_of(Gradients& gradients, const RowGroups::Group& group) {
    return gradients[static_cast<std::size_t>(group.adapter)];
  }

  void require_fit(const LowRankBranch<Scalar>& branch, Index adapter) const {
    const auto require_pair = [&](const ConstFactorsView<Scalar>& pair, const char* name) {
      detail::require_factors(pair, in_features(), out_features(), pair.rank(), "MixedLinear::forward: ", name, adapter,
                              ":");
    };
    require_pair(branch.factors, "adapter ");
    if (branch.has_offset()) require_pair(branch.initial, "offset of adapter ");
    detail::require<StateError>(!branch.has_bias || !bias_.empty(),
                                "MixedLinear::forward: needs the bias of the layer (set_bias), got none, and adapter ",
                                adapter, " with one");
  }

  /// Calls `visit(group, branch, P)` for the groups whose branch is not silent.
  template <class Visit>
  static void for_each_branch(Saved& saved, const Visit& visit) {
    Scalar* P = saved.P.view().data();
    for (Index g = 0; g < saved.groups.size(); ++g) {
      const auto group = saved.groups[g];
      const auto& branch = saved.branches[static_cast<std::size_t>(g)];
      if (branch.scale == 0) continue;
      const Rows<Scalar> part(P, std::ssize(group.rows), branch.factors.rank());
      visit(group, branch, part);
      P += part.size();
    }
  }

  template <class Gradients>
  void run_backward(const ConstRows<Scalar>& dY, Saved& saved, Gradients& gradients, Rows<Scalar>* dX) const {
    detail::require<StateError>(
        saved.complete && saved.in_features == in_features() && saved.out_features == out_features(),
        "MixedLinear::backward: needs the saved state of a forward of this layer, got none");
    const RowGroups& groups = saved.groups;
    detail::require_shape(dY, groups.tokens(), out_features(), "MixedLinear::backward: dY");
    detail::require<ShapeError>(Index{std::ssize(gradients)} == groups.adapters(),
                                "MixedLinear::backward: needs one gradient for each of the ", groups.adapters(),
                                " adapters, got ", std::ssize(gradients));
    const auto A_moves = [](const FactorsView<Scalar>& gradient) { return gradient.A.rows() > 0; };
    bool X_is_read = false;
    for (Index g = 0; g < groups.size(); ++g) {
      const auto& branch = saved.branches[static_cast<std::size_t>(g)];
      const auto gradient = gradient_of(gradients, groups[g]);
      detail::require<StateError>(branch.dropout == 0,
                                  "MixedLinear::backward: adapters must be without dropout, got adapter ",
                                  groups[g].adapter, " with ", branch.dropout);
      detail::require_factors(ConstFactorsView<Scalar>(gradient), A_moves(gradient) ? in_features() : 0, out_features(),
                              branch.factors.rank(), "MixedLinear::backward: gradient of adapter ", groups[g].adapter,
                              ":");
      X_is_read = X_is_read || A_moves(gradient);
    }
    if (dX != nullptr) {
      const auto X = X_is_read ? saved.input() : ConstRows<Scalar>(nullptr, 0, 0);
      detail::require_input_gradient(X, dY, *dX, in_features(), "MixedLinear::backward");
      base_.multiply_transposed(dY, *dX);
    }

    for_each_branch(saved, [&](const RowGroups::Group& group, const LowRankBranch<Scalar>& branch, Rows<Scalar> P) {
      const auto gradient = gradient_of(gradients, group);
      const ConstRows<Scalar> dY_a = detail::gathered(dY, group, saved.outputs);
      branch.add_gradient(
          dY_a, P, [&] { return detail::gathered(saved.input(), group, saved.inputs); }, gradient, saved.Q);
      if (dX == nullptr) return;
      if (!A_moves(gradient)) branch.input_side(dY_a, saved.Q);
      auto dX_a = detail::gathered(*dX, group, saved.inputs);
      branch.add_input_gradient(dY_a, saved.Q, dX_a);
      detail::scatter(dX_a, group, *dX);
    });
  }

  Base base_;
  std::vector<Scalar> bias_;
};

// A matrix that outlives the layer is viewed, a temporary one is taken over.
template <class Weight>
MixedLinear(Weight&&) -> MixedLinear<typename detail::BaseOf<Weight>::Type>;

}  // namespace lora
