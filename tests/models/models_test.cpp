// SPDX-License-Identifier: MIT
// Adapters between this library and PEFT on whole models: a Llama and a GPT-2 with random weights, made by
// transformers (make_models.py). In the other direction PEFT opens what the test [.live] writes (models_check.py).
#include "models/gpt2.hpp"
#include "models/llama.hpp"
#include "support/catch.hpp"
#include "support/finite_difference.hpp"
#include "support/matrices.hpp"
#include "support/temporary_folder.hpp"
#include "support/tolerances.hpp"

#include <lora/init/gradient_svd.hpp>
#include <lora/init/kaiming_uniform.hpp>
#include <lora/init/principal_svd.hpp>
#include <lora/io/model_files.hpp>
#include <lora/io/peft.hpp>
#include <lora/io/peft_match.hpp>
#include <lora/io/peft_targets.hpp>
#include <lora/model/adapter_set.hpp>
#include <lora/model/model_optimizer.hpp>
#include <lora/model/targets.hpp>
#include <lora/optim/adamw.hpp>
#include <lora/optim/per_factor.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#ifndef LORA_MODELS_DATA
#define LORA_MODELS_DATA "tests/models/data"
#endif

using namespace lora;
using namespace lora::test;

namespace {

/// What tells the two families apart.
template <class Model>
struct Family;
template <Real Scalar>
struct Family<Llama<Scalar>> {
  static constexpr const char* name = "llama";
  static constexpr bool fan_in_fan_out = false;
  static inline const std::vector<std::string> all{"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                   "gate_proj", "up_proj", "down_proj"};
  static inline const TargetConfig patterns{
      .targets = {"q_proj", "v_proj", "down_proj"},
      .lora = {.rank = 2, .alpha = 3},
      .rank_pattern = {{"v_proj", 3}, {R"(layers\.1\.mlp\.down_proj)", 4}},
      .alpha_pattern = {{"model.layers.0.self_attn.(q|v)_proj", 7}, {"down_proj", 2.5}}};
};
template <Real Scalar>
struct Family<Gpt2<Scalar>> {
  static constexpr const char* name = "gpt2";
  static constexpr bool fan_in_fan_out = true;
  static inline const std::vector<std::string> all{"c_attn", "c_proj", "c_fc"};
  static inline const TargetConfig patterns{.targets = {"c_attn", "c_proj"},
                                            .lora = {.rank = 2, .alpha = 3},
                                            .rank_pattern = {{"mlp.c_proj", 3}, {R"(h\.1\.attn\.c_(attn|proj))", 4}},
                                            .alpha_pattern = {{"attn.c_proj", 7}, {"transformer.h.0.mlp.c_proj", 2.5}}};
};

enum class Start { Kaiming, Gradient, Principal };
struct Case {
  std::string name;
  TargetConfig targets;
  Start start = Start::Kaiming;
};
template <class Model>
std::vector<Case> cases() {
  const auto& all = Family<Model>::all;
  const auto stabilized = Scaling::RankStabilized;
  return {{"lora", {.targets = all, .lora = {.rank = 2, .alpha = 4}}},
          {"rslora", {.targets = all, .lora = {.rank = 3, .alpha = 4, .scaling = stabilized}}},
          {"patterns", Family<Model>::patterns},
          {"lora_ga", {.targets = all, .lora = {.rank = 2, .alpha = 4}}, Start::Gradient},
          {"pissa", {.targets = all, .lora = {.rank = 2, .alpha = 3}}, Start::Principal}};
}

/// The folder of a family: of the environment variable LORA_MODELS_DATA, or the one that the build knows.
template <class Model>
std::filesystem::path data() {
  const char* folder = std::getenv("LORA_MODELS_DATA");
  return std::filesystem::path(folder != nullptr ? folder : LORA_MODELS_DATA) / Family<Model>::name;
}

/// What Python saw: the tokens, the logits and the loss of the base and of each case.
template <class Model>
struct Reference {
  safetensors::File file = safetensors::File::open(data<Model>() / "logits.safetensors");

  RowMatrix<double> operator[](const std::string& item) const { return safetensors::to_matrix<double>(file.at(item)); }
  Tokens tokens() const {
    const auto ids = (*this)["tokens"];
    Tokens result{{}, ids.cols()};
    for (Index i = 0; i < ids.size(); ++i) result.ids.push_back(static_cast<Index>(ids.data()[i]));
    return result;
  }
};

/// A model with a set of adapters over all its linear layers.
template <class Model>
struct Adapted {
  using Scalar = typename Model::Scalar;

  Model model{data<Model>()};
  AdapterSet<Scalar> set;
  Tokens tokens = Reference<Model>().tokens();
  RowMatrix<Scalar> dLogits{};

  Adapted() {
    model.for_each_linear([&](auto& linear) { set.add_layer(linear.name, linear.layer); });
  }

  std::vector<ModuleShape> modules() {
    std::vector<ModuleShape> result;
    model.for_each_linear([&](auto& linear) {
      result.push_back({linear.name, linear.layer.in_features(), linear.layer.out_features()});
    });
    return result;
  }
  RowMatrix<double> logits() { return model.forward(tokens).template cast<double>(); }
  double loss() { return cross_entropy(model.forward(tokens), tokens, dLogits); }
  /// Forward and backward; the gradients are in the set.
  double loss_and_gradients() {
    set.zero_gradients();
    const double value = loss();
    model.backward(dLogits, set);
    return value;
  }

  void start(const Case& what) {
    set.replace(set.active(), zero_adapter<Scalar>(plan(modules(), what.targets).layers));
    loss_and_gradients();
    Random random{5};
    model.for_each_linear([&](auto& linear) {
      if (!linear.layer.enabled()) return;
      if (what.start == Start::Kaiming) linear.layer.initialize(KaimingUniform{}, random);
      if (what.start == Start::Gradient) linear.layer.initialize(GradientSvd{}, linear.weight_gradient(), random);
      if (what.start == Start::Principal) linear.layer.initialize(PrincipalSvd{}, random);
    });
  }
  /// The loss before and after some steps.
  std::pair<double, double> train(int steps) {
    ModelOptimizer optimizer{PerFactor{AdamW{.learning_rate = 0.02}}, set};
    const double before = loss();
    for (int step = 0; step < steps; ++step) {
      loss_and_gradients();
      set.clip(1);
      optimizer.step(set);
    }
    return {before, loss()};
  }

  /// Strictly: each target of the config has its factors, and nothing else has.
  void load(const std::filesystem::path& folder) {
    const auto adapter = peft::load<Scalar>(folder);
    peft::require_match(adapter, plan(modules(), peft::targets(adapter.config)).layers);
    set.replace(set.active(), peft::model_adapter(adapter));
  }
  peft::Adapter<Scalar> adapter(const Case& what) const {
    peft::AdapterConfig config;
    config.target_modules = what.targets.targets;
    config.fan_in_fan_out = Family<Model>::fan_in_fan_out;
    config.task_type = "CAUSAL_LM";
    return peft::adapter_of(set.adapter(set.active()), config);
  }
};

template <class Model>
void print(const std::string& what, double difference) {
  std::printf("%s in %s, %s: relative difference %.1e\n", Family<Model>::name,
              sizeof(typename Model::Scalar) == 4 ? "float" : "double", what.c_str(), difference);
}

}  // namespace

TEMPLATE_TEST_CASE("the models compute what transformers does", "[models]", Llama<float>, Llama<double>, Gpt2<float>,
                   Gpt2<double>) {
  const Reference<TestType> reference;
  Adapted<TestType> adapted;
  const double difference = relative_error(adapted.logits(), reference["base"]);
  print<TestType>("base", difference);
  CHECK(difference < model_logits);
  CHECK(adapted.loss() == Catch::Approx(reference["losses"](0, 0)).epsilon(model_logits));
}

TEMPLATE_TEST_CASE("adapters that PEFT trained and wrote give PEFT's logits", "[models][peft]", Llama<float>,
                   Llama<double>, Gpt2<float>, Gpt2<double>) {
  const Reference<TestType> reference;
  Adapted<TestType> adapted;
  Index i = 0;
  for (const auto& what : cases<TestType>()) {
    CAPTURE(what.name);
    adapted.load(data<TestType>() / what.name);
    const double difference = relative_error(adapted.logits(), reference[what.name]);
    print<TestType>(what.name + " of PEFT", difference);
    CHECK(difference < model_logits);
    CHECK(adapted.loss() == Catch::Approx(reference["losses"](0, ++i)).epsilon(model_logits));
    CHECK(relative_error(reference[what.name], reference["base"]) > adapter_effect);
  }
}

TEMPLATE_TEST_CASE("the gradient of every factor of a model is the derivative of its loss", "[models][gradient]",
                   Llama<double>, Gpt2<double>) {
  Adapted<TestType> adapted;
  Random random{6};
  double worst = 0;
  for (const auto& what : cases<TestType>()) {
    CAPTURE(what.name);
    adapted.start(what);
    const auto shake = [&](auto factor) {
      factor += 0.2 * random_columns<double>(factor.rows(), factor.cols(), random);
    };
    adapted.set.for_each_trained([&](const std::string&, const FactorsView<double>& factors, const auto&, double) {
      shake(factors.A);
      shake(factors.B);
    });
    adapted.loss_and_gradients();
    adapted.set.for_each_trained(
        [&](const std::string& name, const FactorsView<double>& factors, const auto& gradient, double) {
          const auto check = [&](auto factor, const auto& derivative) {
            const ColMatrix<double> drawn = random_columns<double>(factor.rows(), factor.cols(), random);
            for (const ColMatrix<double>& direction : {drawn, ColMatrix<double>(derivative)}) {
              const ColMatrix<double> unit = direction.normalized();
              const double slope = central_difference(factor, unit, [&] { return adapted.loss(); });
              const double error = std::abs(slope - derivative.cwiseProduct(unit).sum()) / derivative.norm();
              CAPTURE(name);
              CHECK(error < model_gradient);
              worst = std::max(worst, error);
            }
          };
          check(factors.A, gradient.A);
          check(factors.B, gradient.B);
        });
  }
  print<TestType>("gradients", worst);
}

TEMPLATE_TEST_CASE("a model learns with every start, and what is saved computes the same on the base as it was",
                   "[models][peft]", Llama<float>, Llama<double>, Gpt2<float>, Gpt2<double>) {
  const TemporaryFolder folder;
  Adapted<TestType> trained, fresh;
  const auto base = fresh.logits();
  const double base_loss = fresh.loss();
  for (const auto& what : cases<TestType>()) {
    CAPTURE(what.name);
    trained.start(what);
    const auto [before, after] = trained.train(30);
    CHECK(before == Catch::Approx(base_loss).epsilon(model_logits));  // every start leaves the model as it was
    CHECK(after < model_learnt * before);
    const auto logits = trained.logits();
    CHECK(relative_error(logits, base) > adapter_effect);
    peft::save(folder / what.name, trained.adapter(what));
    peft::save_portable(folder / (what.name + "_portable"), trained.adapter(what));
    for (const std::string kind : {"", "_portable"}) {
      fresh.load(folder / (what.name + kind));
      const double difference = relative_error(fresh.logits(), logits);
      print<TestType>(what.name + kind + " of ours, loaded again", difference);
      CHECK(difference < model_logits);
    }
  }
}

/// Writes adapters for models_check.py, which opens them in PEFT: into the folder of LORA_MODELS_LIVE.
TEMPLATE_TEST_CASE("adapters of whole models for the real PEFT", "[.live]", Llama<float>, Gpt2<float>) {
  const char* const folder = std::getenv("LORA_MODELS_LIVE");
  REQUIRE(folder != nullptr);
  const auto root = std::filesystem::path(folder) / Family<TestType>::name;
  std::map<std::string, RowMatrix<float>> logits;
  safetensors::Tensors tensors;
  Adapted<TestType> trained;
  for (const auto& what : cases<TestType>()) {
    trained.start(what);
    const auto [before, after] = trained.train(12);
    std::printf("%s %s: loss %.3f, then %.3f\n", Family<TestType>::name, what.name.c_str(), before, after);
    peft::save(root / what.name, trained.adapter(what));
    peft::save_portable(root / (what.name + "_portable"), trained.adapter(what));
    const auto& kept = logits[what.name] = trained.model.forward(trained.tokens);
    for (const char* kind : {"", "_portable"}) tensors.emplace(what.name + kind, safetensors::as_tensor(kept));
  }
  safetensors::write(root / "logits.safetensors", tensors);
}
