// SPDX-License-Identifier: MIT
// What a run did, step by step, as a CSV file that a resumed run goes on with.
#pragma once

#include <lora/core/error.hpp>
#include <lora/io/file.hpp>
#include <lora/io/safetensors_header.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace llm {

/// A line of the log. Losses are means over the targets that count, in nats.
struct LogRow {
  std::int64_t step = 0;    ///< 0: before the first one
  std::int64_t tokens = 0;  ///< trained on so far
  std::optional<double> learning_rate{}, training_loss{}, validation_loss{}, tokens_per_second{};
  double seconds = 0;  ///< since the start of the run

  bool operator==(const LogRow&) const = default;
};

namespace detail {

inline constexpr std::string_view log_header =
    "step,tokens,learning_rate,training_loss,validation_loss,validation_perplexity,tokens_per_second,seconds";

/// With the numbers in the shortest form that reads back as the same value. The perplexity is exp(loss).
inline std::string log_line(const LogRow& row) {
  std::string line;
  lora::detail::append(line, row.step);
  line += ',';
  lora::detail::append(line, row.tokens);
  const auto add = [&line](std::optional<double> value) {
    line += ',';
    if (value) lora::detail::append(line, *value);
  };
  add(row.learning_rate);
  add(row.training_loss);
  add(row.validation_loss);
  add(row.validation_loss ? std::optional(std::exp(*row.validation_loss)) : std::nullopt);
  add(row.tokens_per_second);
  add(row.seconds);
  return line + '\n';
}

/// \throws FormatError  not a line of the log; `where` begins the message.
inline LogRow parse_log_line(std::string_view line, const std::string& where) {
  using lora::detail::require;
  std::array<std::string_view, 8> cells;
  std::size_t count = 0;
  for (std::string_view rest = line;; ++count) {
    const std::size_t comma = rest.find(',');
    if (count < cells.size()) cells[count] = rest.substr(0, comma);
    if (comma == std::string_view::npos) break;
    rest.remove_prefix(comma + 1);
  }
  require<lora::FormatError>(++count == cells.size(), where, ": must have ", cells.size(), " cells, got ", count);
  std::size_t next = 0;
  const auto read = [&](auto& value, std::string_view what) {
    const std::string_view cell = cells[next++];
    const auto [end, error] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
    const bool is_read = error == std::errc() && end == cell.data() + cell.size();
    require<lora::FormatError>(is_read, where, ": cell ", next, " must be ", what, ", got ",
                               lora::detail::quoted(cell));
  };
  const auto read_optional = [&](std::optional<double>& value) {
    if (cells[next].empty()) {
      ++next;
    } else {
      read(value.emplace(), "a number or empty");
    }
  };
  LogRow row;
  std::optional<double> perplexity;
  read(row.step, "a whole number");
  read(row.tokens, "a whole number");
  read_optional(row.learning_rate);
  read_optional(row.training_loss);
  read_optional(row.validation_loss);
  read_optional(perplexity);
  read_optional(row.tokens_per_second);
  read(row.seconds, "a number");
  return row;
}

}  // namespace detail

/// All of a log. A last line without its end, which a killed process may leave, is left aside.
/// \throws FormatError  no log, or steps that do not increase: with file and line. \throws IoError  cannot be read.
inline std::vector<LogRow> read_log(const std::filesystem::path& path) {
  using lora::detail::require;
  const auto bytes = lora::io::read_file(path);
  std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  std::vector<LogRow> rows;
  for (std::size_t number = 1;; ++number) {
    const std::size_t end = text.find('\n');
    const auto line = text.substr(0, end);
    const std::string where = path.string() + ":" + std::to_string(number);
    if (number == 1) {
      require<lora::FormatError>(line == detail::log_header && end != std::string_view::npos, where,
                                 ": must be the header of a log, ", detail::log_header, ", got ",
                                 lora::detail::quoted(line));
    } else {
      if (end == std::string_view::npos) return rows;
      const LogRow row = detail::parse_log_line(line, where);
      const bool increases = rows.empty() || row.step > rows.back().step;
      require<lora::FormatError>(increases, where, ": steps must increase, got ", row.step, " after ",
                                 rows.empty() ? 0 : rows.back().step);
      rows.push_back(row);
    }
    text.remove_prefix(end + 1);
  }
}

/// Writes a log; every line reaches the system at once, so that a killed process loses none.
class RunLog {
 public:
  /// A new log, in the place of an old one.
  /// \throws IoError  what the system refuses.
  explicit RunLog(const std::filesystem::path& path) : RunLog(path, {}) {}
  /// Goes on after `step`, where the checkpoint is: later lines are cut off. Where there is no log, it begins here.
  /// \throws FormatError  see read_log; the file stays as it was. \throws IoError  what the system refuses.
  static RunLog resume(const std::filesystem::path& path, std::int64_t step) {
    std::vector<LogRow> rows;
    std::error_code failure;
    const auto status = std::filesystem::status(path, failure);
    if (status.type() != std::filesystem::file_type::not_found) rows = read_log(path);
    while (!rows.empty() && rows.back().step > step) rows.pop_back();
    return RunLog(path, rows);
  }

  /// \throws StateError  a step that is not after the last one. \throws IoError  what the system refuses.
  void add(const LogRow& row) {
    lora::detail::require<lora::StateError>(!last_ || row.step > last_->step, path_.string(),
                                            ": steps must increase, got ", row.step, " after ",
                                            last_ ? last_->step : 0);
    const std::string line = detail::log_line(row);
    for (std::string_view rest = line; !rest.empty();) {
      const auto count = ::write(file_.get(), rest.data(), rest.size());
      if (count < 0 && errno == EINTR) continue;
      lora::detail::require_system(count >= 0, path_, "must take a line");
      rest.remove_prefix(static_cast<std::size_t>(count));
    }
    last_ = row;
  }
  /// For the seconds of a resumed run, which go on from here.
  const std::optional<LogRow>& last() const { return last_; }

 private:
  RunLog(const std::filesystem::path& path, const std::vector<LogRow>& rows)
      : path_(path), file_(open_with(path, rows)) {
    if (!rows.empty()) last_ = rows.back();
  }
  static int open_with(const std::filesystem::path& path, const std::vector<LogRow>& rows) {
    lora::io::write_atomically(path, [&](lora::io::AtomicFile& file) {
      file.write(std::string(detail::log_header) + '\n');
      for (const auto& row : rows) file.write(detail::log_line(row));
    });
    const int number = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
    lora::detail::require_system(number >= 0, path, "must open for writing");
    return number;
  }

  std::filesystem::path path_;
  lora::detail::Descriptor file_;
  std::optional<LogRow> last_;
};

}  // namespace llm
