// SPDX-License-Identifier: MIT
// LoRA-Pro on raw buffers: a trainer with factors and gradients of its own in plain vectors hands over views of them.
#include <lora/lora.hpp>

#include <Eigen/Core>

#include <cstdio>
#include <vector>

using Matrix = lora::RowMatrix<double>;

/// Trains raw factors on |W0 + s A B - target|^2 / 2 and prints the loss; the trainer's products are written with Eigen
/// maps here, but nothing of the library sees them.
void train(const char* name, const lora::LoraPro& method) {
  constexpr lora::Index n = 40, m = 30, r = 4;
  constexpr double s = 2;
  lora::Random random{8};
  const auto normal = [&] { return random.normal(); };
  const Matrix change = Matrix::NullaryExpr(n, r, normal) * Matrix::NullaryExpr(r, m, normal) / 4;

  // [buffers]
  std::vector<double> a(n * r), b(r * m), grad_a(n * r), grad_b(r * m);  // a column by column, b row by row
  for (double& value : a) value = random.normal() / 6;                   // b = 0: the usual start
  const lora::FactorsView<double> factors{{a.data(), n, r}, {b.data(), r, m}};
  const lora::ConstFactorsView<double> gradient{{grad_a.data(), n, r}, {grad_b.data(), r, m}};
  auto state = method.init<double>(n, m, r);  // a plain value of the trainer's: keep, copy, compare it
  // [/buffers]

  const lora::Schedule schedule{.warmup_steps = 5, .total_steps = 60, .tail = lora::Schedule::Tail::Cosine};
  const Eigen::Map<lora::ColMatrix<double>> A(a.data(), n, r), GA(grad_a.data(), n, r);
  const Eigen::Map<Matrix> B(b.data(), r, m), GB(grad_b.data(), r, m);
  std::printf("%-22s", name);
  for (int step = 0; step <= 60; ++step) {
    const Matrix G = s * A * B - change;  // dL/dW, which LoRA-Pro itself never sees
    if (step % 15 == 0) std::printf("  %2d: %8.4f", step, G.squaredNorm() / 2);
    Eigen::Map<lora::ColMatrix<double>>(grad_a.data(), n, r) = s * G * B.transpose();
    Eigen::Map<Matrix>(grad_b.data(), r, m) = s * A.transpose() * G;
    // [step]
    method.step(state, factors, gradient, s, schedule(step));  // a and b move where they lie
    // [/step]
  }
  std::printf("\n");
}

int main() {
  using Mode = lora::LoraPro::Mode;
  std::printf("loss after so many steps\n");
  // [modes]
  train("Sgd", {.learning_rate = 0.3, .mode = Mode::Sgd});
  train("Full", {.learning_rate = 0.1, .mode = Mode::Full});
  train("Factored", {.learning_rate = 0.1, .mode = Mode::Factored});
  train("Efficient", {.learning_rate = 0.1, .mode = Mode::Efficient});
  train("Factored, trust 0.1", {.learning_rate = 0.1, .mode = Mode::Factored, .trust = 0.1});
  // [/modes]
}
