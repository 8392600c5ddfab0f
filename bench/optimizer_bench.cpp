// SPDX-License-Identifier: MIT
// Optimizer steps alone, on the factors of one layer.
#include "measure.hpp"
#include "shapes.hpp"

#include <array>
#include <memory>

namespace {

using bench::Shape;

template <class Method>
void add(const std::string& name, const Shape& shape, const Method& method) {
  struct Data {
    lora::Factors<float> factors, gradient;
    lora::Optimizer<Method, float> optimizer;
  };
  const auto [n, m, r] =
      std::array{static_cast<double>(shape.n), static_cast<double>(shape.m), static_cast<double>(shape.r)};
  bench::add(name + shape.factors_name(), {lora::optimizer_cost(method, n, m, r).flops}, bench::Heap::Forbidden, [=] {
    const auto start = bench::random_factors(shape);
    auto data = std::make_shared<Data>(Data{start, start, {method, shape.n, shape.m, shape.r}});
    return [data] { data->optimizer.step(data->factors, data->gradient, 1, 1); };
  });
}

[[maybe_unused]] const bool registered = [] {
  for (const Shape& shape : bench::weights()) {
    add("sgd", shape, lora::PerFactor{lora::Sgd{.learning_rate = 1e-6}});
    add("momentum", shape, lora::PerFactor{lora::Sgd{.learning_rate = 1e-6, .momentum = 0.9}});
    add("adamw", shape, lora::PerFactor{lora::AdamW{.learning_rate = 1e-6}});
    add("lora_plus", shape, lora::LoraPlus{lora::AdamW{.learning_rate = 1e-6}});
    using Mode = lora::LoraPro::Mode;
    const auto pro = [](Mode mode) { return lora::LoraPro{.learning_rate = 1e-6, .mode = mode}; };
    add("lora_pro_sgd", shape, pro(Mode::Sgd));
    add("lora_pro_efficient", shape, pro(Mode::Efficient));
    add("lora_pro_factored", shape, pro(Mode::Factored));
    add("lora_pro_full", shape, pro(Mode::Full));
    add("riemannian", shape, lora::Riemannian{lora::AdamW{.learning_rate = 1e-6}});
    add("lora_fa", shape, lora::LoraFa{lora::AdamW{.learning_rate = 1e-6}});
  }
  return true;
}();

}  // namespace
