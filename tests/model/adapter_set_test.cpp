// SPDX-License-Identifier: MIT
// The adapters of a model against the same adapters one layer at a time.
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/starts.hpp"
#include "support/tolerances.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/base/packed_base.hpp>
#include <lora/init/kaiming_uniform.hpp>
#include <lora/model/adapter_set.hpp>

#include <array>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index b = 7;

/// Three layers on three kinds of bases that own their weights, n x m = 10 x 8, 8 x 12, 12 x 6.
template <Real Scalar>
struct Model {
  LoraLinear<OwnedBase<Scalar>> in;
  LoraLinear<OwnedBase<Scalar, Eigen::RowMajor>> middle;
  LoraLinear<PackedBase<Scalar>> out;

  explicit Model(Random random)
      : in(random_columns<Scalar>(10, 8, random), {.rank = 2, .alpha = 3}),
        middle(RowMatrix<Scalar>(random_rows<Scalar>(8, 12, random)), {.rank = 3, .alpha = 3}),
        out(PackedBase<Scalar>(random_columns<Scalar>(12, 6, random)), {.rank = 1, .alpha = 5}) {
    in.initialize(KaimingUniform{}, random);
    middle.set_factors(random_factors<Scalar>(8, 12, 3, random));
    out.initialize(RandomOffset{}, random);
  }
  RowMatrix<Scalar> operator()(const RowMatrix<Scalar>& X) const {
    RowMatrix<Scalar> H(X.rows(), 8), G(X.rows(), 12), Y(X.rows(), 6);
    SavedState<Scalar> saved;
    in.forward(X, H, saved);
    middle.forward(H, G, saved);
    out.forward(G, Y, saved);
    return Y;
  }
  void add_to(AdapterSet<Scalar>& set) {
    set.add_layer("in", in);
    set.add_layer("middle", middle);
    set.add_layer("out", out);
  }
};

template <Real Scalar>
AdapterState<Scalar> random_state(Index n, Index m, Index r, Random& random) {
  return AdapterState<Scalar>::of({.rank = r, .alpha = 1.5}, random_factors<Scalar>(n, m, r, random));
}

/// On all layers, and on `middle` alone.
template <Real Scalar>
ModelAdapter<Scalar> french(Random random) {
  ModelAdapter<Scalar> adapter;
  adapter.emplace("in", random_state<Scalar>(10, 8, 4, random));
  adapter.emplace("middle", random_state<Scalar>(8, 12, 1, random));
  adapter.emplace("out", random_state<Scalar>(12, 6, 3, random));
  return adapter;
}
template <Real Scalar>
ModelAdapter<Scalar> partial(Random random) {
  ModelAdapter<Scalar> adapter;
  adapter.emplace("middle", random_state<Scalar>(8, 12, 2, random));
  return adapter;
}

/// The model with an adapter put in by hand, layers without a part switched off.
template <Real Scalar>
Model<Scalar> with(const Model<Scalar>& model, ModelAdapter<Scalar> adapter) {
  Model<Scalar> copy = model;
  const auto put = [&](auto& layer, const char* name) {
    const auto part = adapter.find(name);
    if (part == adapter.end()) return layer.disable();
    layer.swap(part->second);
  };
  put(copy.in, "in");
  put(copy.middle, "middle");
  put(copy.out, "out");
  return copy;
}

template <class Call>
std::string state_error(const Call& call) {
  return message_of<StateError>(call);
}
template <class Call>
std::string config_error(const Call& call) {
  return message_of<ConfigError>(call);
}

}  // namespace

TEMPLATE_TEST_CASE("each activated adapter gives the output of a model that has it alone, in any order",
                   "[model][adapter_set]", float, double) {
  Model<TestType> model(Random{1});
  const Model<TestType> german = model;
  Random random{2};
  const auto X = random_rows<TestType>(b, 10, random);
  AdapterSet<TestType> set{"german"};
  model.add_to(set);
  set.add("french", french<TestType>(Random{3}));
  set.add("partial", partial<TestType>(Random{4}));
  CHECK(set.adapter_names() == std::vector<std::string>{"german", "french", "partial"});
  const auto german_adapter = set.adapter("german");
  CHECK(german_adapter.at("out") == german.out.adapter());

  const auto expected = [&](const std::string& name) {
    if (name == "german") return german(X);
    return with(german, name == "french" ? french<TestType>(Random{3}) : partial<TestType>(Random{4}))(X);
  };
  for (const std::string name : {"french", "german", "partial", "french", "partial", "partial", "german", "french"}) {
    set.activate(name);
    CAPTURE(name);
    CHECK(set.active() == name);
    CHECK(same_bits(model(X), expected(name)));
    CHECK(set.adapter("german") == german_adapter);  // wherever it lies
    CHECK(set.adapter("french") == french<TestType>(Random{3}));
    CHECK(set.adapter("partial") == partial<TestType>(Random{4}));
  }
  set.activate("german");
  CHECK(model.in == german.in);
  CHECK(model.middle == german.middle);
  CHECK(model.out == german.out);
}

TEST_CASE("a switch moves factors without a copy, and allocates nothing", "[model][adapter_set][allocations]") {
  Model<float> model(Random{1});
  AdapterSet<float> set{"german"};
  model.add_to(set);
  set.add("french", french<float>(Random{3}));
  set.add("partial", partial<float>(Random{4}));
  const float* german_A = std::as_const(model.in).factors().A.data();
  if (!allocations_are_counted) WARN(not_counted);
  CHECK(allocations_in([&] { set.activate("french"); }) == 0);
  const float* french_A = std::as_const(model.in).factors().A.data();
  CHECK(french_A != german_A);
  CHECK(allocations_in([&] {
          set.activate("german");
          set.activate("partial");
          set.activate("french");
        }) == 0);
  CHECK(std::as_const(model.in).factors().A.data() == french_A);

  set.zero_gradients();  // from now on in training
  auto& gradient = set.gradient("in");
  gradient.A.setOnes();
  set.activate("german");  // makes its gradients
  CHECK(gradient == model.in.zero_gradient());
  gradient.B.setOnes();
  CHECK(allocations_in([&] { set.activate("french"); }) == 0);
  CHECK(gradient.A == ColMatrix<float>::Ones(10, 4));
  set.activate("german");
  CHECK(gradient.B == RowMatrix<float>::Ones(2, 8));
  CHECK(&set.gradient("in") == &gradient);
}

TEST_CASE("on layers without the active adapter the base runs alone, and nothing there is trained", "[model]") {
  Model<double> model(Random{1});
  AdapterSet<double> set{"german"};
  model.add_to(set);
  set.add("partial", partial<double>(Random{4}));
  CHECK(set.parameters() == 2 * 18 + 3 * 20 + 18);
  set.activate("partial");
  CHECK_FALSE(model.in.enabled());
  CHECK(model.middle.enabled());
  CHECK(set.parameters() == 2 * 20);
  CHECK(set.layers() == std::vector<AdaptedLayer>{{"middle", 8, 12, {.rank = 2, .alpha = 1.5}}});
  CHECK(state_error([&] { set.gradient("in"); }) ==
        "AdapterSet::gradient: adapter partial must be on the layer, got in");
  set.zero_gradients();
  int visited = 0;
  set.for_each_trained([&](const std::string& name, const auto&, const auto& gradient, double scale) {
    CHECK(name == "middle");
    CHECK(gradient.rank() == 2);
    CHECK(scale == 0.75);
    ++visited;
  });
  CHECK(visited == 1);
  const auto in_weight = ColMatrix<double>(model.in.base().weight());
  set.merge();
  CHECK(model.middle.merged());
  CHECK_FALSE(model.in.merged());
  CHECK(model.in.base().weight() == in_weight);
  set.unmerge();
  set.disable();
  set.activate("german");
  CHECK_FALSE(model.in.enabled());  // the switches follow the set's
  set.enable();
  CHECK(model.in.enabled());
}

TEST_CASE("a removed adapter is gone, also from layers that it still lies in", "[model][adapter_set]") {
  Model<double> model(Random{1});
  const Model<double> german = model;
  Random random{2};
  const auto X = random_rows<double>(b, 10, random);
  AdapterSet<double> set{"german"};
  model.add_to(set);
  set.add("french", french<double>(Random{3}));
  set.add("partial", partial<double>(Random{4}));
  set.activate("partial");  // of german, `in` and `out` stay in the layers, switched off
  set.remove("german");
  CHECK(set.adapter_names() == std::vector<std::string>{"french", "partial"});
  CHECK(config_error([&] { set.activate("german"); }) ==
        "AdapterSet::activate: an adapter must have been added, got german");
  set.activate("french");
  CHECK(same_bits(model(X), with(german, french<double>(Random{3}))(X)));
  set.add("german", partial<double>(Random{5}));  // the name is free
  set.activate("german");
  CHECK(set.adapter("german") == partial<double>(Random{5}));
  set.activate("french");
  CHECK(same_bits(model(X), with(german, french<double>(Random{3}))(X)));
}

TEST_CASE("an adapter takes another value in its place, active or not", "[model][adapter_set]") {
  Model<double> model(Random{1});
  const Model<double> german = model;
  Random random{2};
  const auto X = random_rows<double>(b, 10, random);
  AdapterSet<double> set{"german"};
  model.add_to(set);
  set.add("other", partial<double>(Random{4}));
  set.zero_gradients();
  set.gradient("middle").A.setOnes();
  set.replace("other", french<double>(Random{3}));  // while german is active
  CHECK(model.middle == german.middle);
  CHECK(set.gradient("middle").A == ColMatrix<double>::Ones(8, 3));
  set.activate("other");
  CHECK(same_bits(model(X), with(german, french<double>(Random{3}))(X)));
  set.replace("other", partial<double>(Random{4}));
  CHECK(set.active() == "other");
  CHECK(set.adapter("other") == partial<double>(Random{4}));
  CHECK(same_bits(model(X), with(german, partial<double>(Random{4}))(X)));
  CHECK(set.gradient("middle") == Factors<double>::zero(8, 12, 2));
  CHECK(set.adapter_names() == std::vector<std::string>{"german", "other"});
  auto wrong = french<double>(Random{3});
  wrong.at("out").factors.A.resize(3, 3);
  CHECK(message_of<ShapeError>([&] { set.replace("other", wrong); }) ==
        "AdapterSet::replace: layer out: A must be 12 x 3, got 3 x 3");
  model.middle.merge();
  CHECK(state_error([&] { set.replace("other", french<double>(Random{3})); }) ==
        "AdapterSet::replace: unmerge first, got the merged layer middle");
  model.middle.unmerge();
  CHECK(set.adapter("other") == partial<double>(Random{4}));
  CHECK(config_error([&] { set.replace("nobody", wrong); }) ==
        "AdapterSet::replace: an adapter must have been added, got nobody");
  set.activate("german");
  CHECK(same_bits(model(X), german(X)));
}

TEMPLATE_TEST_CASE("merging the model merges every layer, and unmerging restores all bit for bit", "[model][merge]",
                   float, double) {
  Model<TestType> model(Random{1});
  const Model<TestType> before = model;
  Model<TestType> by_hand = model;
  Random random{2};
  const auto X = random_rows<TestType>(b, 10, random);
  AdapterSet<TestType> set;
  model.add_to(set);
  CHECK_FALSE(set.merged());
  set.merge();
  by_hand.in.merge();
  by_hand.middle.merge();
  by_hand.out.merge();
  CHECK(set.merged());
  CHECK(same_bits(model(X), by_hand(X)));
  set.unmerge();
  CHECK(model.in == before.in);
  CHECK(model.middle == before.middle);
  CHECK(model.out == before.out);
  CHECK(same_bits(model(X), before(X)));
}

namespace {

/// A weight that cannot be merged into once `refuses`.
struct Refusing : OwnedBase<double> {
  using OwnedBase<double>::OwnedBase;
  std::shared_ptr<bool> refuses = std::make_shared<bool>(false);
  void merge(const ConstFactorsView<double>& factors, double scale) {
    if (*refuses) throw std::bad_alloc();
    OwnedBase<double>::merge(factors, scale);
  }
};

}  // namespace

TEST_CASE("a merge that fails half-way leaves no layer merged", "[model][merge]") {
  Random random{5};
  Model<double> model(Random{1});
  const auto before = model.in;
  LoraLinear<Refusing> last(Refusing(random_columns<double>(6, 4, random)), {.rank = 2});
  AdapterSet<double> set;
  model.add_to(set);
  set.add_layer("last", last);
  *last.base().refuses = true;
  CHECK_THROWS_AS(set.merge(), std::bad_alloc);
  CHECK_FALSE(set.merged());
  CHECK(model.in == before);
  *last.base().refuses = false;
  set.merge();
  CHECK(last.merged());

  last.unmerge();
  CHECK(state_error([&] { set.unmerge(); }) == "AdapterSet::unmerge: all layers must be merged, got last unmerged");
  CHECK(model.in.merged());
  CHECK(state_error([&] { set.merge(); }) == "AdapterSet::merge: unmerge first, got the merged layer in");
  CHECK_FALSE(last.merged());
  CHECK(state_error([&] { set.activate("default"); }) == "[no error]");  // it is active
  model.in.unmerge();
  model.middle.unmerge();
  model.out.unmerge();
  model.middle.disable();
  CHECK(state_error([&] { set.merge(); }) == "AdapterSet::merge: enable first, got the layer middle switched off");
  CHECK_FALSE(model.in.merged());
  const auto W0 = random_columns<double>(6, 4, random);
  LoraLinear viewed{W0, {.rank = 2}};
  set.enable();
  set.add_layer("viewed", viewed);
  CHECK(state_error([&] { set.merge(); }) ==
        "AdapterSet::merge: needs bases that own their weights, got viewed on another");
  CHECK_FALSE(set.merged());
}

TEST_CASE("what would leave a base behind is refused while a layer is merged or baked, and changes none",
          "[model][errors]") {
  Model<double> model(Random{1});
  AdapterSet<double> set{"german"};
  model.add_to(set);
  set.add("french", french<double>(Random{3}));
  set.zero_gradients();
  model.out.merge();
  const Model<double> before = model;
  CHECK(state_error([&] { set.activate("french"); }) ==
        "AdapterSet::activate: unmerge first, got the merged layer out");
  CHECK(state_error([&] { set.disable(); }) == "AdapterSet::disable: unmerge first, got the merged layer out");
  CHECK(state_error([&] { set.for_each_trained([](auto&&...) {}); }) ==
        "AdapterSet: unmerge before training, got the merged layer out");
  CHECK(set.active() == "german");
  CHECK(model.in == before.in);
  CHECK(model.out == before.out);
  model.out.unmerge();
  model.in.initialize(RandomOffset{}, *std::make_unique<Random>(6));
  model.in.bake();
  CHECK(state_error([&] { set.activate("french"); }) ==
        "AdapterSet::activate: needs the bases as they were given, got an offset baked into in");
  CHECK(state_error([&] { set.disable(); }) ==
        "AdapterSet::disable: needs the bases as they were given, got an offset baked into in");
  CHECK(set.active() == "german");
  CHECK(model.middle.enabled());
}

TEST_CASE("a layer that was moved or destroyed is named by whatever needs it", "[model][errors]") {
  Random random{7};
  using Layer = LoraLinear<OwnedBase<double>>;
  std::vector<Layer> layers;
  layers.emplace_back(random_columns<double>(5, 4, random), LoraConfig{.rank = 2});
  AdapterSet<double> set{"german"};
  Model<double> model(Random{1});
  model.add_to(set);
  set.add_layer("moving", layers[0]);
  set.add("french", french<double>(Random{3}));
  set.zero_gradients();
  layers.emplace_back(random_columns<double>(5, 4, random), LoraConfig{.rank = 2});  // the vector moves its elements
  const auto gone = [](const std::string& function) {
    return "AdapterSet::" + function + ": layers must stay where they were added, got a moved or destroyed moving";
  };
  CHECK(state_error([&] { set.activate("french"); }) == gone("activate"));
  CHECK(state_error([&] { set.adapter("german"); }) == gone("adapter"));
  CHECK(state_error([&] { set.gradient("moving"); }) == gone("gradient"));
  CHECK(state_error([&] { set.zero_gradients(); }) == gone("zero_gradients"));
  CHECK(state_error([&] { set.clip(1); }) == gone("clip"));
  CHECK(state_error([&] { set.for_each_trained([](auto&&...) {}); }) == gone("for_each_trained"));
  CHECK(state_error([&] { set.merge(); }) == gone("merge"));
  CHECK(state_error([&] { set.unmerge(); }) == "AdapterSet::unmerge: all layers must be merged, got in unmerged");
  CHECK(state_error([&] { set.enable(); }) == gone("enable"));
  CHECK(state_error([&] { set.disable(); }) == gone("disable"));
  CHECK(state_error([&] { set.parameters(); }) == gone("parameters"));
  CHECK(state_error([&] { set.layers(); }) == gone("layers"));
  CHECK(state_error([&] { set.describe(); }) == gone("describe"));
  CHECK(state_error([&] { set.merged(); }) == gone("merged"));
  CHECK(set.gradient("in") == model.in.zero_gradient());
  CHECK(set.active() == "german");
  CHECK(model.middle.enabled());

  std::optional<AdapterSet<double>> other(std::in_place, "other");
  other->add_layer("anywhere", layers[0]);
  CHECK(state_error([&] { set.add_layer("again", layers[0]); }) ==
        "AdapterSet::add_layer: layer again must not be in a set already, got one that is");
  other.reset();
  set.add_layer("again", layers[0]);
  const AdapterSet<double> moved = std::move(set);  // the set itself may move
  CHECK(moved.layer_names() == std::vector<std::string>{"in", "middle", "out", "moving", "again"});
  CHECK(moved.adapter("french").size() == 3);
}

TEST_CASE("names must be there, and there once", "[model][errors]") {
  Model<double> model(Random{1});
  CHECK(config_error([] { AdapterSet<double>{""}; }) == "AdapterSet: a name must not be empty, got none");
  AdapterSet<double> set{"german"};
  CHECK(config_error([&] { set.add_layer("", model.in); }) ==
        "AdapterSet::add_layer: a name must not be empty, got none");
  model.add_to(set);
  Random random{8};
  LoraLinear free_layer{random_columns<double>(4, 4, random), {.rank = 1}};
  CHECK(config_error([&] { set.add_layer("middle", free_layer); }) ==
        "AdapterSet::add_layer: names must differ, got a second layer middle");
  CHECK(state_error([&] { set.add_layer("twice", model.in); }) ==
        "AdapterSet::add_layer: layer twice must not be in a set already, got one that is");
  CHECK(set.layer_names().size() == 3);
  CHECK(config_error([&] { set.gradient("q_proj"); }) ==
        "AdapterSet::gradient: a layer must have been added, got q_proj");
  CHECK(config_error([&] { set.activate("french"); }) ==
        "AdapterSet::activate: an adapter must have been added, got french");
  CHECK(config_error([&] { set.adapter("french"); }) ==
        "AdapterSet::adapter: an adapter must have been added, got french");
  CHECK(config_error([&] { set.remove("french"); }) ==
        "AdapterSet::remove: an adapter must have been added, got french");
  CHECK(state_error([&] { set.remove("german"); }) == "AdapterSet::remove: activate another adapter first, got german");

  const auto added = [&](const std::string& name, const auto& spoil) {
    auto adapter = french<double>(Random{3});
    spoil(adapter);
    set.add(name, adapter);
  };
  const auto as_it_is = [](auto&) {};
  CHECK(config_error([&] { added("", as_it_is); }) == "AdapterSet::add: a name must not be empty, got none");
  CHECK(config_error([&] { added("german", as_it_is); }) ==
        "AdapterSet::add: names must differ, got a second adapter german");
  CHECK(config_error([&] { added("x", [](auto& adapter) { adapter.clear(); }); }) ==
        "AdapterSet::add: an adapter needs at least one layer, got none");
  CHECK(config_error([&] { added("x", [](auto& adapter) { adapter.emplace("q_proj", adapter.at("in")); }); }) ==
        "AdapterSet::add: a layer must have been added, got q_proj");
  CHECK(config_error([&] { added("x", [](auto& adapter) { adapter.at("in").config.rank = 9; }); }) ==
        "AdapterSet::add: layer in: rank must lie in [1, min(n, m)] = [1, 8], got 9");
  CHECK(config_error([&] {
          added("x", [](auto& adapter) { adapter.at("in").scale = std::numeric_limits<double>::quiet_NaN(); });
        }) == "AdapterSet::add: layer in: scale must be finite, got nan");
  CHECK(message_of<ShapeError>([&] { added("x", [](auto& adapter) { adapter.at("out").factors.A.resize(11, 3); }); }) ==
        "AdapterSet::add: layer out: A must be 12 x 3, got 11 x 3");
  CHECK(message_of<NumericalError>([&] {
          added("x",
                [](auto& adapter) { adapter.at("middle").factors.B(0, 0) = std::numeric_limits<double>::infinity(); });
        }) == "AdapterSet::add: layer middle: B must be finite, got NaN or infinity");
  CHECK(set.adapter_names() == std::vector<std::string>{"german"});
}

TEST_CASE("an adapter whose layer was given another weight since is refused before any layer changes",
          "[model][errors]") {
  Random random{9};
  using Layer = LoraLinear<OwnedBase<double>>;
  Layer first(random_columns<double>(10, 8, random), {.rank = 2}), second = first;
  AdapterSet<double> set{"german"};
  set.add_layer("first", first);
  set.add_layer("second", second);
  ModelAdapter<double> other;
  other.emplace("first", random_state<double>(10, 8, 3, random));
  other.emplace("second", random_state<double>(10, 8, 3, random));
  set.add("other", other);
  second = Layer(random_columns<double>(7, 8, random), {.rank = 2});
  CHECK(message_of<ShapeError>([&] { set.activate("other"); }) ==
        "AdapterSet::activate: layer second: A must be 7 x 3, got 10 x 3");
  CHECK(first.rank() == 2);
  CHECK(set.active() == "german");
}

TEMPLATE_TEST_CASE("clipping goes over all layers, and over a head as well", "[model][clip]", float, double) {
  Model<TestType> model(Random{1});
  AdapterSet<TestType> set;
  model.add_to(set);
  CHECK(set.clip(1) == 0);  // no gradient yet
  set.zero_gradients();
  std::vector<Factors<TestType>> by_hand;
  Random random{2};
  for (const auto& name : set.layer_names()) {
    auto& gradient = set.gradient(name);
    gradient = random_factors<TestType>(gradient.in_features(), gradient.out_features(), gradient.rank(), random);
    by_hand.push_back(gradient);
  }
  std::vector<TestType> head(20, TestType(2)), head_by_hand = head;
  const double norm = clip_global_norm(by_hand, std::array{std::span(head_by_hand)}, 0.5);
  const std::array dense{std::span(head)};
  CHECK(set.clip(0.5, dense) == norm);
  CHECK(head == head_by_hand);
  CHECK(same_bits(set.gradient("in"), by_hand[0]));
  CHECK(same_bits(set.gradient("out"), by_hand[2]));
  const double second = clip_global_norm(by_hand, 0.25);
  if (!allocations_are_counted) WARN(not_counted);
  CHECK(allocations_in([&] { CHECK(set.clip(0.25) == second); }) <= 20);  // Catch's own
  CHECK(allocations_in([&] { set.clip(0.125); }) == 0);
  CHECK(config_error([&] { set.clip(0); }) == "clip_global_norm: max_norm must be positive, got 0");
}

TEST_CASE("the table of layers says n, m, r, scale and parameters", "[model]") {
  Model<float> model(Random{1});
  AdapterSet<float> set{"german"};
  model.add_to(set);
  set.add("partial", partial<float>(Random{4}));
  CHECK(set.describe() ==
        "adapter german, parameters 114\n"
        "layer    n   m  r  scale  parameters\n"
        "in      10   8  2    1.5          36\n"
        "middle   8  12  3      1          60\n"
        "out     12   6  1      5          18\n");
  set.activate("partial");
  CHECK(set.describe() ==
        "adapter partial, parameters 40\n"
        "layer    n   m  r  scale  parameters\n"
        "in      10   8  -      -           0\n"
        "middle   8  12  2   0.75          40\n"
        "out     12   6  -      -           0\n");
}

TEST_CASE("a new adapter of zeros fits the layers that it was made for", "[model]") {
  Model<double> model(Random{1});
  AdapterSet<double> set{"german"};
  model.add_to(set);
  auto layers = set.layers();
  for (auto& layer : layers) layer.config.rank = 4;
  set.add("fresh", zero_adapter<double>(layers));
  set.activate("fresh");
  CHECK(model.out.rank() == 4);
  Random random{2};
  model.out.initialize(KaimingUniform{}, random);
  CHECK(set.adapter("fresh").at("out").factors == std::as_const(model.out).factors());
  layers.push_back(layers[0]);
  CHECK(config_error([&] { zero_adapter<double>(layers); }) ==
        "zero_adapter: a layer must stand once, got a second in");
  layers.back().config.rank = 20;
  CHECK(config_error([&] { zero_adapter<double>(layers); }) ==
        "zero_adapter: layer in: rank must lie in [1, min(n, m)] = [1, 8], got 20");
}

static_assert(!std::is_copy_constructible_v<AdapterSet<float>> && std::is_move_constructible_v<AdapterSet<float>>);
