// SPDX-License-Identifier: MIT
// Every type that lists its fields lists all of them: by number, by equality, and by the steps that follow.
#include "support/fields.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/methods.hpp"

#include <lora/lora.hpp>

#include <set>
#include <string>
#include <utility>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 13, m = 11, r = 3;

/// As many names as the aggregate has fields, all different. It may list those of one field in that field's place.
template <class Aggregate, class... Inlined>
void check_names(const Aggregate& value, const Inlined&... inlined) {
  const auto names = field_names(value);
  CHECK(names.size() == (aggregate_size<Aggregate>() + ... + (field_names(inlined).size() - 1)));
  CHECK(std::set<std::string>(names.begin(), names.end()).size() == names.size());
}

/// Each field alone makes a value another one, and comes along when the listed fields are copied.
template <class Value>
void check_copies(const Value& value) {
  for (const auto& changed : with_one_change(value)) {
    CHECK_FALSE(changed == value);
    Value copy = value;
    copy_fields(changed, copy);
    CHECK(copy == changed);
  }
}

template <class Settings>
void check_settings(const Settings& settings) {
  static_assert(HyperParameters<Settings>);
  INFO(Settings::name);
  check_names(settings);
  check_copies(settings);
}

template <class Enum>
void check_enum(int count) {
  std::set<std::string> names;
  for (int i = 0; i < count; ++i) names.insert(name_of(static_cast<Enum>(i)));
  CHECK(names.size() == static_cast<std::size_t>(count));
  CHECK(names.count("unknown") == 0);
  CHECK(std::string(name_of(static_cast<Enum>(count))) == "unknown");
}

}  // namespace

TEST_CASE("hyper-parameters list every field", "[optim][fields]") {
  check_settings(AdamW{});
  check_settings(Sgd{});
  check_settings(PerFactor<AdamW>{});
  check_settings(PerFactor<Sgd>{});
  check_settings(LoraPlus<AdamW>{});
  check_settings(LoraPlus<Sgd>{});
  check_settings(LoraPro{});
  check_settings(Riemannian<AdamW>{});
  check_settings(LoraFa<AdamW>{});
  check_settings(FullFineTuning<AdamW>{});
  check_settings(Schedule{});
  check_settings(LoraConfig{});
}

TEST_CASE("every enumerator of a hyper-parameter has a name", "[optim][fields]") {
  check_enum<Sgd::Momentum>(2);
  check_enum<LoraProMode>(4);
  check_enum<LoraPro::Compat>(3);
  check_enum<Freedom>(4);
  check_enum<Schedule::Tail>(3);
  check_enum<Scaling>(2);
}

TEMPLATE_TEST_CASE("states list every field", "[optim][fields]", float, double) {
  const AdamW adamw;
  const Sgd momentum{.momentum = 0.5};
  check_names(adamw.init<TestType>(n, r));
  check_names(momentum.init<TestType>(n, r));
  check_names(PerFactor{adamw}.template init<TestType>(n, m, r));
  check_names(FullFineTuning{adamw}.init(ColMatrix<TestType>(n, m)));
  check_names(Factors<TestType>());
  check_names(AdapterState<TestType>());
  check_names(LoraState<TestType>(), AdapterState<TestType>());
  check_names(typename WeightSpace<LoraPro, TestType>::State{});

  check_copies(adamw.init<TestType>(n, r));
  check_copies(momentum.init<TestType>(n, r));
  check_copies(FullFineTuning{adamw}.init(ColMatrix<TestType>(n, m)));
  check_copies(Factors<TestType>::zero(n, m, r));
  auto adapter = AdapterState<TestType>::zero(n, m, {.rank = r});
  adapter.initial = adapter.factors;
  check_copies(adapter);
  check_copies(LoraState<TestType>{adapter});
  for_each_pair_method([](const auto& method, const char* name) {
    INFO(name);
    check_copies(method.template init<TestType>(n, m, r));
  });
}

TEMPLATE_TEST_CASE("a state whose listed fields were copied goes on with the bits of the original", "[optim][fields]",
                   float, double) {
  for_each_pair_method([](const auto& method, const char* name) {
    INFO(name);
    Random random{21};
    auto factors = random_factors<TestType>(n, m, r, random);
    auto state = method.template init<TestType>(n, m, r);
    const auto step = [&](auto& its_state, auto& its_factors, const Factors<TestType>& gradient, double rate) {
      method.step(its_state, its_factors, gradient, 1.5, rate);
    };
    for (int i = 0; i < 50; ++i) step(state, factors, random_factors<TestType>(n, m, r, random), 1);
    auto copy = method.template init<TestType>(n, m, r);
    CHECK_FALSE(copy == state);
    copy_fields(state, copy);
    CHECK(copy == state);
    auto copied_factors = factors;
    for (int i = 0; i < 100; ++i) {
      const auto gradient = random_factors<TestType>(n, m, r, random);
      step(state, factors, gradient, 0.5);
      step(copy, copied_factors, gradient, 0.5);
    }
    CHECK(same_bits(copied_factors, factors));
    CHECK(copy == state);
  });
}

TEMPLATE_TEST_CASE("a WeightSpace goes on from its state", "[optim][fields]", float, double) {
  for_each_pair_method([](const auto& method, const char* name) {
    INFO(name);
    Random random{22};
    using Space = WeightSpace<std::remove_cvref_t<decltype(method)>, TestType>;
    Space space(method, random_factors<TestType>(n, m, r, random), 1.5);
    auto W = random_columns<TestType>(n, m, random);
    for (int i = 0; i < 50; ++i) space.step(W, random_columns<TestType>(n, m, random));
    Space resumed(method, space.state(), 1.5);
    CHECK(resumed == space);
    auto other = W;
    for (int i = 0; i < 100; ++i) {
      const auto G = random_columns<TestType>(n, m, random);
      space.step(W, G, 0.5);
      resumed.step(other, G, 0.5);
    }
    CHECK(same_bits(W, other));
    CHECK(resumed == space);
  });
}

TEST_CASE("a WeightSpace refuses a state that does not fit together", "[optim][fields]") {
  Random random{23};
  using Space = WeightSpace<PerFactor<>, double>;
  const auto state = Space(PerFactor<>{}, random_factors<double>(n, m, r, random), 1).state();
  auto other = state;
  other.initial.A.resize(n + 1, r);
  CHECK(message_of<ShapeError>([&] { Space(PerFactor<>{}, other, 1); }) ==
        "WeightSpace: initial A must be 13 x 3, got 14 x 3");
  other = state;
  other.initial.B(0, 0) /= 0.0;
  CHECK(message_of<NumericalError>([&] { Space(PerFactor<>{}, other, 1); }) ==
        "WeightSpace: initial B must be finite, got NaN or infinity");
  CHECK(message_of<ConfigError>([&] { Space(PerFactor<>{}, state, 0); }) ==
        "WeightSpace: scale must be finite and not zero, got 0");
}
