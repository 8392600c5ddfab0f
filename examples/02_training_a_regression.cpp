// SPDX-License-Identifier: MIT
// Training two layers with a ReLU in between: schedule, clipping over both, gradient accumulation, and the rank needed.
#include <lora/lora.hpp>

#include <array>
#include <cstddef>
#include <cstdio>

using Matrix = lora::RowMatrix<double>;

/// Adapts relu(X W1) W2 to a teacher whose weights V1, V2 are a rank-3 change away; returns the loss after 300 steps.
double train(lora::Index rank) {
  lora::Random random{7};
  const auto normal = [&] { return random.normal(); };
  const Matrix W1 = Matrix::NullaryExpr(24, 32, normal) / 5, W2 = Matrix::NullaryExpr(32, 12, normal) / 6;
  const Matrix left1 = Matrix::NullaryExpr(24, 3, normal) / 9, right1 = Matrix::NullaryExpr(3, 32, normal);
  const Matrix left2 = Matrix::NullaryExpr(32, 3, normal) / 9, right2 = Matrix::NullaryExpr(3, 12, normal);
  const Matrix V1 = W1 + left1 * right1, V2 = W2 + left2 * right2;
  const auto relu = [](const Matrix& input) -> Matrix { return input.cwiseMax(0.0); };
  double loss = 0;

  // [setup]
  const lora::LoraConfig config{.rank = rank, .alpha = 4, .scaling = lora::Scaling::RankStabilized};
  std::array layers{lora::LoraLinear{W1, config}, lora::LoraLinear{W2, config}};
  for (auto& layer : layers) layer.initialize(lora::KaimingUniform{}, random);
  std::array gradients{layers[0].zero_gradient(), layers[1].zero_gradient()};
  std::array<lora::SavedState<double>, 2> saved;
  const lora::LoraPlus method{lora::AdamW{.learning_rate = 5e-3}, 4};
  std::array optimizers{lora::Optimizer{method, layers[0]}, lora::Optimizer{method, layers[1]}};
  const lora::Schedule schedule{.warmup_steps = 20, .total_steps = 300, .tail = lora::Schedule::Tail::Cosine};
  // [/setup]
  // [loop]
  constexpr int micro_batches = 4, tokens = 64;
  Matrix H(tokens, 32), dH(tokens, 32), Y(tokens, 12), dY;
  for (int step = 0; step < 300; ++step) {
    for (auto& gradient : gradients) gradient.set_zero();
    loss = 0;
    for (int micro = 0; micro < micro_batches; ++micro) {  // backward adds, so four small batches make a large one
      const Matrix X = Matrix::NullaryExpr(tokens, 24, normal);
      layers[0].forward(X, H, saved[0]);
      const Matrix hidden = relu(H);
      layers[1].forward(hidden, Y, saved[1]);
      dY = (Y - relu(X * V1) * V2) / tokens;
      loss += dY.squaredNorm() * tokens / 2 / micro_batches;
      layers[1].backward(dY, saved[1], gradients[1], dH);
      dH.array() *= (H.array() > 0).cast<double>();
      layers[0].backward(dH, saved[0], gradients[0]);  // the first layer: nobody needs its dX
    }
    for (auto& gradient : gradients) gradient *= 1.0 / micro_batches;
    lora::clip_global_norm(gradients, 1.0);  // before the steps; throws and changes nothing at NaN
    for (std::size_t i = 0; i < 2; ++i) optimizers[i].step(layers[i], gradients[i], schedule(step));
  }
  // [/loop]
  return loss;
}

int main() {
  std::printf("the teacher's weights are a change of rank 3 away\n");
  for (const lora::Index rank : {1, 2, 3, 4}) {
    std::printf("rank %d  parameters %3d  loss %.5f\n", static_cast<int>(rank),
                static_cast<int>(rank * (24 + 32 + 32 + 12)), train(rank));
  }
}
