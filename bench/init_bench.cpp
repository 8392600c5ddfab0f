// SPDX-License-Identifier: MIT
// Starts from a gradient and from the weight, beside the products that they are made of; and the optimizer view.
#include "measure.hpp"
#include "shapes.hpp"

#include <memory>
#include <optional>
#include <string>

namespace {

using bench::Heap, bench::Shape;

constexpr lora::Index tokens = 512;

/// A weight with its gradient, as a trainer has them.
struct Data {
  explicit Data(const Shape& shape)
      : W(bench::random_matrix<lora::ColMatrix<float>>(shape.n, shape.m)),
        X(bench::random_matrix<lora::RowMatrix<float>>(tokens, shape.n)),
        dY(bench::random_matrix<lora::RowMatrix<float>>(tokens, shape.m)),
        G(shape.n, shape.m),
        dense(shape.n, shape.m) {
    dY.array() += 0.1F;
    form();
    dense.add(G);
  }
  void form() { G.noalias() = X.transpose() * dY; }

  lora::ColMatrix<float> W;
  lora::RowMatrix<float> X, dY;
  lora::ColMatrix<float> G;
  lora::DenseGradient<float> dense;
  std::optional<lora::GradientSketch<float>> sketch;
  std::optional<lora::StreamingSvd<float>> stream;
  lora::Random random{2};
};

template <class Call>
void add(const std::string& name, double flops, const Shape& shape, const Call& call) {
  bench::add(name + shape.factors_name(), {flops}, Heap::Allowed, [=] {
    auto data = std::make_shared<Data>(shape);
    return [=] { call(*data, shape.r); };
  });
}

/// A step of the optimizer view; it allocates nothing.
template <class Method>
void add_view(const std::string& name, const Shape& shape, const Method& method) {
  const double flops = 8 * static_cast<double>(shape.n * shape.m * shape.r);
  bench::add(name + shape.factors_name(), {flops}, Heap::Forbidden, [=] {
    auto data = std::make_shared<Data>(shape);
    auto view = std::make_shared<lora::WeightSpace<Method, float>>(method, bench::random_factors(shape), 1);
    return [=] { view->step(data->W, data->G); };
  });
}

[[maybe_unused]] const bool registered = [] {
  for (const Shape& shape : bench::weights()) {
    const auto n = static_cast<double>(shape.n), m = static_cast<double>(shape.m);
    const auto r = static_cast<double>(shape.r), b = static_cast<double>(tokens);
    const double k = 4 * r, products = 6;  // two power iterations
    add("form_gradient", 2 * b * n * m, shape, [](Data& data, lora::Index) { data.form(); });
    add("lora_ga_batches", products * 2 * b * (n + m) * k, shape, [](Data& data, lora::Index rank) {
      const lora::BatchGradient<float> G(data.X, data.dY);
      lora::truncated_svd(G, 2 * rank, data.random, {.oversampling = 2 * rank});
    });
    add("lora_ga_dense", products * 2 * n * m * k, shape, [](Data& data, lora::Index rank) {
      lora::truncated_svd(data.dense, 2 * rank, data.random, {.oversampling = 2 * rank});
    });
    add("sketch_batch", 6 * b * (n + m) * k, shape, [](Data& data, lora::Index rank) {
      if (!data.sketch) data.sketch.emplace(data.G.rows(), data.G.cols(), 4 * rank, data.random);
      data.sketch->add(data.X, data.dY);
    });
    add("stream_batch", 8 * (b + k) * (n + m) * k, shape, [](Data& data, lora::Index rank) {
      if (!data.stream) data.stream.emplace(data.G.rows(), data.G.cols(), 4 * rank, data.random);
      data.stream->add(data.X, data.dY);
    });
    add("pissa", 10 * 2 * n * m * (r + 16), shape, [](Data& data, lora::Index rank) {
      lora::PrincipalSvd{}(lora::ViewBase<float>(data.W), rank, 1, data.random);
    });
    add_view("view_adamw", shape, lora::PerFactor{lora::AdamW{.learning_rate = 1e-6}});
    add_view("view_lora_pro", shape, lora::LoraPro{.learning_rate = 1e-6});
  }
  return true;
}();

}  // namespace
