// SPDX-License-Identifier: MIT
// What is measured: the shapes, and one layer with its data for each of them.
#pragma once

#include <lora/lora.hpp>

#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace bench {

using lora::Index;

struct Shape {
  Index b, n, r;  ///< tokens, in_features = out_features, rank

  std::string name() const { return "/b:" + std::to_string(b) + frozen_part() + "/r:" + std::to_string(r); }
  std::string frozen_name() const { return "/b:" + std::to_string(b) + frozen_part(); }
  std::string factors_name() const { return frozen_part() + "/r:" + std::to_string(r); }

  double product_flops() const { return 2.0 * static_cast<double>(b * n * n); }
  double branch_flops() const { return 2.0 * static_cast<double>(b * 2 * n * r); }  ///< forward: X A and P B
  double step_flops() const { return 2 * product_flops() + 3 * branch_flops(); }
  double parameters() const { return static_cast<double>(2 * n * r); }

 private:
  std::string frozen_part() const { return "/n:" + std::to_string(n); }
};

/// A short list, and with LORA_BENCH_LONG in the environment a long one.
inline const std::vector<Shape>& shapes() {
  static const std::vector<Shape> list = [] {
    const bool all = std::getenv("LORA_BENCH_LONG") != nullptr;
    std::vector<Shape> result;
    for (const Index n : all ? std::vector<Index>{576, 1024, 2048} : std::vector<Index>{1024, 2048}) {
      for (const Index r : all ? std::vector<Index>{8, 16} : std::vector<Index>{16}) {
        for (const Index b : {1, 16, 64, 256, 1024}) result.push_back({b, n, r});
      }
    }
    return result;
  }();
  return list;
}

template <class Matrix>
Matrix random_matrix(Index rows, Index cols) {
  lora::Random random{1};
  Matrix matrix(rows, cols);
  for (float& element : matrix.reshaped()) element = static_cast<float>(2 * random.uniform() - 1);
  return matrix;
}

/// A layer in training, with room for everything that it writes.
struct Problem {
  explicit Problem(const Shape& shape)
      : W0(random_matrix<lora::ColMatrix<float>>(shape.n, shape.n)),
        X(random_matrix<lora::RowMatrix<float>>(shape.b, shape.n)),
        dY(X),
        Y(X),
        dX(X),
        layer(lora::ViewBase<float>(W0), {.rank = shape.r}),
        optimizer(lora::PerFactor{lora::AdamW{.learning_rate = 1e-6}}, layer),
        gradient(layer.zero_gradient()) {
    layer.set_factors(lora::Factors<float>{random_matrix<lora::ColMatrix<float>>(shape.n, shape.r),
                                           random_matrix<lora::RowMatrix<float>>(shape.r, shape.n)});
  }
  Problem(const Problem&) = delete;

  void forward() { layer.forward(X, Y, saved); }
  void backward() {
    gradient.set_zero();
    layer.backward(dY, saved, gradient, dX);
  }
  void step() {
    forward();
    backward();
    optimizer.step(layer, gradient);
  }
  /// The yardsticks: what the frozen weight costs in any case.
  void frozen_forward() { Y.noalias() = X * W0; }
  void frozen_backward() { dX.noalias() = dY * W0.transpose(); }
  void frozen_step() {
    frozen_forward();
    frozen_backward();
  }

  lora::ColMatrix<float> W0;
  lora::RowMatrix<float> X, dY, Y, dX;
  lora::LoraLinear<lora::ViewBase<float>> layer;
  lora::Optimizer<lora::PerFactor<lora::AdamW>, float> optimizer;
  lora::Factors<float> gradient;
  lora::SavedState<float> saved;
};

/// Made once for each shape.
inline Problem& problem(const Shape& shape) {
  static std::map<std::string, std::unique_ptr<Problem>> problems;
  auto& entry = problems[shape.name()];
  if (!entry) entry = std::make_unique<Problem>(shape);
  return *entry;
}

}  // namespace bench
