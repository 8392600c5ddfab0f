// SPDX-License-Identifier: MIT
// The same training on the trainer's memory, on a packed copy of it, and on one of 16 bits an element.
#include <lora/lora.hpp>

#include <cstdio>
#include <utility>

using Matrix = lora::RowMatrix<float>;

template <class Base>
void train(const char* name, Base base, const Matrix& X, const Matrix& target) {
  lora::Random random{3};
  lora::LoraLinear layer{std::move(base), {.rank = 8, .alpha = 16}};
  layer.initialize(lora::KaimingUniform{}, random);
  lora::Optimizer optimizer{lora::LoraPlus{lora::AdamW{.learning_rate = 2e-3}, 16}, layer};
  auto gradient = layer.zero_gradient();
  lora::SavedState<float> saved;
  Matrix Y(X.rows(), target.cols()), dY;
  std::printf("%-8s", name);
  for (int step = 0; step <= 80; ++step) {
    layer.forward(X, Y, saved);
    dY = (Y - target) / static_cast<float>(X.rows());
    if (step % 20 == 0) std::printf("%8.2f", static_cast<double>(dY.squaredNorm()) * 128);
    gradient.set_zero();
    layer.backward(dY, saved, gradient);
    optimizer.step(layer, gradient);
  }
  std::printf("\n");
}

int main() {
  lora::Random random{18};
  const auto normal = [&] { return static_cast<float>(random.normal()); };
  const Matrix W0 = Matrix::NullaryExpr(96, 64, normal) / 10, X = Matrix::NullaryExpr(256, 96, normal);
  const Matrix left = Matrix::NullaryExpr(96, 4, normal), right = Matrix::NullaryExpr(4, 64, normal);
  const Matrix target = X * (W0 + 0.05F * left * right);

  // [bases]
  lora::set_threads(1);  // for packed bases any number gives the same bits
  std::printf("loss at step   0      20      40      60      80\n");
  train("view", lora::ViewBase<float, Eigen::RowMajor>{W0}, X, target);            // W0 where it lies, by Eigen
  train("packed", lora::PackedBase{W0}, X, target);                                // two packed copies; W0 may go
  train("bf16", lora::PackedBf16Base{W0, lora::Bf16Kernel::Widening}, X, target);  // half of a float each
  // [/bases]
}
