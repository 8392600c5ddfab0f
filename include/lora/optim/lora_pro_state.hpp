// SPDX-License-Identifier: MIT
// What LoRA-Pro (Wang et al., arXiv:2407.18242) remembers between steps, and the small matrices of a step.
#pragma once

#include <lora/core/factors.hpp>
#include <lora/core/fields.hpp>
#include <lora/linalg/product.hpp>
#include <lora/optim/adamw.hpp>
#include <lora/optim/equivalent_gradient.hpp>
#include <lora/optim/per_factor.hpp>

#include <Eigen/Core>

#include <cstdint>
#include <vector>

namespace lora {

struct LoraPro;

/// Where LoRA-Pro's moments live; see the table at `LoraPro`.
enum class LoraProMode { Sgd, Efficient, Full, Factored };
constexpr const char* name_of(LoraProMode mode) {
  switch (mode) {
    case LoraProMode::Sgd:
      return "Sgd";
    case LoraProMode::Efficient:
      return "Efficient";
    case LoraProMode::Full:
      return "Full";
    case LoraProMode::Factored:
      return "Factored";
  }
  return "unknown";
}

/// What LoRA-Pro remembers between steps. The fields of other modes stay empty.
template <Real Scalar>
struct LoraProState {
  Index n = 0, m = 0, r = 0;
  LoraProMode mode = LoraProMode::Factored;
  std::int64_t steps = 0;
  detail::PairState<AdamW, Scalar> pair;               ///< Efficient: of H
  std::vector<AdamW::State<Scalar>> blocks;            ///< Full: of Gt, by blocks of 48 columns
  Factors<Scalar> momentum, previous;                  ///< Factored: s (M_A Bo + Ao M_B), and its (Ao, Bo)
  Eigen::VectorX<Scalar> row_squares, column_squares;  ///< Factored: R (n) and K (m), not corrected

  friend bool operator==(const LoraProState& left, const LoraProState& right) {
    return left.n == right.n && left.m == right.m && left.r == right.r && left.mode == right.mode &&
           left.steps == right.steps && left.pair == right.pair && left.blocks == right.blocks &&
           left.momentum == right.momentum && left.previous == right.previous &&
           detail::same_values(left.row_squares, right.row_squares) &&
           detail::same_values(left.column_squares, right.column_squares);
  }
  static void fields(auto& self, const auto& visit) {
    visit("n", fixed(self.n));
    visit("m", fixed(self.m));
    visit("r", fixed(self.r));
    visit("mode", fixed(self.mode));
    visit("steps", self.steps);
    visit("pair", self.pair);
    visit("blocks", self.blocks);
    visit("momentum", self.momentum);
    visit("previous", self.previous);
    visit("row_squares", self.row_squares);
    visit("column_squares", self.column_squares);
  }

 private:
  friend LoraPro;
  static constexpr Index block_width = 48;

  /// The r x r matrices that stand beside M_A, Ao, Bo and M_B where the momentum is seen from (A, B), with weights D:
  /// Bo D B^T, M_B D B^T, A^T D M_A and A^T D Ao; after `see` those in H. S and work are scratch.
  struct Seen {
    Eigen::MatrixXd MA, Ao, Bo, MB, S, work;
  };
  const typename EquivalentGradient<Scalar>::Coefficients& see(double weight, double scale, Freedom choice);

  /// Small matrices as factors of products: where they stand on the right, by rows.
  const ColMatrix<Scalar>& left(const Eigen::MatrixXd& small) { return left_ = small.template cast<Scalar>(); }
  const RowMatrix<Scalar>& right(const Eigen::MatrixXd& small) { return right_ = small.template cast<Scalar>(); }
  template <class Left, class Right>
  const ColMatrix<Scalar>& inner(const Left& L, const Right& R) {
    left_.resize(r, r);
    set_product(left_, 1, L, R);
    return left_;
  }

  // Scratch, not state: nothing in it outlives a step.
  EquivalentGradient<Scalar> nearest_;
  Factors<Scalar> H_, gradient_;
  ColMatrix<Scalar> block_, tall_, left_;
  RowMatrix<Scalar> wide_, right_;
  Eigen::VectorX<Scalar> row_weights_, column_weights_;
  Seen seen_;
};

/// With G_A = w (M_A (Bo D B^T) + Ao (M_B D B^T)), and G_B alike, H is a sum of products with the same tall and wide
/// matrices: neither G_A nor G_B nor G_B B^T is multiplied out.
template <Real Scalar>
auto LoraProState<Scalar>::see(double weight, double scale, Freedom choice) -> const
    typename EquivalentGradient<Scalar>::Coefficients& {
  seen_.S.resize(r, r);
  seen_.work.resize(r, r);
  set_product(seen_.S, weight, seen_.Bo, seen_.MA);
  add_product(seen_.S, weight, seen_.MB, seen_.Ao);
  const auto& coefficients = nearest_.coefficients(seen_.S, scale, choice);
  const auto multiply = [&](Eigen::MatrixXd& to, const Eigen::MatrixXd& L, const Eigen::MatrixXd& R) {
    set_product(seen_.work, weight, L, R);
    to.swap(seen_.work);
  };
  multiply(seen_.MA, seen_.MA, coefficients.M);
  multiply(seen_.Ao, seen_.Ao, coefficients.M);
  multiply(seen_.Bo, coefficients.W, seen_.Bo);
  multiply(seen_.MB, coefficients.W, seen_.MB);
  return coefficients;
}

}  // namespace lora
