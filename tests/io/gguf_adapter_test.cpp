// SPDX-License-Identifier: MIT
#include "io/gguf_bytes.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include <lora/core/scaling.hpp>
#include <lora/io/gguf_adapter.hpp>

#include <cstdlib>
#include <filesystem>
#include <limits>
#include <span>

#include <unistd.h>

using namespace lora;
using namespace lora::test;

namespace {

using gguf::AdapterModule, gguf::Architecture, gguf::BaseModel;
using Modules = std::vector<AdapterModule>;

/// 12 inputs, 2 heads and 1 key head of 6 outputs.
const BaseModel llama{Architecture::Llama, 2, 1, false};
const BaseModel gpt2{Architecture::Gpt2, 0, 0, false};

const std::string q0 = "model.layers.0.self_attn.q_proj", k0 = "model.layers.0.self_attn.k_proj",
                  v0 = "model.layers.0.self_attn.v_proj", down12 = "model.layers.12.mlp.down_proj",
                  c_attn = "transformer.h.3.attn.c_attn", mlp_proj = "transformer.h.0.mlp.c_proj";

Modules one(const std::string& name, const Factors<float>& factors, double scale = 1) {
  return {{name, factors, scale}};
}

gguf::Contents contents_of(const std::vector<std::byte>& bytes) { return gguf::Contents::parse(bytes, "a.gguf"); }

/// What llama.cpp adds to the output: float(alpha) / float(rank of lora_b) times B A, from the file's own numbers.
Wide added_by_llama_cpp(const gguf::Contents& file, const std::string& weight) {
  const Wide a = wide(gguf::dequantised(file.tensor(weight + ".lora_a")));  // inputs x rank
  const Wide b = wide(gguf::dequantised(file.tensor(weight + ".lora_b")));  // rank x outputs
  const float scale = file.metadata().get<float>("adapter.lora.alpha") / static_cast<float>(b.rows());
  return static_cast<long double>(scale) * product(a, b);
}
Wide meant(const AdapterModule& module) {
  return static_cast<long double>(module.scale) * product(wide(module.factors.A), wide(module.factors.B));
}
Wide bound(const AdapterModule& module) {  // B, alpha and alpha / rank round once each, and the factor of B in double
  return rounding_bound<float>(4) * std::abs(static_cast<long double>(module.scale)) *
         product(absolute(wide(module.factors.A)), absolute(wide(module.factors.B)));
}

/// The files that gguf_check.py opens; names and numbers are repeated there.
Modules llama_modules() {
  return {{q0, gguf_factors(0, 12, 12, 4), 0.5},
          {k0, gguf_factors(1, 12, 6, 4), 0.5},
          {v0, gguf_factors(2, 12, 6, 2), 1.0},
          {"model.layers.0.self_attn.o_proj", gguf_factors(3, 12, 12, 4), 1.0},
          {"model.layers.12.mlp.gate_proj", gguf_factors(4, 12, 20, 1), 0.25},
          {"model.layers.12.mlp.up_proj", gguf_factors(5, 12, 20, 4), -0.75},
          {down12, gguf_factors(6, 20, 12, 4), 0.0}};
}
Modules gpt2_modules() {
  return {{c_attn, gguf_factors(0, 12, 36, 3), 2.0},
          {"transformer.h.3.attn.c_proj", gguf_factors(1, 12, 12, 3), 2.0},
          {"transformer.h.0.mlp.c_fc", gguf_factors(2, 12, 48, 3), 2.0},
          {mlp_proj, gguf_factors(3, 48, 12, 3), 2.0},
          {"lm_head", gguf_factors(4, 12, 30, 3), 2.0}};
}

}  // namespace

TEST_CASE("a module has the name of its tensor, and back", "[io][gguf]") {
  const auto both = [](Architecture architecture, const std::string& module, const std::string& tensor) {
    CHECK(gguf::tensor_name(architecture, module) == tensor);
    CHECK(gguf::module_name(architecture, tensor) == module);
  };
  for (const auto& [module, tensor] :
       std::vector<std::pair<std::string, std::string>>{{"self_attn.q_proj", "attn_q"},
                                                        {"self_attn.k_proj", "attn_k"},
                                                        {"self_attn.v_proj", "attn_v"},
                                                        {"self_attn.o_proj", "attn_output"},
                                                        {"mlp.gate_proj", "ffn_gate"},
                                                        {"mlp.up_proj", "ffn_up"},
                                                        {"mlp.down_proj", "ffn_down"}}) {
    both(Architecture::Llama, "model.layers.31." + module, "blk.31." + tensor + ".weight");
  }
  both(Architecture::Gpt2, "transformer.h.0.attn.c_attn", "blk.0.attn_qkv.weight");
  both(Architecture::Gpt2, "transformer.h.0.attn.c_proj", "blk.0.attn_output.weight");
  both(Architecture::Gpt2, "transformer.h.0.mlp.c_fc", "blk.0.ffn_up.weight");
  both(Architecture::Gpt2, "transformer.h.0.mlp.c_proj", "blk.0.ffn_down.weight");
  both(Architecture::Llama, "lm_head", "output.weight");
  for (const char* module :
       {"", "model.layers.0", "model.layers..self_attn.q_proj", "model.layers.01.self_attn.q_proj",
        "model.layers.-1.self_attn.q_proj", "model.layers.1234567890.self_attn.q_proj", "layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn", "model.embed_tokens", "model.norm",
        "transformer.h.0.attn.c_attn"}) {
    CHECK(gguf::tensor_name(Architecture::Llama, module) == std::nullopt);
  }
  for (const char* tensor : {"", "blk.0.attn_q", "blk.0.attn_norm.weight", "blk.x.attn_q.weight", "token_embd.weight",
                             "output_norm.weight", "blk.0.attn_qkv.weight"}) {
    CHECK(gguf::module_name(Architecture::Llama, tensor) == std::nullopt);
  }
}

TEST_CASE("an adapter goes to a file and back with the same factors and scales", "[io][gguf]") {
  for (const auto type : {gguf::Type::F32, gguf::Type::F16}) {
    const Modules uniform{{q0, gguf_factors(0, 12, 12, 4), 0.5}, {k0, gguf_factors(1, 12, 6, 2), 1.0}};
    CHECK(gguf::read_adapter(contents_of(gguf::adapter_bytes(uniform, llama, {type, ""})), llama) == uniform);
    const auto with_output = BaseModel{Architecture::Gpt2, 0, 0, true};
    CHECK(gguf::read_adapter(contents_of(gguf::adapter_bytes(gpt2_modules(), with_output, {type, ""})), gpt2) ==
          gpt2_modules());
  }
}

TEST_CASE("the adapter file says what llama.cpp asks for", "[io][gguf]") {
  const auto file_bytes =
      gguf::adapter_bytes(one(v0, gguf_factors(0, 12, 6, 4), 0.5), llama, {gguf::Type::F16, "mine"});
  const auto file = contents_of(file_bytes);
  gguf::Metadata expected;
  expected.set("general.architecture", std::string("llama"));
  expected.set("general.type", std::string("adapter"));
  expected.set("general.name", std::string("mine"));
  expected.set("adapter.type", std::string("lora"));
  expected.set("adapter.lora.alpha", 2.0F);
  CHECK(file.metadata() == expected);
  REQUIRE(file.tensors().size() == 2);
  CHECK(file.tensors()[0].name == "blk.0.attn_v.weight.lora_a");
  CHECK(file.tensors()[0].ne == std::array<Index, 4>{12, 4, 1, 1});
  CHECK(file.tensors()[1].name == "blk.0.attn_v.weight.lora_b");
  CHECK(file.tensors()[1].ne == std::array<Index, 4>{4, 6, 1, 1});
  CHECK(file.tensors()[1].type == gguf::Type::F16);
}

TEST_CASE("the converter's permutation of q_proj and k_proj is read back, other modules as they are", "[io][gguf]") {
  const auto file = gguf::open(gguf_data("adapter.gguf"));
  const auto modules = gguf::read_adapter(file.contents(), llama);
  const Modules expected{{"model.layers.1.self_attn.q_proj", gguf_factors(0, 12, 12, 3), 2.0},
                         {"model.layers.1.self_attn.k_proj", gguf_factors(1, 12, 6, 3), 2.0},
                         {"model.layers.1.mlp.down_proj", gguf_factors(2, 20, 12, 3), 2.0}};
  CHECK(modules == expected);
}

TEST_CASE("every output of a rotated module has one place", "[io][gguf]") {
  for (const Index head_dim : {2, 6, 8, 64}) {
    for (Index row = 0; row < 3 * head_dim; ++row) {
      CHECK(detail::rotary_source(detail::rotary_place(row, head_dim), head_dim) == row);
      CHECK(detail::rotary_place(detail::rotary_source(row, head_dim), head_dim) == row);
    }
  }
}

TEST_CASE("our q_proj has the bytes of the converter's", "[io][gguf]") {
  const auto theirs = gguf::open(gguf_data("adapter.gguf"));
  const Modules modules{{"model.layers.1.self_attn.q_proj", gguf_factors(0, 12, 12, 3), 2.0},
                        {"model.layers.1.self_attn.k_proj", gguf_factors(1, 12, 6, 3), 2.0}};
  const auto bytes = gguf::adapter_bytes(modules, llama);
  const auto ours = contents_of(bytes);
  for (const auto& tensor : ours.tensors()) {
    INFO(tensor.name);
    const auto& other = theirs.tensor(tensor.name);
    CHECK(std::equal(tensor.bytes.begin(), tensor.bytes.end(), other.bytes.begin(), other.bytes.end()));
  }
}

TEST_CASE("llama.cpp's rule gives every module its own scale, whatever the mixture", "[io][gguf]") {
  struct Case {
    std::string title;
    double v, o, up, alpha;
    std::vector<Index> ranks;
  };
  const double r2 = scale(16, 2, Scaling::RankStabilized), r3 = scale(16, 3, Scaling::RankStabilized),
               r8 = scale(16, 8, Scaling::RankStabilized);
  const auto c = GENERATE_COPY(values<Case>({
      {"one rank and scale", 2, 2, 2, 16, {8, 8, 8}},
      {"a pattern of ranks under one alpha", 2, 8, 4, 16, {8, 2, 4}},
      {"rank-stabilised, one rank", r8, r8, r8, 16 * std::sqrt(8.0), {8, 8, 8}},
      {"rank-stabilised, a pattern of ranks", r8, r2, r3, 16 * std::sqrt(8.0), {8, 2, 3}},
      {"two of three agree", 1, 0.5, 1, 4, {4, 4, 4}},
      {"scales of all sizes", 1e-30, 3e4, 0.7, 4e-30, {4, 1, 2}},
      {"a scale of 0, a negative one", 0, -0.3, 0.25, -0.6, {4, 2, 1}},
      {"no scale but 0", 0, 0, 0, 1, {4, 2, 1}},
  }));
  const std::string v = "model.layers.0.self_attn.v_proj", o = "model.layers.0.self_attn.o_proj",
                    up = "model.layers.0.mlp.up_proj";
  Random random{91};
  const Modules modules{{v, random_factors<float>(12, 6, c.ranks[0], random), c.v},
                        {o, random_factors<float>(12, 12, c.ranks[1], random), c.o},
                        {up, random_factors<float>(12, 20, c.ranks[2], random), c.up}};
  const auto bytes = gguf::adapter_bytes(modules, llama);
  const auto file = contents_of(bytes);
  INFO(c.title);
  CHECK(file.metadata().get<float>("adapter.lora.alpha") == static_cast<float>(c.alpha));
  const auto read = gguf::read_adapter(file, llama);
  for (std::size_t i = 0; i < modules.size(); ++i) {
    const auto weight = *gguf::tensor_name(Architecture::Llama, modules[i].name);
    CHECK(worst_ratio(added_by_llama_cpp(file, weight), meant(modules[i]), bound(modules[i])) <= 1);
    CHECK(worst_ratio(meant(read[i]), meant(modules[i]), bound(modules[i])) <= 1);
    CHECK(same_bits(read[i].factors.A, modules[i].factors.A));
    // Untouched where the file's alpha serves.
    const double own = modules[i].scale * static_cast<double>(c.ranks[i]);
    if (static_cast<float>(own) == static_cast<float>(c.alpha))
      CHECK(same_bits(read[i].factors.B, modules[i].factors.B));
  }
}

TEST_CASE("initial factors go along as rank 2r", "[io][gguf]") {
  const auto factors = gguf_factors(0, 12, 12, 3), initial = gguf_factors(5, 12, 12, 3);
  const auto bytes = gguf::adapter_bytes(one(q0, difference(factors, initial), 2), llama);
  const auto file = contents_of(bytes);
  CHECK(file.metadata().get<float>("adapter.lora.alpha") == 12);  // twice that of rank 3
  const auto read = gguf::read_adapter(file, llama);
  CHECK(read[0].factors.A.leftCols(3) == factors.A);
  CHECK(read[0].factors.A.rightCols(3) == initial.A);
  CHECK(read[0].factors.B.topRows(3) == factors.B);
  CHECK(read[0].factors.B.bottomRows(3) == -initial.B);
  CHECK(read[0].scale == 2);
}

TEST_CASE("an adapter that llama.cpp cannot take is refused, and no file appears", "[io][gguf]") {
  const auto path =
      std::filesystem::temp_directory_path() / ("lora_adapter_test_" + std::to_string(::getpid()) + ".gguf");
  const auto good = gguf_factors(0, 12, 12, 2);
  const auto refused = [&]<class Expected>(Expected*, const Modules& modules, const BaseModel& base,
                                           const gguf::AdapterFormat& format = {}) {
    const auto message = message_of<Expected>([&] { gguf::save_adapter(path, modules, base, format); });
    CHECK_FALSE(std::filesystem::exists(path));
    return message;
  };
  constexpr ConfigError* config = nullptr;
  constexpr ShapeError* shape = nullptr;
  constexpr NumericalError* numerical = nullptr;
  CHECK(refused(config, {}, llama) == "gguf::save_adapter: an adapter must have at least one module, got none");
  CHECK(refused(config, one(v0, good), llama, {gguf::Type::Q8_0, ""}) ==
        "gguf::save_adapter: the type must be F32 or F16, got Q8_0");
  CHECK(refused(config, one("model.embed_tokens", good), llama) ==
        "gguf::save_adapter: model.embed_tokens: a module of the llama architecture must be lm_head or "
        "model.layers.<number>.{self_attn.{q,k,v,o}_proj, mlp.{gate,up,down}_proj}");
  CHECK(refused(config, one(q0, good), gpt2) ==
        "gguf::save_adapter: model.layers.0.self_attn.q_proj: a module of the gpt2 architecture must be lm_head or "
        "transformer.h.<number>.{attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj}");
  CHECK(refused(config, one("lm_head", good), llama) ==
        "gguf::save_adapter: lm_head: the base model must have an output weight of its own, got a tied one, which "
        "llama.cpp cannot adapt alone");
  CHECK(refused(config, one(q0, good), {}) ==
        "gguf::save_adapter: model.layers.0.self_attn.q_proj: head_count of the base model must be given, got 0");
  CHECK(refused(config, one(k0, good), {Architecture::Llama, 2, 0, false}) ==
        "gguf::save_adapter: model.layers.0.self_attn.k_proj: head_count_kv of the base model must be given, got 0");
  CHECK(refused(config, one(v0, good, std::numeric_limits<double>::infinity()), llama) ==
        "gguf::save_adapter: model.layers.0.self_attn.v_proj: the scale must be finite, got inf");

  CHECK(
      refused(shape, one(q0, gguf_factors(0, 12, 14, 2)), {Architecture::Llama, 4, 1, false}) ==
      "gguf::save_adapter: model.layers.0.self_attn.q_proj: its 14 outputs must be an even number for each of 4 heads "
      "(head_count)");
  CHECK(refused(shape, one(k0, gguf_factors(0, 12, 3, 2)), llama) ==
        "gguf::save_adapter: model.layers.0.self_attn.k_proj: its 3 outputs must be an even number for each of 1 heads "
        "(head_count_kv)");
  CHECK(refused(shape, {{q0, good, 1}, {k0, gguf_factors(0, 12, 12, 2), 1}}, llama) ==
        "gguf::save_adapter: model.layers.0.self_attn.k_proj: all heads must have the same number of outputs, got 12 "
        "after 6 (head_count 2, head_count_kv 1)");
  CHECK(refused(shape, one(v0, {good.A, gguf_numbers(1, 3, 6)}), llama) ==
        "gguf::save_adapter: model.layers.0.self_attn.v_proj: A (n x r) and B (r x m) must share the rank, got A 12 x "
        "2 and B 3 x 6");
  CHECK(refused(shape, one(v0, Factors<float>::zero(12, 6, 0)), llama) ==
        "gguf::save_adapter: model.layers.0.self_attn.v_proj: A and B must not be empty, got A 12 x 0 and B 0 x 6");

  auto large = good;
  large.B(1, 1) = 1e5F;
  CHECK(refused(numerical, one(v0, large), llama, {gguf::Type::F16, ""}) ==
        "gguf::save_adapter: model.layers.0.self_attn.v_proj: B must be finite in F16, got NaN, infinity or a number "
        "beyond it");
  large.A(0, 0) = std::numeric_limits<float>::quiet_NaN();
  CHECK(refused(numerical, one(v0, large), llama) ==
        "gguf::save_adapter: model.layers.0.self_attn.v_proj: A must be finite in F32, got NaN, infinity or a number "
        "beyond it");
  CHECK(message_of<FormatError>([&] {
          gguf::adapter_bytes({{v0, good, 1}, {v0, good, 1}}, llama);
        }) == "gguf::save_adapter: a tensor must stand once, got a second \"blk.0.attn_v.weight.lora_a\"");
}

TEST_CASE("a file that is no adapter for the model is refused", "[io][gguf]") {
  const auto source = gguf::adapter_bytes(one(v0, gguf_factors(0, 12, 6, 4), 0.5), llama);
  const auto original = contents_of(source);
  const auto refused = [&](const auto& change, const BaseModel& base = llama) {
    auto metadata = original.metadata();
    auto tensors = original.tensors();
    change(metadata, tensors);
    const auto bytes = gguf::to_bytes(metadata, tensors);
    return message_of<FormatError>([&] { gguf::read_adapter(contents_of(bytes), base); });
  };
  using Metadata = gguf::Metadata;
  using Tensors = std::vector<gguf::Tensor>;
  CHECK(refused([](Metadata&, Tensors&) {}) == "[no error]");
  CHECK(refused([](Metadata&, Tensors&) {}, gpt2) ==
        "a.gguf: key \"general.architecture\" must be \"gpt2\", got \"llama\"");
  CHECK(refused([](Metadata& m, Tensors&) { m.set("general.type", std::string("model")); }) ==
        "a.gguf: key \"general.type\" must be \"adapter\", got \"model\"");
  CHECK(refused([](Metadata& m, Tensors&) { m.set("general.type", std::string(79, 'x') + "\u00e9 and on and on"); }) ==
        "a.gguf: key \"general.type\" must be \"adapter\", got \"" + std::string(79, 'x') + "...\"");
  CHECK(refused([](Metadata& m, Tensors&) { m.set("adapter.type", std::uint32_t{1}); }) ==
        "a.gguf: key \"adapter.type\" must be string, got u32");
  CHECK(refused([](Metadata& m, Tensors&) { m.set("adapter.lora.alpha", 2.0); }) ==
        "a.gguf: key \"adapter.lora.alpha\" must be f32, got f64");
  CHECK(refused([](Metadata& m, Tensors&) { m.set("adapter.lora.alpha", std::numeric_limits<float>::infinity()); }) ==
        "a.gguf: key \"adapter.lora.alpha\" must be finite, got inf");
  CHECK(refused([](Metadata& m, Tensors&) {
          m.set("adapter.alora.invocation_tokens", gguf::Array{std::vector<std::uint32_t>{1}});
        }) == "a.gguf: an adapter that certain tokens activate (aLoRA) cannot be read");
  CHECK(refused([](Metadata&, Tensors& t) { t.pop_back(); }) ==
        "a.gguf: tensor \"blk.0.attn_v.weight.lora_a\" must have its other half, got no tensor "
        "\"blk.0.attn_v.weight.lora_b\"");
  CHECK(refused([](Metadata&, Tensors& t) { t.erase(t.begin()); }) ==
        "a.gguf: tensor \"blk.0.attn_v.weight.lora_b\" must have its other half, got no tensor "
        "\"blk.0.attn_v.weight.lora_a\"");
  CHECK(refused([](Metadata&, Tensors& t) { t.clear(); }) ==
        "a.gguf: an adapter must have at least one pair, got none");
  for (const char* name : {"blk.0.attn_norm.weight", "blk.0.attn_v.weight", "token_embd.weight.lora_a", "lora_a", ""}) {
    CHECK(refused([&](Metadata&, Tensors& t) { t[1].name = name; }).starts_with("a.gguf: tensor \"blk.0.attn_v.wei"));
    CHECK(refused([&](Metadata&, Tensors& t) { t[0].name = name; }) ==
          "a.gguf: tensor \"" + std::string(name) +
              "\" must be .lora_a or .lora_b of a weight of the llama architecture");
  }
  CHECK(
      refused([](Metadata&, Tensors& t) {
        t[0].ne = {24, 2, 1, 1};
      }) ==
      "a.gguf: tensors \"blk.0.attn_v.weight.lora_a\" and \"blk.0.attn_v.weight.lora_b\" must share the rank, got 24 x "
      "2 and 4 x 6");
  CHECK(refused([](Metadata&, Tensors& t) {
          t[0].dims = 3;
          t[0].ne = {12, 2, 2, 1};
        }) == "a.gguf: tensor \"blk.0.attn_v.weight.lora_a\" must be a matrix that is not empty, got 12 x 2 x 2");
  CHECK(refused([](Metadata&, Tensors& t) {
          t[1].ne = {4, 0, 1, 1};
          t[1].bytes = {};
        }) == "a.gguf: tensor \"blk.0.attn_v.weight.lora_b\" must be a matrix that is not empty, got 4 x 0");
  CHECK(refused([](Metadata&, Tensors& t) { t[0].type = gguf::Type::I32; }) ==
        "a.gguf: tensor \"blk.0.attn_v.weight.lora_a\" must have a type that can be dequantised, got I32");
  std::vector<float> numbers(48, 1);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    numbers[23] = bad;
    const auto bytes = std::as_bytes(std::span(numbers));
    CHECK(refused([&](Metadata&, Tensors& t) { t[0].bytes = bytes; }) ==
          "a.gguf: tensor \"blk.0.attn_v.weight.lora_a\" must be finite, got NaN or infinity");
    CHECK(refused([&](Metadata&, Tensors& t) { t[1].bytes = bytes.first(t[1].bytes.size()); }) ==
          "a.gguf: tensor \"blk.0.attn_v.weight.lora_b\" must be finite, got NaN or infinity");
  }
  CHECK(refused([](Metadata&, Tensors& t) { t[0].name = "blk.0.\x1b[31m\nline\x7f"; }) ==
        "a.gguf: tensor \"blk.0.?[31m?line?\" must be .lora_a or .lora_b of a weight of the llama architecture");
  CHECK(refused(
            [](Metadata&, Tensors& t) {
              t[0].name = "blk.0.attn_q.weight.lora_a";
              t[1].name = "blk.0.attn_q.weight.lora_b";
            },
            {Architecture::Llama, 4, 1, false}) ==
        "a.gguf: model.layers.0.self_attn.q_proj: its 6 outputs must be an even number for each of 4 heads "
        "(head_count)");
}

TEST_CASE("without alpha, or with 0, the scale is 1 as in llama.cpp", "[io][gguf]") {
  const auto bytes = gguf::adapter_bytes(one(v0, gguf_factors(0, 12, 6, 4), 0.5), llama);
  const auto file = contents_of(bytes);
  auto metadata = file.metadata();
  metadata.set("adapter.lora.alpha", 0.0F);
  const auto zero = gguf::to_bytes(metadata, file.tensors());
  CHECK(gguf::read_adapter(contents_of(zero), llama)[0].scale == 1);
  auto items = file.metadata().items();
  items.pop_back();
  const auto none = gguf::to_bytes(gguf::Metadata("a.gguf", items), file.tensors());
  CHECK(gguf::read_adapter(contents_of(none), llama)[0].scale == 1);
}

TEST_CASE("a model's file says what an adapter for it needs", "[io][gguf]") {
  const std::vector<std::byte> data(4);
  const auto describe = [&](const auto& change, std::vector<gguf::Tensor> tensors = {}) {
    gguf::Metadata metadata;
    metadata.set("general.architecture", std::string("llama"));
    change(metadata);
    const auto bytes = gguf::to_bytes(metadata, tensors);
    return gguf::describe(contents_of(bytes));
  };
  const auto heads = [](gguf::Metadata& m) {
    m.set("llama.attention.head_count", std::uint32_t{9});
    m.set("llama.attention.head_count_kv", std::uint32_t{3});
  };
  const auto grouped = describe(heads, {{"output.weight", gguf::Type::F32, 1, {1, 1, 1, 1}, data}});
  CHECK(grouped.architecture == Architecture::Llama);
  CHECK(grouped.head_count == 9);
  CHECK(grouped.head_count_kv == 3);
  CHECK(grouped.has_output_weight);
  const auto plain = describe([](gguf::Metadata& m) { m.set("llama.attention.head_count", std::uint32_t{9}); });
  CHECK(plain.head_count_kv == 9);
  CHECK_FALSE(plain.has_output_weight);
  CHECK(describe([](gguf::Metadata& m) { m.set("general.architecture", std::string("gpt2")); }).architecture ==
        Architecture::Gpt2);
  CHECK(message_of<FormatError>([&] { describe([](gguf::Metadata&) {}); }) ==
        "a.gguf: key \"llama.attention.head_count\" must be u32, got no such key");
  CHECK(message_of<FormatError>([&] {
          describe([](gguf::Metadata& m) { m.set("general.architecture", std::string("qwen2")); });
        }) == "a.gguf: key \"general.architecture\" must be \"llama\" or \"gpt2\", got \"qwen2\"");
}

TEST_CASE("the files of gguf_check.py, written to the folder in LORA_GGUF_CHECK_DIR if it is set",
          "[io][gguf][gguf_check]") {
  const char* given = std::getenv("LORA_GGUF_CHECK_DIR");
  const auto folder = given != nullptr
                          ? std::filesystem::path(given)
                          : std::filesystem::temp_directory_path() / ("lora_gguf_check_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  gguf::save_adapter(folder / "llama_f32.gguf", llama_modules(), llama, {gguf::Type::F32, "checked"});
  gguf::save_adapter(folder / "llama_f16.gguf", llama_modules(), llama, {gguf::Type::F16, ""});
  const BaseModel gpt2_with_output{Architecture::Gpt2, 0, 0, true};
  gguf::save_adapter(folder / "gpt2_f32.gguf", gpt2_modules(), gpt2_with_output);
  gguf::save_adapter(folder / "offset_f32.gguf",
                     one(q0, difference(gguf_factors(0, 12, 12, 3), gguf_factors(5, 12, 12, 3)), 2), llama);
  const auto fields = io::read_file(gguf_data("fields.gguf"));
  const auto contents = gguf::Contents::parse(fields);
  gguf::write(folder / "fields.gguf", contents.metadata(), contents.tensors());
  CHECK(gguf::load_adapter(folder / "gpt2_f32.gguf", gpt2) == gpt2_modules());
  if (given == nullptr) std::filesystem::remove_all(folder);
}
