// SPDX-License-Identifier: MIT
// Tokens as the package `tokenizers` gives them: see make_tokenizer.py. And text back from them.
#include "llm/tokenizer_files.hpp"

#include "support/catch.hpp"
#include "support/message.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llm::test {
namespace {

using lora::test::message_of;
using lora::test::TemporaryFolder;
using Special = Tokenizer::Special;
using Tokens = std::vector<Token>;

/// The expected entry of a text in a map by number, or `otherwise`.
template <class Value>
Value entry(const json& map, std::size_t number, const Value& otherwise) {
  const auto found = map.find(std::to_string(number));
  return found == map.end() ? otherwise : found->get<Value>();
}

/// Compares every text; returns the number of tokens.
std::size_t check_vectors(const Tokenizer& tokenizer, const json& texts, const json& expected) {
  REQUIRE(texts.size() == expected["tokens"].size());
  std::size_t tokens = 0;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    INFO("text " << i << ": " << texts[i].dump(-1, ' ', true));
    const auto text = texts[i].get<std::string>();
    const auto found = expected["tokens"][i].get<Tokens>();
    CHECK(tokenizer.encode(text, Special::Parse) == found);
    CHECK(tokenizer.encode(text, Special::AsText) == entry(expected["as_text"], i, found));
    const auto decoded = entry(expected["decoded"], i, json(text));
    if (!decoded.is_null()) CHECK(tokenizer.decode(found) == decoded.get<std::string>());
    tokens += found.size();
  }
  return tokens;
}

std::vector<std::string> words(const PreTokenizer& pre_tokenizer, std::string_view text) {
  std::vector<std::string> found;
  pre_tokenizer.split(text, [&](std::string_view word) { found.emplace_back(word); });
  return found;
}

}  // namespace

TEST_CASE("Odd texts become the tokens of the package tokenizers, and texts again", "[llm][tokenizer]") {
  const auto vectors = tokenizer_data("vectors");
  for (const std::string name : {"gpt2", "smollm"}) {
    const auto tokenizer = Tokenizer::open(LORA_LLM_DATA "/tokenizer/" + name + ".json");
    CHECK(check_vectors(tokenizer, vectors["texts"], vectors[name]) > 4000);
  }
}

TEST_CASE("Less usual tokenizers give the tokens of the package as well", "[llm][tokenizer]") {
  const auto vectors = tokenizer_data("vectors");
  REQUIRE(vectors["variants"].size() == 8);
  for (const auto& variant : vectors["variants"]) {
    INFO(variant["name"].get<std::string>());
    auto document = tokenizer_data(variant["base"].get<std::string>()).patch(variant["patch"]);
    auto& merges = document["model"]["merges"];
    if (variant.contains("keep_merges"))
      merges.erase(merges.begin() + variant["keep_merges"].get<std::ptrdiff_t>(), merges.end());
    CHECK(check_vectors(open(document), variant["texts"], variant) > 60);
  }
}

TEST_CASE("Added tokens are decoded as they are written, bytes without a token are lost", "[llm][tokenizer]") {
  auto document = tokenizer_data("gpt2");
  document["added_tokens"][0]["content"] = "é日 é";
  document["model"]["vocab"].erase("\u00a2");
  document["model"]["vocab"]["lost"] = tokenizer_data("gpt2")["model"]["vocab"]["\u00a2"];
  const auto tokenizer = open(document);
  CHECK(tokenizer.decode(tokenizer.encode("aé日 éb", Special::Parse)) == "aé日 éb");
  CHECK(tokenizer.decode(tokenizer.encode("a\u00a2b")) ==
        "a\xC2"
        "b");
}

TEST_CASE("The tokenizer inside a GGUF file is the one of tokenizer.json", "[llm][tokenizer][gguf]") {
  const auto vectors = tokenizer_data("vectors");
  for (const auto& [name, pre] : {std::pair("gpt2", "gpt-2"), std::pair("smollm", "smollm")}) {
    const auto document = tokenizer_data(name);
    const auto tokenizer = Tokenizer::from(gguf_of(document, pre));
    check_vectors(tokenizer, vectors["texts"], vectors[name]);
    CHECK(tokenizer.size() == open(document).size());
    CHECK(tokenizer.end_of_text() == 0);
    CHECK_FALSE(tokenizer.begin_of_text().has_value());
  }
  auto metadata = gguf_of(tokenizer_data("smollm"), "smollm");
  metadata.set("tokenizer.ggml.bos_token_id", std::uint32_t{1});
  CHECK_FALSE(Tokenizer::from(metadata).begin_of_text().has_value());
  metadata.set("tokenizer.ggml.add_bos_token", true);
  CHECK(Tokenizer::from(metadata).begin_of_text() == 1);
}

TEST_CASE("User-defined tokens of a GGUF file are found in every text, control tokens on request",
          "[llm][tokenizer][gguf]") {
  const auto metadata = [] {
    auto made = gguf_of(json::parse(tiny), "smollm");
    made.set("tokenizer.ggml.tokens",
             lora::gguf::Array{std::vector<std::string>{"a", "b", "\u0120", "ab", "\u0120ab", "<e>", "<u>", "b>"}});
    made.set("tokenizer.ggml.token_type", lora::gguf::Array{std::vector<std::int32_t>{1, 1, 1, 1, 1, 3, 4, 5}});
    return made;
  }();
  const auto tokenizer = Tokenizer::from(metadata);
  CHECK(tokenizer.encode("a<e>b<u>a", Special::Parse) == Tokens{0, 5, 1, 6, 0});
  CHECK(tokenizer.encode("a<e>b<u>a", Special::AsText) == Tokens{0, 1, 6, 0});
}

TEST_CASE("Words are those of GPT-2's expression, digits apart from them for SmolLM", "[llm][tokenizer]") {
  using Words = std::vector<std::string>;
  const std::string_view text = "it's 12  o'clock!\n\n x";
  CHECK(words({}, text) == Words{"it", "'s", " 12", " ", " o", "'", "clock", "!", "\n\n", " x"});
  CHECK(words({.single_digits = true}, text) ==
        Words{"it", "'s", " ", "1", "2", " ", " o", "'", "clock", "!", "\n\n", " x"});
  CHECK(words({.gpt2_split = false}, text) == Words{std::string(text)});
  CHECK(words({.prefix_space = true}, "it's") == Words{" it", "'s"});
  CHECK(words({}, "").empty());
}

TEST_CASE("A decoded text may end within a character", "[llm][tokenizer]") {
  const auto tokenizer = open(tokenizer_data("gpt2"));
  const std::string text = "naïve 日本 👍🏽 x";
  std::string joined;
  const auto tokens = tokenizer.encode(text);
  for (const Token token : tokens) joined += tokenizer.decode(std::array{token});
  CHECK(joined == text);
  const auto thumb = tokenizer.find("\u00f0");  // the byte 0xF0
  REQUIRE(thumb.has_value());
  CHECK(tokenizer.decode(std::array{*thumb}) == "\xF0");
  CHECK(tokenizer.decode(std::vector<Token>{}).empty());
}

TEST_CASE("Every byte has a character of its own, as in GPT-2", "[llm][tokenizer]") {
  CHECK(byte_text(' ') == "\u0120");
  CHECK(byte_text('\n') == "\u010A");
  CHECK(byte_text('!') == "!");
  CHECK(byte_text(0) == "\u0100");
  CHECK(byte_text(0x7F) == "\u0121");
  CHECK(byte_text(0xA0) == "\u0142");
  CHECK(byte_text(0xAD) == "\u0143");
  CHECK(byte_text(0xFF) == "\u00FF");
  for (unsigned byte = 0; byte < 256; ++byte)
    CHECK(bytes_of_text(byte_text(static_cast<unsigned char>(byte))) == std::string(1, static_cast<char>(byte)));
  CHECK_FALSE(bytes_of_text("a b").has_value());
  CHECK_FALSE(bytes_of_text("\u0144").has_value());
  CHECK_FALSE(bytes_of_text("日").has_value());
}

TEST_CASE("Words of a hundred thousand bytes take no quadratic time", "[llm][tokenizer]") {
  const auto tokenizer = open(tokenizer_data("smollm"));
  constexpr std::size_t size = 400'000;
  std::string text;
  std::uint32_t state = 1;
  while (text.size() < size) {
    state = state * 1664525U + 1013904223U;
    text += static_cast<char>('a' + (state >> 24U) % 26);
  }
  CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
  const std::string same(size, 'e');
  CHECK(tokenizer.decode(tokenizer.encode(same)) == same);
  const std::string apart(size, '\n');
  CHECK(tokenizer.decode(tokenizer.encode(apart)) == apart);
}

TEST_CASE("Text that is not UTF-8 is refused with its place", "[llm][tokenizer][errors]") {
  const auto tokenizer = open(json::parse(tiny));
  const auto message = [&](std::string_view text) {
    return message_of<lora::FormatError>([&] { tokenizer.encode(text); });
  };
  CHECK(message("ab\xFF") == "text must be UTF-8, got the byte 255 at position 2, which begins no character");
  CHECK(message("\x80") == "text must be UTF-8, got the byte 128 at position 0, which begins no character");
  CHECK(message("\u00e9\xC3") == "text must be UTF-8, got the byte 195 at position 2, which begins no character");
  const std::vector<std::string> wrong = {"\xC0\x80",
                                          "\xC1\xBF",
                                          "\xE0\x80\x80",
                                          "\xE0\x9F\xBF",
                                          "\xED\xA0\x80",
                                          "\xED\xBF\xBF",
                                          "\xF0\x80\x80\x80",
                                          "\xF0\x8F\xBF\xBF",
                                          "\xF4\x90\x80\x80",
                                          "\xF5\x80\x80\x80",
                                          "\xFE",
                                          "\xE2\x82",
                                          "\xF0\x9F\x98",
                                          "\xC3(",
                                          "\xE2\x28\xA1",
                                          "\xE2\x82\x28",
                                          "\xF0\x28\x8C\xBC",
                                          "\xF8\x88\x80\x80\x80"};
  for (const auto& bytes : wrong) {
    for (const std::string behind : {"", "a", " more text"}) {
      INFO(json(std::vector<unsigned char>(bytes.begin(), bytes.end())).dump() << " + " << behind);
      CHECK_THROWS_AS(tokenizer.encode("ab" + bytes + behind), lora::FormatError);
    }
  }
  for (const std::string_view right :
       {"\uffff", "\ufffe", "\ufdd0", "\U0010ffff", "\ud7ff", "\ue000", "\u0080", "\u0800"})
    CHECK_NOTHROW(tokenizer.encode(right));
}

TEST_CASE("Decoding refuses numbers that are no tokens", "[llm][tokenizer][errors]") {
  const auto tokenizer = open(json::parse(tiny));
  const auto message = [&](Token token) {
    return message_of<lora::ConfigError>([&] { tokenizer.decode(std::array{token}); });
  };
  CHECK(message(6) == "Tokenizer::decode: a token must lie in [0, 6), got 6");
  CHECK(message(-1) == "Tokenizer::decode: a token must lie in [0, 6), got -1");
}

}  // namespace llm::test
