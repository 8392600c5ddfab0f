// SPDX-License-Identifier: MIT
// Threads share one layer: each shard of the batch has a saved state, a gradient and a dropout generator of its own.
#include <lora/lora.hpp>

#include <cstdio>
#include <thread>
#include <utility>
#include <vector>

using Matrix = lora::RowMatrix<double>;

/// Trains on four shards, spread over `threads` threads; returns the factors.
lora::Factors<double> train(std::size_t threads) {
  lora::Random random{6};
  const auto normal = [&] { return random.normal(); };
  const Matrix W0 = Matrix::NullaryExpr(32, 16, normal), X = Matrix::NullaryExpr(128, 32, normal);
  const Matrix target = X * W0 + X.leftCols(2) * Matrix::NullaryExpr(2, 16, normal);
  lora::LoraLinear layer{W0, {.rank = 4, .alpha = 8, .dropout = 0.1}};
  layer.initialize(lora::KaimingUniform{}, random);
  lora::Optimizer optimizer{lora::LoraPlus{lora::AdamW{.learning_rate = 4e-3}, 8}, layer};

  // [shards]
  struct Shard {
    lora::Random random;  // of its own, so that a dropout mask does not depend on who runs first
    lora::Factors<double> gradient;
    lora::SavedState<double> saved;
    Matrix Y, dY;
  };
  std::vector<Shard> shards;
  for (std::uint64_t i = 0; i < 4; ++i) shards.push_back({lora::Random{100 + i}, layer.zero_gradient(), {}, {}, {}});
  const auto run = [&](std::size_t i) {
    Shard& shard = shards[i];
    const auto first = static_cast<lora::Index>(32 * i);
    shard.Y.resize(32, 16);
    layer.forward(X.middleRows(first, 32), shard.Y, shard.saved, shard.random);  // const: the threads share it
    shard.dY = (shard.Y - target.middleRows(first, 32)) / 128;
    shard.gradient.set_zero();
    layer.backward(shard.dY, shard.saved, shard.gradient);
  };
  // [/shards]
  double loss = 0;
  for (int step = 0; step <= 100; ++step) {
    // [step]
    std::vector<std::thread> pool(threads);
    for (std::size_t t = 0; t < threads; ++t) {
      pool[t] = std::thread([&, t] {
        for (std::size_t i = t; i < 4; i += threads) run(i);
      });
    }
    for (auto& thread : pool) thread.join();
    auto& sum = shards[0].gradient;
    for (std::size_t i = 1; i < 4; ++i) sum += shards[i].gradient;  // in a fixed order: the same bits
    // [/step]
    loss = 0;
    for (const auto& shard : shards) loss += shard.dY.squaredNorm() * 64;
    if (threads == 1 && step % 50 == 0) std::printf("step %3d  loss with dropout %.2f\n", step, loss);
    optimizer.step(layer, sum);
  }
  return std::as_const(layer).factors();
}

int main() {
  const auto serial = train(1);
  for (const std::size_t threads : {2U, 4U}) {
    std::printf("%zu threads, the same bits as one: %s\n", threads, train(threads) == serial ? "yes" : "no");
  }
}
