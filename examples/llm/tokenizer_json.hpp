// SPDX-License-Identifier: MIT
// The tokenizer.json of Hugging Face's `tokenizers`, as far as it is byte-level BPE of GPT-2's or SmolLM's kind.
#pragma once

#include "tokenizer_parts.hpp"

#include <lora/core/error.hpp>
#include <lora/io/config_json.hpp>
#include <lora/io/file.hpp>

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llm::detail {

using lora::detail::ConfigReader;
using nlohmann::json;

/// A file of one JSON object, no key of which stands twice.
inline json read_json(const std::filesystem::path& path) {
  constexpr std::uint64_t most = 64U << 20U;
  const auto bytes = lora::io::read_file(path, most);
  std::map<std::string, std::vector<std::string>> order;
  return lora::detail::parse_config({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path.string(), order);
}

/// Reads the keys of a JSON object one by one; what is left over in the end is not supported.
class Fields {
 public:
  Fields(std::optional<json> object, std::string where)
      : where_(std::move(where)), reader_(checked(std::move(object), where_), where_) {}
  Fields(const Fields&) = delete;
  Fields& operator=(const Fields&) = delete;

  const std::string& where() const { return where_; }
  ConfigReader& reader() { return reader_; }
  std::optional<json> take(const char* key) { return reader_.take(key); }

  bool flag(const char* key) {
    const auto value = reader_.take(key);
    require(value && value->is_boolean(), key, "must be true or false", value);
    return value->get<bool>();
  }
  /// `rule` says what the value must be.
  void require(bool holds, std::string_view key, std::string_view rule, const std::optional<json>& value) const {
    if (!holds) reader_.check(false, key, " ", rule, ", got ", ConfigReader::shown(value));
  }
  void require_none_left() {
    const auto& rest = reader_.rest();
    if (!rest.empty()) reader_.check(false, rest.begin().key(), " is not supported, nor known here");
  }

 private:
  static json checked(std::optional<json> object, const std::string& where) {
    lora::detail::require<lora::FormatError>(object && object->is_object(), where, " must be an object, got ",
                                             ConfigReader::shown(object));
    return std::move(*object);
  }

  std::string where_;
  ConfigReader reader_;
};

/// The "type" of a part, for messages and choices: "ByteLevel"; the empty string for null.
inline std::string type_of(const std::optional<json>& part) {
  if (!part || !part->is_object()) return {};
  const auto type = part->find("type");
  return type != part->end() && type->is_string() ? type->get<std::string>() : std::string();
}
inline std::string shown_type(const std::optional<json>& part) {
  const auto type = type_of(part);
  return type.empty() ? ConfigReader::shown(part) : lora::detail::quoted(type);
}

inline void read_byte_level(const json& part, const std::string& where, PreTokenizer& pre_tokenizer) {
  Fields fields(part, where);
  fields.take("type");
  fields.take("trim_offsets");  // about places in the text, of which nothing is said here
  pre_tokenizer.prefix_space = fields.flag("add_prefix_space");
  if (fields.reader().rest().contains("use_regex")) pre_tokenizer.gpt2_split = fields.flag("use_regex");
  fields.require_none_left();
}

inline void read_digits(const json& part, const std::string& where, PreTokenizer& pre_tokenizer) {
  Fields fields(part, where);
  fields.take("type");
  const auto single = fields.take("individual_digits");
  fields.require(single && *single == true, "individual_digits", "must be true", single);
  pre_tokenizer.single_digits = true;
  fields.require_none_left();
}

/// ByteLevel, or a Sequence of Digits and ByteLevel.
inline PreTokenizer read_pre_tokenizer(const std::optional<json>& part, const std::string& where) {
  const auto require = [&](bool holds, const std::string& got) {
    lora::detail::require<lora::FormatError>(holds, where,
                                             " must be ByteLevel or a Sequence of Digits and ByteLevel, got ", got,
                                             "; such a tokeniser is not supported");
  };
  PreTokenizer pre_tokenizer;
  if (type_of(part) == "ByteLevel") {
    read_byte_level(*part, where, pre_tokenizer);
    return pre_tokenizer;
  }
  require(type_of(part) == "Sequence", shown_type(part));
  Fields fields(part, where);
  fields.take("type");
  const auto steps = fields.take("pretokenizers");
  fields.require(steps && steps->is_array(), "pretokenizers", "must be an array", steps);
  fields.require_none_left();
  constexpr std::size_t most = 2;
  require(steps->size() <= most, "a Sequence of " + std::to_string(steps->size()));
  std::string types;
  for (const auto& step : *steps) types += (types.empty() ? "" : ", ") + shown_type(step);
  const bool digits = types == R"("Digits", "ByteLevel")";
  require(digits || types == R"("ByteLevel")", "a Sequence of " + (types.empty() ? "nothing" : types));
  if (digits) read_digits((*steps)[0], where + ".pretokenizers[0]", pre_tokenizer);
  const std::size_t last = digits ? 1 : 0;
  read_byte_level((*steps)[last], where + ".pretokenizers[" + std::to_string(last) + "]", pre_tokenizer);
  return pre_tokenizer;
}

inline void read_vocabulary(const std::optional<json>& object, const Fields& model, Vocabulary& vocabulary) {
  model.require(object && object->is_object() && !object->empty(), "vocab", "must be an object with tokens", object);
  std::vector<const std::string*> texts(object->size());
  for (const auto& [text, id] : object->items()) {
    const bool is_id = id.is_number_unsigned() && id.get<std::uint64_t>() < texts.size();
    const auto place = is_id ? id.get<std::size_t>() : 0;
    lora::detail::require<lora::FormatError>(is_id && texts[place] == nullptr, model.where(), ": vocab: the id of ",
                                             lora::detail::Quoted{text}, " must be one of [0, ", texts.size(),
                                             ") and no other token's, got ", ConfigReader::shown(id));
    texts[place] = &text;
  }
  const std::string where = model.where() + ": vocab";
  for (const auto* text : texts) vocabulary.add(*text, where);
}

/// "a b" or ["a", "b"] each.
inline void read_merges(const std::optional<json>& list, const Fields& model, const Vocabulary& vocabulary, Bpe& bpe) {
  model.require(list && list->is_array(), "merges", "must be an array", list);
  const std::string where = model.where() + ": merges";
  for (std::size_t i = 0; i < list->size(); ++i) {
    const auto& merge = (*list)[i];
    if (merge.is_string()) {
      bpe.add_merge(vocabulary, merge.get_ref<const std::string&>(), where);
      continue;
    }
    const bool two = merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string();
    lora::detail::require<lora::FormatError>(two, where, "[", i, "] must be a string or a pair of strings, got ",
                                             ConfigReader::shown(merge));
    bpe.add_merge(vocabulary, merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>(), where);
  }
}

inline void read_bpe_model(std::optional<json> object, const std::string& where, TokenizerParts& parts) {
  Fields model(std::move(object), where);
  const auto type = model.take("type");  // old files have none
  model.require(!type || *type == "BPE", "type", "must be \"BPE\"", type);
  const auto dropout = model.take("dropout");
  model.require(!dropout || *dropout == 0.0, "dropout", "must be null or 0", dropout);
  for (const char* const key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const auto affix = model.take(key);
    model.require(!affix || *affix == "", key, "must be null or empty", affix);
  }
  const auto byte_fallback = model.take("byte_fallback");
  model.require(!byte_fallback || *byte_fallback == false, "byte_fallback", "must be false", byte_fallback);

  read_vocabulary(model.take("vocab"), model, parts.vocabulary);
  parts.bpe = Bpe(parts.vocabulary);
  read_merges(model.take("merges"), model, parts.vocabulary, parts.bpe);
  if (model.reader().flag("ignore_merges")) parts.bpe.prefer_whole_words(parts.vocabulary);
  const auto unknown = model.take("unk_token");
  model.require(!unknown || parts.bpe.is_complete(), "unk_token", "must be null where a byte has no token", unknown);
  model.take("fuse_unk");  // what follows from that: nothing is unknown
  model.require_none_left();
}

/// Some are tokens of the model, the others follow it in the order of their numbers.
inline void read_added_tokens(const std::optional<json>& list, const std::string& where, TokenizerParts& parts) {
  lora::detail::require<lora::FormatError>(!list || list->is_array(), where, " must be an array, got ",
                                           ConfigReader::shown(list));
  for (std::size_t i = 0; list && i < list->size(); ++i) {
    Fields token((*list)[i], where + "[" + std::to_string(i) + "]");
    const auto id = token.take("id");
    const auto content = token.take("content");
    token.require(content && content->is_string(), "content", "must be a string", content);
    const auto text = content->get<std::string>();
    const auto known = parts.vocabulary.find(text);
    const auto expected = known.value_or(static_cast<Token>(parts.vocabulary.size()));
    token.require(id && id->is_number_unsigned() && *id == expected, "id",
                  "must be " + std::to_string(expected) +
                      (known ? ", what the vocabulary has for this token" : ", the next after the vocabulary's"),
                  id);
    const auto single_word = token.flag("single_word");
    token.require(!single_word, "single_word", "must be false, the other is not supported", json(single_word));
    const AddedToken added{.id = expected,
                           .special = token.flag("special"),
                           .normalized = token.flag("normalized"),
                           .lstrip = token.flag("lstrip"),
                           .rstrip = token.flag("rstrip")};
    token.require_none_left();
    parts.added.add(text, added, token.where());
    if (!known) parts.vocabulary.add(text, token.where());
  }
}

/// "eos_token": "<|im_end|>", or an object with that as its "content".
inline std::optional<Token> named_token(std::optional<json> value, const char* key, const std::string& file,
                                        const Vocabulary& vocabulary) {
  if (value && value->is_object() && value->contains("content")) value = json(value->at("content"));
  if (!value) return std::nullopt;
  const auto found = value->is_string() ? vocabulary.find(value->get_ref<const std::string&>()) : std::nullopt;
  lora::detail::require<lora::FormatError>(found.has_value(), file, ": ", key, " must be a token, got ",
                                           ConfigReader::shown(value));
  return found;
}

/// "eos_token_id": 2, or an array of such, the first of which counts.
inline std::optional<Token> numbered_token(std::optional<json> value, const char* key, const std::string& file,
                                           const Vocabulary& vocabulary) {
  if (value && value->is_array() && !value->empty()) value = json(value->front());
  if (!value) return std::nullopt;
  const auto size = static_cast<std::uint64_t>(vocabulary.size());
  const bool is_token = value->is_number_unsigned() && value->get<std::uint64_t>() < size;
  lora::detail::require<lora::FormatError>(is_token, file, ": ", key, " must be less than the number of tokens ", size,
                                           ", got ", ConfigReader::shown(value));
  return value->get<Token>();
}

/// What the files beside tokenizer.json say of the first and the last token of a text.
inline void read_ends_of_text(const std::filesystem::path& folder, TokenizerParts& parts) {
  if (const auto path = folder / "tokenizer_config.json"; std::filesystem::exists(path)) {
    Fields config(read_json(path), path.string());
    parts.end_of_text = named_token(config.take("eos_token"), "eos_token", config.where(), parts.vocabulary);
    const auto begin = named_token(config.take("bos_token"), "bos_token", config.where(), parts.vocabulary);
    if (config.reader().flag("add_bos_token")) parts.begin_of_text = begin;
  }
  for (const char* const name : {"generation_config.json", "config.json"}) {
    const auto path = folder / name;
    if (parts.end_of_text || !std::filesystem::exists(path)) continue;
    Fields config(read_json(path), path.string());
    parts.end_of_text = numbered_token(config.take("eos_token_id"), "eos_token_id", config.where(), parts.vocabulary);
  }
  if (!parts.end_of_text) parts.end_of_text = parts.vocabulary.find("<|endoftext|>");
}

}  // namespace llm::detail

namespace llm {

/// Of what a tokenizer.json may hold, `truncation` and `padding` are left to the caller; a normaliser, a
/// post-processor that adds tokens, dropout, unknown tokens and other kinds of models and pre-tokenisers are refused.
/// \throws lora::FormatError  such a thing, or a broken rule; names file and field. \throws lora::IoError  no such
/// file.
inline TokenizerParts read_tokenizer_json(const std::filesystem::path& path) {
  TokenizerParts parts;
  parts.file = path.string();
  detail::Fields file(detail::read_json(path), parts.file);
  const auto version = file.take("version");
  file.require(version && *version == "1.0", "version", "must be \"1.0\"", version);
  file.take("truncation");
  file.take("padding");
  const auto require = [&](bool holds, std::string_view rule, const std::optional<nlohmann::json>& got) {
    lora::detail::require<lora::FormatError>(holds, parts.file, ": ", rule, ", got ", detail::shown_type(got),
                                             "; such a tokeniser is not supported");
  };
  const auto normalizer = file.take("normalizer");
  require(!normalizer, "normalizer must be null", normalizer);
  const auto post_processor = file.take("post_processor");
  require(!post_processor || detail::type_of(post_processor) == "ByteLevel", "post_processor must be null or ByteLevel",
          post_processor);
  const auto decoder = file.take("decoder");
  require(detail::type_of(decoder) == "ByteLevel", "decoder must be ByteLevel", decoder);
  parts.pre_tokenizer = detail::read_pre_tokenizer(file.take("pre_tokenizer"), parts.file + ": pre_tokenizer");
  detail::read_bpe_model(file.take("model"), parts.file + ": model", parts);
  detail::read_added_tokens(file.take("added_tokens"), parts.file + ": added_tokens", parts);
  file.require_none_left();
  detail::read_ends_of_text(path.parent_path(), parts);
  return parts;
}

}  // namespace llm
