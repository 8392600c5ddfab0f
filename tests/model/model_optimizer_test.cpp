// SPDX-License-Identifier: MIT
// One optimizer for a model against one a layer.
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/init/kaiming_uniform.hpp>
#include <lora/model/model_optimizer.hpp>
#include <lora/optim/adamw.hpp>
#include <lora/optim/lora_fa.hpp>
#include <lora/optim/lora_pro.hpp>
#include <lora/optim/optimizer.hpp>
#include <lora/optim/per_factor.hpp>
#include <lora/optim/riemannian.hpp>
#include <lora/optim/sgd.hpp>

#include <limits>
#include <string>
#include <utility>

using namespace lora;
using namespace lora::test;

namespace {

using Layer = LoraLinear<OwnedBase<double>>;

struct Pair {
  Layer first, second;

  explicit Pair(Random random)
      : first(random_columns<double>(12, 9, random), {.rank = 3}),
        second(random_columns<double>(9, 15, random), {.rank = 2}) {
    first.set_factors(random_factors<double>(12, 9, 3, random));
    second.set_factors(random_factors<double>(9, 15, 2, random));
  }
  void add_to(AdapterSet<double>& set) {
    set.add_layer("first", first);
    set.add_layer("second", second);
  }
  bool operator==(const Pair&) const = default;
};

void draw(Factors<double>& gradient, Random& random) {
  gradient = random_factors<double>(gradient.in_features(), gradient.out_features(), gradient.rank(), random);
}

template <class Check>
void for_every_method(const Check& check) {
  const AdamW adamw{.learning_rate = 1e-2, .weight_decay = 0.1};
  check("AdamW", PerFactor{adamw});
  check("LoRA+", LoraPlus{adamw});
  check("Sgd", PerFactor{Sgd{.learning_rate = 1e-2, .momentum = 0.9}});
  check("Riemannian", Riemannian{adamw});
  check("LoRA-FA", LoraFa{adamw});
  check("LoRA-Pro", LoraPro{.learning_rate = 1e-2});
}

}  // namespace

TEST_CASE("a step of the model is a step of each layer, bit for bit, and allocates nothing after the first",
          "[model][allocations]") {
  if (!allocations_are_counted) WARN(not_counted);
  for_every_method([]<class Method>(const std::string& name, const Method& method) {
    CAPTURE(name);
    Pair model(Random{1}), by_hand = model;
    AdapterSet<double> set;
    model.add_to(set);
    ModelOptimizer optimizer{method, set};
    Optimizer first{method, by_hand.first}, second{method, by_hand.second};
    Random random{2};
    for (int step = 0; step < 5; ++step) {
      const double rate = 1 - 0.1 * step;
      draw(set.gradient("first"), random);
      draw(set.gradient("second"), random);
      const long allocations = allocations_in([&] { optimizer.step(set, rate); });
      if (step > 0) CHECK(allocations == 0);
      first.step(by_hand.first, set.gradient("first"), rate);
      second.step(by_hand.second, set.gradient("second"), rate);
    }
    CHECK(model == by_hand);
    const auto& states = optimizer.states().at("default");
    CHECK(states.at("first") == first.state());
    CHECK(states.at("second") == second.state());
  });
}

TEST_CASE("adapters that take turns keep their moments, as if each were trained alone", "[model]") {
  for_every_method([]<class Method>(const std::string& name, const Method& method) {
    CAPTURE(name);
    Random start{3};
    ModelAdapter<double> french;
    french.emplace("second", AdapterState<double>::of({.rank = 4}, random_factors<double>(9, 15, 4, start)));
    Pair model(Random{1}), german_alone(Random{1}), french_alone(Random{1});
    AdapterSet<double> set{"german"};
    model.add_to(set);
    set.add("french", french);
    ModelOptimizer optimizer{method, set};
    auto part = french.at("second");
    french_alone.second.swap(part);
    Optimizer first{method, german_alone.first}, second{method, german_alone.second},
        other{method, french_alone.second};
    Random random{4};
    for (int step = 0; step < 6; ++step) {
      if (step % 2 == 0) {
        set.activate("german");
        draw(set.gradient("first"), random);
        draw(set.gradient("second"), random);
        first.step(german_alone.first, set.gradient("first"));
        second.step(german_alone.second, set.gradient("second"));
      } else {
        set.activate("french");
        draw(set.gradient("second"), random);
        other.step(french_alone.second, set.gradient("second"));
      }
      optimizer.step(set);
    }
    CHECK(set.adapter("french").at("second") == french_alone.second.adapter());
    CHECK(set.adapter("german").at("first") == german_alone.first.adapter());
    CHECK(set.adapter("german").at("second") == german_alone.second.adapter());
    CHECK(optimizer.states().at("french").size() == 1);
    optimizer.forget("french");
    optimizer.forget("nobody");
    CHECK(optimizer.states().size() == 1);
  });
}

TEST_CASE("an optimizer goes on from its states with the same bits", "[model]") {
  Pair model(Random{1});
  AdapterSet<double> set;
  model.add_to(set);
  ModelOptimizer optimizer{LoraPlus{AdamW{}}, set};
  Random random{2};
  const auto step = [&](auto& by) {
    draw(set.gradient("first"), random);
    draw(set.gradient("second"), random);
    by.step(set);
  };
  step(optimizer);
  ModelOptimizer<LoraPlus<AdamW>, double> resumed(optimizer.method(), optimizer.states());
  CHECK(resumed == optimizer);
  const auto adapter = set.adapter("default");
  const Random at = random;
  step(optimizer);
  const auto expected = set.adapter("default");
  for (const auto& [name, state] : adapter) (name == "first" ? model.first : model.second).set_factors(state.factors);
  random = at;
  step(resumed);
  CHECK(set.adapter("default") == expected);
  CHECK(resumed == optimizer);
}

TEST_CASE("a step that is refused has moved no layer", "[model][errors]") {
  Pair model(Random{1});
  AdapterSet<double> set;
  model.add_to(set);
  const ModelOptimizer start{PerFactor{AdamW{}}, set};
  auto optimizer = start;
  const Pair before = model;
  CHECK(message_of<StateError>([&] { optimizer.step(set); }) ==
        "AdapterSet: layer first needs a gradient (zero_gradients makes them), got none");
  set.zero_gradients();
  set.gradient("first").A.setOnes();
  auto& gradient = set.gradient("second");
  gradient.B(0, 0) = std::numeric_limits<double>::quiet_NaN();
  CHECK(message_of<NumericalError>([&] { optimizer.step(set); }) ==
        "ModelOptimizer::step: layer second: gradient B must be finite, got NaN or infinity");
  gradient.B(0, 0) = 0;
  CHECK(message_of<ConfigError>([&] { optimizer.step(set, -1); }) ==
        "ModelOptimizer::step: rate must be finite and not negative, got -1");
  model.second.merge();
  CHECK(message_of<StateError>([&] { optimizer.step(set); }) ==
        "AdapterSet: unmerge before training, got the merged layer second");
  model.second.unmerge();
  optimizer.method().rule.beta1 = 1;
  CHECK(message_of<ConfigError>([&] { optimizer.step(set); }) == "AdamW: beta1 must lie in [0, 1), got 1");
  optimizer.method() = start.method();
  CHECK(model == before);
  CHECK(optimizer == start);

  Random random{5};
  auto other_rank = AdapterState<double>::of({.rank = 4}, random_factors<double>(9, 15, 4, random));
  model.second.swap(other_rank);
  set.zero_gradients();
  CHECK(message_of<ShapeError>([&] { optimizer.step(set); }) ==
        "ModelOptimizer::step: layer second: the state must be for n, m, r = 9, 15, 4, got 9, 15, 2");
  CHECK(model.first == before.first);
  CHECK(optimizer == start);
  CHECK(message_of<ConfigError>([&] {
          ModelOptimizer{LoraPlus{AdamW{}, -1}, set};
        }) == "LoraPlus: ratio must be positive and finite, got -1");
}

TEST_CASE("what a method finds on the way names the layer", "[model][errors]") {
  Pair model(Random{1});
  AdapterSet<double> set;
  model.add_to(set);
  ModelOptimizer optimizer{LoraFa{AdamW{}}, set};
  set.zero_gradients();
  model.second.factors().A(0, 0) = std::numeric_limits<double>::infinity();
  CHECK(message_of<NumericalError>([&] { optimizer.step(set); }) ==
        "ModelOptimizer::step: layer second: LoraFa::step: factors A must be finite, got NaN or infinity");
}

TEST_CASE("LoRA-FA takes gradients of B alone", "[model]") {
  Pair model(Random{1}), whole(Random{1});
  AdapterSet<double> set, set_of_whole;
  model.add_to(set);
  whole.add_to(set_of_whole);
  ModelOptimizer optimizer{LoraFa{AdamW{}}, set}, of_whole = optimizer;
  Random random{6};
  for (const std::string name : {"first", "second"}) {
    draw(set_of_whole.gradient(name), random);
    set.gradient(name).B = set_of_whole.gradient(name).B;
    set.gradient(name).A.resize(0, set.gradient(name).rank());
  }
  CHECK(set.gradient("first").A.rows() == 0);
  optimizer.step(set);
  of_whole.step(set_of_whole);
  CHECK(model == whole);
  set.zero_gradients();
  CHECK(set.gradient("first").A.rows() == 0);
  CHECK(set.clip(1) == 0);
}
