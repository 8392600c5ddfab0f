// SPDX-License-Identifier: MIT
// Optimizer steps alone, on the factors of one layer.
#include "measure.hpp"
#include "shapes.hpp"

#include <memory>

namespace {

using bench::Shape;

template <class Method>
void add(const std::string& name, double flops_a_parameter, const Shape& shape, const Method& method) {
  struct Data {
    lora::Factors<float> factors, gradient;
    lora::Optimizer<Method, float> optimizer;
  };
  bench::add(name + shape.factors_name(), {flops_a_parameter * shape.parameters()}, bench::Heap::Forbidden, [=] {
    const auto start = bench::random_factors(shape);
    auto data = std::make_shared<Data>(Data{start, start, {method, shape.n, shape.m, shape.r}});
    return [data] { data->optimizer.step(data->factors, data->gradient, 1, 1); };
  });
}

[[maybe_unused]] const bool registered = [] {
  for (const Shape& shape : bench::weights()) {
    add("sgd", 2, shape, lora::PerFactor{lora::Sgd{.learning_rate = 1e-6}});
    add("momentum", 4, shape, lora::PerFactor{lora::Sgd{.learning_rate = 1e-6, .momentum = 0.9}});
    add("adamw", 12, shape, lora::PerFactor{lora::AdamW{.learning_rate = 1e-6}});
    add("lora_plus", 12, shape, lora::LoraPlus{lora::AdamW{.learning_rate = 1e-6}});
    using Mode = lora::LoraPro::Mode;
    const auto r = static_cast<double>(shape.r);
    const auto pro = [](Mode mode) { return lora::LoraPro{.learning_rate = 1e-6, .mode = mode}; };
    add("lora_pro_sgd", 12 * r, shape, pro(Mode::Sgd));  // products with r x r matrices: the leading terms
    add("lora_pro_efficient", 12 * r, shape, pro(Mode::Efficient));
    add("lora_pro_factored", 54 * r, shape, pro(Mode::Factored));
    // Four products of an n x m matrix and r rows.
    add("lora_pro_full", 8 * r * static_cast<double>(shape.n * shape.m) / shape.parameters(), shape, pro(Mode::Full));
    add("riemannian", 4 * r, shape, lora::Riemannian{lora::AdamW{.learning_rate = 1e-6}});
    add("lora_fa", 2 * r, shape, lora::LoraFa{lora::AdamW{.learning_rate = 1e-6}});
  }
  return true;
}();

}  // namespace
