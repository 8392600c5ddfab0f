// SPDX-License-Identifier: MIT
// Merging, inference with and without merging, and batches of several adapters.
#include "measure.hpp"
#include "shapes.hpp"

#include <memory>
#include <string>
#include <vector>

namespace {

using bench::Heap, bench::Shape;
using Base = lora::PackedBase<float>;
using Layer = lora::LoraLinear<Base>;

std::shared_ptr<Layer> make_layer(const Shape& shape) {
  auto layer = std::make_shared<Layer>(bench::base_of<Base>(shape), lora::LoraConfig{.rank = shape.r});
  layer->set_factors(bench::random_factors(shape));
  return layer;
}

struct Data {
  lora::RowMatrix<float> X, Y;
  lora::SavedState<float> saved;
};

std::shared_ptr<Data> make_data(const Shape& shape) {
  auto data = std::make_shared<Data>();
  data->X = bench::random_matrix<lora::RowMatrix<float>>(shape.b, shape.n);
  data->Y.setZero(shape.b, shape.m);
  return data;
}

void add_merge(const Shape& shape) {
  const double flops = 4 * static_cast<double>(shape.n * shape.m * shape.r);  // both packs
  bench::add("merge_unmerge" + shape.factors_name(), {flops}, Heap::Allowed, [=] {
    auto layer = make_layer(shape);
    return [=] {
      layer->merge();
      layer->unmerge();
    };
  });
}

void add_inference(const Shape& shape) {
  for (const bool merged : {false, true}) {
    bench::add((merged ? "merged" : "unmerged") + shape.name(), {shape.product_flops()}, Heap::Forbidden, [=] {
      auto layer = make_layer(shape);
      auto data = make_data(shape);
      if (merged) layer->merge();
      return [=] { layer->forward(data->X, data->Y, data->saved); };
    });
  }
}

/// Rows of the batch belong to `count` adapters in turn: the least convenient order.
void add_mixed(const Shape& shape, lora::Index count) {
  bench::add(
      "mixed/adapters:" + std::to_string(count) + shape.name(), {shape.product_flops() + shape.branch_flops()},
      Heap::Forbidden, [=] {
        struct Mixed {
          lora::MixedLinear<Base> layer;
          std::vector<lora::Factors<float>> factors;
          std::vector<lora::LowRankBranch<float>> adapters;
          lora::RowGroups groups;
          lora::MixedState<float> saved;
        };
        std::vector<lora::Index> adapter_of_row;
        for (lora::Index i = 0; i < shape.b; ++i) adapter_of_row.push_back(i % count);
        auto mixed = std::make_shared<Mixed>(Mixed{
            lora::MixedLinear<Base>(bench::base_of<Base>(shape)), {}, {}, lora::RowGroups(adapter_of_row, count), {}});
        for (lora::Index a = 0; a < count; ++a) mixed->factors.push_back(bench::random_factors(shape));
        for (const auto& factors : mixed->factors) mixed->adapters.emplace_back(factors, 2.0);
        auto data = make_data(shape);
        return [=] { mixed->layer.forward(data->X, data->Y, mixed->adapters, mixed->groups, mixed->saved); };
      });
}

[[maybe_unused]] const bool registered = [] {
  for (const Shape& shape : bench::weights()) {
    add_merge(shape);
    for (const lora::Index b : {1, 4}) add_inference({b, shape.n, shape.m, shape.r});
    for (const lora::Index count : {1, 8}) add_mixed({64, shape.n, shape.m, shape.r}, count);
  }
  return true;
}();

}  // namespace
