// SPDX-License-Identifier: MIT
// Causal attention with grouped queries (Ainslie et al., arXiv:2305.13245), forward and backward.
#pragma once

#include "config.hpp"

#include <lora/core/buffer.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/threads.hpp>
#include <lora/core/views.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cmath>

namespace llm {

/// softmax(Q K^T / sqrt(d), causal) V for each head of each sequence. Groups of heads of Q share one of K and V.
///
/// The b x b probabilities are never kept: a tile of rows at a time, with the logarithm of each row's sum saved for the
/// backward, which works them out again (as Dao et al., arXiv:2205.14135). What lies above the diagonal is skipped by
/// tiles. Sequences and groups are shared among threads.
class CausalAttention {
  using Rows = lora::ConstRows<float>;

 public:
  explicit CausalAttention(const LlamaConfig& config)
      : groups_(config.num_key_value_heads),
        group_(config.num_attention_heads / config.num_key_value_heads),
        d_(config.head_dim) {}

  Index head_dim() const { return d_; }

  /// Q is b x (heads d), K and V b x (groups d), b tokens in sequences of `length`. Writes `out` (as Q) and `log_sums`
  /// (heads x b).
  void forward(const Rows& Q, const Rows& K, const Rows& V, Index length, lora::Rows<float> out,
               lora::Rows<float> log_sums) const {
    for_each_group(Q.rows(), length, flops(Q, length), [&](Index first, Index group) {
      for (Index head = group * group_; head < (group + 1) * group_; ++head) {
        forward_head(block(Q, first, head, length), block(K, first, group, length), block(V, first, group, length),
                     block(out, first, head, length), log_sums.row(head).data() + first);
      }
    });
  }
  /// The same for the newest tokens of one sequence: K and V hold those before them too.
  void extend(const Rows& Q, const Rows& K, const Rows& V, lora::Rows<float> out) const {
    lora::parallel_for(groups_, flops(Q, K.rows()), [&](Index begin, Index end) {
      for (Index head = begin * group_; head < end * group_; ++head) {
        forward_head(block(Q, 0, head, Q.rows()), block(K, 0, head / group_, K.rows()),
                     block(V, 0, head / group_, K.rows()), block(out, 0, head, Q.rows()), nullptr);
      }
    });
  }
  /// Of the forward with these Q, K, V, out and log_sums. Overwrites dQ, dK and dV.
  void backward(const Rows& Q, const Rows& K, const Rows& V, Index length, const Rows& out, const Rows& log_sums,
                const Rows& dOut, lora::Rows<float> dQ, lora::Rows<float> dK, lora::Rows<float> dV) const {
    for_each_group(Q.rows(), length, 3 * flops(Q, length), [&](Index first, Index group) {
      auto dK_group = block(dK, first, group, length), dV_group = block(dV, first, group, length);
      dK_group.setZero();
      dV_group.setZero();
      for (Index head = group * group_; head < (group + 1) * group_; ++head) {
        backward_head(block(Q, first, head, length), block(K, first, group, length), block(V, first, group, length),
                      block(out, first, head, length), log_sums.row(head).data() + first,
                      block(dOut, first, head, length), block(dQ, first, head, length), dK_group, dV_group);
      }
    });
  }

 private:
  using Tile = lora::Buffer<float>;
  static constexpr Index tile = 64;  // rows at a time

  template <class Element>
  lora::View<Element, Eigen::RowMajor> block(const lora::View<Element, Eigen::RowMajor>& X, Index first, Index head,
                                             Index rows) const {
    return {const_cast<Element*>(X.data()) + first * X.outerStride() + head * d_, rows, d_, X.outerStride()};
  }
  static double flops(const Rows& Q, Index keys) { return 2.0 * static_cast<double>(Q.size() * keys); }
  float scale() const { return 1 / std::sqrt(static_cast<float>(d_)); }

  /// visit(first row, group), for all groups of all sequences.
  template <class Visit>
  void for_each_group(Index tokens, Index length, double flops, const Visit& visit) const {
    lora::parallel_for(tokens / length * groups_, flops, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) visit(i / groups_ * length, i % groups_);
    });
  }

  /// out = softmax(scale Q K^T, causal) V. The last row of Q is the token of the last row of K.
  void forward_head(const Rows& Q, const Rows& K, const Rows& V, lora::Rows<float> out, float* log_sums) const {
    thread_local Tile scores;
    const Index past = K.rows() - Q.rows();
    for (Index first = 0; first < Q.rows(); first += tile) {
      const Index rows = std::min(tile, Q.rows() - first), keys = past + first + rows;
      auto S = scores.reshape(rows, keys);
      S.noalias() = Q.middleRows(first, rows) * K.topRows(keys).transpose();
      for (Index i = 0; i < rows; ++i) {
        const Index seen = past + first + i + 1;
        auto row = S.row(i).head(seen).array();
        const float largest = row.maxCoeff();
        row = ((row - largest) * scale()).exp();
        const float sum = row.sum();
        row *= 1 / sum;
        S.row(i).tail(keys - seen).setZero();
        if (log_sums != nullptr) log_sums[first + i] = largest * scale() + std::log(sum);
      }
      out.middleRows(first, rows).noalias() = S * V.topRows(keys);
    }
  }
  void backward_head(const Rows& Q, const Rows& K, const Rows& V, const Rows& out, const float* log_sums,
                     const Rows& dOut, lora::Rows<float> dQ, lora::Rows<float>& dK, lora::Rows<float>& dV) const {
    thread_local Tile probabilities, derivatives;
    for (Index first = 0; first < Q.rows(); first += tile) {
      const Index rows = std::min(tile, Q.rows() - first), keys = first + rows;
      const auto Q_tile = Q.middleRows(first, rows), dOut_tile = dOut.middleRows(first, rows);
      auto P = probabilities.reshape(rows, keys), dS = derivatives.reshape(rows, keys);
      P.noalias() = Q_tile * K.topRows(keys).transpose();
      dS.noalias() = dOut_tile * V.topRows(keys).transpose();
      for (Index i = 0; i < rows; ++i) {
        const Index seen = first + i + 1;
        auto p = P.row(i).head(seen).array(), ds = dS.row(i).head(seen).array();
        p = (p * scale() - log_sums[first + i]).exp();
        ds = p * (ds - dOut_tile.row(i).dot(out.row(first + i))) * scale();
        P.row(i).tail(keys - seen).setZero();
        dS.row(i).tail(keys - seen).setZero();
      }
      dV.topRows(keys).noalias() += P.transpose() * dOut_tile;
      dQ.middleRows(first, rows).noalias() = dS * K.topRows(keys);
      dK.topRows(keys).noalias() += dS.transpose() * Q_tile;
    }
  }

  Index groups_, group_, d_;
};

}  // namespace llm
