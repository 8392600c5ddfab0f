// SPDX-License-Identifier: MIT
// A multilayer perceptron over any kind of layer, and the dense layer that it is pre-trained with.
#pragma once

#include "dataset.hpp"

#include <lora/lora.hpp>

#include <cmath>
#include <vector>

namespace digits {

/// A dense layer that is trained as a whole: Y = X W + bias.
class DenseLayer {
 public:
  struct Saved {
    lora::RowMatrix<float> X;
  };
  struct Gradient {
    lora::ColMatrix<float> W;
    lora::ColMatrix<float> bias;
    void set_zero() {
      W.setZero();
      bias.setZero();
    }
  };

  DenseLayer(Index n, Index m, lora::Random& random) : W(n, m), bias(lora::ColMatrix<float>::Zero(m, 1)) {
    const double deviation = std::sqrt(2.0 / static_cast<double>(n));  // He et al. for rectifiers
    for (float& w : W.reshaped()) w = static_cast<float>(deviation * random.normal());
  }

  void forward(const lora::ConstRows<float>& X, lora::Rows<float> Y, Saved& saved) const {
    saved.X = X;
    lora::set_product(Y, 1, X, W);
    Y.rowwise() += bias.col(0).transpose();
  }
  void backward(const lora::ConstRows<float>& dY, Saved& saved, Gradient& gradient) const {
    lora::add_product(gradient.W, 1, saved.X.transpose(), dY);
    gradient.bias += dY.colwise().sum().transpose();
  }
  void backward(const lora::ConstRows<float>& dY, Saved& saved, Gradient& gradient, lora::Rows<float> dX) const {
    backward(dY, saved, gradient);
    lora::set_product(dX, 1, dY, W.transpose());
  }
  Gradient zero_gradient() const {
    return {lora::ColMatrix<float>::Zero(W.rows(), W.cols()), lora::ColMatrix<float>::Zero(W.cols(), 1)};
  }
  Index in_features() const { return W.rows(); }
  Index out_features() const { return W.cols(); }

  lora::ColMatrix<float> W;     // n x m
  lora::ColMatrix<float> bias;  // m x 1
};

struct Score {
  double loss = 0, accuracy = 0;
};

/// Layers with rectifiers between them and cross-entropy at the end. `Layer` is dense or adapted: same four functions.
template <class Layer>
class Network {
 public:
  using Gradient = decltype(std::declval<const Layer&>().zero_gradient());

  explicit Network(std::vector<Layer> stack)
      : layers(std::move(stack)), saved_(layers.size()), outputs_(layers.size()), output_gradients_(layers.size()) {
    for (const auto& layer : layers) gradients.push_back(layer.zero_gradient());
  }

  /// Mean cross-entropy and share of right answers.
  Score evaluate(const Dataset& data) {
    forward(data);
    Score score;
    const auto& logits = outputs_.back();
    for (Index i = 0; i < data.size(); ++i) {
      Index answer = 0;
      const double highest = logits.row(i).maxCoeff(&answer);
      const double sum = (logits.row(i).cast<double>().array() - highest).exp().sum();
      const Index label = data.labels[static_cast<std::size_t>(i)];
      score.loss += std::log(sum) + highest - static_cast<double>(logits(i, label));
      score.accuracy += answer == label ? 1 : 0;
    }
    score.loss /= static_cast<double>(data.size());
    score.accuracy /= static_cast<double>(data.size());
    return score;
  }

  /// Sets `gradients` to those of the batch's mean loss.
  void differentiate(const Dataset& batch) {
    forward(batch);
    auto& dlogits = output_gradients_.back();
    const auto& logits = outputs_.back();
    dlogits = (logits.colwise() - logits.rowwise().maxCoeff()).array().exp().matrix();
    dlogits.array().colwise() /= dlogits.rowwise().sum().eval().array() * static_cast<float>(batch.size());
    for (Index i = 0; i < batch.size(); ++i)
      dlogits(i, batch.labels[static_cast<std::size_t>(i)]) -= 1 / static_cast<float>(batch.size());

    for (std::size_t k = layers.size(); k-- > 0;) {
      gradients[k].set_zero();
      if (k == 0) {
        layers[k].backward(output_gradients_[k], saved_[k], gradients[k]);
      } else {
        auto& below = output_gradients_[k - 1];
        below.resizeLike(outputs_[k - 1]);
        layers[k].backward(output_gradients_[k], saved_[k], gradients[k], below);
        below.array() *= (outputs_[k - 1].array() > 0).cast<float>();  // the rectifier's derivative
      }
    }
  }

  /// dL/dW of layer k as X^T dY of the last `differentiate`, whose batch must still be there; valid until the next.
  lora::BatchGradient<float> weight_gradient(std::size_t k) const {
    return {k == 0 ? *images_ : outputs_[k - 1], output_gradients_[k]};
  }

  std::vector<Layer> layers;
  std::vector<Gradient> gradients;

 private:
  void forward(const Dataset& data) {
    images_ = &data.pixels;
    const lora::RowMatrix<float>* input = images_;
    for (std::size_t k = 0; k < layers.size(); ++k) {
      outputs_[k].resize(data.size(), layers[k].out_features());
      layers[k].forward(*input, outputs_[k], saved_[k]);
      if (k + 1 < layers.size()) outputs_[k] = outputs_[k].cwiseMax(0.0F);
      input = &outputs_[k];
    }
  }

  const lora::RowMatrix<float>* images_ = nullptr;
  std::vector<typename Layer::Saved> saved_;
  std::vector<lora::RowMatrix<float>> outputs_, output_gradients_;
};

}  // namespace digits
