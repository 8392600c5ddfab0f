// SPDX-License-Identifier: MIT
// A small GPT-2 (Radford et al., 2019), forward and backward, with an adapter on every linear layer.
#pragma once

#include "models/parts.hpp"
#include "support/temporary_folder.hpp"

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstddef>
#include <filesystem>
#include <numbers>
#include <string>

namespace lora::test {

/// What config.json says, under its names.
struct Gpt2Config {
  Index n_layer = 0, n_head = 0;
  double layer_norm_epsilon = 0;

  static Gpt2Config read(const std::filesystem::path& path) {
    const auto json = nlohmann::json::parse(text_of(path));
    return {json.at("n_layer"), json.at("n_head"), json.at("layer_norm_epsilon")};
  }
};

/// y = w (x - mean(x)) / sqrt(var(x) + epsilon) + b for each row.
template <Real Scalar>
class LayerNorm {
 public:
  LayerNorm(const Weights<Scalar>& weights, const std::string& name, double epsilon)
      : weight_(weights.vector(name + ".weight")),
        bias_(weights.vector(name + ".bias")),
        epsilon_(static_cast<Scalar>(epsilon)) {}

  const RowMatrix<Scalar>& forward(const RowMatrix<Scalar>& X) {
    N_ = X.colwise() - X.rowwise().mean().eval();
    inverse_ = (N_.array().square().rowwise().mean() + epsilon_).rsqrt();
    N_.array().colwise() *= inverse_;
    Y_ = (N_.array().rowwise() * weight_.array()).rowwise() + bias_.array();
    return Y_;
  }
  RowMatrix<Scalar> backward(const RowMatrix<Scalar>& dY) const {
    const RowMatrix<Scalar> dN = dY.array().rowwise() * weight_.array();
    const Eigen::ArrayX<Scalar> mean = dN.rowwise().mean(), along = dN.cwiseProduct(N_).rowwise().mean();
    return ((dN.array().colwise() - mean) - N_.array().colwise() * along).colwise() * inverse_;
  }

 private:
  Eigen::RowVectorX<Scalar> weight_, bias_;
  Scalar epsilon_;
  Eigen::ArrayX<Scalar> inverse_;
  RowMatrix<Scalar> N_, Y_;
};

/// H += attention(norm(H)), then H += mlp(norm(H)); each of the four products is a layer with an adapter. The weights
/// are Conv1D's, [n, m] in row-major order.
template <Real Scalar>
class Gpt2Block {
 public:
  using Matrix = RowMatrix<Scalar>;
  using Layer = Linear<Scalar, Eigen::RowMajor>;

  /// `name`: "h.0." in the file, behind `prefix`.
  Gpt2Block(const Weights<Scalar>& weights, const Gpt2Config& config, const std::string& prefix,
            const std::string& name)
      : norm_1_(weights, prefix + name + "ln_1", config.layer_norm_epsilon),
        norm_2_(weights, prefix + name + "ln_2", config.layer_norm_epsilon),
        qkv_(layer(weights, prefix, name + "attn.c_attn")),
        o_(layer(weights, prefix, name + "attn.c_proj")),
        up_(layer(weights, prefix, name + "mlp.c_fc")),
        down_(layer(weights, prefix, name + "mlp.c_proj")),
        attention_(config.n_head, config.n_head) {}

  void forward(Matrix& H, Index length) {
    const Index d = H.cols();
    const Matrix& QKV = qkv_.forward(norm_1_.forward(H));
    attention_.forward(QKV.leftCols(d), QKV.middleCols(d, d), QKV.rightCols(d), length, heads_);
    H += o_.forward(heads_);

    activated_ = up_.forward(norm_2_.forward(H)).unaryExpr(&gelu);
    H += down_.forward(activated_);
  }

  /// dH: from the derivative by the output to that by the input.
  void backward(Matrix& dH, AdapterSet<Scalar>& set) {
    const Matrix dUp = down_.backward(dH, set).cwiseProduct(up_.Y.unaryExpr(&gelu_slope));
    dH += norm_2_.backward(up_.backward(dUp, set));

    const Index d = dH.cols();
    const Matrix& QKV = qkv_.Y;
    Matrix dQKV(QKV.rows(), QKV.cols());
    attention_.backward(o_.backward(dH, set), QKV.leftCols(d), QKV.middleCols(d, d), QKV.rightCols(d), dQKV.leftCols(d),
                        dQKV.middleCols(d, d), dQKV.rightCols(d));
    dH += norm_1_.backward(qkv_.backward(dQKV, set));
  }

  template <class Visit>
  void for_each_linear(const Visit& visit) {
    for (Layer* linear : {&qkv_, &o_, &up_, &down_}) visit(*linear);
  }

 private:
  static Layer layer(const Weights<Scalar>& weights, const std::string& prefix, const std::string& name) {
    Layer linear("transformer." + name, weights.matrix(prefix + name + ".weight"));
    const auto bias = weights.vector(prefix + name + ".bias");
    linear.layer.set_bias({bias.data(), static_cast<std::size_t>(bias.size())});
    return linear;
  }

  /// gelu_new, the form with tanh: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
  static Scalar gelu(Scalar x) { return x / 2 * (1 + std::tanh(inner(x))); }
  static Scalar gelu_slope(Scalar x) {
    const Scalar t = std::tanh(inner(x));
    return (1 + t) / 2 + x / 2 * (1 - t * t) * root * (1 + 3 * cubic * x * x);
  }
  static Scalar inner(Scalar x) { return root * (x + cubic * x * x * x); }
  static constexpr Scalar cubic = Scalar(0.044715);
  static constexpr Scalar root = Scalar(std::numbers::sqrt2 * std::numbers::inv_sqrtpi);

  LayerNorm<Scalar> norm_1_, norm_2_;
  Layer qkv_, o_, up_, down_;
  CausalAttention<Scalar> attention_;
  Matrix heads_, activated_;
};

/// A model of a folder of transformers: config.json and model.safetensors.
template <Real Scalar>
class Gpt2 : public Transformer<Scalar, Gpt2Block<Scalar>, LayerNorm<Scalar>> {
 public:
  using Matrix = RowMatrix<Scalar>;

  explicit Gpt2(const std::filesystem::path& folder)
      : Gpt2(Gpt2Config::read(folder / "config.json"), Weights<Scalar>(folder / "model.safetensors")) {}

  /// One row of logits for each token.
  const Matrix& forward(const Tokens& tokens) {
    Matrix& H = this->embed(tokens);
    for (Index t = 0; t < tokens.count(); ++t) H.row(t) += positions_.row(tokens.position(t));
    return this->run(tokens.length);
  }
  /// From the derivative by the logits of the last forward: adds the gradients of all adapters to those of the set.
  void backward(const Matrix& dLogits, AdapterSet<Scalar>& set) { this->run_backward(dLogits, set); }

 private:
  /// Files on the Hub name the tensors without "transformer."; the modules of the model have it.
  static std::string prefix(const Weights<Scalar>& weights) { return weights.has("wte.weight") ? "" : "transformer."; }

  Gpt2(const Gpt2Config& config, const Weights<Scalar>& weights)
      : Gpt2::Transformer(weights.matrix(prefix(weights) + "wte.weight"),
                          {weights, prefix(weights) + "ln_f", config.layer_norm_epsilon}),
        positions_(weights.matrix(prefix(weights) + "wpe.weight")) {
    for (Index i = 0; i < config.n_layer; ++i) {
      this->blocks_.emplace_back(weights, config, prefix(weights), "h." + std::to_string(i) + ".");
    }
  }

  Matrix positions_;
};

}  // namespace lora::test
