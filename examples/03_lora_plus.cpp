// SPDX-License-Identifier: MIT
// LoRA against LoRA+ (B learns 16 times as fast as A), both over a range of learning rates: steps to a twentieth of the
// loss. Compare methods at one rate and LoRA+ wins by a factor of three; compare each at its own best rate as well.
#include <lora/lora.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>

using Matrix = lora::RowMatrix<double>;

/// Steps until the loss falls to a twentieth of what it is at the start.
template <class Method>
int steps_to_target(const Method& method) {
  constexpr lora::Index n = 512, m = 16, tokens = 64;
  lora::Random random{1};
  const auto normal = [&] { return random.normal(); };
  const Matrix W0 = Matrix::NullaryExpr(n, m, normal) / std::sqrt(n), X = Matrix::NullaryExpr(tokens, n, normal);
  const Matrix left = Matrix::NullaryExpr(n, 4, normal), right = Matrix::NullaryExpr(4, m, normal);
  const Matrix target = X * (W0 + left * right / std::sqrt(16 * n));

  lora::LoraLinear layer{W0, {.rank = 4, .alpha = 1}};
  layer.initialize(lora::KaimingUniform{}, random);
  lora::Optimizer optimizer{method, layer};
  auto gradient = layer.zero_gradient();
  lora::SavedState<double> saved;
  Matrix Y(tokens, m), dY;
  double goal = 0;
  for (int step = 0;; ++step) {
    layer.forward(X, Y, saved);
    dY = (Y - target) / tokens;
    if (step == 0) goal = dY.squaredNorm() / 20;
    if (dY.squaredNorm() < goal || step == 1000) return step;
    gradient.set_zero();
    layer.backward(dY, saved, gradient);
    optimizer.step(layer, gradient);
  }
}

int main() {
  std::printf("%6s %6s %6s\n", "rate", "LoRA", "LoRA+");
  int best_plain = 1000, best_plus = 1000;
  for (double rate = 0.001; rate < 0.2; rate *= 2) {
    // [methods]
    const lora::AdamW rule{.learning_rate = rate};
    const int plain = steps_to_target(lora::PerFactor{rule});    // A and B at the rate
    const int plus = steps_to_target(lora::LoraPlus{rule, 16});  // A at the rate, B at 16 times the rate
    // [/methods]
    std::printf("%6.3f %6d %6d\n", rate, plain, plus);
    best_plain = std::min(best_plain, plain);
    best_plus = std::min(best_plus, plus);
  }
  std::printf("%6s %6d %6d\n", "best", best_plain, best_plus);
}
