// SPDX-License-Identifier: MIT
// A whole model: targets by pattern, one optimizer for all layers, adapters that take turns, and one made of two.
#include <lora/lora.hpp>

#include <array>
#include <cstdio>
#include <string>
#include <vector>

using Matrix = lora::RowMatrix<double>;

/// Layers one after another with tanh in between. The hot path calls the layers, not the set.
struct Network {
  std::vector<lora::LoraLinear<lora::OwnedBase<double>>> layers;
  std::array<lora::SavedState<double>, 4> saved;
  std::array<Matrix, 5> H;  // what goes into each layer, and the output

  const Matrix& forward(const Matrix& X) {
    H[0] = X;
    for (std::size_t i = 0; i < 4; ++i) {
      H[i + 1].resize(X.rows(), layers[i].out_features());
      layers[i].forward(H[i], H[i + 1], saved[i]);
      if (i < 3) H[i + 1] = H[i + 1].array().tanh();
    }
    return H[4];
  }
  void backward(Matrix dY, lora::AdapterSet<double>& set, const std::vector<std::string>& names) {
    for (std::size_t i = 4; i-- > 0;) {
      Matrix dX(dY.rows(), layers[i].in_features());
      layers[i].backward(dY, saved[i], set.gradient(names[i]), dX);
      dY = dX.array() * (1 - H[i].array().square());
    }
  }
};

int main() {
  lora::Random random{20};
  const auto normal = [&] { return random.normal(); };
  // [plan]
  const std::vector<lora::ModuleShape> modules{
      {"0.up", 12, 24}, {"0.down", 24, 12}, {"1.up", 12, 24}, {"1.down", 24, 12}};
  const auto plan = lora::plan(
      modules, {.pattern = R"(\d+\.(up|down))", .lora = {.rank = 4, .alpha = 8}, .rank_pattern = {{R"(0\..*)", 2}}});
  std::printf("%s\n", plan.describe().c_str());
  const auto estimate = lora::estimate_model<double>(plan.layers, 96, lora::LoraPlus{lora::AdamW{}});
  std::printf("bytes in training, but for the weights: %d\n", static_cast<int>(estimate.total.bytes.total()));
  // [/plan]
  Network network;
  for (const auto& [name, n, m, config] : plan.layers)
    network.layers.emplace_back(lora::ColMatrix<double>(Matrix::NullaryExpr(n, m, normal) / 4), config);
  // [set]
  lora::AdapterSet<double> set{"german"};
  for (std::size_t i = 0; i < modules.size(); ++i) set.add_layer(modules[i].name, network.layers[i]);
  set.add("french", lora::zero_adapter<double>(plan.layers));
  lora::ModelOptimizer optimizer{lora::LoraPlus{lora::AdamW{.learning_rate = 4e-3}, 4}, set};
  // [/set]
  const Matrix X = Matrix::NullaryExpr(96, 12, normal), base = network.forward(X);
  const Matrix left = Matrix::NullaryExpr(12, 2, normal) / 4, right = Matrix::NullaryExpr(2, 12, normal) / 4;
  const Matrix german = base + X * left * right, french = base - 2 * X.rowwise().reverse() * left * right;
  const auto loss = [&](const Matrix& target) { return (network.forward(X) - target).squaredNorm() / 192; };
  // [train]
  for (const std::string name : {"german", "french"}) {
    set.activate(name);
    for (auto& layer : network.layers) layer.initialize(lora::KaimingUniform{}, random);
    for (int step = 0; step < 150; ++step) {
      set.zero_gradients();
      network.backward((network.forward(X) - (name == "german" ? german : french)) / 96, set, set.layer_names());
      set.clip(1);
      optimizer.step(set, 1 - step / 150.0);
    }
  }
  set.add("both", lora::combine<double>({{set.adapter("german"), 0.5}, {set.adapter("french"), 0.5}}, {}, random));
  // [/train]
  for (const auto& name : set.adapter_names()) {
    set.activate(name);
    std::printf("%-7s loss on german %.3f, on french %.3f\n", name.c_str(), loss(german), loss(french));
  }
  set.merge();
  std::printf("%smerged: loss on german %.3f\n", set.describe().c_str(), loss(german));
}
