// SPDX-License-Identifier: MIT
// LoRA seen as an optimizer: a network that knows nothing of adapters hands over its weights and their gradients.
#include <lora/lora.hpp>

#include <array>
#include <cstdio>

using Matrix = lora::RowMatrix<double>;

/// The trainer's network: two dense layers with a ReLU in between. Not a word of the library in it.
struct Network {
  Matrix W1, W2;    // weights
  Matrix dW1, dW2;  // their gradients, after `backward`
  Matrix hidden;

  Matrix forward(const Matrix& X) {
    hidden = (X * W1).cwiseMax(0.0);
    return hidden * W2;
  }
  void backward(const Matrix& X, const Matrix& dY) {
    dW2 = hidden.transpose() * dY;
    const Matrix dH = (dY * W2.transpose()).array() * (hidden.array() > 0).cast<double>();
    dW1 = X.transpose() * dH;
  }
};

int main() {
  lora::Random random{11};
  const auto normal = [&] { return random.normal(); };
  Network network{Matrix::NullaryExpr(24, 32, normal) / 5, Matrix::NullaryExpr(32, 12, normal) / 6, {}, {}, {}};
  Network teacher = network;
  teacher.W1 += Matrix::NullaryExpr(24, 2, normal) * Matrix::NullaryExpr(2, 32, normal) / 9;
  teacher.W2 += Matrix::NullaryExpr(32, 2, normal) * Matrix::NullaryExpr(2, 12, normal) / 9;
  const Matrix X = Matrix::NullaryExpr(128, 24, normal), target = teacher.forward(X);
  const Matrix W1_before = network.W1;

  // [setup]
  const double scale = lora::scale(4, 4, lora::Scaling::RankStabilized);
  const auto optimizer = [&](const Matrix& W) {  // A kaiming-uniform, B = 0, as an adapter would start
    auto start = lora::KaimingUniform{}(lora::ViewBase{W}, 4, scale, random).factors;
    return lora::WeightSpace{lora::LoraPro{.learning_rate = 1e-2}, std::move(start), scale};
  };
  std::array optimizers{optimizer(network.W1), optimizer(network.W2)};
  // [/setup]
  // [loop]
  for (int step = 0; step <= 200; ++step) {
    const Matrix dY = (network.forward(X) - target) / 128;
    if (step % 50 == 0) std::printf("step %3d  loss %.5f\n", step, dY.squaredNorm() * 64);
    network.backward(X, dY);
    optimizers[0].step(network.W1, network.dW1);  // W1 moves in place, by a product of rank 8
    optimizers[1].step(network.W2, network.dW2);
  }
  // [/loop]
  // [adapter]
  const auto adapter = optimizers[0].delta();  // an ordinary adapter for the W1 of the beginning: save it, serve it
  const Matrix rebuilt = W1_before + scale * adapter.A * adapter.B;
  std::printf("W1 from its adapter of rank %d: off by less than 1e-12: %s\n", static_cast<int>(adapter.rank()),
              (rebuilt - network.W1).cwiseAbs().maxCoeff() < 1e-12 ? "yes" : "no");
  optimizers[0].subtract_from(network.W1);  // and out again
  std::printf("W1 without it: back within 1e-12: %s\n",
              (network.W1 - W1_before).cwiseAbs().maxCoeff() < 1e-12 ? "yes" : "no");
  // [/adapter]
}
