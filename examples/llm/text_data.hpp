// SPDX-License-Identifier: MIT
// Reads what a model is trained on or judged by: a text, or JSON lines of prompt and completion.
#pragma once

#include "sequences.hpp"

#include <lora/core/error.hpp>
#include <lora/io/config_json.hpp>
#include <lora/io/file.hpp>
#include <lora/io/gguf_reader.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llm {

using Encode = std::function<std::vector<Token>(std::string_view)>;

/// How text becomes tokens.
struct TextEncoder {
  Encode encode;
  Token end_of_text = 0;
  std::optional<Token> begin_of_text{};  ///< where the model wants one before every text
};

/// All sequences of a file, and what was read.
struct TextData {
  enum class Kind { Text, Examples };
  /// Something that happened to some lines.
  struct Lines {
    Index count = 0, first = 0;  ///< lines count from 1
    void note(Index line) {
      if (count++ == 0) first = line;
    }
  };

  std::string name;  ///< for messages: the path as given
  Kind kind = Kind::Text;
  Sequences sequences;
  Index bytes = 0, examples = 0;
  Index tokens = 0;  ///< with those at the ends of texts, after cutting
  Lines cut;         ///< examples longer than a sequence, which lost their end
  Lines left_out;    ///< of which not even the prompt and a token more went into a sequence

  /// "gpl.txt: 35149 bytes, 7713 tokens".
  std::string summary() const {
    const auto counted = [](Index count, const std::string& what) {
      return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
    };
    const auto lines = [](const Lines& which) {
      return (which.count == 1 ? "in line " : "the first in line ") + std::to_string(which.first);
    };
    std::string text = name + ": " + counted(bytes, "byte") + ", ";
    if (kind == Kind::Examples) text += counted(examples, "example") + ", ";
    text += counted(tokens, "token");
    const std::string length = std::to_string(sequences.length());
    if (cut.count > 0) text += "; " + counted(cut.count, "example") + " cut to " + length + " tokens, " + lines(cut);
    if (left_out.count > 0) {
      text += "; " + counted(left_out.count, "example") + " left out, whose prompt alone is longer than " + length +
              " tokens, " + lines(left_out);
    }
    return text;
  }
};

namespace detail {

/// The first byte at which `text` stops being UTF-8. \pre It is none.
inline std::size_t utf8_fault(std::string_view text) {
  std::size_t at = 0;
  for (;;) {
    std::size_t length = 1;
    while (length <= 4 && !lora::detail::is_utf8(text.substr(at, length))) ++length;
    if (length > 4) return at;
    at += length;
  }
}

inline std::string_view without_mark(std::string_view text) {
  constexpr std::string_view mark = "\xEF\xBB\xBF";  // Windows puts it before UTF-8
  return text.starts_with(mark) ? text.substr(mark.size()) : text;
}

/// One text, whole, cut into sequences that overlap by one token.
inline void add_text(TextData& data, std::string_view text, const TextEncoder& encoder) {
  if (!lora::detail::is_utf8(text)) {
    const std::size_t at = utf8_fault(text);
    const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n');
    lora::detail::require<lora::FormatError>(false, data.name, ":", line, ": must be UTF-8, got other bytes from byte ",
                                             at, " of the file on");
  }
  std::vector<Token> tokens = encoder.encode(without_mark(text));
  if (encoder.begin_of_text) tokens.insert(tokens.begin(), *encoder.begin_of_text);
  tokens.push_back(encoder.end_of_text);
  data.tokens = std::ssize(tokens);
  const auto length = static_cast<std::size_t>(data.sequences.length());
  for (std::size_t at = 0; at + 1 < tokens.size(); at += length) {
    const auto rest = std::span<const Token>(tokens).subspan(at);
    const Index row = data.sequences.add(encoder.end_of_text);
    std::copy_n(rest.begin(), std::min(length, rest.size()), data.sequences.tokens(row).begin());
    std::copy_n(rest.begin() + 1, std::min(length, rest.size() - 1), data.sequences.targets(row).begin());
  }
}

/// Puts examples into rows, each into the fullest one that has room for it.
class Packer {
 public:
  Packer(Sequences& sequences, Token end_of_text) : sequences_(sequences), end_of_text_(end_of_text) {}

  /// An example without the end of text, which follows it unless it was cut. The loss is on the tokens from `prompt`
  /// on. \pre All but the last token go into a row, and so does the last one if `is_cut`.
  void add(std::span<const Token> example, std::size_t prompt, bool is_cut) {
    const auto length = static_cast<std::size_t>(sequences_.length());
    const std::size_t inputs = is_cut ? example.size() - 1 : example.size();
    const auto open = rows_.lower_bound(inputs);
    const bool is_new = open == rows_.end();
    const std::size_t room = is_new ? length : open->first;
    const Index row = is_new ? sequences_.add(end_of_text_) : open->second;
    if (!is_new) rows_.erase(open);
    const auto tokens = sequences_.tokens(row).subspan(length - room),
               targets = sequences_.targets(row).subspan(length - room);
    std::copy_n(example.begin(), inputs, tokens.begin());
    for (std::size_t next = std::max(prompt, std::size_t{1}); next <= inputs; ++next) {
      targets[next - 1] = next < example.size() ? example[next] : end_of_text_;
    }
    if (room > inputs + 1) rows_.emplace(room - inputs - 1, row);  // rows are filled with ends of text: one stays
  }

 private:
  Sequences& sequences_;
  Token end_of_text_;
  std::multimap<std::size_t, Index> rows_;  ///< by the room that they have left
};

/// One line: a prompt and its completion.
inline void add_example(TextData& data, Index line, std::string_view text, const TextEncoder& encoder, Packer& packer) {
  using lora::detail::quoted;
  using lora::detail::require;
  const std::string where = data.name + ":" + std::to_string(line);
  std::map<std::string, std::vector<std::string>> ignored_order;
  const nlohmann::json object = lora::detail::parse_config(text, where, ignored_order);
  const auto field = [&](const char* key) -> const std::string& {
    const auto found = object.find(key);
    require<lora::FormatError>(found != object.end(), where, ": must have a ", quoted(key), ", got none");
    require<lora::FormatError>(found->is_string(), where, ": ", quoted(key), " must be a string, got ",
                               lora::detail::ConfigReader::shown(*found));
    return found->get_ref<const std::string&>();
  };
  const std::string &prompt = field("prompt"), &completion = field("completion");
  std::vector<Token> tokens = encoder.encode(prompt);
  if (encoder.begin_of_text) tokens.insert(tokens.begin(), *encoder.begin_of_text);
  const std::size_t prompt_size = tokens.size();
  const std::vector<Token> answer = encoder.encode(completion);
  tokens.insert(tokens.end(), answer.begin(), answer.end());
  require<lora::FormatError>(!tokens.empty(), where, ": prompt and completion must not both be empty, got no token");
  ++data.examples;
  const auto length = static_cast<std::size_t>(data.sequences.length());
  if (prompt_size > length) return data.left_out.note(line);
  const bool is_cut = tokens.size() > length;
  if (is_cut) {
    tokens.resize(length + 1);  // the last one is a target only
    data.cut.note(line);
  }
  data.tokens += std::ssize(tokens) + (is_cut ? 0 : 1);
  packer.add(tokens, prompt_size, is_cut);
}

inline void add_lines(TextData& data, std::string_view text, const TextEncoder& encoder) {
  Packer packer(data.sequences, encoder.end_of_text);
  text = without_mark(text);
  for (Index line = 1; !text.empty(); ++line) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view current = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (current.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    add_example(data, line, current, encoder, packer);
  }
  lora::detail::require<lora::FormatError>(data.examples > 0, data.name,
                                           ": must hold an example a line, got blank lines only");
  lora::detail::require<lora::ConfigError>(data.sequences.size() > 0, data.name,
                                           ": prompts must be shorter than the sequences of ", data.sequences.length(),
                                           " tokens, got none that is; make the sequences longer");
}

}  // namespace detail

/// Reads a file as sequences of `length` tokens.
///
/// - **A name that ends in .jsonl** is one example a line, {"prompt": "...", "completion": "..."}, other keys left
///   aside, blank lines too. The tokens of an example are those of its prompt, those of its completion (each encoded
///   for itself, as they are when the model is asked) and the end of text; targets are the completion and the end.
///   Each is put, whole, into the fullest row that has room for it; examples of one row see those before them. What is
///   longer than a row loses its end, or is left out where no target would remain: `summary()` says how many and where.
/// - **Any other name** is a text, read as it is (CRLF too) but for a byte order mark, an end of text after it. Row i
///   begins with the token i length: rows overlap by one token, so that every token but the first is a target once. The
///   last row is filled up with ends of text, whose targets are ignored; a single token that is left makes no row, it
///   has been a target.
///
/// \throws FormatError  an empty file, not UTF-8, not JSON, a field that is missing or no string: with file and line.
/// \throws ConfigError  a name that ends in .json; every prompt longer than a sequence. \throws IoError  cannot be
/// read.
inline TextData read_text_data(const std::filesystem::path& path, Index length, const TextEncoder& encoder) {
  const bool is_json = path.extension() == ".json";
  lora::detail::require<lora::ConfigError>(
      !is_json, path.string(),
      ": must be a text or, under a name that ends in .jsonl, one JSON object a line, got a name that ends in .json");
  TextData data{path.string(), TextData::Kind::Text, Sequences(length), 0, 0, 0, {}, {}};
  const lora::io::MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  lora::detail::require<lora::FormatError>(!detail::without_mark(text).empty(), data.name,
                                           ": must hold text, got an empty file");
  data.bytes = static_cast<Index>(text.size());
  if (path.extension() == ".jsonl") {
    data.kind = TextData::Kind::Examples;
    detail::add_lines(data, text, encoder);
  } else {
    detail::add_text(data, text, encoder);
  }
  return data;
}

/// Takes the `share` of the sequences that validate, at least one: the last ones of a text, those that the seed draws
/// of examples.
/// \throws ConfigError  a share that does not lie between 0 and 1; fewer than two sequences.
inline Split split(TextData data, double share = 0.1, std::uint64_t seed = 0) {
  lora::detail::require<lora::ConfigError>(share > 0 && share < 1,
                                           "split: the share that validates must lie in (0, 1), got ", share);
  const Index length = data.sequences.length();
  lora::detail::require<lora::ConfigError>(data.sequences.size() >= 2, data.name, ": must fill two sequences of ",
                                           length, " tokens, one to train on and one to validate with, which takes ",
                                           length + 2, " tokens, got ", data.tokens,
                                           "; give more text or make the sequences shorter");
  if (data.kind == TextData::Kind::Text) return split_last(std::move(data.sequences), share);
  return split_drawn(data.sequences, share, seed);
}

}  // namespace llm
