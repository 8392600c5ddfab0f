// SPDX-License-Identifier: MIT
// How near do an adapter's steps come to those of full fine-tuning? Measured on the weight, without forming a gradient.
#include <lora/lora.hpp>

#include <cmath>
#include <cstdio>

using Matrix = lora::RowMatrix<double>;

int main() {
  constexpr lora::Index n = 64, m = 48, tokens = 96, r = 6;
  lora::Random random{21};
  const auto normal = [&] { return random.normal(); };
  const Matrix W0 = Matrix::NullaryExpr(n, m, normal) / 8, X = Matrix::NullaryExpr(tokens, n, normal);
  const Matrix change = Matrix::NullaryExpr(n, 16, normal) * Matrix::NullaryExpr(16, m, normal) / 60;
  const Matrix target = X * (W0 + change), first_dY = -X * change / tokens;
  const lora::BatchGradient<double> first_gradient{X, first_dY};

  const auto measure = [&](const char* name, const auto& method, const auto& start) {
    lora::LoraLinear layer{W0, {.rank = r, .alpha = r}};
    start(layer);
    lora::Optimizer optimizer{method, layer};
    auto gradient = layer.zero_gradient();
    lora::SavedState<double> saved;
    lora::AlignmentMeter<double> meter;
    Matrix Y(tokens, m), dY;
    std::printf("%-20s", name);
    for (int step = 0; step <= 8; ++step) {
      layer.forward(X, Y, saved);
      dY = (Y - target) / tokens;
      gradient.set_zero();
      layer.backward(dY, saved, gradient);
      // [measure]
      const lora::BatchGradient<double> G{X, dY};  // dL/dW, known by its products alone
      const double captured = lora::captured_share(layer.factors(), gradient, layer.scale(), lora::squared_norm(G));
      meter.begin(layer.factors());
      optimizer.step(layer, gradient);
      const lora::Alignment step_taken = meter.measure(layer.factors(), layer.scale(), G, -1);  // against -G
      // [/measure]
      if (step % 4 == 0)
        std::printf("  %2d: %.2f of %.2f at %5.2f", step, step_taken.cosine, std::sqrt(captured),
                    dY.squaredNorm() * tokens / 2);
    }
    std::printf("\n");
  };
  std::printf("by step: cosine between the step and -G, of the largest that the pair allows, at which loss\n");
  const auto kaiming = [&](auto& layer) { layer.initialize(lora::KaimingUniform{}, random); };
  const auto ga = [&](auto& layer) { layer.initialize(lora::GradientSvd{}, first_gradient, random); };
  const lora::PerFactor descent{lora::Sgd{.learning_rate = 0.02}};
  const lora::LoraPro pro{.learning_rate = 0.1, .mode = lora::LoraPro::Mode::Sgd};
  measure("LoRA", descent, kaiming);
  measure("LoRA-GA", descent, ga);
  measure("LoRA-Pro", pro, kaiming);
  measure("LoRA-GA + LoRA-Pro", pro, ga);
}
