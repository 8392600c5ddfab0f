// SPDX-License-Identifier: MIT
// The log of a run: written, cut back and gone on with, read, refused, drawn.
#include "support/catch.hpp"
#include "support/message.hpp"
#include "support/temporary_folder.hpp"

#include "llm/log.hpp"
#include "llm/plot.hpp"

#include <stdlib.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

using namespace llm;
using lora::test::message_of;
using lora::test::TemporaryFolder;
using lora::test::text_of;
using lora::test::write_text;

namespace {

const std::string header =
    "step,tokens,learning_rate,training_loss,validation_loss,validation_perplexity,tokens_per_second,seconds\n";

LogRow row(std::int64_t step) {
  const auto at = static_cast<double>(step);
  return {step, 256 * step, 1e-4, 3 / (at + 1), {}, 1024, 0.25 * at};
}

}  // namespace

TEST_CASE("a log has a line a step, each on the disk at once", "[llm][log]") {
  const TemporaryFolder folder;
  RunLog log(folder / "log.csv");
  CHECK(text_of(folder / "log.csv") == header);
  log.add({0, 0, {}, {}, 0.0, {}, 0.5});
  log.add({1, 256, 0.1, 2.5, {}, 1024, 1});
  log.add({20, 5120, 1e-5, 1.0 / 3, -std::numeric_limits<double>::infinity(), 1000.5, 21.25});
  CHECK(text_of(folder / "log.csv") == header +
                                           "0,0,,,0,1,,0.5\n"
                                           "1,256,0.1,2.5,,,1024,1\n"
                                           "20,5120,1e-05,0.3333333333333333,-inf,0,1000.5,21.25\n");
  CHECK(message_of<lora::StateError>([&] { log.add(row(20)); }) ==
        (folder / "log.csv").string() + ": steps must increase, got 20 after 20");
}

TEST_CASE("what is written is what is read", "[llm][log]") {
  const TemporaryFolder folder;
  std::vector<LogRow> rows{row(1), row(2), row(7)};
  rows[1].validation_loss = 0.1 + 0.2;
  rows[2].training_loss = std::numeric_limits<double>::infinity();
  RunLog log(folder / "log.csv");
  for (const auto& each : rows) log.add(each);
  CHECK(read_log(folder / "log.csv") == rows);
  CHECK(log.last() == rows.back());
}

TEST_CASE("a resumed run cuts the log back to its checkpoint and goes on", "[llm][log]") {
  for (const std::int64_t step : {0, 1, 5, 6, 9, 100}) {
    CAPTURE(step);
    const TemporaryFolder folder;
    const auto path = folder / "log.csv";
    std::string whole = header;
    {
      RunLog log(path);
      for (const std::int64_t each : {1, 3, 5, 7, 9}) {
        log.add(row(each));
        if (each <= step) whole = text_of(path);
      }
    }
    RunLog log = RunLog::resume(path, step);
    CHECK(text_of(path) == whole);
    CHECK(log.last().has_value() == (step > 0));
    log.add(row(200));
    CHECK(text_of(path) == whole + "200,51200,1e-04,0.014925373134328358,,,1024,50\n");
    CHECK(folder.entries() == 1);
  }
}

TEST_CASE("a line that a killed process left unfinished is left aside", "[llm][log]") {
  const TemporaryFolder folder;
  const auto path = folder / "log.csv";
  {
    RunLog log(path);
    log.add(row(1));
    log.add(row(2));
  }
  const std::string whole = text_of(path), kept = whole.substr(0, whole.find('\n', header.size()) + 1);
  for (std::size_t size = kept.size(); size < whole.size(); ++size) {
    write_text(path, whole.substr(0, size));
    CHECK(read_log(path) == std::vector<LogRow>{row(1)});
  }
  RunLog::resume(path, 2).add(row(2));
  CHECK(text_of(path) == whole);
}

TEST_CASE("a run whose log was removed begins a new one", "[llm][log]") {
  const TemporaryFolder folder;
  RunLog::resume(folder / "log.csv", 5).add(row(6));
  CHECK(read_log(folder / "log.csv") == std::vector<LogRow>{row(6)});
}

TEST_CASE("a file that is no log is refused with its line, and stays", "[llm][log]") {
  const TemporaryFolder folder;
  const auto path = folder / "log.csv";
  const auto refused = [&](std::string_view content) {
    write_text(path, content);
    const auto message = message_of<lora::FormatError>([&] { RunLog::resume(path, 5); });
    CHECK(text_of(path) == content);
    return message.substr(std::min(message.size(), path.string().size()));
  };
  const std::string rule = ":1: must be the header of a log, " + header.substr(0, header.size() - 1) + ", got ";
  CHECK(refused("") == rule + "\"\"");
  CHECK(refused("step,loss\n1,2\n") == rule + "\"step,loss\"");
  CHECK(refused(header + "1,256\n") == ":2: must have 8 cells, got 2");
  CHECK(refused(header + "1,2,3,4,5,6,7,8,9\n") == ":2: must have 8 cells, got 9");
  CHECK(refused(header + "\n") == ":2: must have 8 cells, got 1");
  CHECK(refused(header + "x,256,,,,,,1\n") == ":2: cell 1 must be a whole number, got \"x\"");
  CHECK(refused(header + "1,2.5,,,,,,1\n") == ":2: cell 2 must be a whole number, got \"2.5\"");
  CHECK(refused(header + "1,2,,1x,,,,1\n") == ":2: cell 4 must be a number or empty, got \"1x\"");
  CHECK(refused(header + "1,2,,,,,,\n") == ":2: cell 8 must be a number, got \"\"");
  CHECK(refused(header + "5,2,,,,,,1\n5,2,,,,,,1\n") == ":3: steps must increase, got 5 after 5");
}

TEST_CASE("a log that cannot be written says so", "[llm][log]") {
  const TemporaryFolder folder;
  CHECK(message_of<lora::IoError>([&] { RunLog log(folder / "none" / "log.csv"); }) ==
        (folder / "none" / "log.csv").string() + ": needs a directory that opens, got No such file or directory");
}

TEST_CASE("the script of a picture has the data inside", "[llm][plot]") {
  std::vector<LogRow> rows{row(1), row(2)};
  rows[0].training_loss = 3;
  rows[1].training_loss = 1;
  rows[1].validation_loss = 2.5;
  LogRow diverged = row(3);
  diverged.training_loss = std::numeric_limits<double>::quiet_NaN();
  rows.push_back(diverged);
  const std::string head =
      "set terminal svg size 1000,560 font 'sans,14' background '#ffffff' noenhanced\nset output 'loss.svg'\n"
      "set title 'it''s \"new\"'\nset xlabel 'tokens trained on'\nset ylabel 'loss, nats a token'\nset grid\n"
      "set key outside right\n$data0 << END\n256 3 3\n512 1 1.97436\nEND\n$data1 << END\n512 2.5 2.5\nEND\n";
  CHECK(detail::plot_script({{"r_8 ", rows}}, "it's \"new\"", "loss.svg") ==
        head +
            "plot $data0 using 1:2 with lines linewidth 1 linecolor rgb '#cccccc' title 'each step', \\\n"
            "     $data0 using 1:3 with lines linewidth 2 linecolor rgb '#000000' title 'r_8 , training', \\\n"
            "     $data1 using 1:2 with linespoints linewidth 2 dashtype 2 pointtype 7 pointsize 0.6 "
            "linecolor rgb '#000000' title 'r_8 , validation'\n");
  CHECK(detail::plot_script({{"a", {rows[0]}}, {"b", {rows[0]}}}, "", "x")
            .ends_with("plot $data0 using 1:3 with lines linewidth 2 linecolor rgb '#000000' title 'a, training', \\\n"
                       "     $data1 using 1:3 with lines linewidth 2 linecolor rgb '#e69f00' title 'b, training'\n"));
  CHECK(detail::gnuplot_text("a\nb") == "'a b'");
}

TEST_CASE("of a long run every so many points are drawn, and the last", "[llm][plot]") {
  std::vector<LogRow> rows;
  for (std::int64_t step = 1; step <= 12345; ++step) rows.push_back(row(step));
  const std::string points = detail::curve_points(rows, &LogRow::training_loss);
  const auto count = std::count(points.begin(), points.end(), '\n');
  CHECK(count > 500);
  CHECK(count <= 1001);
  CHECK(points.find("\n3160320 ") != std::string::npos);
}

TEST_CASE("gnuplot draws the picture, whatever the names", "[llm][plot]") {
  const TemporaryFolder folder;
  const auto place = folder / "it's a $(touch broken) run";
  std::filesystem::create_directory(place);
  const auto picture = plot_losses(place, "loss", {{"a_b's `x`", {row(1), row(2)}}}, "title");
  CHECK(text_of(place / "loss.gp").starts_with("set terminal svg"));
  if (picture.empty()) {
    WARN("GNUPLOT IS MISSING: no picture was drawn");
    return;
  }
  CHECK(picture == place / "loss.svg");
  const std::string drawn = text_of(picture);
  CHECK(drawn.find("</svg>") != std::string::npos);
  CHECK(drawn.find("a_b's `x`, training") != std::string::npos);
}

TEST_CASE("without gnuplot the script remains", "[llm][plot]") {
  const TemporaryFolder folder;
  const char* const old = ::getenv("PATH");
  const std::string path = old == nullptr ? "" : old;
  ::setenv("PATH", folder.path().c_str(), 1);
  const auto picture = plot_losses(folder.path(), "loss", {{"a", {row(1), row(2)}}}, "title");
  ::setenv("PATH", path.c_str(), 1);
  CHECK(picture.empty());
  CHECK(folder.entries() == 1);
}

TEST_CASE("a picture of nothing is refused", "[llm][plot]") {
  CHECK(message_of<lora::ConfigError>([] {
          plot_losses("x", "loss", {{"a", {LogRow{}}}}, "");
        }) == "x/loss: must have a loss to draw, got none");
}
