// SPDX-License-Identifier: MIT
// One layer of a Llama (Touvron et al., arXiv:2302.13971), forward and backward. Each of its seven products is a frozen
// weight with an adapter; nothing else is trained.
#pragma once

#include "attention.hpp"
#include "config.hpp"
#include "norm.hpp"
#include "profile.hpp"
#include "rotary.hpp"
#include "weights.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/base/frozen_base.hpp>
#include <lora/core/buffer.hpp>
#include <lora/core/saved_state.hpp>
#include <lora/core/threads.hpp>
#include <lora/core/views.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <initializer_list>
#include <string>
#include <utility>

namespace llm {

using lora::ConstRows;
using lora::Rows;
using Activations = lora::Buffer<float>;

/// A linear layer of the model: Y = X W0, with an adapter + s (X A) B.
template <lora::FrozenBase Base>
struct Linear {
  std::string name;  ///< of the module, as transformers has it
  lora::LoraLinear<Base> layer;

  /// Without an adapter: an `AdapterSet` brings one.
  Linear(const Weights& weights, std::string module, Index n, Index m)
      : name(std::move(module)), layer(Base(weights.matrix(name + ".weight", m, n).transpose()), {.rank = 1}) {
    layer.disable();
  }

  ConstRows<float> forward(const ConstRows<float>& X, Activations& Y, lora::SavedState<float>& saved) const {
    const auto out = Y.reshape(X.rows(), layer.out_features());
    layer.forward(X, out, saved);
    return out;
  }
};

/// What the forward of a block leaves for its backward: b (4 h + 2 kv + 2 i + heads) numbers, and 14 b r of adapters.
struct BlockState {
  lora::SavedState<float> q, k, v, o, gate, up, down;
  Activations Q, K, V, heads, log_sums;  ///< Q and K after rotation
  Activations middle;                    ///< between attention and MLP
  Activations gate_out, up_out;
};

/// What blocks use one after another.
struct Workspace {
  Activations X;      ///< a block's input after its norm
  Activations gated;  ///< silu(gate) up, the input of `down`
  Activations dX, dX2, dQ, dK, dV, dWide;
  Profile profile;
};

/// H += attention(norm(H)); H += down(silu(gate(norm(H))) up(norm(H))).
template <lora::FrozenBase Base>
class Block {
 public:
  Block(const Weights& weights, const LlamaConfig& config, const std::string& name)
      : attention_norm_(weights.vector(name + "input_layernorm.weight", config.hidden_size), config.rms_norm_eps),
        mlp_norm_(weights.vector(name + "post_attention_layernorm.weight", config.hidden_size), config.rms_norm_eps),
        q_(weights, name + "self_attn.q_proj", config.hidden_size, config.num_attention_heads * config.head_dim),
        k_(weights, name + "self_attn.k_proj", config.hidden_size, config.num_key_value_heads * config.head_dim),
        v_(weights, name + "self_attn.v_proj", config.hidden_size, config.num_key_value_heads * config.head_dim),
        o_(weights, name + "self_attn.o_proj", config.num_attention_heads * config.head_dim, config.hidden_size),
        gate_(weights, name + "mlp.gate_proj", config.hidden_size, config.intermediate_size),
        up_(weights, name + "mlp.up_proj", config.hidden_size, config.intermediate_size),
        down_(weights, name + "mlp.down_proj", config.intermediate_size, config.hidden_size),
        attention_(config) {}

  /// H, b x hidden in sequences of `length`, to `out`. H must stay for `backward`.
  void forward(const ConstRows<float>& H, const Rotary& rotary, Index length, BlockState& state, Workspace& work,
               Activations& out) const {
    project(H, rotary, length, 0, state, work);
    const auto heads = state.heads.reshape(H.rows(), q_.layer.out_features());
    {
      const Stopwatch watch(work.profile.attention);
      attention_.forward(state.Q.view(), state.K.view(), state.V.view(), length, heads,
                         state.log_sums.reshape(heads_of(heads), H.rows()));
    }
    finish(H, state, work, out);
  }
  /// The newest tokens of one sequence. `keys` and `values` have room for all, of which `past` are there.
  void extend(const ConstRows<float>& H, const Rotary& rotary, Index past, Rows<float> keys, Rows<float> values,
              BlockState& state, Workspace& work, Activations& out) const {
    project(H, rotary, H.rows(), past, state, work);
    keys.middleRows(past, H.rows()) = state.K.view();
    values.middleRows(past, H.rows()) = state.V.view();
    {
      const Stopwatch watch(work.profile.attention);
      attention_.extend(state.Q.view(), keys.topRows(past + H.rows()), values.topRows(past + H.rows()),
                        state.heads.reshape(H.rows(), q_.layer.out_features()));
    }
    finish(H, state, work, out);
  }

  /// dH: from the derivative by the output of the last forward, from this H, to that by H.
  /// `through(linear, dY, saved, dX)` goes back through a linear layer and takes what it wants of it.
  template <class Through>
  void backward(const ConstRows<float>& H, const Rotary& rotary, Index length, BlockState& state, Workspace& work,
                Rows<float> dH, const Through& through) const {
    const Index b = H.rows(), hidden = H.cols(), wide = gate_.layer.out_features();
    const auto dX = work.dX.reshape(b, hidden), dX2 = work.dX2.reshape(b, hidden);
    const auto dWide = work.dWide.reshape(b, wide);
    const auto linear = [&](const Linear<Base>& layer, const ConstRows<float>& dY, lora::SavedState<float>& saved,
                            Rows<float> out) {
      const Stopwatch watch(work.profile.products);
      through(layer, dY, saved, out);
    };

    normed(mlp_norm_, state.middle.view(), work);  // the inputs of the layers are made once more, where they were
    gate(state, work);
    linear(down_, dH, state.down, dWide);
    const auto dGate = gate_backward(state, dWide, work);
    linear(gate_, dGate, state.gate, dX);
    linear(up_, dWide, state.up, dX2);
    add_norm(mlp_norm_, state.middle.view(), {&work.dX2}, work, dH);

    normed(attention_norm_, H, work);
    const auto dHeads = work.gated.reshape(b, q_.layer.out_features());
    const auto dQ = work.dQ.reshape(b, q_.layer.out_features()), dK = work.dK.reshape(b, k_.layer.out_features());
    const auto dV = work.dV.reshape(b, v_.layer.out_features());
    linear(o_, dH, state.o, dHeads);
    {
      const Stopwatch watch(work.profile.attention);
      attention_.backward(state.Q.view(), state.K.view(), state.V.view(), length, state.heads.view(),
                          state.log_sums.view(), dHeads, dQ, dK, dV);
    }
    {
      const Stopwatch watch(work.profile.rest);
      rotary.turn_back(dQ, length);
      rotary.turn_back(dK, length);
    }
    linear(q_, dQ, state.q, dX);
    linear(k_, dK, state.k, dX2);
    const auto dX3 = work.dWide.reshape(b, hidden);
    linear(v_, dV, state.v, dX3);
    add_norm(attention_norm_, H, {&work.dX2, &work.dWide}, work, dH);
  }

  template <class Visit>
  void for_each_linear(const Visit& visit) {
    for (Linear<Base>* linear : {&q_, &k_, &v_, &o_, &gate_, &up_, &down_}) visit(*linear);
  }

 private:
  Index heads_of(const Rows<float>& heads) const { return heads.cols() / attention_.head_dim(); }

  static ConstRows<float> normed(const RmsNorm& norm, const ConstRows<float>& H, Workspace& work) {
    const Stopwatch watch(work.profile.rest);
    const auto X = work.X.reshape(H.rows(), H.cols());
    norm.forward(H, X);
    return X;
  }
  /// Q, K and V of the tokens, turned to their places.
  void project(const ConstRows<float>& H, const Rotary& rotary, Index length, Index past, BlockState& state,
               Workspace& work) const {
    const auto X = normed(attention_norm_, H, work);
    // As large as it gets, so that it stays where the states of several blocks find it.
    work.gated.reshape(H.rows(), std::max(gate_.layer.out_features(), q_.layer.out_features()));
    {
      const Stopwatch watch(work.profile.products);
      q_.forward(X, state.Q, state.q);
      k_.forward(X, state.K, state.k);
      v_.forward(X, state.V, state.v);
    }
    const Stopwatch watch(work.profile.rest);
    rotary.turn(state.Q.view(), length, past);
    rotary.turn(state.K.view(), length, past);
  }
  /// All that follows the heads.
  void finish(const ConstRows<float>& H, BlockState& state, Workspace& work, Activations& out) const {
    {
      const Stopwatch watch(work.profile.products);
      o_.forward(state.heads.view(), state.middle, state.o);
    }
    add(H, state.middle.view(), work);
    const auto X = normed(mlp_norm_, state.middle.view(), work);
    {
      const Stopwatch watch(work.profile.products);
      gate_.forward(X, state.gate_out, state.gate);
      up_.forward(X, state.up_out, state.up);
    }
    const auto gated = gate(state, work);
    {
      const Stopwatch watch(work.profile.products);
      down_.forward(gated, out, state.down);
    }
    add(state.middle.view(), out.view(), work);
  }

  static void add(const ConstRows<float>& H, Rows<float> out, Workspace& work) {
    const Stopwatch watch(work.profile.rest);
    lora::parallel_for(H.rows(), static_cast<double>(H.size()), [&](Index first, Index last) {
      out.middleRows(first, last - first) += H.middleRows(first, last - first);
    });
  }
  /// silu(gate) up
  static ConstRows<float> gate(BlockState& state, Workspace& work) {
    const Stopwatch watch(work.profile.rest);
    const auto gate = state.gate_out.view(), up = state.up_out.view();
    auto out = work.gated.reshape(gate.rows(), gate.cols());
    lora::parallel_for(gate.rows(), 20.0 * static_cast<double>(gate.size()), [&](Index first, Index last) {
      for (Index t = first; t < last; ++t) {
        const auto g = gate.row(t).array();
        out.row(t) = g / (1 + (-g).exp()) * up.row(t).array();
      }
    });
    return out;
  }
  /// From the derivative by `gated` to that by `up`, in place; returns that by `gate`, in the memory of `gated`.
  static ConstRows<float> gate_backward(BlockState& state, Rows<float> dWide, Workspace& work) {
    const Stopwatch watch(work.profile.rest);
    const auto gate = state.gate_out.view(), up = state.up_out.view();
    auto dGate = work.gated.view();
    lora::parallel_for(gate.rows(), 30.0 * static_cast<double>(gate.size()), [&](Index first, Index last) {
      for (Index t = first; t < last; ++t) {
        dGate.row(t) = (1 + (-gate.row(t).array()).exp()).inverse();
        float *const d = dWide.row(t).data(), *const s = dGate.row(t).data();
        const float *const g = gate.row(t).data(), *const u = up.row(t).data();
        for (Index i = 0; i < gate.cols(); ++i) {
          const float dGated = d[i], sigmoid = s[i];
          s[i] = dGated * u[i] * sigmoid * (1 + g[i] * (1 - sigmoid));
          d[i] = dGated * g[i] * sigmoid;
        }
      }
    });
    return dGate;
  }
  /// dH += the backward of the norm of dX + others; dX is in `work`, and takes the sum.
  static void add_norm(const RmsNorm& norm, const ConstRows<float>& H, std::initializer_list<Activations*> others,
                       Workspace& work, Rows<float> dH) {
    const auto dX = work.dX.view();
    for (Activations* other : others) add(other->view(), dX, work);
    const Stopwatch watch(work.profile.rest);
    norm.add_backward(H, dX, dH);
  }

  RmsNorm attention_norm_, mlp_norm_;
  Linear<Base> q_, k_, v_, o_, gate_, up_, down_;
  CausalAttention attention_;
};

}  // namespace llm
