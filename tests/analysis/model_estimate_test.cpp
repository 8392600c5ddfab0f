// SPDX-License-Identifier: MIT
// The estimate of a model is the sum over its layers.
#include "support/catch.hpp"
#include "support/message.hpp"

#include <lora/analysis/model_estimate.hpp>

#include <vector>

using namespace lora;
using namespace lora::test;

TEST_CASE("a model takes what its layers take, each with its own rank and dropout", "[analysis][model]") {
  const std::vector<AdaptedLayer> layers{{"q", 64, 48, {.rank = 4}}, {"v", 48, 16, {.rank = 2, .dropout = 0.1}}};
  const LoraPlus method{AdamW{}};
  const auto model = estimate_model<float>(layers, 100, method, {.storage = BaseStorage::Owned});
  const auto q = estimate<float>({64, 48, 4, 100}, method, {.storage = BaseStorage::Owned});
  const auto v = estimate<float>({48, 16, 2, 100}, method, {.storage = BaseStorage::Owned, .dropout = 0.1});
  CHECK(model.layers == std::vector<ModelEstimate::Layer>{{layers[0], q}, {layers[1], v}});
  CHECK(model.total.bytes.total() == q.bytes.total() + v.bytes.total());
  CHECK(model.total.flops.total() == q.flops.total() + v.flops.total());
  CHECK(model.total.bytes.saved_state == q.bytes.saved_state + v.bytes.saved_state);
  CHECK(model.describe() ==
        "layer  r   base  factors  gradient  optimizer  saved  bytes\n"
        "q      4  12288     1792      1792       3584   3200  22656\n"
        "v      2   3072      512       512       1024  40000  45120\n"
        "total     15360     2304      2304       4608  43200  67776\n");
  CHECK(estimate_model<double>({}, 100, method).total == Estimate{});
}

TEST_CASE("an estimate of a model names the layer that is wrong", "[analysis][model]") {
  std::vector<AdaptedLayer> layers{{"q", 64, 48, {.rank = 4}}, {"v", 48, 16, {.rank = 20}}};
  const PerFactor method{AdamW{}};
  CHECK(message_of<ConfigError>([&] { estimate_model<float>(layers, 1, method); }) ==
        "estimate_model: layer v: estimate: rank must lie in [1, min(n, m)] = [1, 16], got 20");
  layers[1] = {"v", 0, 16, {}};
  CHECK(message_of<ShapeError>([&] { estimate_model<float>(layers, 1, method); }) ==
        "estimate_model: layer v: estimate: in_features and out_features must be at least 1, got 0 and 16");
  constexpr Index large = Index{1} << 28;
  layers.assign(9, {"x", large, large, {.rank = 1}});
  CHECK(message_of<ShapeError>([&] { estimate_model<float>(layers, 0, method, {.storage = BaseStorage::Owned}); }) ==
        "estimate_model: the sum over the layers must stay below 2^60, got more");
}
