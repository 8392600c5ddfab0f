// SPDX-License-Identifier: MIT
// Tokenisers for tests: the committed ones, changed ones, the same as the metadata of a GGUF file, a tiny one.
#pragma once

#include "llm/tokenizer.hpp"

#include "support/temporary_folder.hpp"

#include <lora/io/gguf_metadata.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llm::test {

using nlohmann::json;

/// A file of data/tokenizer, without its ending.
inline json tokenizer_data(const std::string& name) {
  return json::parse(lora::test::text_of(LORA_LLM_DATA "/tokenizer/" + name + ".json"));
}

/// Opens a document as the file tokenizer.json of a folder.
inline Tokenizer open(const lora::test::TemporaryFolder& folder, const std::string& document) {
  lora::test::write_text(folder / "tokenizer.json", document);
  return Tokenizer::open(folder / "tokenizer.json");
}
inline Tokenizer open(const json& document) {
  const lora::test::TemporaryFolder folder;
  return open(folder, document.dump());
}

/// What llama.cpp's converter would write for a document.
inline lora::gguf::Metadata gguf_of(const json& document, const std::string& pre) {
  std::vector<std::string> tokens, merges;
  std::vector<std::int32_t> types;
  for (const auto& [text, id] : document["model"]["vocab"].items()) {
    tokens.resize(std::max(tokens.size(), id.get<std::size_t>() + 1));
    tokens[id.get<std::size_t>()] = text;
  }
  types.resize(tokens.size(), 1);
  for (const auto& token : document["added_tokens"]) {
    const auto id = token["id"].get<std::size_t>();
    tokens.resize(std::max(tokens.size(), id + 1));
    types.resize(tokens.size(), 1);
    tokens[id] = token["content"].get<std::string>();
    types[id] = token["special"].get<bool>() ? 3 : 4;
  }
  for (const auto& merge : document["model"]["merges"]) {
    merges.push_back(merge.is_string() ? merge.get<std::string>()
                                       : merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  lora::gguf::Metadata metadata("model.gguf", {});
  metadata.set("tokenizer.ggml.model", std::string("gpt2"));
  metadata.set("tokenizer.ggml.pre", pre);
  metadata.set("tokenizer.ggml.tokens", lora::gguf::Array{std::move(tokens)});
  metadata.set("tokenizer.ggml.token_type", lora::gguf::Array{std::move(types)});
  metadata.set("tokenizer.ggml.merges", lora::gguf::Array{std::move(merges)});
  metadata.set("tokenizer.ggml.eos_token_id", std::uint32_t{0});
  return metadata;
}

/// Five tokens and two merges: short enough to break at every byte.
inline constexpr std::string_view tiny = R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":[
{"id":5,"content":"<e>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
"normalizer":null,"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},
{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}]},
"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,
"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,
"vocab":{"a":0,"b":1,"\u0120":2,"ab":3,"\u0120ab":4},"merges":[["a","b"],["\u0120","ab"]]}})";

}  // namespace llm::test
