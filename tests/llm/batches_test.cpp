// SPDX-License-Identifier: MIT
// The order of the batches: every sequence once an epoch, the same after a resume.
#include "llm/encoders.hpp"
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/fields.hpp"
#include "support/message.hpp"
#include "support/tolerances.hpp"

#include "llm/batches.hpp"

#include <lora/io/checkpoint.hpp>

#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

using namespace llm;
using namespace llm::test;
using lora::test::message_of;

namespace {

std::string taken(Batches& batches, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += shown(batches.next().tokens);
  return text;
}

}  // namespace

TEST_CASE("every sequence comes once an epoch, whatever the size of a batch", "[llm][batches]") {
  const Sequences data = letters(7);
  std::string all;
  for (const Index size : {1, 2, 5, 7, 10, 35}) {
    CAPTURE(size);
    Batches batches(data, size, 5);
    const std::string text = taken(batches, static_cast<int>(70 / size));
    REQUIRE(text.size() == 70);
    for (std::size_t epoch = 0; epoch < 10; ++epoch) {
      const std::string once = text.substr(7 * epoch, 7);
      CHECK(std::set<char>(once.begin(), once.end()).size() == 7);
    }
    if (all.empty()) all = text;
    CHECK(text == all);  // the order does not depend on the size
    CHECK(batches.epochs() == 10);
  }
}

TEST_CASE("the order is a function of the seed and the epoch, and the same everywhere", "[llm][batches]") {
  const Sequences data = letters(7);
  Batches batches(data, 7, 0), others(data, 7, 1);
  CHECK(taken(batches, 3) == "gcdfaebfdbeagcgaedfbc");
  CHECK(taken(others, 3) == "decfbgafebadcgcegfadb");
  std::vector<Index> order(7), again(7);
  shuffle_epoch(0, 2, order);
  shuffle_epoch(0, 2, again);
  CHECK(order == again);
}

TEST_CASE("every order is as likely as any other", "[llm][batches]") {
  constexpr int orders = 24, epochs = orders * 500;
  std::map<std::vector<Index>, int> by_epoch, by_seed;
  std::vector<Index> order(4);
  for (std::uint64_t i = 0; i < epochs; ++i) {
    shuffle_epoch(3, i, order);
    ++by_epoch[order];
    shuffle_epoch(i, 3, order);
    ++by_seed[order];
  }
  for (const auto& counts : {by_epoch, by_seed}) {
    CHECK(counts.size() == orders);
    for (const auto& [which, count] : counts) {
      CHECK(std::abs(count - epochs / orders) < lora::test::count_deviation(epochs, 1.0 / orders));
    }
  }
}

TEST_CASE("a resumed run takes the very same batches", "[llm][batches]") {
  const Sequences data = letters(7);
  for (const int before : {0, 1, 2, 3, 4, 20}) {
    CAPTURE(before);
    Batches batches(data, 3, 9);
    taken(batches, before);
    lora::Checkpoint saved;
    saved.add("batches", batches);
    const auto bytes = saved.to_bytes();
    const std::string rest = taken(batches, 12);
    Batches resumed(data, 3, 9);
    taken(resumed, 5);  // somewhere else
    lora::Checkpoint restored;
    restored.add("batches", resumed);
    restored.restore(bytes);
    CHECK(resumed.taken() == static_cast<std::uint64_t>(before));
    CHECK(taken(resumed, 12) == rest);
  }
}

TEST_CASE("a resume with another text, size or seed is refused", "[llm][batches]") {
  const Sequences data = letters(7);
  Batches batches(data, 3, 9);
  taken(batches, 2);
  lora::Checkpoint saved;
  saved.add("batches", batches);
  const auto bytes = saved.to_bytes();
  const auto refused = [&](const Sequences& others, Index size, std::uint64_t seed) {
    Batches resumed(others, size, seed);
    lora::Checkpoint restored;
    restored.add("batches", resumed);
    const std::string message = message_of<lora::ConfigError>([&] { restored.restore(bytes); });
    CHECK(resumed.taken() == 0);
    return message;
  };
  const std::string rule = "checkpoint: must be of the configuration here, got batches: ";
  CHECK(refused(data, 4, 9) == rule + "size: 3 in the file, 4 here");
  CHECK(refused(data, 3, 8) == rule + "seed: 9 in the file, 8 here");
  CHECK(refused(letters(8), 3, 9).starts_with(rule + "sequences: 7 in the file, 8 here; batches: text: "));
  Sequences other = letters(7);
  other.tokens(6)[0] = 'x';
  CHECK(refused(other, 3, 9).starts_with(rule + "text: "));
  other = letters(7);
  other.targets(0)[0] = ignored;
  CHECK(refused(other, 3, 9).starts_with(rule + "text: "));
  CHECK(lora::test::field_names(batches) ==
        std::vector<std::string>{"size", "seed", "sequences", "length", "text", "taken"});
}

TEST_CASE("a batch holds rows one after the other", "[llm][batches]") {
  Sequences data(2);
  for (const Token token : {'a', 'c', 'e'}) {
    const Index row = data.add(end);
    data.tokens(row)[0] = token;
    data.targets(row)[0] = end;
  }
  Batch batch;
  data.gather(std::vector<Index>{2, 0}, batch);
  CHECK(shown(batch.tokens) == "e$a$");
  CHECK(shown(batch.targets) == "$.$.");
  CHECK(batch.length == 2);
  CHECK(batch.sequences() == 2);
  CHECK(batch.counted() == 2);
}

TEST_CASE("evaluation takes all in order", "[llm][batches]") {
  std::string text;
  in_order(letters(7), 3, [&](const Batch& batch) { text += shown(batch.tokens) + " "; });
  CHECK(text == "abc def g ");
}

TEST_CASE("taking batches allocates nothing", "[llm][batches]") {
  if (!lora::test::allocations_are_counted) WARN(lora::test::not_counted);
  const Sequences data = letters(7);
  Batches batches(data, 3, 9);
  batches.next();
  CHECK(lora::test::allocations_in([&] {
          for (int i = 0; i < 20; ++i) batches.next();
        }) == 0);
}

TEST_CASE("batches of nothing are refused", "[llm][batches]") {
  CHECK(message_of<lora::ConfigError>([] { Batches(letters(0), 1, 0); }) == "Batches: must have a sequence, got none");
  CHECK(message_of<lora::ConfigError>([] { Batches(letters(1), 0, 0); }) == "Batches: size must be at least 1, got 0");
  CHECK(message_of<lora::ConfigError>([] { in_order(letters(1), 0, [](const Batch&) {}); }) ==
        "in_order: size must be at least 1, got 0");
  CHECK(message_of<lora::ConfigError>([] { Sequences(2).add(letters(1), 0); }) ==
        "Sequences::add: rows must have 2 tokens, got 1");
}
