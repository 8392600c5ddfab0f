// SPDX-License-Identifier: MIT
// Checkpoints of other runs, damaged ones, full disks: a message, and nothing has changed.
#include "io/checkpoint_run.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"

#include <lora/base/view_base.hpp>
#include <lora/io/checkpoint.hpp>
#include <lora/optim/lora_pro.hpp>
#include <lora/optim/per_factor.hpp>
#include <lora/optim/sgd.hpp>

#include <sys/resource.h>
#include <csignal>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

using Plain = Run<double, LoraPlus<AdamW>>;
constexpr const char* other_configuration = "run: must be of the configuration here, got ";

LoraPlus<AdamW> method() { return {AdamW{.learning_rate = 0.01}, 4}; }

/// What a run says to the checkpoint `bytes`, of which it must take nothing.
template <class ErrorType, class AnyRun>
std::string refusal(AnyRun& run, std::span<const std::byte> bytes) {
  const auto before = run.checkpoint.to_bytes();
  auto message = message_of<ErrorType>([&] { run.checkpoint.restore(bytes, "run"); });
  if (message != "[no error]") CHECK((run.checkpoint.to_bytes() == before));
  if (message.starts_with(other_configuration)) message.erase(0, std::string_view(other_configuration).size());
  return message;
}

std::vector<std::byte> file_of(const std::function<void(Checkpoint&)>& add) {
  Checkpoint checkpoint;
  add(checkpoint);
  return checkpoint.to_bytes();
}

/// The bytes with the checksum that they should have.
std::vector<std::byte> mended(std::vector<std::byte> bytes) {
  const auto file = safetensors::File::parse(std::span(std::as_const(bytes)));
  const auto place = static_cast<std::size_t>(file.at("lora.checksum").bytes.data() - bytes.data());
  const std::uint64_t checksum = lora::detail::checkpoint_checksum(bytes, place);
  std::memcpy(bytes.data() + place, &checksum, sizeof checksum);
  return bytes;
}

/// The bytes with `from` in their text replaced by `to`, of the same length.
std::vector<std::byte> with_text(std::vector<std::byte> bytes, const std::string& from, const std::string& to) {
  REQUIRE(from.size() == to.size());
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const auto place = text.find(from);
  REQUIRE(place != std::string_view::npos);
  std::memcpy(bytes.data() + place, to.data(), to.size());
  return mended(bytes);
}

/// Hyper-parameters of a user's own.
struct Search {
  static constexpr const char* name = "Search";
  std::optional<double> target;
  bool greedy = false;
  std::uint8_t width = 4;
  Sgd rule{};

  static void fields(auto& self, const auto& visit) {
    visit("target", self.target);
    visit("greedy", self.greedy);
    visit("width", self.width);
    visit("rule", self.rule);
  }
};

}  // namespace

TEST_CASE("a checkpoint of other hyper-parameters is refused with what differs", "[io][checkpoint][errors]") {
  Plain run(method(), 2);
  run.train(3);
  const auto bytes = run.checkpoint.to_bytes();
  const auto differs = [&](auto change) {
    Plain other(method(), 3);
    change(other);
    return refusal<ConfigError>(other, bytes);
  };
  CHECK(differs([](Plain&) {}) == "[no error]");
  CHECK(differs([](Plain& other) { other.optimizer.method().rule.beta1 = 0.95; }) ==
        "optimizer: AdamW beta1: 0.9 in the file, 0.95 here");
  CHECK(differs([](Plain& other) { other.optimizer.method().ratio = 16; }) ==
        "optimizer: LoraPlus ratio: 4 in the file, 16 here");
  CHECK(differs([](Plain& other) { other.schedule.tail = Schedule::Tail::Linear; }) ==
        "schedule: Schedule tail: Cosine in the file, Linear here");
  CHECK(differs([](Plain& other) { other.layer.set_bias({}); }) ==
        "layer: bias: [11] of F64 in the file, nothing here");
  CHECK(differs([](Plain& other) {
          other.bias[10] = 1;
          other.layer.set_bias(other.bias);
        }) == "layer: bias: other numbers in the file than here");
  CHECK(differs([](Plain& other) {
          other.optimizer.method().rule = {.learning_rate = 0.02, .epsilon = 1e-6};
          other.schedule.last = 0.5;
        }) ==
        "optimizer: AdamW learning_rate: 0.01 in the file, 0.02 here; optimizer: AdamW epsilon: 1e-08 in the "
        "file, 1e-06 here; schedule: Schedule last: 0 in the file, 0.5 here");

  Plain rank(method(), 3, {.rank = 4, .alpha = 6, .scaling = Scaling::RankStabilized});
  CHECK(refusal<ConfigError>(rank, bytes) ==
        "layer: LoraConfig rank: 3 in the file, 4 here; layer: LoraConfig scaling: Standard in the file, "
        "RankStabilized here; layer: LoraConfig dropout: 0.25 in the file, 0 here; optimizer: state/A/mean: [3, 13] of "
        "F64 in the file, [4, 13] of F64 here; optimizer: state/A/square: [3, 13] of F64 in the file, [4, 13] of F64 "
        "here; optimizer: state/B/mean: [3, 11] of F64 in the file, [4, 11] of F64 here; optimizer: state/B/square: "
        "[3, 11] of F64 in the file, [4, 11] of F64 here; optimizer: state/r: 3 in the file, 4 here");
  Run<float, LoraPlus<AdamW>> narrow(method(), 3);
  CHECK(refusal<ConfigError>(narrow, bytes)
            .starts_with("layer: bias: [11] of F64 in the file, [11] of F32 here; layer: factors/A: [3, 13] of F64 in "
                         "the file, [3, 13] "
                         "of F32 here; "));
}

TEST_CASE("hyper-parameters of a user's own are compared field by field", "[io][checkpoint][errors]") {
  Search search{.target = 0.125};
  const auto bytes = file_of([&](Checkpoint& to) { to.add("search", search); });
  const auto differs = [&](Search other) {
    return message_of<ConfigError>([&] { Checkpoint().add("search", other).restore(bytes, "run"); });
  };
  const std::string here = other_configuration;
  CHECK(differs(search) == "[no error]");
  CHECK(differs({}) == here + "search: Search target: 0.125 in the file, none here");
  CHECK(differs({.target = 0.25}) == here + "search: Search target: 0.125 in the file, 0.25 here");
  CHECK(differs({.target = 0.125, .greedy = true, .width = 5}) ==
        here + "search: Search greedy: false in the file, true here; search: Search width: 4 in the file, 5 here");
  CHECK(differs({.target = 0.125, .rule = {.kind = Sgd::Momentum::Nesterov}}) ==
        here + "search: Sgd kind: Heavy in the file, Nesterov here");
}

TEST_CASE("a checkpoint of another optimizer or mode is refused", "[io][checkpoint][errors]") {
  const auto bytes = [](auto its_method) {
    Run<double, decltype(its_method)> run(its_method, 2);
    run.train(2);
    return run.checkpoint.to_bytes();
  };
  const auto into = [](auto its_method, const std::vector<std::byte>& file) {
    Run<double, decltype(its_method)> run(its_method, 3);
    return refusal<ConfigError>(run, file);
  };
  const auto plus = bytes(method());
  CHECK(into(PerFactor<AdamW>{}, plus) == "optimizer: method: LoraPlus in the file, PerFactor here");
  CHECK(into(LoraPlus<Sgd>{}, plus) ==
        "optimizer: LoraPlus rule: AdamW in the file, Sgd here; optimizer: LoraPlus "
        "ratio: 4 in the file, 16 here");
  CHECK(into(LoraPro{}, bytes(LoraPro{.mode = LoraProMode::Full})) ==
        "optimizer: LoraPro mode: Full in the file, Factored here; optimizer: state/mode: Full in the file, Factored "
        "here; optimizer: state/blocks: 1 in the file, 0 here");
  // The momentum was switched off on the way, so the states differ where the hyper-parameters do not.
  auto still = PerFactor<Sgd>{};
  Run<double, PerFactor<Sgd>> moved(PerFactor<Sgd>{Sgd{.momentum = 0.9}}, 2);
  moved.optimizer.method().rule.momentum = 0;
  CHECK(into(still, moved.checkpoint.to_bytes()) ==
        "optimizer: state/A/velocity: [3, 13] of F64 in the file, nothing here; optimizer: state/B/velocity: [3, 11] "
        "of F64 in the file, nothing here");
}

TEST_CASE("missing parts, strange parts and parts of another kind are named", "[io][checkpoint][errors]") {
  Index step = 3;
  int narrow = 1;
  double loss = 0.5;
  Random random{1};
  const auto restore = [](const std::vector<std::byte>& bytes, const std::function<void(Checkpoint&)>& add) {
    Checkpoint checkpoint;
    add(checkpoint);
    return message_of<ConfigError>([&] { checkpoint.restore(bytes, "run"); });
  };
  const std::string here = other_configuration;
  const auto bytes = file_of([&](Checkpoint& to) { to.add("step", step).add("random", random); });
  CHECK(restore(bytes, [&](Checkpoint& to) { to.add("step", step); }) ==
        here + "random: a part in the file, nothing here");
  CHECK(restore(bytes, [&](Checkpoint& to) { to.add("step", step).add("random", random).add("loss", loss); }) ==
        here + "loss: nothing in the file, a part here");
  CHECK(restore(bytes, [&](Checkpoint& to) { to.add("step", loss).add("random", random); }) ==
        here + "step: integer in the file, number here");
  CHECK(restore(bytes, [&](Checkpoint& to) { to.add("step", random).add("random", step); }) ==
        here + "random: generator in the file, integer here; step: integer in the file, generator here");
  CHECK(restore(bytes, [](Checkpoint&) {}) ==
        here + "random: a part in the file, nothing here; step: a part in the file, nothing here");
  step = 5'000'000'000;
  const auto far = file_of([&](Checkpoint& to) { to.add("step", step); });
  CHECK(restore(far, [&](Checkpoint& to) { to.add("step", narrow); }) ==
        here + "step: 5000000000 in the file, an integer of 32 bits here");
  CHECK(narrow == 1);

  const auto many = file_of([&](Checkpoint& to) {
    for (int i = 10; i < 25; ++i) to.add("part" + std::to_string(i), step);
  });
  CHECK(restore(many, [](Checkpoint&) {}).ends_with("part19: a part in the file, nothing here; and 5 more"));
}

TEST_CASE("names of parts are checked as they are added", "[io][checkpoint][errors]") {
  Index step = 0;
  Checkpoint checkpoint;
  checkpoint.add("a/b", step);
  const auto add = [&](const std::string& name) {
    return message_of<ConfigError>([&] { checkpoint.add(name, step); });
  };
  const std::string rule = "Checkpoint::add: a name must not be empty, have a / at an end or begin with lora., got ";
  CHECK(add("") == rule + "\"\"");
  CHECK(add("/a") == rule + "\"/a\"");
  CHECK(add("c/") == rule + "\"c/\"");
  CHECK(add("lora.format") == rule + "\"lora.format\"");
  CHECK(add("a/b") == "Checkpoint::add: names must differ, got a second \"a/b\"");
  CHECK(add("a") == "Checkpoint::add: no name may be a folder of another, got \"a\" and \"a/b\"");
  CHECK(add("a/b/c") == "Checkpoint::add: no name may be a folder of another, got \"a/b/c\" and \"a/b\"");
  CHECK(add("a.b") == "[no error]");
  CHECK(add("lora") == "[no error]");
  CHECK(add("a/c") == "[no error]");
}

TEST_CASE("a merged layer is neither written nor restored into", "[io][checkpoint][errors]") {
  Plain run(method(), 2);
  const auto bytes = run.checkpoint.to_bytes();
  run.layer.merge();
  CHECK(message_of<StateError>([&] { run.checkpoint.to_bytes(); }) ==
        "LoraLinear::state: unmerge first, got a merged layer");
  CHECK(message_of<ConfigError>([&] { run.checkpoint.restore(bytes, "run"); }) ==
        std::string(other_configuration) + "layer: LoraLinear::set_state: unmerge first, got a merged layer");
  run.layer.unmerge();
  run.checkpoint.restore(bytes);
}

TEST_CASE("a baked offset goes into an owned base that holds none, and into no other", "[io][checkpoint][errors]") {
  Random random{3};
  Plain baked(method(), 2), other(method(), 4);
  const auto unbaked = baked.checkpoint.to_bytes();
  baked.layer.bake();
  const auto bytes = baked.checkpoint.to_bytes();
  other.layer.bake();
  const std::string another =
      "layer: LoraLinear::set_state: needs the base as it was given, got one with another "
      "offset baked into it";
  CHECK(refusal<ConfigError>(other, bytes) == another);
  CHECK(refusal<ConfigError>(baked, unbaked) == another);
  CHECK(refusal<ConfigError>(baked, bytes) == "[no error]");

  LoraLinear view{baked.W0, baked.layer.config()};
  view.set_bias(baked.bias);
  const auto alone = file_of([&](Checkpoint& to) { to.add("layer", baked.layer); });
  CHECK(message_of<ConfigError>([&] { Checkpoint().add("layer", view).restore(alone, "run"); }) ==
        std::string(other_configuration) +
            "layer: LoraLinear::set_state: a baked state needs a base that owns its weight, got view of 13 x 11 double "
            "column-major");
}

TEST_CASE("a state that does not fit a layer is refused", "[io][checkpoint][errors]") {
  Plain run(method(), 2);
  auto& layer = run.layer;
  const auto set = [&]<class ErrorType>(ErrorType, auto change) {
    auto state = layer.state();
    const auto before = state;
    change(state);
    auto message = message_of<ErrorType>([&] { layer.set_state(state); });
    CHECK(layer.state() == before);
    return message;
  };
  const std::string where = "LoraLinear::set_state: ";
  CHECK(set(ConfigError(""), [](auto& state) { state.adapter.config.alpha = 5; }) ==
        where + "config must be the layer's, of rank 3, alpha 6, dropout 0.25, got rank 3, alpha 5, dropout 0.25");
  CHECK(set(ShapeError(""), [](auto& state) {
          state.adapter.factors.A.setZero(13, 2);
          state.adapter.factors.B.setZero(2, 11);
        }) == where + "A must be 13 x 3, got 13 x 2");
  CHECK(set(ShapeError(""), [](auto& state) { state.adapter.initial.B.setZero(3, 10); }) ==
        where + "initial B must be 3 x 11, got 3 x 10");
  CHECK(set(NumericalError(""), [](auto& state) { state.adapter.factors.B(0, 0) /= 0.0; }) ==
        where + "B must be finite, got NaN or infinity");
  CHECK(set(ConfigError(""), [](auto& state) { state.adapter.scale /= 0.0; }) ==
        where + "scale must be finite, got inf");
  CHECK(set(StateError(""), [](auto& state) {
          state.baked = true;
          state.adapter.initial = {};
        }) == where + "a baked state must be enabled and have an offset, got one without an offset");
  CHECK(set(StateError(""), [](auto& state) {
          state.baked = true;
          state.enabled = false;
        }) == where + "a baked state must be enabled and have an offset, got one that is switched off");
}

TEST_CASE("a checkpoint that is cut anywhere is refused", "[io][checkpoint][errors]") {
  Plain run(method(), 2);
  run.train(2);
  const auto bytes = run.checkpoint.to_bytes();
  Plain other(method(), 3);
  const auto before = other.checkpoint.to_bytes();
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    const std::vector<std::byte> cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
    CHECK_THROWS_AS(other.checkpoint.restore(cut), FormatError);
  }
  auto longer = bytes;
  longer.push_back(std::byte{0});
  CHECK_THROWS_AS(other.checkpoint.restore(longer), FormatError);
  CHECK((other.checkpoint.to_bytes() == before));
}

TEST_CASE("a flipped bit anywhere is found", "[io][checkpoint][errors]") {
  Plain run(method(), 2);
  run.train(2);
  auto bytes = run.checkpoint.to_bytes();
  Plain other(method(), 3);
  const auto before = other.checkpoint.to_bytes();
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      bytes[i] ^= std::byte(1 << bit);
      CHECK_THROWS_AS(other.checkpoint.restore(bytes), FormatError);
      bytes[i] ^= std::byte(1 << bit);
    }
  }
  CHECK((other.checkpoint.to_bytes() == before));
}

TEST_CASE("a file that is not an undamaged checkpoint says so", "[io][checkpoint][errors]") {
  Random random{1};
  bool on = true;
  const auto bytes = file_of([&](Checkpoint& to) { to.add("random", random).add("on", on); });
  const auto read = [&](const std::vector<std::byte>& file) {
    return message_of<FormatError>([&] { Checkpoint().add("random", random).add("on", on).restore(file, "run"); });
  };
  CHECK(read(safetensors::to_bytes({})) == "run: lora.format must be \"checkpoint\", got \"\"");
  CHECK(read(safetensors::to_bytes({}, {{"lora.format", "checkpoint"}, {"lora.version", "2"}})) ==
        "run: lora.version must be 1, got \"2\"");
  CHECK(read(safetensors::to_bytes({}, {{"lora.format", "checkpoint"}, {"lora.version", "1"}})) ==
        "run: must hold the tensor \"lora.checksum\", got none of that name");
  CHECK(read(safetensors::to_bytes({{"lora.checksum", {safetensors::Type::F32, {0}, {}}}},
                                   {{"lora.format", "checkpoint"}, {"lora.version", "1"}})) ==
        "run: lora.checksum must be one U64, got [0] of F32");
  auto damaged = bytes;
  damaged.back() = std::byte{0};
  const auto message = read(damaged);
  CHECK(message.starts_with("run: checksum must be "));
  CHECK(message.ends_with(": the file is damaged"));
  damaged.back() = std::byte{2};
  CHECK(read(mended(damaged)) == "run: \"on\" must be 0 or 1, got 2");
  auto zeros = bytes;
  const auto place =
      safetensors::File::parse(std::span(std::as_const(zeros))).at("random/state").bytes.data() - zeros.data();
  std::fill_n(zeros.begin() + place, 32, std::byte{0});
  CHECK(read(mended(zeros)) == "run: \"random\" must not be all zeros, got four zero words");
  // Undamaged, but with a tensor too few and one too many.
  CHECK(message_of<ConfigError>([&] {
          Checkpoint()
              .add("random", random)
              .add("on", on)
              .restore(with_text(bytes, "random/state", "random/\\nate"), "run");
        }) == std::string(other_configuration) + "random: state: nothing in the file, [4] of U64 here");
}

TEST_CASE("files that the system refuses are named, and a full disk leaves the old one", "[io][checkpoint][errors]") {
  const Folder folder("refused");
  Plain run(method(), 2);
  const auto path = folder / "run";
  CHECK(message_of<IoError>([&] { run.checkpoint.restore(path); }) ==
        path.string() + ": must open for reading, got No such file or directory");
  CHECK(message_of<IoError>([&] { run.checkpoint.write(folder / "none/run"); }) ==
        (folder / "none/run").string() + ": needs a directory that opens, got No such file or directory");
  run.checkpoint.write(path);
  const auto old = run.checkpoint.to_bytes();
  run.train(5);

  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t room : {rlim_t{0}, rlim_t{1}, rlim_t{1000}, static_cast<rlim_t>(old.size() - 1)}) {
    const rlimit full{room, before.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &full) == 0);
    const auto message = message_of<IoError>([&] { run.checkpoint.write(path); });
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
    CHECK(message == path.string() + ": must take all its bytes, got File too large");
    CHECK((io::read_file(path) == old));
    CHECK(folder.files() == 1);
  }
  std::signal(SIGXFSZ, handler);
  run.checkpoint.write(path);
  CHECK((io::read_file(path) == run.checkpoint.to_bytes()));
}
