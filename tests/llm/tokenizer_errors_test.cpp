// SPDX-License-Identifier: MIT
// Files that are no tokenizer, or one that is not supported; and the files beside tokenizer.json.
#include "llm/tokenizer_files.hpp"

#include "support/catch.hpp"
#include "support/message.hpp"

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
using lora::test::write_text;
using Strings = std::vector<std::string>;

/// What opening says, without the folder's name.
template <class ErrorType = lora::FormatError>
std::string message(const TemporaryFolder& folder, const std::string& document) {
  auto text = message_of<ErrorType>([&] { open(folder, document); });
  const auto name = folder.path().string() + "/";
  for (auto at = text.find(name); at != std::string::npos; at = text.find(name)) text.erase(at, name.size());
  return text;
}

/// The same after one change of the tiny tokenizer: a JSON patch.
std::string changed(std::string_view operation, std::string_view path, std::string_view value = "null") {
  const TemporaryFolder folder;
  const auto patch = "[{\"op\": \"" + std::string(operation) + "\", \"path\": \"" + std::string(path) +
                     "\", \"value\": " + std::string(value) + "}]";
  return message(folder, json::parse(tiny).patch(json::parse(patch)).dump());
}
std::string replaced(std::string_view path, std::string_view value) { return changed("replace", path, value); }

/// The message for the tiny tokenizer in a GGUF file, after one key is set.
std::string gguf_message(std::string_view key, lora::gguf::Value value) {
  auto metadata = gguf_of(json::parse(tiny), "smollm");
  metadata.set(key, std::move(value));
  return message_of<lora::FormatError>([&] { Tokenizer::from(metadata); });
}

}  // namespace

TEST_CASE("Tokenizers of other kinds are refused, the message names the field", "[llm][tokenizer][errors]") {
  const std::string unsupported = "; such a tokeniser is not supported";
  CHECK(replaced("/version", "\"2.0\"") == "tokenizer.json: version must be \"1.0\", got \"2.0\"");
  CHECK(replaced("/normalizer", R"({"type":"NFC"})") ==
        "tokenizer.json: normalizer must be null, got \"NFC\"" + unsupported);
  CHECK(replaced("/post_processor", R"({"type":"TemplateProcessing"})") ==
        "tokenizer.json: post_processor must be null or ByteLevel, got \"TemplateProcessing\"" + unsupported);
  CHECK(replaced("/decoder", R"({"type":"Metaspace"})") ==
        "tokenizer.json: decoder must be ByteLevel, got \"Metaspace\"" + unsupported);
  CHECK(replaced("/decoder", "null") == "tokenizer.json: decoder must be ByteLevel, got null" + unsupported);
  CHECK(changed("add", "/extra", "1") == "tokenizer.json: extra is not supported, nor known here");

  const std::string pre = "tokenizer.json: pre_tokenizer must be ByteLevel or a Sequence of Digits and ByteLevel, got ";
  CHECK(replaced("/pre_tokenizer", "null") == pre + "null" + unsupported);
  CHECK(replaced("/pre_tokenizer", R"({"type":"Metaspace"})") == pre + "\"Metaspace\"" + unsupported);
  CHECK(replaced("/pre_tokenizer/pretokenizers/0/type", "\"Split\"") ==
        pre + "a Sequence of \"Split\", \"ByteLevel\"" + unsupported);
  CHECK(replaced("/pre_tokenizer/pretokenizers", "[]") == pre + "a Sequence of nothing" + unsupported);
  CHECK(replaced("/pre_tokenizer/pretokenizers", "7") ==
        "tokenizer.json: pre_tokenizer: pretokenizers must be an array, got 7");
  CHECK(replaced("/pre_tokenizer/pretokenizers/0/individual_digits", "false") ==
        "tokenizer.json: pre_tokenizer.pretokenizers[0]: individual_digits must be true, got false");
  CHECK(replaced("/pre_tokenizer/pretokenizers/1/add_prefix_space", "1") ==
        "tokenizer.json: pre_tokenizer.pretokenizers[1]: add_prefix_space must be true or false, got 1");
  CHECK(changed("add", "/pre_tokenizer/pretokenizers/1/new", "1") ==
        "tokenizer.json: pre_tokenizer.pretokenizers[1]: new is not supported, nor known here");

  CHECK(replaced("/model", "[]") == "tokenizer.json: model must be an object, got an array");
  CHECK(replaced("/model/type", "\"Unigram\"") == "tokenizer.json: model: type must be \"BPE\", got \"Unigram\"");
  CHECK(replaced("/model/dropout", "0.1") == "tokenizer.json: model: dropout must be null or 0, got 0.1");
  CHECK(replaced("/model/end_of_word_suffix", "\"</w>\"") ==
        "tokenizer.json: model: end_of_word_suffix must be null or empty, got \"</w>\"");
  CHECK(replaced("/model/byte_fallback", "true") == "tokenizer.json: model: byte_fallback must be false, got true");
  CHECK(replaced("/model/ignore_merges", "3") == "tokenizer.json: model: ignore_merges must be true or false, got 3");
  CHECK(replaced("/model/unk_token", "\"a\"") ==
        "tokenizer.json: model: unk_token must be null where a byte has no token, got \"a\"");
  CHECK(changed("add", "/model/new", "1") == "tokenizer.json: model: new is not supported, nor known here");
}

TEST_CASE("What is allowed beside the usual is accepted", "[llm][tokenizer]") {
  for (const auto& [path, value] :
       {std::pair("/model/continuing_subword_prefix", "\"\""), std::pair("/model/dropout", "0.0"),
        std::pair("/truncation", R"({"max_length": 5})"), std::pair("/model/type", "null"),
        std::pair("/post_processor", R"({"type":"ByteLevel","trim_offsets":false})"),
        std::pair("/added_tokens", "[]")}) {
    INFO(path);
    CHECK(replaced(path, value) == "[no error]");
  }
}

TEST_CASE("Vocabularies and merges that break a rule are refused", "[llm][tokenizer][errors]") {
  const std::string model = "tokenizer.json: model: ";
  CHECK(replaced("/model/vocab", "{}") == model + "vocab must be an object with tokens, got an object");
  CHECK(replaced("/model/vocab", "null") == model + "vocab must be an object with tokens, got null");
  for (const std::string id : {"1", "5", "-1", "1.5", "\"3\"", "null", "99999999999999999"}) {
    CHECK(replaced("/model/vocab/ab", id) == model + "vocab: the id of " + (id == "1" ? "\"b\"" : "\"ab\"") +
                                                 " must be one of [0, 5) and no other token's, got " + id);
  }
  CHECK(replaced("/model/merges", "{}") == model + "merges must be an array, got an object");
  CHECK(replaced("/model/merges/1", "5") == model + "merges[1] must be a string or a pair of strings, got 5");
  CHECK(replaced("/model/merges/1", R"(["a"])") ==
        model + "merges[1] must be a string or a pair of strings, got an array");
  CHECK(replaced("/model/merges/1", R"(["a", 1])") ==
        model + "merges[1] must be a string or a pair of strings, got an array");
  CHECK(replaced("/model/merges/1", R"("ab")") ==
        model + "merges[1]: a merge must be two tokens with one space between, got \"ab\"");
  CHECK(replaced("/model/merges/1", R"("a b a")") ==
        model + "merges[1]: a merge must be two tokens with one space between, got \"a b a\"");
  CHECK(replaced("/model/merges/1", R"(["a", "c"])") ==
        model + "merges[1]: \"c\" must be a token, got none of that text");
  CHECK(replaced("/model/merges/1", R"(["b", "a"])") ==
        model + "merges[1]: \"ba\" must be a token, got none of that text");
  CHECK(replaced("/model/merges/1", R"("a b")") ==
        model + "merges[1]: a pair must stand once, got \"a\" and \"b\" like [0]");
}

TEST_CASE("Added tokens that break a rule are refused", "[llm][tokenizer][errors]") {
  const std::string first = "tokenizer.json: added_tokens[0]", second = "tokenizer.json: added_tokens[1]";
  CHECK(replaced("/added_tokens", "7") == "tokenizer.json: added_tokens must be an array, got 7");
  CHECK(replaced("/added_tokens/0", "7") == first + " must be an object, got 7");
  CHECK(replaced("/added_tokens/0/id", "6") == first + ": id must be 5, the next after the vocabulary's, got 6");
  CHECK(replaced("/added_tokens/0/id", "\"5\"") ==
        first + ": id must be 5, the next after the vocabulary's, got \"5\"");
  CHECK(replaced("/added_tokens/0/content", "\"ab\"") ==
        first + ": id must be 3, what the vocabulary has for this token, got 5");
  CHECK(replaced("/added_tokens/0/content", "\"\"") == first + ": the text of token 5 must not be empty");
  CHECK(replaced("/added_tokens/0/content", "[1]") == first + ": content must be a string, got an array");
  CHECK(replaced("/added_tokens/0/single_word", "true") ==
        first + ": single_word must be false, the other is not supported, got true");
  CHECK(changed("remove", "/added_tokens/0/special") == first + ": special must be true or false, got null");
  CHECK(changed("add", "/added_tokens/0/new", "1") == first + ": new is not supported, nor known here");
  auto twice = json::parse(tiny)["added_tokens"];
  twice.push_back(twice[0]);
  CHECK(replaced("/added_tokens", twice.dump()) == second + ": \"<e>\" must stand once, got a second one");
}

TEST_CASE("Files that are no JSON, or none at all, are refused", "[llm][tokenizer][errors]") {
  const TemporaryFolder folder;
  CHECK(message(folder, "") == "tokenizer.json: must be a JSON object, got something else");
  CHECK(message(folder, "[1]") == "tokenizer.json: must be a JSON object, got something else");
  CHECK(message(folder, R"({"version":"1.0","version":"1.0"})") ==
        "tokenizer.json: \"version\" must stand once, got a second one");
  CHECK(message(folder, R"({"model":{"vocab":{"a":0,"a":1}}})") ==
        "tokenizer.json: \"a\" must stand once, got a second one");
  CHECK(message(folder, std::string(5000, '[')) == "tokenizer.json: must be a JSON object, got something else");
  CHECK(message(folder, "{\"a\":" + std::string(5000, '[')) ==
        "tokenizer.json: must not be nested deeper than 32, got more");
  const auto missing = (folder / "none.json").string();
  CHECK(message_of<lora::IoError>([&] { Tokenizer::open(missing); }) ==
        missing + ": must open for reading, got No such file or directory");
  CHECK(message_of<lora::IoError>([&] { Tokenizer::open(folder.path()); }) ==
        folder.path().string() + ": must be a regular file, got a directory");
}

TEST_CASE("A file cut anywhere is refused, one with any bit flipped opens or is refused", "[llm][tokenizer][errors]") {
  const TemporaryFolder folder;
  const std::string whole(tiny);
  REQUIRE_NOTHROW(open(folder, whole));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    INFO("cut to " << size);
    CHECK_THROWS_AS(open(folder, whole.substr(0, size)), lora::FormatError);
  }
  std::size_t opened = 0;
  for (std::size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    INFO("bit " << bit);
    auto flipped = whole;
    flipped[bit / 8] = static_cast<char>(static_cast<unsigned char>(flipped[bit / 8]) ^ (1U << (bit % 8)));
    try {
      const auto tokenizer = open(folder, flipped);
      tokenizer.decode(tokenizer.encode("ab <e> 12ab\n", Tokenizer::Special::Parse));
      ++opened;
    } catch (const lora::FormatError&) {
    }
  }
  CHECK(opened < whole.size());  // of eight times as many: texts of tokens, values of fields that are not read
}

TEST_CASE("The last token of a text is the one that the files beside it name", "[llm][tokenizer]") {
  const TemporaryFolder folder;
  const std::string document(tiny);
  CHECK(message_of<lora::FormatError>([&] { static_cast<void>(open(folder, document).end_of_text()); }) ==
        (folder / "tokenizer.json").string() +
            ": must name the token at the end of a text, got none; a "
            "tokenizer_config.json beside it may, as eos_token");
  CHECK(open(tokenizer_data("gpt2")).end_of_text() == open(tokenizer_data("gpt2")).find("<|endoftext|>"));

  write_text(folder / "config.json", R"({"eos_token_id": 1, "other": {"a": [2]}})");
  CHECK(open(folder, document).end_of_text() == 1);
  write_text(folder / "generation_config.json", R"({"eos_token_id": [4, 1]})");
  CHECK(open(folder, document).end_of_text() == 4);
  write_text(folder / "tokenizer_config.json", R"({"eos_token": null, "bos_token": "b"})");
  CHECK(open(folder, document).end_of_text() == 4);
  CHECK_FALSE(open(folder, document).begin_of_text().has_value());
  write_text(folder / "tokenizer_config.json",
             R"({"eos_token": "<e>", "bos_token": {"content": "b"}, "add_bos_token": true})");
  CHECK(open(folder, document).end_of_text() == 5);
  CHECK(open(folder, document).begin_of_text() == 1);

  write_text(folder / "tokenizer_config.json", R"({"eos_token": "</s>"})");
  CHECK(message(folder, document) == "tokenizer_config.json: eos_token must be a token, got \"</s>\"");
  write_text(folder / "tokenizer_config.json", R"({"eos_token": 2})");
  CHECK(message(folder, document) == "tokenizer_config.json: eos_token must be a token, got 2");
  write_text(folder / "tokenizer_config.json", "{}");
  write_text(folder / "generation_config.json", R"({"eos_token_id": 6})");
  CHECK(message(folder, document) ==
        "generation_config.json: eos_token_id must be less than the number of tokens 6, got 6");
}

TEST_CASE("GGUF metadata that is no such tokenizer is refused", "[llm][tokenizer][gguf][errors]") {
  using lora::gguf::Array;
  const std::string unsupported = "; such a tokeniser is not supported";
  CHECK(gguf_message("tokenizer.ggml.model", std::string("llama")) ==
        "model.gguf: key \"tokenizer.ggml.model\" must be \"gpt2\", byte-level BPE, got \"llama\"" + unsupported);
  CHECK(gguf_message("tokenizer.ggml.pre", std::string("llama-bpe")) ==
        "model.gguf: key \"tokenizer.ggml.pre\" must be \"gpt-2\" or \"smollm\", got \"llama-bpe\"" + unsupported);
  CHECK(gguf_message("tokenizer.ggml.pre", std::uint32_t{1}) ==
        "model.gguf: key \"tokenizer.ggml.pre\" must be string, got u32");
  CHECK(message_of<lora::FormatError>([] { Tokenizer::from(lora::gguf::Metadata("model.gguf", {})); }) ==
        "model.gguf: key \"tokenizer.ggml.model\" must be string, got no such key");

  const std::string tokens = "model.gguf: key \"tokenizer.ggml.tokens\"";
  CHECK(gguf_message("tokenizer.ggml.tokens", Array{Strings{}}) == tokens + " must not be empty");
  CHECK(gguf_message("tokenizer.ggml.tokens", Array{std::vector<float>(5)}) ==
        tokens + " must be array of string, got array of f32");
  CHECK(gguf_message("tokenizer.ggml.tokens", Array{Strings{"a", "b", "c", "ab", "b", "<e>"}}) ==
        tokens + ": token 4 must have a text of its own, got \"b\" like token 1");
  CHECK(gguf_message("tokenizer.ggml.tokens", Array{Strings{"a", "\xFF", "c", "ab", "b", "<e>"}}) ==
        tokens + ": token 1 must be UTF-8, got other bytes");
  CHECK(gguf_message("tokenizer.ggml.tokens", Array{Strings{"a", "b", "\u0120", "ab", "\u0120ab", ""}}) ==
        tokens + ": the text of token 5 must not be empty");

  const std::string types = "model.gguf: key \"tokenizer.ggml.token_type\"";
  CHECK(gguf_message("tokenizer.ggml.token_type", Array{std::vector<std::int32_t>(5, 1)}) ==
        types + " must have a type for each of the 6 tokens, got 5");
  CHECK(gguf_message("tokenizer.ggml.token_type", Array{std::vector<std::int32_t>(6, 6)}) ==
        types + ": the type of token 0 must lie in [1, 5], got 6");
  CHECK(gguf_message("tokenizer.ggml.token_type", Array{std::vector<std::int32_t>(6, -1)}) ==
        types + ": the type of token 0 must lie in [1, 5], got -1");

  const std::string merges = "model.gguf: key \"tokenizer.ggml.merges\"";
  CHECK(gguf_message("tokenizer.ggml.merges", Array{Strings{"a b", "ab"}}) ==
        merges + "[1]: a merge must be two tokens with one space between, got \"ab\"");
  CHECK(gguf_message("tokenizer.ggml.merges", Array{Strings{"a b", "a \xFF"}}) ==
        merges + "[1]: a merge must be UTF-8, got other bytes");
  CHECK(gguf_message("tokenizer.ggml.merges", Array{Strings{"a b", "a b"}}) ==
        merges + "[1]: a pair must stand once, got \"a\" and \"b\" like [0]");
  CHECK(gguf_message("tokenizer.ggml.merges", Array{Strings{"b a"}}) ==
        merges + "[0]: \"ba\" must be a token, got none of that text");

  CHECK(gguf_message("tokenizer.ggml.eos_token_id", std::uint32_t{6}) ==
        "model.gguf: key \"tokenizer.ggml.eos_token_id\" must be less than the number of tokens 6, got 6");
  CHECK(gguf_message("tokenizer.ggml.eos_token_id", std::int32_t{1}) ==
        "model.gguf: key \"tokenizer.ggml.eos_token_id\" must be u32, got i32");
  CHECK(gguf_message("tokenizer.ggml.add_bos_token", true) ==
        "model.gguf: key \"tokenizer.ggml.bos_token_id\" must be u32, for \"tokenizer.ggml.add_bos_token\" is true, "
        "got no such key");
}

}  // namespace llm::test
