// SPDX-License-Identifier: MIT
// A small Llama (Touvron et al., arXiv:2302.13971), forward and backward, with an adapter on every linear layer.
#pragma once

#include "models/parts.hpp"
#include "support/temporary_folder.hpp"

#include <nlohmann/json.hpp>

#include <cmath>
#include <filesystem>
#include <string>
#include <utility>

namespace lora::test {

/// What config.json says, under its names.
struct LlamaConfig {
  Index num_hidden_layers = 0, num_attention_heads = 0, num_key_value_heads = 0, head_dim = 0;
  Index max_position_embeddings = 0;
  double rms_norm_eps = 0, rope_theta = 0;

  static LlamaConfig read(const std::filesystem::path& path) {
    const auto json = nlohmann::json::parse(text_of(path));
    LlamaConfig config;
    config.num_hidden_layers = json.at("num_hidden_layers");
    config.num_attention_heads = json.at("num_attention_heads");
    config.num_key_value_heads = json.value("num_key_value_heads", config.num_attention_heads);
    config.head_dim = json.value("head_dim", json.at("hidden_size").get<Index>() / config.num_attention_heads);
    config.max_position_embeddings = json.at("max_position_embeddings");
    config.rms_norm_eps = json.at("rms_norm_eps");
    config.rope_theta =
        json.contains("rope_theta") ? json.at("rope_theta") : json.at("rope_parameters").at("rope_theta");
    return config;
  }
};

/// y = w x / sqrt(mean(x^2) + epsilon) for each row.
template <Real Scalar>
class RmsNorm {
 public:
  RmsNorm(Eigen::RowVectorX<Scalar> weight, double epsilon)
      : weight_(std::move(weight)), epsilon_(static_cast<Scalar>(epsilon)) {}

  const RowMatrix<Scalar>& forward(const RowMatrix<Scalar>& X) {
    inverse_ = (X.array().square().rowwise().mean() + epsilon_).rsqrt();
    N_ = X.array().colwise() * inverse_;
    Y_ = N_.array().rowwise() * weight_.array();
    return Y_;
  }
  RowMatrix<Scalar> backward(const RowMatrix<Scalar>& dY) const {
    const RowMatrix<Scalar> dN = dY.array().rowwise() * weight_.array();
    const Eigen::ArrayX<Scalar> along = dN.cwiseProduct(N_).rowwise().mean();
    return (dN.array() - N_.array().colwise() * along).colwise() * inverse_;
  }

 private:
  Eigen::RowVectorX<Scalar> weight_;
  Scalar epsilon_;
  Eigen::ArrayX<Scalar> inverse_;
  RowMatrix<Scalar> N_, Y_;
};

/// Turns the pairs (i, i + d/2) of each head by position x theta^(-2i/d).
template <Real Scalar>
class Rotary {
 public:
  explicit Rotary(const LlamaConfig& config)
      : cos_(config.max_position_embeddings, config.head_dim / 2), sin_(cos_.rows(), cos_.cols()) {
    for (Index position = 0; position < cos_.rows(); ++position) {
      for (Index i = 0; i < cos_.cols(); ++i) {
        const double frequency =
            std::pow(config.rope_theta, -static_cast<double>(i) / static_cast<double>(cos_.cols()));
        const double angle = static_cast<double>(position) * frequency;
        cos_(position, i) = static_cast<Scalar>(std::cos(angle));
        sin_(position, i) = static_cast<Scalar>(std::sin(angle));
      }
    }
  }
  void turn(RowMatrix<Scalar>& X, Index length) const { turn(X, length, 1); }
  /// The transpose: the backward of `turn`.
  void turn_back(RowMatrix<Scalar>& X, Index length) const { turn(X, length, -1); }

 private:
  using Row = Eigen::Array<Scalar, 1, Eigen::Dynamic>;

  void turn(RowMatrix<Scalar>& X, Index length, Scalar sign) const {
    const Index half = cos_.cols();
    for (Index t = 0; t < X.rows(); ++t) {
      const Row c = cos_.row(t % length), s = sin_.row(t % length) * sign;
      for (Index first = 0; first < X.cols(); first += 2 * half) {
        const Row left = X.row(t).segment(first, half);
        const Row right = X.row(t).segment(first + half, half);
        X.row(t).segment(first, half) = left * c - right * s;
        X.row(t).segment(first + half, half) = right * c + left * s;
      }
    }
  }

  RowMatrix<Scalar> cos_, sin_;
};

/// H += attention(norm(H)), then H += mlp(norm(H)); each of the seven products is a layer with an adapter.
template <Real Scalar>
class LlamaBlock {
 public:
  using Matrix = RowMatrix<Scalar>;
  using Layer = Linear<Scalar, Eigen::ColMajor>;

  LlamaBlock(const Weights<Scalar>& weights, const LlamaConfig& config, const std::string& name)
      : input_norm_(weights.vector(name + "input_layernorm.weight"), config.rms_norm_eps),
        mlp_norm_(weights.vector(name + "post_attention_layernorm.weight"), config.rms_norm_eps),
        q_(layer(weights, name + "self_attn.q_proj")),
        k_(layer(weights, name + "self_attn.k_proj")),
        v_(layer(weights, name + "self_attn.v_proj")),
        o_(layer(weights, name + "self_attn.o_proj")),
        gate_(layer(weights, name + "mlp.gate_proj")),
        up_(layer(weights, name + "mlp.up_proj")),
        down_(layer(weights, name + "mlp.down_proj")),
        attention_(config.num_attention_heads, config.num_key_value_heads) {}

  void forward(Matrix& H, const Rotary<Scalar>& rotary, Index length) {
    const Matrix& X = input_norm_.forward(H);
    Q_ = q_.forward(X);
    K_ = k_.forward(X);
    v_.forward(X);
    rotary.turn(Q_, length);
    rotary.turn(K_, length);
    attention_.forward(Q_, K_, v_.Y, length, heads_);
    H += o_.forward(heads_);

    const Matrix& Z = mlp_norm_.forward(H);
    const auto gate = gate_.forward(Z).array();
    gated_ = gate * sigmoid(gate) * up_.forward(Z).array();
    H += down_.forward(gated_);
  }

  /// dH: from the derivative by the output to that by the input.
  void backward(Matrix& dH, AdapterSet<Scalar>& set, const Rotary<Scalar>& rotary, Index length) {
    const auto dGated = down_.backward(dH, set).array();
    const auto gate = gate_.Y.array();
    const Matrix s = sigmoid(gate);
    const Matrix dUp = dGated * gate * s.array();
    const Matrix dGate = dGated * up_.Y.array() * s.array() * (1 + gate * (1 - s.array()));
    dH += mlp_norm_.backward(gate_.backward(dGate, set) + up_.backward(dUp, set));

    Matrix dQ(Q_.rows(), Q_.cols()), dK(K_.rows(), K_.cols()), dV(K_.rows(), K_.cols());
    attention_.backward(o_.backward(dH, set), Q_, K_, v_.Y, dQ, dK, dV);
    rotary.turn_back(dQ, length);
    rotary.turn_back(dK, length);
    dH += input_norm_.backward(q_.backward(dQ, set) + k_.backward(dK, set) + v_.backward(dV, set));
  }

  template <class Visit>
  void for_each_linear(const Visit& visit) {
    for (Layer* linear : {&q_, &k_, &v_, &o_, &gate_, &up_, &down_}) visit(*linear);
  }

 private:
  static Layer layer(const Weights<Scalar>& weights, const std::string& name) {
    return {name, weights.linear(name + ".weight")};
  }
  template <class Array>
  static auto sigmoid(const Array& x) {
    return (1 + (-x).exp()).inverse();
  }

  RmsNorm<Scalar> input_norm_, mlp_norm_;
  Layer q_, k_, v_, o_, gate_, up_, down_;
  CausalAttention<Scalar> attention_;
  Matrix Q_, K_, heads_, gated_;
};

/// A model of a folder of transformers: config.json and model.safetensors.
template <Real Scalar>
class Llama : public Transformer<Scalar, LlamaBlock<Scalar>, RmsNorm<Scalar>> {
 public:
  using Matrix = RowMatrix<Scalar>;

  explicit Llama(const std::filesystem::path& folder)
      : Llama(LlamaConfig::read(folder / "config.json"), Weights<Scalar>(folder / "model.safetensors")) {}

  /// One row of logits for each token.
  const Matrix& forward(const Tokens& tokens) {
    this->embed(tokens);
    length_ = tokens.length;
    return this->run(rotary_, length_);
  }
  /// From the derivative by the logits of the last forward: adds the gradients of all adapters to those of the set.
  void backward(const Matrix& dLogits, AdapterSet<Scalar>& set) { this->run_backward(dLogits, set, rotary_, length_); }

 private:
  Llama(const LlamaConfig& config, const Weights<Scalar>& weights)
      : Llama::Transformer(weights.matrix("model.embed_tokens.weight"),
                           {weights.vector("model.norm.weight"), config.rms_norm_eps}),
        rotary_(config) {
    for (Index i = 0; i < config.num_hidden_layers; ++i) {
      this->blocks_.emplace_back(weights, config, "model.layers." + std::to_string(i) + ".");
    }
  }

  Rotary<Scalar> rotary_;
  Index length_ = 0;
};

}  // namespace lora::test
