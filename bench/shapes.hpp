// SPDX-License-Identifier: MIT
// What is measured: the shapes, the bases, and one layer with its data for each of them.
#pragma once

#include <lora/lora.hpp>

#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace bench {

using lora::Index;

struct Shape {
  Index b, n, m, r;  ///< tokens, in_features, out_features, rank

  std::string name() const { return "/b:" + std::to_string(b) + factors_name(); }
  std::string product_name() const { return "/b:" + std::to_string(b) + weight_name(); }
  std::string factors_name() const { return weight_name() + "/r:" + std::to_string(r); }
  std::string weight_name() const { return "/n:" + std::to_string(n) + "/m:" + std::to_string(m); }

  double product_flops() const { return 2.0 * static_cast<double>(b * n * m); }
  double branch_flops() const { return 2.0 * static_cast<double>(b * r * (n + m)); }  ///< forward: X A and P B
  double step_flops() const { return 2 * product_flops() + 3 * branch_flops(); }
  double parameters() const { return static_cast<double>(r * (n + m)); }
};

inline bool long_list() { return std::getenv("LORA_BENCH_LONG") != nullptr; }

/// Weights and ranks; with LORA_BENCH_LONG in the environment more of them.
inline const std::vector<Shape>& weights() {
  static const std::vector<Shape> list = [] {
    std::vector<Shape> result;
    const std::vector<std::pair<Index, Index>> few{{1024, 1024}, {2048, 2048}};
    const std::vector<std::pair<Index, Index>> many{{576, 576},   {576, 1536},  {1024, 1024},
                                                    {2048, 2048}, {4096, 4096}, {1000, 777}};
    for (const auto& [n, m] : long_list() ? many : few) {
      for (const Index r : long_list() ? std::vector<Index>{8, 16, 64} : std::vector<Index>{16}) {
        result.push_back({0, n, m, r});
      }
    }
    return result;
  }();
  return list;
}

inline const std::vector<Index>& batches() {
  static const std::vector<Index> list{1, 4, 16, 64, 256, 1024};
  return list;
}

/// Every weight and rank with every batch.
inline const std::vector<Shape>& shapes() {
  static const std::vector<Shape> list = [] {
    std::vector<Shape> result;
    for (const auto& [none, n, m, r] : weights()) {
      for (const Index b : batches()) result.push_back({b, n, m, r});
    }
    return result;
  }();
  return list;
}

/// The shapes of the products alone: r does not matter.
inline std::vector<Shape> product_shapes() {
  std::vector<Shape> result;
  for (const Shape& shape : shapes()) {
    if (shape.r == weights().front().r) result.push_back(shape);
  }
  return result;
}

template <class Matrix>
Matrix random_matrix(Index rows, Index cols) {
  lora::Random random{1};
  Matrix matrix(rows, cols);
  for (float& element : matrix.reshaped()) element = static_cast<float>(2 * random.uniform() - 1);
  return matrix;
}

inline lora::Factors<float> random_factors(const Shape& shape) {
  return {random_matrix<lora::ColMatrix<float>>(shape.n, shape.r),
          random_matrix<lora::RowMatrix<float>>(shape.r, shape.m)};
}

/// A weight and a base of each kind on it, made when first asked for. The last weight asked for is kept, no other.
template <class Base>
const Base& base_of(const Shape& shape) {
  static std::string last;
  static lora::ColMatrix<float> weight;
  static std::unique_ptr<Base> base;
  if (last != shape.weight_name()) {
    base.reset();
    weight = random_matrix<lora::ColMatrix<float>>(shape.n, shape.m);
    base = std::make_unique<Base>(weight);
    last = shape.weight_name();
  }
  return *base;
}

/// A layer in training, with room for everything that it writes.
template <class Base>
struct Problem {
  explicit Problem(const Shape& shape)
      : X(random_matrix<lora::RowMatrix<float>>(shape.b, shape.n)),
        dY(random_matrix<lora::RowMatrix<float>>(shape.b, shape.m)),
        Y(dY),
        dX(X),
        layer(base_of<Base>(shape), {.rank = shape.r}),
        optimizer(lora::PerFactor{lora::AdamW{.learning_rate = 1e-6}}, layer),
        gradient(layer.zero_gradient()) {
    layer.set_factors(random_factors(shape));
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
  /// The yardstick: what the frozen weight costs in any case.
  void frozen_step() {
    layer.base().multiply(X, Y);
    layer.base().multiply_transposed(dY, dX);
  }

  lora::RowMatrix<float> X, dY, Y, dX;
  lora::LoraLinear<Base> layer;
  lora::Optimizer<lora::PerFactor<lora::AdamW>, float> optimizer;
  lora::Factors<float> gradient;
  lora::SavedState<float> saved;
};

}  // namespace bench
