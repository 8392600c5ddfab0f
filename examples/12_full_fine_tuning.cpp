// SPDX-License-Identifier: MIT
// The baseline: the same rule on the whole weight, beside LoRA at growing rank, on a change of full rank.
#include <lora/lora.hpp>

#include <cstdio>

using Matrix = lora::RowMatrix<double>;

int main() {
  lora::Random random{13};
  const auto normal = [&] { return random.normal(); };
  const Matrix W0 = Matrix::NullaryExpr(48, 24, normal), X = Matrix::NullaryExpr(256, 48, normal);
  const Matrix change = Matrix::NullaryExpr(48, 24, normal) / 10;
  const Matrix target = X * (W0 + change);
  std::printf("%-18s %10s %10s\n", "after 400 steps", "parameters", "loss");

  Matrix Y(256, 24), dY;
  for (const lora::Index rank : {2, 4, 8, 16}) {
    lora::LoraLinear layer{W0, {.rank = rank, .alpha = 4, .scaling = lora::Scaling::RankStabilized}};
    layer.initialize(lora::KaimingUniform{}, random);
    lora::Optimizer optimizer{lora::PerFactor{lora::AdamW{.learning_rate = 1e-2}}, layer};
    auto gradient = layer.zero_gradient();
    lora::SavedState<double> saved;
    for (int step = 0; step <= 400; ++step) {
      layer.forward(X, Y, saved);
      dY = (Y - target) / 256;
      gradient.set_zero();
      layer.backward(dY, saved, gradient);
      optimizer.step(layer, gradient);
    }
    std::printf("LoRA of rank %-5td %10td %10.3f\n", rank, layer.factors().A.size() + layer.factors().B.size(),
                dY.squaredNorm() * 128);
  }

  // [full]
  const lora::FullFineTuning full{lora::AdamW{.learning_rate = 1e-2}};
  Matrix W = W0;              // either storage order; a bias is one column
  auto state = full.init(W);  // two moments a weight
  for (int step = 0; step <= 400; ++step) {
    Y = X * W;
    dY = (Y - target) / 256;
    const Matrix G = X.transpose() * dY;
    full.step(state, W, G);
  }
  // [/full]
  std::printf("%-18s %10td %10.3f\n", "full fine-tuning", W.size(), dY.squaredNorm() * 128);
}
