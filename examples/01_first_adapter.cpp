// SPDX-License-Identifier: MIT
// A first adapter: a frozen weight, factors of rank 4 on a view of it, LoRA+ on AdamW, and the loss on its way down.
// [program]
#include <lora/lora.hpp>

#include <cstdio>

int main() {
  lora::Random random{42};
  using Matrix = lora::RowMatrix<float>;
  const auto normal = [&] { return static_cast<float>(random.normal()); };
  const Matrix W0 = Matrix::NullaryExpr(32, 16, normal);  // the pretrained weight, n x m
  const Matrix X = Matrix::NullaryExpr(64, 32, normal);   // 64 activations, one a row
  const Matrix left = Matrix::NullaryExpr(32, 2, normal), right = Matrix::NullaryExpr(2, 16, normal);
  const Matrix target = X * (W0 + 0.1F * left * right);  // the new task: a rank-2 change away

  lora::LoraLinear layer{W0, {.rank = 4, .alpha = 8}};  // views W0 and never writes to it
  layer.initialize(lora::KaimingUniform{}, random);
  lora::Optimizer optimizer{lora::LoraPlus{lora::AdamW{.learning_rate = 2e-3}, 16}, layer};
  auto gradient = layer.zero_gradient();
  lora::SavedState<float> saved;
  Matrix Y(64, 16), dY;
  for (int step = 0; step <= 100; ++step) {
    layer.forward(X, Y, saved);  // Y = X W0 + s (X A) B
    dY = (Y - target) / 64;      // the gradient of the loss |Y - target|^2 / 128
    if (step % 20 == 0) std::printf("step %3d  loss %.3f\n", step, static_cast<double>(dY.squaredNorm() * 32));
    gradient.set_zero();
    layer.backward(dY, saved, gradient);  // adds to the gradients of A and B
    optimizer.step(layer, gradient);
  }
}
// [/program]
