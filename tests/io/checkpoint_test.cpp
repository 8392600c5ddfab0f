// SPDX-License-Identifier: MIT
// Runs that go on from a file, to the bit.
#include "io/checkpoint_run.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/methods.hpp"
#include "support/starts.hpp"

#include <lora/base/view_base.hpp>
#include <lora/init/kaiming_uniform.hpp>
#include <lora/io/checkpoint.hpp>
#include <lora/optim/full_fine_tuning.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

constexpr Index n = 13, m = 11, r = 3;

template <Real Scalar, class Method>
using RunOf = Run<Scalar, std::remove_cvref_t<Method>>;

/// A state of a user's own.
struct Numbers {
  int small = std::numeric_limits<int>::min();
  std::int64_t wide = std::numeric_limits<std::int64_t>::min();
  std::uint64_t whole = std::numeric_limits<std::uint64_t>::max();
  double real = 0.1, zero = -0.0, infinite = -std::numeric_limits<double>::infinity(),
         none = std::numeric_limits<double>::signaling_NaN();
  float narrow = 0.1F;
  bool on = true;
  std::vector<double> losses{1, 0.5, std::numeric_limits<double>::denorm_min()};

  static void fields(auto& self, const auto& visit) {
    visit("small", self.small);
    visit("wide", self.wide);
    visit("whole", self.whole);
    visit("real", self.real);
    visit("zero", self.zero);
    visit("infinite", self.infinite);
    visit("none", self.none);
    visit("narrow", self.narrow);
    visit("on", self.on);
    visit("losses", self.losses);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("100 steps after a checkpoint have the bits of a run that was never stopped", "[io][checkpoint]",
                   float, double) {
  const Folder folder("resume");
  for_each_pair_method([&](const auto& method, const char* name) {
    for (const std::uint64_t seed : {1U, 2U}) {  // from A = B = 0 but for noise, and with an offset
      INFO(name << ", seed " << seed);
      RunOf<TestType, decltype(method)> run(method, seed), resumed(method, 3);
      if (seed == 1) run.layer.initialize(KaimingUniform{}, run.random);
      run.train(50);
      run.checkpoint.write(folder / "run");
      run.train(100);
      CHECK_FALSE(resumed.same_as(run));
      resumed.checkpoint.restore(folder / "run");
      CHECK(resumed.step == 50);
      resumed.train(100);
      CHECK(resumed.same_as(run));
    }
  });
}

TEMPLATE_TEST_CASE("the optimizer view resumes together with its weight", "[io][checkpoint]", float, double) {
  for_each_pair_method([&](const auto& method, const char* name) {
    INFO(name);
    Random random{2};
    struct View {
      ColMatrix<TestType> W;
      WeightSpace<std::remove_cvref_t<decltype(method)>, TestType> space;
      Checkpoint checkpoint;

      View(const std::remove_cvref_t<decltype(method)>& its_method, Random& start)
          : W(random_columns<TestType>(n, m, start)), space(its_method, random_factors<TestType>(n, m, r, start), 1.5) {
        checkpoint.add("W", W).add("adapter", space);
      }
    };
    View view(method, random), resumed(method, random);
    const auto T = random_columns<TestType>(n, m, random);
    const auto train = [&](View& its, int count) {
      for (int i = 0; i < count; ++i) its.space.step(its.W, ColMatrix<TestType>(its.W - T), 0.5);
    };
    train(view, 50);
    resumed.checkpoint.restore(view.checkpoint.to_bytes());
    CHECK(resumed.space == view.space);
    train(view, 100);
    train(resumed, 100);
    CHECK(same_bits(resumed.W, view.W));
    CHECK(resumed.space == view.space);
  });
}

TEMPLATE_TEST_CASE("full fine-tuning resumes, weights in either order", "[io][checkpoint]", float, double) {
  Random random{3};
  const FullFineTuning method{AdamW{.learning_rate = 0.01}};
  auto columns = random_columns<TestType>(n, m, random);
  auto rows = random_rows<TestType>(n, m, random);
  auto column_state = method.init(columns), row_state = method.init(rows);
  Checkpoint checkpoint;
  checkpoint.add("columns", columns).add("rows", rows).add("optimizer/columns", column_state);
  checkpoint.add("optimizer/rows", row_state);
  const auto train = [&](int count) {
    for (int i = 0; i < count; ++i) {
      const auto gradient = columns;
      method.step(column_state, columns, gradient);
      const auto other = rows;
      method.step(row_state, rows, other);
    }
  };
  train(50);
  const auto bytes = checkpoint.to_bytes();
  train(100);
  const auto columns_then = columns;
  const auto rows_then = rows;
  const auto state_then = row_state;
  checkpoint.restore(bytes);
  CHECK_FALSE(same_bits(columns, columns_then));
  train(100);
  CHECK(same_bits(columns, columns_then));
  CHECK(same_bits(rows, rows_then));
  CHECK(row_state == state_then);
}

TEST_CASE("a layer comes back with its switches, its scale and its offset, in the memory where it was",
          "[io][checkpoint]") {
  Random random{4};
  const auto W0 = random_columns<float>(n, m, random);
  const auto X = random_rows<float>(5, n, random);
  const auto output = [&](const auto& layer) {
    RowMatrix<float> Y(5, m);
    SavedState<float> saved;
    layer.forward(X, Y, saved);
    return Y;
  };
  const auto resumed = [&](auto& layer, auto fresh) {
    const auto before = fresh.factors();
    Checkpoint().add("layer", fresh).restore(Checkpoint().add("layer", layer).to_bytes());
    CHECK(fresh == layer);
    CHECK(same_bits(output(fresh), output(layer)));
    const auto after = fresh.factors();
    CHECK(after.A.data() == before.A.data());
    CHECK(after.B.data() == before.B.data());
    return fresh;
  };
  const LoraLinear start{W0, {.rank = r, .alpha = 6}};
  auto plain = start;
  plain.initialize(KaimingUniform{}, random);
  auto offset = start;
  offset.initialize(RandomOffset{}, random);
  resumed(plain, start);
  resumed(plain, offset);  // an offset that is there goes
  resumed(offset, start);
  resumed(offset, plain);
  offset.set_scale(-0.75);
  CHECK(resumed(offset, start).scale() == -0.75);
  offset.disable();
  CHECK_FALSE(resumed(offset, start).enabled());

  const LoraLinear own{OwnedBase<float>(W0), {.rank = r, .alpha = 6}};
  auto baked = own;
  baked.initialize(RandomOffset{}, random);
  const auto initial = baked;
  baked.bake();
  baked.factors().A *= 2;
  CHECK(same_bits(resumed(baked, own).base().weight(), baked.base().weight()));
  CHECK(resumed(baked, initial).baked());
  CHECK(resumed(baked, baked).baked());
}

TEST_CASE("a file of one layer and a file of hundreds are written alike", "[io][checkpoint]") {
  constexpr int layers = 300;
  Random random{5};
  const auto W0 = random_columns<float>(n, m, random);
  struct Block {
    LoraLinear<ViewBase<float>> layer;
    Optimizer<LoraPlus<>, float> optimizer;
  };
  const auto model = [&] {
    std::vector<Block> blocks;
    for (int i = 0; i < layers; ++i) {
      LoraLinear layer{W0, {.rank = r}};
      layer.initialize(KaimingUniform{}, random);
      blocks.push_back({layer, Optimizer{LoraPlus<>{}, layer}});
    }
    return blocks;
  };
  const auto parts = [](std::vector<Block>& blocks) {
    Checkpoint checkpoint;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const std::string name = "model.layers." + std::to_string(i) + ".q_proj";
      checkpoint.add("layers/" + name, blocks[i].layer).add("optimizers/" + name, blocks[i].optimizer);
    }
    return checkpoint;
  };
  auto blocks = model(), others = model();
  for (auto& [layer, optimizer] : blocks) optimizer.step(layer, random_factors<float>(n, m, r, random));
  const auto bytes = parts(blocks).to_bytes();
  const auto file = safetensors::File::parse(std::span(bytes));
  const auto& A = file.at("layers/model.layers.7.q_proj/factors/A");
  CHECK(A.shape == safetensors::Shape{r, n});
  const auto& there = std::as_const(blocks[7].layer).factors().A;
  CHECK(std::memcmp(A.bytes.data(), there.data(), A.bytes.size()) == 0);
  parts(others).restore(bytes);
  for (std::size_t i = 0; i < layers; ++i) {
    CHECK(others[i].layer == blocks[i].layer);
    CHECK(others[i].optimizer == blocks[i].optimizer);
  }
}

TEMPLATE_TEST_CASE("a trainer's own memory is a part, with gaps or without", "[io][checkpoint]", float, double) {
  Random random{6};
  const auto values = random_rows<TestType>(n, m, random);
  const auto columns = random_columns<TestType>(n, m, random);
  Strided<TestType, Eigen::RowMajor> wide(values);
  Strided<TestType, Eigen::ColMajor> tall(columns);
  std::vector<TestType> a(n * r, TestType{1}), b(r * m, TestType{2});
  const FactorsView<TestType> pair{{a.data(), n, r}, {b.data(), r, m}};
  Eigen::VectorX<TestType> vector = columns.col(0);
  Checkpoint checkpoint;
  checkpoint.add("wide", wide.view()).add("tall", tall.view()).add("pair", pair).add("vector", vector);
  const auto bytes = checkpoint.to_bytes();
  wide.view().setZero();
  tall.view().setZero();
  vector.setZero();
  std::fill(a.begin(), a.end(), TestType{7});
  std::fill(b.begin(), b.end(), TestType{7});
  checkpoint.restore(bytes);
  CHECK(same_bits(wide.view(), values));
  CHECK(same_bits(tall.view(), columns));
  CHECK(same_bits(vector, columns.col(0)));
  CHECK(a == std::vector<TestType>(n * r, TestType{1}));
  CHECK(b == std::vector<TestType>(r * m, TestType{2}));
  CHECK(wide.border_untouched());
  CHECK(tall.border_untouched());
}

TEST_CASE("numbers come back to the last bit, whatever they are", "[io][checkpoint]") {
  Numbers numbers, others{0, 0, 0, 0, 0, 0, 0, 0, false, {0, 0, 0}};
  const auto bytes = Checkpoint().add("numbers", numbers).to_bytes();
  Checkpoint().add("numbers", others).restore(bytes);
  CHECK((Checkpoint().add("numbers", others).to_bytes() == bytes));
  CHECK(others.small == numbers.small);
  CHECK(std::signbit(others.zero));
  CHECK(others.losses == numbers.losses);
}

TEST_CASE("the file is a safetensors file that says what it holds", "[io][checkpoint]") {
  Index step = 7;
  Schedule schedule{.total_steps = 10, .tail = Schedule::Tail::Linear};
  Random random{8};
  RowMatrix<float> matrix(1, 2);
  matrix << 1, 2;
  auto bytes = Checkpoint().add("step", step).add("s", schedule).add("r", random).add("m", matrix).to_bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const std::string expected =
      R"({"__metadata__":{"lora.format":"checkpoint","lora.version":"1","m":"matrix","r":"generator","s":"Schedule",)"
      R"("s/last":"0","s/tail":"Linear","s/total_steps":"10","s/warmup_steps":"0","step":"integer"},)"
      R"("lora.checksum":{"dtype":"U64","shape":[],"data_offsets":[0,8]},)"
      R"("r/state":{"dtype":"U64","shape":[4],"data_offsets":[8,40]},)"
      R"("step":{"dtype":"I64","shape":[],"data_offsets":[40,48]},)"
      R"("m":{"dtype":"F32","shape":[1,2],"data_offsets":[48,56]}})";
  CHECK(text.substr(8, expected.size()) == expected);
  const std::size_t place = text.size() - 56;
  std::uint64_t stored = 0;
  std::memcpy(&stored, bytes.data() + place, sizeof stored);
  bytes.erase(bytes.begin() + static_cast<std::ptrdiff_t>(place),
              bytes.begin() + static_cast<std::ptrdiff_t>(place + 8));
  std::uint64_t remainder = ~std::uint64_t{0};  // bit by bit
  for (const std::byte byte : bytes) {
    remainder ^= std::to_integer<std::uint64_t>(byte);
    for (int bit = 0; bit < 8; ++bit) remainder = (remainder >> 1) ^ ((remainder & 1) != 0 ? 0xC96C5795D7870F42ULL : 0);
  }
  CHECK(stored == ~remainder);
}

TEST_CASE("the checksum is CRC-64/XZ, however the bytes are cut", "[io][checkpoint]") {
  const std::string_view digits = "123456789";
  for (std::size_t cut = 0; cut <= digits.size(); ++cut) {
    io::Crc64 checksum;
    checksum.update(std::as_bytes(std::span(digits.substr(0, cut))));
    checksum.update(std::as_bytes(std::span(digits.substr(cut))));
    CHECK(checksum.value() == 0x995DC9BBDF1939FAULL);
  }
  CHECK(io::Crc64().value() == 0);
}
