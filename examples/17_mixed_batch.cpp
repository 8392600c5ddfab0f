// SPDX-License-Identifier: MIT
// One weight, three adapters, one batch: each row names its adapter, and the weight is multiplied once for all.
#include <lora/lora.hpp>

#include <array>
#include <cstdio>
#include <vector>

using Matrix = lora::RowMatrix<double>;

int main() {
  constexpr lora::Index n = 48, m = 32, tokens = 120;
  lora::Random random{17};
  const auto normal = [&] { return random.normal(); };
  const Matrix W0 = Matrix::NullaryExpr(n, m, normal) / 7, X = Matrix::NullaryExpr(tokens, n, normal);

  // [setup]
  std::vector<lora::Index> adapter_of_row(tokens);
  for (auto& a : adapter_of_row) a = static_cast<lora::Index>(4 * random.uniform()) - 1;  // -1: the base alone
  const lora::RowGroups groups{adapter_of_row, 3};  // once a batch, for all layers of a model
  const lora::MixedLinear layer{W0};
  std::array adapters{lora::LoraLinear{W0, {.rank = 2, .alpha = 4}}, lora::LoraLinear{W0, {.rank = 4, .alpha = 8}},
                      lora::LoraLinear{W0, {.rank = 8, .alpha = 16}}};
  for (auto& adapter : adapters) adapter.initialize(lora::KaimingUniform{}, random);
  // [/setup]

  // [branches]
  std::array<lora::Factors<double>, 3> tasks;  // what each adapter has to learn
  for (auto& task : tasks) task = {Matrix::NullaryExpr(n, 2, normal), Matrix::NullaryExpr(2, m, normal)};
  const std::vector<lora::LowRankBranch<double>> teachers{{tasks[0], 0.1}, {tasks[1], 0.1}, {tasks[2], 0.1}};
  lora::MixedState<double> saved;
  Matrix target(tokens, m), Y(tokens, m), dY;
  layer.forward(X, target, teachers, groups, saved);  // factors from anywhere, with a scale
  // [/branches]

  const lora::LoraPlus method{lora::AdamW{.learning_rate = 3e-3}, 8};
  std::array optimizers{lora::Optimizer{method, adapters[0]}, lora::Optimizer{method, adapters[1]},
                        lora::Optimizer{method, adapters[2]}};
  std::array gradients{adapters[0].zero_gradient(), adapters[1].zero_gradient(), adapters[2].zero_gradient()};
  for (int step = 0; step <= 90; ++step) {
    // [step]
    layer.forward(X, Y, adapters, groups, saved);
    dY = (Y - target) / tokens;
    for (auto& gradient : gradients) gradient.set_zero();
    layer.backward(dY, saved, gradients);
    for (std::size_t a = 0; a < 3; ++a) optimizers[a].step(adapters[a], gradients[a]);
    // [/step]
    if (step % 30 > 0) continue;
    std::array<double, 4> loss{};  // first that of the rows without adapter
    for (std::size_t i = 0; i < tokens; ++i) {
      loss[static_cast<std::size_t>(adapter_of_row[i] + 1)] += dY.row(static_cast<lora::Index>(i)).squaredNorm() * 60;
    }
    std::printf("step %2d  loss of the adapters %.3f %.3f %.3f, of the base %.3f\n", step, loss[1], loss[2], loss[3],
                loss[0]);
  }
}
