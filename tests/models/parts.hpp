// SPDX-License-Identifier: MIT
// What the small transformers share: weights by name, linear layers with adapters, causal attention, the frame around
// the blocks, the loss.
#pragma once

#include <lora/adapter/lora_linear.hpp>
#include <lora/base/owned_base.hpp>
#include <lora/core/matrix.hpp>
#include <lora/core/saved_state.hpp>
#include <lora/core/views.hpp>
#include <lora/io/safetensors.hpp>
#include <lora/io/safetensors_matrix.hpp>
#include <lora/linalg/batch_gradient.hpp>
#include <lora/model/adapter_set.hpp>

#include <Eigen/Core>

#include <cmath>
#include <cstddef>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace lora::test {

/// Sequences of one length, one after the other: row t of all activations belongs to ids[t].
struct Tokens {
  std::vector<Index> ids;
  Index length = 0;  ///< of a sequence

  Index count() const { return static_cast<Index>(ids.size()); }
  Index operator[](Index t) const { return ids[static_cast<std::size_t>(t)]; }
  Index position(Index t) const { return t % length; }
};

/// The weights of a model file, converted to the Scalar.
template <Real Scalar>
class Weights {
 public:
  explicit Weights(const std::filesystem::path& path) : file_(safetensors::File::open(path)) {}

  bool has(const std::string& name) const { return file_.find(name) != nullptr; }
  /// As PyTorch's nn.Linear keeps it, [m, n]: n x m.
  ColMatrix<Scalar> linear(const std::string& name) const {
    return safetensors::to_matrix<Scalar, Eigen::ColMajor>(file_.at(name), safetensors::Layout::Transposed);
  }
  RowMatrix<Scalar> matrix(const std::string& name) const { return safetensors::to_matrix<Scalar>(file_.at(name)); }
  Eigen::RowVectorX<Scalar> vector(const std::string& name) const { return matrix(name).row(0); }

 private:
  safetensors::File file_;
};

/// A frozen linear layer with an adapter, and what its last batch left for `backward`. The adapter is nothing (A = B =
/// 0 of rank 1) until an `AdapterSet` brings one.
template <Real Scalar, int Order>
struct Linear {
  std::string name;  ///< of the module, as PEFT has it
  LoraLinear<OwnedBase<Scalar, Order>> layer;
  SavedState<Scalar> saved{};
  RowMatrix<Scalar> Y{}, dY{}, dX{};

  Linear(std::string module, Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Order> weight)
      : name(std::move(module)), layer(OwnedBase<Scalar, Order>(std::move(weight)), {.rank = 1}) {}

  /// X must stay until `backward`.
  const RowMatrix<Scalar>& forward(const RowMatrix<Scalar>& X) {
    Y.resize(X.rows(), layer.out_features());
    layer.forward(X, Y, saved);
    return Y;
  }
  /// Adds to the gradients of the active adapter, if it is on this layer; returns dX.
  const RowMatrix<Scalar>& backward(const RowMatrix<Scalar>& gradient, AdapterSet<Scalar>& set) {
    dY = gradient;
    dX.resize(dY.rows(), layer.in_features());
    if (layer.enabled()) {
      layer.backward(dY, saved, set.gradient(name), dX);
    } else {
      layer.multiply_transposed(dY, dX);
    }
    return dX;
  }
  /// The gradient of the frozen weight, for LoRA-GA; until the next forward.
  BatchGradient<Scalar> weight_gradient() const { return {saved.input(), dY}; }
};

/// softmax(Q K^T / sqrt(d), causal) V for each head of each sequence. Several heads of Q may share one of K and V.
template <Real Scalar>
class CausalAttention {
 public:
  CausalAttention(Index heads, Index shared_heads) : heads_(heads), sharing_(heads / shared_heads) {}

  void forward(const ConstRows<Scalar>& Q, const ConstRows<Scalar>& K, const ConstRows<Scalar>& V, Index length,
               RowMatrix<Scalar>& out) {
    length_ = length;
    out.resize(Q.rows(), Q.cols());
    probabilities_.clear();
    for_each_head(Q, [&](Index first, Index q, Index kv, Index d) {
      const RowMatrix<Scalar> scores =
          (Q.block(first, q, length, d) * K.block(first, kv, length, d).transpose()) / root(d);
      RowMatrix<Scalar> P = RowMatrix<Scalar>::Zero(length, length);
      for (Index i = 0; i < length; ++i) {
        const auto seen = scores.row(i).head(i + 1).array();
        P.row(i).head(i + 1) = (seen - seen.maxCoeff()).exp();
        P.row(i) /= P.row(i).sum();
      }
      out.block(first, q, length, d) = P * V.block(first, kv, length, d);
      probabilities_.push_back(std::move(P));
    });
  }
  /// Of the last `forward`, with its Q, K and V. Overwrites dQ, dK and dV.
  void backward(const RowMatrix<Scalar>& dOut, const ConstRows<Scalar>& Q, const ConstRows<Scalar>& K,
                const ConstRows<Scalar>& V, Rows<Scalar> dQ, Rows<Scalar> dK, Rows<Scalar> dV) const {
    dK.setZero();
    dV.setZero();
    auto saved = probabilities_.begin();
    for_each_head(Q, [&](Index first, Index q, Index kv, Index d) {
      const RowMatrix<Scalar>& P = *saved++;
      const RowMatrix<Scalar> dHead = dOut.block(first, q, length_, d);
      dV.block(first, kv, length_, d) += P.transpose() * dHead;
      RowMatrix<Scalar> dS = dHead * V.block(first, kv, length_, d).transpose();
      const Eigen::VectorX<Scalar> mean = dS.cwiseProduct(P).rowwise().sum();
      dS = ((dS.colwise() - mean).cwiseProduct(P) / root(d)).eval();
      dQ.block(first, q, length_, d) = dS * K.block(first, kv, length_, d);
      dK.block(first, kv, length_, d) += dS.transpose() * Q.block(first, q, length_, d);
    });
  }

 private:
  static Scalar root(Index d) { return std::sqrt(static_cast<Scalar>(d)); }

  /// visit(first row, first column in Q, first column in K and V, width)
  template <class Visit>
  void for_each_head(const ConstRows<Scalar>& Q, const Visit& visit) const {
    const Index d = Q.cols() / heads_;
    for (Index first = 0; first < Q.rows(); first += length_) {
      for (Index head = 0; head < heads_; ++head) visit(first, head * d, head / sharing_ * d, d);
    }
  }

  Index heads_, sharing_, length_ = 0;
  std::vector<RowMatrix<Scalar>> probabilities_;
};

/// Embeddings, blocks, a norm and a head that is tied to the embeddings. A Block has `forward(H, context...)`,
/// `backward(dH, set, context...)` and `for_each_linear`; the context is what all blocks get beside the activations.
template <Real RealScalar, class Block, class Norm>
class Transformer {
 public:
  using Scalar = RealScalar;
  using Matrix = RowMatrix<Scalar>;

  /// visit(Linear&), in the order of the model.
  template <class Visit>
  void for_each_linear(const Visit& visit) {
    for (Block& block : blocks_) block.for_each_linear(visit);
  }

 protected:
  Transformer(Matrix embeddings, Norm norm) : embeddings_(std::move(embeddings)), norm_(std::move(norm)) {}

  /// H, a row for each token.
  Matrix& embed(const Tokens& tokens) {
    H_.resize(tokens.count(), embeddings_.cols());
    for (Index t = 0; t < tokens.count(); ++t) H_.row(t) = embeddings_.row(tokens[t]);
    return H_;
  }
  /// From H to one row of logits for each token.
  template <class... Context>
  const Matrix& run(const Context&... context) {
    for (Block& block : blocks_) block.forward(H_, context...);
    logits_ = norm_.forward(H_) * embeddings_.transpose();
    return logits_;
  }
  /// From the derivative by the logits of the last `run`: adds the gradients of all adapters to those of the set.
  template <class... Context>
  void run_backward(const Matrix& dLogits, AdapterSet<Scalar>& set, const Context&... context) {
    Matrix dH = norm_.backward(dLogits * embeddings_);
    for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block) block->backward(dH, set, context...);
  }

  Matrix embeddings_;
  std::vector<Block> blocks_;

 private:
  Norm norm_;
  Matrix H_, logits_;
};

/// The mean of -log p(next token) over all tokens that have a next one in their sequence. Fills `gradient` with the
/// derivative by the logits.
template <Real Scalar>
double cross_entropy(const RowMatrix<Scalar>& logits, const Tokens& tokens, RowMatrix<Scalar>& gradient) {
  gradient.setZero(logits.rows(), logits.cols());
  const Index predicted = tokens.count() - tokens.count() / tokens.length;
  double sum = 0;
  for (Index t = 0; t + 1 < tokens.count(); ++t) {
    if (tokens.position(t + 1) == 0) continue;
    const Scalar largest = logits.row(t).maxCoeff();
    gradient.row(t) = (logits.row(t).array() - largest).exp();
    const Scalar total = gradient.row(t).sum();
    sum += static_cast<double>(std::log(total) + largest - logits(t, tokens[t + 1]));
    gradient.row(t) /= total;
    gradient(t, tokens[t + 1]) -= 1;
  }
  gradient /= static_cast<Scalar>(predicted);
  return sum / static_cast<double>(predicted);
}

}  // namespace lora::test
