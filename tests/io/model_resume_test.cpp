// SPDX-License-Identifier: MIT
// Exact resume of a whole model: layers, and one optimizer with a state for each.
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/temporary_folder.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/io/checkpoint.hpp>
#include <lora/model/adapter_set.hpp>
#include <lora/model/model_optimizer.hpp>
#include <lora/optim/adamw.hpp>
#include <lora/optim/per_factor.hpp>

#include <string>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

struct Model {
  std::vector<std::string> names{"0.up", "0.down", "1.up"};
  std::vector<LoraLinear<OwnedBase<double>>> layers;

  explicit Model(Random random) {
    for (const Index m : {9, 5, 7}) {
      auto& layer = layers.emplace_back(random_columns<double>(8, m, random), LoraConfig{.rank = 2});
      layer.set_factors(random_factors<double>(8, m, 2, random));
    }
  }
  AdapterSet<double> set() {
    AdapterSet<double> made{"german"};
    for (std::size_t i = 0; i < layers.size(); ++i) made.add_layer(names[i], layers[i]);
    ModelAdapter<double> french;  // not on all layers, and of another rank
    french.emplace(names[1], AdapterState<double>::zero(8, 5, {.rank = 3}));
    made.add("french", french);
    return made;
  }
};

using Method = LoraPlus<>;

struct Run {
  Model model{Random{3}};
  AdapterSet<double> set = model.set();
  ModelOptimizer<Method, double> optimizer;
  Random random{7};
  Index step = 0;

  explicit Run(double learning_rate = 0.01) : optimizer(Method{AdamW{.learning_rate = learning_rate}, 4}, set) {}

  // [parts]
  /// The active adapter's parts of the run.
  Checkpoint checkpoint() {
    Checkpoint parts;
    optimizer.prepare(set);
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
      if (!optimizer.states().at(set.active()).contains(model.names[i])) continue;  // a layer that it is not on
      parts.add("layers/" + model.names[i], model.layers[i]);
      parts.add("states/" + model.names[i], optimizer.state(set.active(), model.names[i]));
    }
    parts.add("method", optimizer.method()).add("random", random).add("step", step);
    return parts;
  }
  // [/parts]
  void train(Index until) {
    for (; step < until; ++step) {
      set.activate(step % 2 == 0 ? "german" : "french");
      set.zero_gradients();
      for (const auto& [name, n, m, config] : set.layers()) {
        set.gradient(name) = random_factors<double>(n, m, config.rank, random);
      }
      optimizer.step(set);
    }
  }
};

}  // namespace

TEST_CASE("a whole model goes on with the bits of one that never stopped", "[io][checkpoint][model]") {
  const TemporaryFolder folder;
  Run run, resumed;
  run.train(10);
  for (const std::string adapter : {"german", "french"}) {
    run.set.activate(adapter);
    run.checkpoint().write(folder / adapter);
  }
  run.train(20);

  for (const std::string adapter : {"french", "german"}) {
    resumed.set.activate(adapter);
    resumed.checkpoint().restore(folder / adapter);
  }
  CHECK(resumed.step == 10);
  resumed.train(20);
  for (const std::string adapter : {"german", "french"})
    CHECK(resumed.set.adapter(adapter) == run.set.adapter(adapter));
  CHECK(resumed.optimizer == run.optimizer);

  Run other(0.02);
  const auto message = message_of<ConfigError>([&] { other.checkpoint().restore(folder / "german"); });
  CHECK(message.find("learning_rate: 0.01 in the file, 0.02 here") != std::string::npos);
  CHECK(other.step == 0);
}

TEST_CASE("a state is asked for by adapter and layer", "[model][errors]") {
  Run run;
  CHECK(run.optimizer.state("german", "0.up") == run.optimizer.states().at("german").at("0.up"));
  CHECK(message_of<ConfigError>([&] { run.optimizer.state("french", "0.up"); }) ==
        "ModelOptimizer::state: an adapter must have a state on the layer, got none of french on 0.up");
  CHECK(message_of<ConfigError>([&] { run.optimizer.state("german", "2.up"); }) ==
        "ModelOptimizer::state: an adapter must have a state on the layer, got none of german on 2.up");
}
