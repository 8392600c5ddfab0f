// SPDX-License-Identifier: MIT
// The two ways to hold weights, and the starts of adapters.
#include "model.hpp"

#include "llama.hpp"

#include <lora/base/packed_base.hpp>
#include <lora/base/packed_bf16_base.hpp>
#include <lora/init/gradient_svd.hpp>
#include <lora/init/kaiming_uniform.hpp>
#include <lora/init/principal_svd.hpp>
#include <lora/init/streaming_svd.hpp>

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <utility>

namespace llm {
namespace {

template <lora::FrozenBase Base>
class ModelOn final : public Model {
 public:
  ModelOn(const Weights& weights, Keep keep) : llama_(weights, keep) {}

  const LlamaConfig& config() const override { return llama_.config(); }
  void add_layers(lora::AdapterSet<float>& set) override {
    llama_.for_each_linear([&](const std::string& name, Layer& layer) { set.add_layer(name, layer); });
  }
  void add_parts(lora::Checkpoint& checkpoint) override {
    for_each_adapted([&](const std::string& name, Layer& layer) { checkpoint.add("layers/" + name, layer); });
  }

  void start(Start start, std::span<const Batch> batches, lora::Random& random) override {
    if (start == Start::GradientSvd) return start_from_gradients(batches, random);
    for_each_adapted([&](const std::string&, Layer& layer) {
      if (start == Start::PrincipalSvd) {
        layer.initialize(lora::PrincipalSvd{}, random);
      } else {
        layer.initialize(lora::KaimingUniform{}, random);
      }
    });
  }

  double loss(const Batch& batch) override { return llama_.loss(batch); }
  double train(const Batch& batch, lora::AdapterSet<float>& set, double weight) override {
    return llama_.train(batch, set, weight);
  }
  Cache cache(Index capacity) const override { return llama_.cache(capacity); }
  Eigen::RowVectorXf next(Cache& cache, std::span<const Token> tokens) override { return llama_.next(cache, tokens); }
  const Profile& profile() const override { return llama_.profile(); }

 private:
  using Layer = typename Llama<Base>::Layer;

  template <class Visit>
  void for_each_adapted(const Visit& visit) {
    llama_.for_each_linear([&](const std::string& name, Layer& layer) {
      if (layer.enabled()) visit(name, layer);
    });
  }

  /// LoRA-GA. A = B = 0 until here, so the gradients are the frozen model's.
  void start_from_gradients(std::span<const Batch> batches, lora::Random& random) {
    std::map<std::string, lora::StreamingSvd<float>, std::less<>> sketches;
    for_each_adapted([&](const std::string& name, const Layer& layer) {
      const Index width = std::min({4 * layer.rank(), layer.in_features(), layer.out_features()});
      sketches.emplace(name, lora::StreamingSvd<float>(layer.in_features(), layer.out_features(), width, random));
    });
    for (const Batch& batch : batches) {
      const double weight = 1 / static_cast<double>(std::max<Index>(batch.counted(), 1));
      llama_.gradients(batch, weight, [&](const std::string& name, const auto& X, const auto& dY) {
        if (const auto found = sketches.find(name); found != sketches.end()) found->second.add(X, dY);
      });
    }
    for_each_adapted([&](const std::string& name, Layer& layer) {
      layer.initialize(lora::GradientSvd{}, sketches.at(name).svd(2 * layer.rank()), random);
    });
  }

  Llama<Base> llama_;
};

}  // namespace

std::unique_ptr<Model> open_model(const Weights& weights, Storage storage, Keep keep) {
  if (storage == Storage::Bf16) return std::make_unique<ModelOn<lora::PackedBf16Base>>(weights, keep);
  return std::make_unique<ModelOn<lora::PackedBase<float>>>(weights, keep);
}

}  // namespace llm
