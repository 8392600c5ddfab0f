// SPDX-License-Identifier: MIT
// docs_check <source-dir>: holds the READMEs and docs/**/*.md to the files that they quote. The rules:
//   1. A ```cpp block follows a line <!-- code: path#region --> and equals, after dedenting, the lines between
//      // [region] and // [/region] of that file; without #region, the whole file.
//   2. A ```text block after a line <!-- output: path --> equals that file.
//   3. Relative links lead to files, and their #anchors to headings.
//   4. README.md has at most 150 lines.
// Prints each fault with file:line, then their number; exits with 1 if there is any.
#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <optional>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace fs = std::filesystem;
using Lines = std::vector<std::string>;

constexpr std::size_t max_readme_lines = 150;

fs::path root;
int faults = 0;

void report(const fs::path& file, std::size_t index, const std::string& message) {
  ++faults;
  std::cout << file.lexically_relative(root).string() << ':' << index + 1 << ": " << message << '\n';
}

std::optional<Lines> read(const fs::path& path) {
  std::ifstream stream{path};
  if (!stream || fs::is_directory(path)) return std::nullopt;
  Lines lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

std::size_t indent_of(const std::string& line) { return std::min(line.find_first_not_of(' '), line.size()); }

std::string trim(const std::string& line) {
  const std::size_t end = line.find_last_not_of(" \t\r");
  return end == std::string::npos ? "" : line.substr(indent_of(line), end + 1 - indent_of(line));
}

/// Removes the indentation that all lines with text share.
Lines dedent(Lines lines) {
  std::size_t indent = std::string::npos;
  for (const std::string& line : lines) {
    if (!trim(line).empty()) indent = std::min(indent, indent_of(line));
  }
  for (std::string& line : lines) line.erase(0, std::min(indent, line.size()));
  return lines;
}

/// The lines between // [region] and // [/region], without the marks of other regions inside; nothing if a mark lacks.
std::optional<Lines> cut(const Lines& file, const std::string& region) {
  static const std::regex any_mark{R"(// \[/?[\w-]+\])"};
  const auto is = [](std::string mark) { return [mark](const std::string& line) { return trim(line) == mark; }; };
  const auto begin = std::find_if(file.begin(), file.end(), is("// [" + region + "]"));
  const auto end = std::find_if(begin, file.end(), is("// [/" + region + "]"));
  if (end == file.end()) return std::nullopt;
  Lines lines;
  std::copy_if(begin + 1, end, std::back_inserter(lines),
               [](const std::string& line) { return !std::regex_match(trim(line), any_mark); });
  return lines;
}

/// Reports a block that differs: what stands between the common first and the common last lines.
void compare(const fs::path& file, std::size_t index, const Lines& block, const Lines& source,
             const std::string& name) {
  if (block == source) return;
  report(file, index, "the block differs from " + name + " (- here, + there)");
  const std::size_t shorter = std::min(block.size(), source.size());
  std::size_t head = 0;
  while (head < shorter && block[head] == source[head]) ++head;
  std::size_t tail = 0;
  while (tail < shorter - head && block[block.size() - 1 - tail] == source[source.size() - 1 - tail]) ++tail;
  for (std::size_t i = head; i < block.size() - tail; ++i) std::cout << "  - " << block[i] << '\n';
  for (std::size_t i = head; i < source.size() - tail; ++i) std::cout << "  + " << source[i] << '\n';
}

/// Rules 1 and 2 for the block whose fence stands on line `index`; `mark` is the line above.
void check_block(const fs::path& file, std::size_t index, const std::string& language, const Lines& block,
                 const std::string& mark) {
  static const std::regex mark_form{R"(<!-- (code|output): ([^ #]+)(#([\w-]+))? -->)"};
  static const std::set<std::string> cpp_names{"cpp", "c++", "C++", "cc", "cxx"};
  const bool is_cpp = cpp_names.contains(language);
  std::smatch match;
  if (!std::regex_match(mark, match, mark_form)) {
    if (is_cpp) report(file, index, "a cpp block without a line <!-- code: path#region --> directly above");
    return;
  }
  if (match[1] != (is_cpp ? "code" : language == "text" ? "output" : "")) {
    return report(file, index, "a " + match[1].str() + " mark above a block of '" + language + "'");
  }
  const std::optional<Lines> source = read(root / match[2].str());
  if (!source) return report(file, index - 1, "no such file: " + match[2].str());
  if (!is_cpp) return compare(file, index, block, *source, match[2]);
  const std::optional<Lines> region = match[4].matched ? cut(*source, match[4]) : source;
  if (!region) return report(file, index - 1, "no such region: " + match[2].str() + match[3].str());
  compare(file, index, dedent(block), dedent(*region), match[2].str() + match[3].str());
}

/// The anchors of a page as GitHub makes them: lower case, blanks to hyphens, no punctuation, -1 at a second use.
std::set<std::string> anchors(const Lines& page) {
  std::set<std::string> result;
  std::map<std::string, int> uses;
  bool fenced = false;
  for (const std::string& line : page) {
    if (trim(line).starts_with("```")) fenced = !fenced;
    const std::size_t level = std::min(line.find_first_not_of('#'), line.size());
    if (fenced || level == 0 || level > 6 || level == line.size() || line[level] != ' ') continue;
    std::string anchor;
    for (const char c : trim(line.substr(level))) {
      const auto byte = static_cast<unsigned char>(c);
      if (c == ' ') anchor += '-';
      if (c == '-' || c == '_' || byte >= 0x80 || std::isalnum(byte)) anchor += static_cast<char>(std::tolower(byte));
    }
    const int use = uses[anchor]++;
    result.insert(use == 0 ? anchor : anchor + '-' + std::to_string(use));
  }
  return result;
}

/// Rule 3 for one line outside of the blocks.
void check_links(const fs::path& file, std::size_t index, const std::string& text) {
  static const std::regex code_span{"`[^`]*`"};
  static const std::regex link{R"re(\]\(([^)\s]+)[^)]*\)|^\[[^\]]+\]: *(\S+)|(?:src|href)="([^"]+)")re"};
  static const std::regex absolute{"[a-zA-Z][a-zA-Z0-9+.-]*:.*"};
  const std::string line = std::regex_replace(text, code_span, "``");
  for (std::sregex_iterator it{line.begin(), line.end(), link}; it != std::sregex_iterator{}; ++it) {
    const std::string target = (*it)[1].str() + (*it)[2].str() + (*it)[3].str();
    if (std::regex_match(target, absolute)) continue;
    const std::size_t hash = std::min(target.find('#'), target.size());
    const fs::path path = hash == 0 ? file : file.parent_path() / target.substr(0, hash);
    if (!fs::exists(path)) {
      report(file, index, "no such file: " + target);
    } else if (hash < target.size() && path.extension() == ".md") {
      const std::optional<Lines> page = read(path);
      if (!page || !anchors(*page).contains(target.substr(hash + 1))) report(file, index, "no such heading: " + target);
    }
  }
}

void check_page(const fs::path& file, const Lines& lines) {
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const std::string line = trim(lines[i]);
    if (!line.starts_with("```")) {
      check_links(file, i, lines[i]);
      const bool is_mark = line.starts_with("<!-- code:") || line.starts_with("<!-- output:");
      if (is_mark && (i + 1 == lines.size() || !trim(lines[i + 1]).starts_with("```"))) {
        report(file, i, "no block directly below this mark");
      }
      continue;
    }
    const std::size_t fence = i;
    Lines block;
    while (++i < lines.size() && trim(lines[i]) != "```") {
      block.push_back(lines[i].substr(std::min(indent_of(lines[fence]), indent_of(lines[i]))));
    }
    if (i == lines.size()) return report(file, fence, "the block has no end");
    check_block(file, fence, trim(line.substr(3)), block, fence == 0 ? "" : trim(lines[fence - 1]));
  }
}

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: docs_check <source-dir>\n";
    return 2;
  }
  root = fs::path{argv[1]};
  std::vector<fs::path> pages{root / "README.md"};
  for (const char* page : {"examples/README.md", "examples/digits/README.md", "examples/libtorch/README.md",
                           "bench/README.md", "tests/golden/README.md"}) {
    if (fs::exists(root / page)) pages.push_back(root / page);
  }
  if (fs::exists(root / "docs")) {
    for (const auto& entry : fs::recursive_directory_iterator{root / "docs"}) {
      if (entry.path().extension() == ".md") pages.push_back(entry.path());
    }
  }
  std::sort(pages.begin(), pages.end());
  for (const fs::path& page : pages) {
    const std::optional<Lines> lines = read(page);
    if (!lines) {
      report(page, 0, "cannot be read");
      continue;
    }
    check_page(page, *lines);
    if (page == root / "README.md" && lines->size() > max_readme_lines) {
      report(page, max_readme_lines, "longer than " + std::to_string(max_readme_lines) + " lines");
    }
  }
  std::cout << pages.size() << " pages\n" << faults << " faults\n";
  return faults == 0 ? 0 : 1;
}
