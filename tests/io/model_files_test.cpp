// SPDX-License-Identifier: MIT
// A model's adapter to PEFT's files and to GGUF, and back into another copy of the model.
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/starts.hpp"
#include "support/temporary_folder.hpp"
#include "support/tolerances.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/init/kaiming_uniform.hpp>
#include <lora/io/model_files.hpp>
#include <lora/io/peft_match.hpp>
#include <lora/model/adapter_set.hpp>
#include <lora/model/combine.hpp>

#include <string>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

const std::string v_name = "model.layers.0.self_attn.v_proj", o_name = "model.layers.0.self_attn.o_proj";

struct Model {
  LoraLinear<OwnedBase<float>> v, o;

  explicit Model(Scaling scaling) : Model(scaling, Random{1}) {}
  Model(Scaling scaling, Random random)
      : v(random_columns<float>(10, 8, random), {.rank = 2, .alpha = 3, .scaling = scaling}),
        o(random_columns<float>(8, 10, random), {.rank = 3, .alpha = 5, .scaling = scaling}) {}
  void train(Random random) {
    v.set_factors(random_factors<float>(10, 8, 2, random));
    o.initialize(RandomOffset{}, random);
    o.set_factors(random_factors<float>(8, 10, 3, random));
    v.set_scale(0.75);  // which its alpha no longer gives
  }
  AdapterSet<float> set() {
    AdapterSet<float> result{"trained"};
    result.add_layer(v_name, v);
    result.add_layer(o_name, o);
    return result;
  }
  RowMatrix<float> operator()(const RowMatrix<float>& X) const {
    RowMatrix<float> H(X.rows(), 8), Y(X.rows(), 10);
    SavedState<float> saved;
    v.forward(X, H, saved);
    o.forward(H, Y, saved);
    return Y;
  }
};

}  // namespace

TEST_CASE("an adapter goes through PEFT's files into another copy of the model", "[io][peft][model]") {
  const auto scaling = GENERATE(Scaling::Standard, Scaling::RankStabilized);
  Model model(scaling), copy(scaling);
  model.train(Random{2});
  const auto set = model.set();
  const TemporaryFolder folder;
  peft::save(folder.path(), peft::adapter_of(set.adapter("trained")));
  const auto read = peft::load<float>(folder.path());
  CHECK(peft::require_match(read, set.layers()).matched.size() == 2);
  CHECK(read.config.scaling == scaling);

  auto other = copy.set();
  other.add("read", peft::model_adapter(read));
  other.activate("read");
  CHECK(copy.o.rank() == 6);  // the offset folded in
  CHECK(copy.v.scale() == model.v.scale());
  Random random{3};
  const auto X = random_rows<float>(5, 10, random);
  const RowMatrix<float> Y = model(X);
  CHECK((copy(X) - Y).norm() <= stored_adapter * Y.norm());

  CHECK(peft::adapter_of(other.adapter("read"), read.config) == read);
}

TEST_CASE("an adapter goes through GGUF with its offset folded in", "[io][gguf][model]") {
  Model model(Scaling::Standard);
  model.train(Random{4});
  const auto set = model.set();
  const TemporaryFolder folder;
  const gguf::BaseModel base{.head_count = 2, .head_count_kv = 2};
  const auto modules = gguf::modules_of(set.adapter("trained"));
  gguf::save_adapter(folder / "adapter.gguf", modules, base);
  for (const auto& module : gguf::load_adapter(folder / "adapter.gguf", base)) {
    const auto& layer = module.name == v_name ? model.v : model.o;
    const auto change = layer.delta();
    const RowMatrix<float> expected = static_cast<float>(layer.scale()) * change.A * change.B;
    const RowMatrix<float> found = static_cast<float>(module.scale) * module.factors.A * module.factors.B;
    CHECK((found - expected).norm() <= stored_adapter * expected.norm());
  }
  auto read = gguf::load_adapter(folder / "adapter.gguf", base);
  Model copy(Scaling::Standard);
  auto other = copy.set();
  other.add("read", gguf::model_adapter(read));
  other.activate("read");
  Random rows{5};
  const auto X = random_rows<float>(5, 10, rows);
  const RowMatrix<float> Y = model(X);
  CHECK((copy(X) - Y).norm() <= stored_adapter * Y.norm());
  CHECK(gguf::modules_of(gguf::model_adapter(read)) == read);

  read.front().scale = -0.5;  // no alpha of a layer gives that
  const auto negative = gguf::model_adapter(read);
  CHECK(negative.at(read.front().name).scale == -0.5);
  CHECK(negative.at(read.front().name).config.alpha == static_cast<double>(read.front().factors.rank()));
  read.push_back(read.front());
  CHECK(message_of<ConfigError>([&] { gguf::model_adapter(read); }) ==
        "gguf::model_adapter: a module must stand once, got a second " + read.front().name);
}

TEST_CASE("what fills a portable adapter up to its one rank does not keep it out of a set", "[io][peft][gguf][model]") {
  Random random{6};
  LoraLinear<OwnedBase<float>> wide(random_columns<float>(16, 16, random), {.rank = 8, .alpha = 4}),
      narrow(random_columns<float>(16, 4, random), {.rank = 2, .alpha = 3});
  wide.set_factors(random_factors<float>(16, 16, 8, random));
  narrow.set_factors(random_factors<float>(16, 4, 2, random));
  AdapterSet<float> set{"trained"};
  set.add_layer(v_name, wide);
  set.add_layer(o_name, narrow);
  const auto factors = set.adapter("trained").at(o_name).factors;
  const TemporaryFolder folder;
  peft::save_portable(folder.path(), peft::adapter_of(set.adapter("trained")));
  const auto read = peft::load<float>(folder.path());
  CHECK(read.modules.at(o_name).factors.rank() == 8);

  set.add("portable", peft::model_adapter(read));
  const auto state = set.adapter("portable").at(o_name);
  CHECK(state.config.rank == 2);
  CHECK(state.config.alpha == 2);
  CHECK(state.scale == 1);
  CHECK(state.factors.A == factors.A);
  CHECK(state.factors.B == RowMatrix<float>(1.5F * factors.B));
  const auto from_gguf = gguf::model_adapter({{o_name, read.modules.at(o_name).factors, 1}});
  CHECK(from_gguf.at(o_name).factors == state.factors);
  CHECK(from_gguf.at(o_name).config.alpha == 2);

  auto zero = read;
  zero.modules.at(o_name).factors = Factors<float>::zero(16, 4, 8);
  CHECK(peft::model_adapter(zero).at(o_name).config.rank == 1);
  // PEFT trains ranks that no layer here has.
  auto& full = zero.modules.at(o_name).factors;
  full = random_factors<float>(16, 4, 8, random);
  const auto large = peft::model_adapter(zero);
  CHECK(large.at(o_name).factors == full);
  CHECK(message_of<ConfigError>([&] {
          set.add("large", large);
        }).ends_with("rank must lie in [1, min(n, m)] = [1, 4], got 8"));
  const auto small = combine(std::vector<WeightedAdapter<float>>{{large.at(o_name), 1}},
                             {.method = Combination::Svd, .rank = 4}, random);
  CHECK(small.config.rank == 4);
}
