// SPDX-License-Identifier: MIT
// A trainer without Eigen: its buffers are vectors of floats, and the layer writes into a slice of a wider one.
#include <lora/lora.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <vector>

int main() {
  // [trainer]
  // The trainer's world: a fused projection of 3 x 16 outputs, so rows of 48 floats; the middle third is adapted.
  constexpr std::size_t tokens = 32, n = 24, m = 16, r = 4, width = 3 * m;
  using Floats = std::vector<float>;
  Floats weight(m * n), x(tokens * n), fused(tokens * width), d_fused(tokens * width), target(tokens * width);
  Floats a(n * r), b(r * m), grad_a(n * r), grad_b(r * m);  // a column by column, b row by row
  // [/trainer]
  lora::Random random{5};
  for (float& value : weight) value = static_cast<float>(random.normal());
  for (float& value : x) value = static_cast<float>(random.normal());
  for (float& value : a) value = static_cast<float>(0.2 * random.normal());

  // [views]
  // Four words each, no copies. The last number is the distance from one row to the next.
  const lora::ConstRows<float> X{x.data(), tokens, n};
  const lora::Rows<float> Y{fused.data() + m, tokens, m, width};
  const lora::ConstRows<float> dY{d_fused.data() + m, tokens, m, width};
  const lora::FactorsView<float> factors{{a.data(), n, r}, {b.data(), r, m}};
  const lora::FactorsView<float> gradient{{grad_a.data(), n, r}, {grad_b.data(), r, m}};
  const lora::ViewBase<float> base{weight.data(), n, m};  // m rows of n floats, as PyTorch keeps a weight
  // [/views]
  base.multiply(X, Y);
  for (std::size_t i = 0; i < target.size(); ++i) target[i] = fused[i] + x[i / width * n + i % 2];  // a rank-2 change

  // [loop]
  lora::LoraLinear layer{base, {.rank = r, .alpha = 8}};
  const lora::LoraPlus method{lora::AdamW{.learning_rate = 3e-3}, 8};
  auto moments = method.init<float>(n, m, r);  // a plain value of the trainer's: keep, copy, save it
  lora::SavedState<float> saved;
  for (int step = 0; step <= 60; ++step) {
    layer.set_factors(factors);  // copies (n + m) r numbers into the layer
    layer.forward(X, Y, saved);
    double loss = 0;
    for (std::size_t i = 0; i < tokens * width; ++i) {
      if (i % width / m != 1) continue;  // outside of the slice
      d_fused[i] = (fused[i] - target[i]) / tokens;
      loss += 0.5 * d_fused[i] * d_fused[i] * tokens;
    }
    if (step % 20 == 0) std::printf("step %2d  loss %.3f\n", step, loss);
    std::fill(grad_a.begin(), grad_a.end(), 0.0F);
    std::fill(grad_b.begin(), grad_b.end(), 0.0F);
    layer.backward(dY, saved, gradient);
    method.step(moments, factors, gradient, layer.scale(), 1);  // a and b move where they lie
  }
  // [/loop]
  int touched = 0;
  for (std::size_t i = 0; i < tokens * width; ++i) touched += i % width / m != 1 && fused[i] != 0;
  std::printf("floats written outside of the slice: %d of %d\n", touched, static_cast<int>(tokens * (width - m)));
}
