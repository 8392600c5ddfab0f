// SPDX-License-Identifier: MIT
// Texts and examples as the rows that they become, and every way in which a file can be wrong.
#include "llm/encoders.hpp"
#include "support/catch.hpp"
#include "support/message.hpp"
#include "support/temporary_folder.hpp"
#include "support/tolerances.hpp"

#include "llm/text_data.hpp"

#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>

using namespace llm;
using namespace llm::test;
using lora::test::message_of;
using lora::test::TemporaryFolder;
using lora::test::write_text;

namespace {

struct File {
  TemporaryFolder folder;
  std::filesystem::path path;

  File(std::string_view name, std::string_view content) : path(folder / name) { write_text(path, content); }
  TextData read(Index length, const TextEncoder& encoder = byte_encoder()) const {
    return read_text_data(path, length, encoder);
  }
};

std::string rows_of(std::string_view text, Index length) { return shown(File("a.txt", text).read(length).sequences); }

/// The message without the folder's name.
template <class ErrorType>
std::string fault(std::string_view name, std::string_view content, Index length = 8) {
  const File file(name, content);
  const std::string message = message_of<ErrorType>([&] { file.read(length); });
  const std::string folder = file.folder.path().string() + "/";
  return message.starts_with(folder) ? message.substr(folder.size()) : message;
}

}  // namespace

TEST_CASE("every token of a text but the first is a target once", "[llm][text_data]") {
  CHECK(rows_of("abcdefg", 3) == "abc>bcd def>efg g$$>$..");
  CHECK(rows_of("abcdef", 3) == "abc>bcd def>ef$");  // the single token that is left has been a target
  CHECK(rows_of("abcdef", 1) == "a>b b>c c>d d>e e>f f>$");
  CHECK(rows_of("a", 4) == "a$$$>$...");
  CHECK(rows_of("ab", 100).substr(0, 5) == "ab$$$");
  for (Index size = 1; size < 30; ++size) {
    for (Index length = 1; length < 12; ++length) {
      const TextData data = File("a.txt", std::string(static_cast<std::size_t>(size), 'x')).read(length);
      CHECK(data.tokens == size + 1);
      CHECK(data.sequences.counted() == size);
      CHECK(data.sequences.size() == (size + length - 1) / length);
    }
  }
}

TEST_CASE("a text is read as it is but for the byte order mark", "[llm][text_data]") {
  CHECK(rows_of("\xEF\xBB\xBF"
                "a\r\nb",
                5) == "a\r\nb$>\r\nb$.");
  CHECK(rows_of("a\xEF\xBB\xBF", 4) == "a\xEF\xBB\xBF>\xEF\xBB\xBF$");
  CHECK(shown(File("a.txt", "ab").read(4, {bytes_as_tokens, test::end, test::begin}).sequences) == "^ab$>ab$.");
}

TEST_CASE("of an example the completion and the end are targets", "[llm][text_data]") {
  const File file("a.jsonl",
                  "{\"prompt\": \"ab\", \"completion\": \"c\"}\n"
                  "\n"
                  "{\"completion\": \"ef\", \"prompt\": \"d\", \"source\": [1, {\"x\": null}]}\r\n"
                  "{\"prompt\": \"g\", \"completion\": \"hijklmn\"}\n"     // fills a row: its end is a target only
                  "{\"prompt\": \"o\", \"completion\": \"pqrstuvwxy\"}\n"  // loses its end
                  "{\"prompt\": \"123456789\", \"completion\": \"0\"}\n"   // has no target left
                  "{\"prompt\": \"\", \"completion\": \"z\"}\n"            // its first token follows nothing
                  "{\"prompt\": \"0\", \"completion\": \"\"}");
  const TextData data = file.read(8);
  CHECK(shown(data.sequences) == "abc$def$>.c$.ef$. ghijklmn>hijklmn$ opqrstuv>pqrstuvw z$0$$$$$>$.$.....");
  CHECK(data.kind == TextData::Kind::Examples);
  CHECK(data.examples == 7);
  CHECK(data.tokens == 4 + 4 + 9 + 9 + 2 + 2);
  CHECK(data.summary() == file.path.string() +
                              ": 297 bytes, 7 examples, 30 tokens; 1 example cut to 8 tokens, in line 5; 1 example "
                              "left out, whose prompt alone is longer than 8 tokens, in line 6");
  CHECK(File("a.txt", "ab").read(3).summary().ends_with("a.txt: 2 bytes, 3 tokens"));
}

TEST_CASE("the begin of a text belongs to the prompt", "[llm][text_data]") {
  const File file("a.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"\", \"completion\": \"c\"}\n");
  const TextData data = file.read(8, {bytes_as_tokens, test::end, test::begin});
  CHECK(shown(data.sequences) == "^ab$^c$$>.b$.c$..");
}

TEST_CASE("an example goes into the fullest row that has room for it", "[llm][text_data]") {
  const auto line = [](std::string_view completion) {
    return "{\"prompt\": \"\", \"completion\": \"" + std::string(completion) + "\"}\n";
  };
  const File file("a.jsonl", line("aaaa") + line("bbbbb") + line("cc") + line("ddd"));
  CHECK(shown(file.read(8).sequences) == "aaaa$ddd>aaa$.dd$ bbbbb$cc>bbbb$.c$");
}

TEST_CASE("a file that is no text is refused with its place", "[llm][text_data]") {
  CHECK(fault<lora::FormatError>("a.txt", "") == "a.txt: must hold text, got an empty file");
  CHECK(fault<lora::FormatError>("a.txt", "\xEF\xBB\xBF") == "a.txt: must hold text, got an empty file");
  const std::string_view words = ": must be UTF-8, got other bytes from byte ";
  const auto at = [&](std::string_view text, std::string_view line, std::string_view byte) {
    const std::string expected = "a.txt:" + std::string(line) + std::string(words) + std::string(byte);
    CHECK(fault<lora::FormatError>("a.txt", text) == expected + " of the file on");
  };
  at("a\nb\n\xE4hm", "3", "4");  // Latin-1
  at("\xFF\xFE"
     "a",
     "1", "0");                                                  // UTF-16
  at("\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80\xE2\x82", "1", "9");  // cut within a character
  at("\xC3\xA4\xED\xA0\x80", "1", "2");                          // a surrogate
  at("\xEF\xBB\xBF\x80", "1", "3");                              // counted from the start of the file
  const std::string_view utf8 = "\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80z";
  for (std::size_t size = 1; size <= utf8.size(); ++size) {
    const bool whole = size == 2 || size == 5 || size >= 9;
    CHECK((fault<lora::FormatError>("a.txt", utf8.substr(0, size)) == "[no error]") == whole);
  }
}

TEST_CASE("a line that is no example is refused with its number", "[llm][text_data]") {
  const auto second = [](std::string_view line) {
    return fault<lora::FormatError>("a.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n" + std::string(line));
  };
  CHECK(second("[\"a\", \"b\"]") == "a.jsonl:2: must be a JSON object, got something else");
  CHECK(second("{\"prompt\": \"a\",}") == "a.jsonl:2: must be UTF-8 JSON, got a fault at byte 16");
  CHECK(second("{\"prompt\": \"\xE4\"}") == "a.jsonl:2: must be UTF-8 JSON, got a fault at byte 14");
  CHECK(second("{\"prompt\": \"a\"}") == "a.jsonl:2: must have a \"completion\", got none");
  CHECK(second("{\"text\": \"a\"}") == "a.jsonl:2: must have a \"prompt\", got none");
  CHECK(second("{\"prompt\": 3, \"completion\": \"b\"}") == "a.jsonl:2: \"prompt\" must be a string, got 3");
  CHECK(second("{\"prompt\": \"a\", \"completion\": null}") == "a.jsonl:2: \"completion\" must be a string, got null");
  CHECK(second("{\"prompt\": [\"a\"], \"completion\": \"\"}") ==
        "a.jsonl:2: \"prompt\" must be a string, got an array");
  CHECK(second("{\"prompt\": \"\", \"completion\": \"\"}") ==
        "a.jsonl:2: prompt and completion must not both be empty, got no token");
  CHECK(second("{\"prompt\": \"a\", \"prompt\": \"b\", \"completion\": \"\"}") ==
        "a.jsonl:2: \"prompt\" must stand once, got a second one");
  CHECK(fault<lora::FormatError>("a.jsonl", " \r\n\n") == "a.jsonl: must hold an example a line, got blank lines only");
  CHECK(fault<lora::ConfigError>("a.jsonl", "{\"prompt\": \"123456789\", \"completion\": \"b\"}") ==
        "a.jsonl: prompts must be shorter than the sequences of 8 tokens, got none that is; make the sequences longer");
  CHECK(fault<lora::ConfigError>("a.json", "{}") ==
        "a.json: must be a text or, under a name that ends in .jsonl, one JSON object a line, got a name that ends in "
        ".json");
  CHECK(fault<lora::ConfigError>("a.txt", "a", 0) == "Sequences: length must be at least 1, got 0");
  CHECK(message_of<lora::IoError>([] { read_text_data("no such file", 4, byte_encoder()); }) ==
        "no such file: must open for reading, got No such file or directory");
}

TEST_CASE("a line cut at any byte is refused", "[llm][text_data]") {
  const std::string_view line = "{\"prompt\": \"a\\u00e4\", \"completion\": \"b\", \"n\": [1]}";
  for (std::size_t size = 1; size < line.size(); ++size) {
    CHECK(fault<lora::FormatError>("a.jsonl", line.substr(0, size)).starts_with("a.jsonl:1: must be UTF-8 JSON"));
  }
}

TEST_CASE("the last part of a text validates", "[llm][text_data]") {
  const Split halves = split(File("a.txt", "abcdefgh").read(2), 0.5);
  CHECK(shown(halves.training) == "ab>bc cd>de");
  CHECK(shown(halves.validation) == "ef>fg gh>h$");
  const Split least = split(File("a.txt", "abcdefgh").read(2), 0.01);
  CHECK(shown(least.validation) == "gh>h$");
  const Split most = split(File("a.txt", "abcdefgh").read(2), 0.99);
  CHECK(shown(most.training) == "ab>bc");
  CHECK(validation_size(100, 0.1) == 10);
  CHECK(validation_size(14, 0.1) == 1);
  CHECK(validation_size(15, 0.1) == 2);
}

TEST_CASE("the seed draws the examples that validate, each choice as likely as any other", "[llm][text_data]") {
  const Sequences all = letters(5);
  std::map<std::string, int> seen;
  constexpr int seeds = 10000;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    const Split parts = split_drawn(all, 0.4, seed);
    REQUIRE(parts.validation.size() == 2);
    REQUIRE(parts.training.size() == 3);
    std::string drawn, rest;
    for (Index i = 0; i < 2; ++i) drawn += shown(parts.validation.tokens(i));
    for (Index i = 0; i < 3; ++i) rest += shown(parts.training.tokens(i));
    const std::string both = drawn + rest;
    REQUIRE(std::set<char>(both.begin(), both.end()).size() == 5);
    ++seen[drawn];
  }
  CHECK(seen.size() == 10);
  for (const auto& [drawn, count] : seen) {
    CAPTURE(drawn);
    CHECK(std::abs(count - seeds / 10) < lora::test::count_deviation(seeds, 0.1));
  }
  CHECK(shown(split_drawn(all, 0.4, 7).validation) == shown(split_drawn(all, 0.4, 7).validation));
}

TEST_CASE("too little to train on and to validate with is refused with what it takes", "[llm][text_data]") {
  const auto message = [](std::string_view name, std::string_view content, double share = 0.1) {
    const File file(name, content);
    const std::string text = message_of<lora::ConfigError>([&] { split(file.read(4), share); });
    const std::string folder = file.folder.path().string() + "/";
    return text.starts_with(folder) ? text.substr(folder.size()) : text;
  };
  CHECK(message("a.txt", "abcde") == "[no error]");  // with its end the six tokens that it takes
  CHECK(message("a.txt", "abcd") ==
        "a.txt: must fill two sequences of 4 tokens, one to train on and one to validate with, which takes 6 tokens, "
        "got 5; give more text or make the sequences shorter");
  const std::string line = "{\"prompt\": \"a\", \"completion\": \"bc\"}\n";
  CHECK(message("a.jsonl", line + line) == "[no error]");
  CHECK(message("a.jsonl", line) ==
        "a.jsonl: must fill two sequences of 4 tokens, one to train on and one to validate with, which takes 6 tokens, "
        "got 4; give more text or make the sequences shorter");
  CHECK(message("a.txt", "abcdefghijk", 0) == "split: the share that validates must lie in (0, 1), got 0");
  CHECK(message("a.txt", "abcdefghijk", 1) == "split: the share that validates must lie in (0, 1), got 1");
}
