// SPDX-License-Identifier: MIT
// The reader of golden data refuses what it does not understand.
#include "support/golden.hpp"
#include "support/catch.hpp"

#include <sstream>
#include <string>

using Catch::Matchers::Message;
using lora::test::Golden;

namespace {

Golden parse(const std::string& text) {
  std::istringstream stream(text);
  return Golden::parse(stream, "data.txt");
}

}  // namespace

TEST_CASE("the reader of golden data finds comments, numbers and matrices", "[parity]") {
  const auto golden = parse("# torch 2\n# seed 1\ns 1 1\n0.5\nA 2 3\n1 2 3\n-4 5e-3 6\n");
  CHECK(golden.comments() == std::vector<std::string>{"torch 2", "seed 1"});
  CHECK(golden.number("s") == 0.5);
  CHECK(golden["A"].rows() == 2);
  CHECK(golden["A"](1, 0) == -4);
}

TEST_CASE("the reader of golden data names file, line and mistake", "[parity]") {
  const auto refuses = [](const std::string& text, const std::string& message) {
    CAPTURE(text);
    CHECK_THROWS_MATCHES(parse(text), std::runtime_error, Message(message));
  };
  refuses("A 1\n1\n", "data.txt:1: an item must start with `name rows cols`, got `A 1`");
  refuses("A 1 1 1\n1\n", "data.txt:1: an item must start with `name rows cols`, got `A 1 1 1`");
  refuses("A 0 1\n", "data.txt:1: an item must start with `name rows cols`, got `A 0 1`");
  refuses("A 1 -1\n", "data.txt:1: an item must start with `name rows cols`, got `A 1 -1`");
  refuses("A 1 1\n1\n\n", "data.txt:3: an item must start with `name rows cols`, got ``");
  refuses("# c\nA 1 3\n1 2\n", "data.txt:3: A must have 3 numbers a row, got `1 2`");
  refuses("A 1 2\n1 2 3\n", "data.txt:2: A must have 2 numbers a row, got `1 2 3`");
  refuses("A 1 2\n1 x\n", "data.txt:2: A must have 2 numbers a row, got `1 x`");
  refuses("A 2 1\n1\n", "data.txt:3: A must have 2 rows, got the end of the file");
  refuses("A 1 1\n1\nA 1 1\n2\n", "data.txt:4: an item must stand once, got a second A");
  CHECK_THROWS_MATCHES(parse("A 1 1\n1\n")["B"], std::runtime_error, Message("data.txt: must hold the item B"));
  CHECK_THROWS_WITH(Golden::read("absent.txt"), Catch::Matchers::ContainsSubstring("absent.txt: must be readable"));
}
