// SPDX-License-Identifier: MIT
// LoRA-GA on a trainer's gradients: the start whose first step moves the weight as full fine-tuning would, from
// gradients that the trainer formed, from the batches themselves, or in one pass that keeps neither.
#include <lora/lora.hpp>

#include <cstdio>
#include <vector>

using Matrix = lora::RowMatrix<double>;

int main() {
  constexpr lora::Index n = 96, m = 48, tokens = 32, batches = 4;
  lora::Random random{3};
  const auto normal = [&] { return random.normal(); };
  const Matrix W0 = Matrix::NullaryExpr(n, m, normal) / 10;
  const Matrix change = Matrix::NullaryExpr(n, 12, normal) * Matrix::NullaryExpr(12, m, normal) / 60;
  std::vector<Matrix> X, dY;
  for (lora::Index i = 0; i < batches; ++i) {
    X.emplace_back(Matrix::NullaryExpr(tokens, n, normal));
    dY.emplace_back(-X.back() * change / tokens);  // of |X W - X (W0 + change)|^2 / 2, at the start
  }

  // [accumulators]
  lora::DenseGradient<double> dense{n, m};              // n m numbers; exact
  lora::BatchGradient<double> kept{n, m};               // nothing but the addresses of X and dY; exact
  lora::StreamingSvd<double> stream{n, m, 16, random};  // (n + m) 16 numbers; one pass, nothing is kept
  for (std::size_t i = 0; i < batches; ++i) {
    const Matrix dW = X[i].transpose() * dY[i];  // what a trainer's backward leaves in its weight.grad
    dense.add(dW);
    kept.add(X[i], dY[i]);
    stream.add(X[i], dY[i]);
  }
  // [/accumulators]

  const auto train = [&](const char* name, const auto& initialize) {
    lora::LoraLinear layer{W0, {.rank = 4, .alpha = 8, .scaling = lora::Scaling::RankStabilized}};
    initialize(layer);
    lora::Optimizer optimizer{lora::PerFactor{lora::AdamW{.learning_rate = 1e-2}}, layer};
    auto gradient = layer.zero_gradient();
    lora::SavedState<double> saved;
    Matrix Y(tokens, m);
    std::printf("%-15s", name);
    for (int step = 0; step <= 60; ++step) {
      double loss = 0;
      gradient.set_zero();
      for (const Matrix& x : X) {
        layer.forward(x, Y, saved);
        const Matrix d = (Y - x * (W0 + change)) / tokens;
        loss += d.squaredNorm() * tokens / 2 / batches;
        layer.backward(d, saved, gradient);
      }
      gradient *= 1.0 / batches;
      if (step % 20 == 0) std::printf("  %2d: %6.3f", step, loss);
      optimizer.step(layer, gradient);
    }
    const auto adapter = layer.delta();  // for the W0 of the beginning: what one saves
    std::printf("  adapter of rank %d\n", static_cast<int>(adapter.rank()));
  };
  std::printf("loss after so many steps at rank 4\n");
  // [use]
  train("kaiming, B = 0", [&](auto& layer) { layer.initialize(lora::KaimingUniform{}, random); });
  train("dense", [&](auto& layer) { layer.initialize(lora::GradientSvd{}, dense, random); });
  train("batches", [&](auto& layer) { layer.initialize(lora::GradientSvd{}, kept, random); });
  train("stream", [&](auto& layer) { layer.initialize(lora::GradientSvd{}, stream.svd(8), random); });
  // [/use]
}
