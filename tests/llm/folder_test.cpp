// SPDX-License-Identifier: MIT
// Output folders: what may be written where, and what a kill leaves.
#include "support/catch.hpp"
#include "support/message.hpp"
#include "support/temporary_folder.hpp"

#include "llm/folder.hpp"

#include <lora/core/random.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <iterator>
#include <set>
#include <string>

using namespace llm;
using lora::test::message_of;
using lora::test::TemporaryFolder;
using lora::test::text_of;
using lora::test::write_text;

namespace {

void publish(const std::filesystem::path& path, const std::string& content,
             const std::set<std::string>& may_replace = {"config", "weights"}) {
  StagedFolder folder(path, may_replace);
  write_text(folder.path() / "config", content);
  write_text(folder.path() / "weights", content);
  folder.commit();
}

}  // namespace

TEST_CASE("a staged folder appears when it is complete", "[llm][folder]") {
  const TemporaryFolder place;
  {
    StagedFolder folder(place / "a" / "b" / "adapter");
    write_text(folder.path() / "config", "x");
    CHECK_FALSE(std::filesystem::exists(place / "a" / "b" / "adapter"));
    folder.commit();
    CHECK(text_of(place / "a" / "b" / "adapter" / "config") == "x");
  }
  CHECK(text_of(place / "a" / "b" / "adapter" / "config") == "x");
  CHECK(std::distance(std::filesystem::directory_iterator(place / "a" / "b"), {}) == 1);
  {
    const StagedFolder folder(place / "given up");
    write_text(folder.path() / "config", "x");
  }
  CHECK(place.entries() == 1);
  std::filesystem::create_directory(place / "empty");
  publish(place / "empty/", "x");  // with the slash that a shell adds
  CHECK(text_of(place / "empty" / "weights") == "x");
}

TEST_CASE("a staged folder replaces what it may and nothing else", "[llm][folder]") {
  const TemporaryFolder place;
  const auto path = place / "adapter";
  publish(path, "old");
  publish(path, "new");
  CHECK(text_of(path / "config") == "new");
  CHECK(place.entries() == 1);
  const std::string rule = path.string() + ": must be new or empty, got a folder with ";
  CHECK(message_of<lora::ConfigError>([&] { publish(path, "newer", {}); }) ==
        rule + "\"config\" in it; use another name or remove it");
  write_text(path / "thesis.tex", "");
  CHECK(message_of<lora::ConfigError>([&] { publish(path, "newer"); }) ==
        rule + "\"thesis.tex\" in it; use another name or remove it");
  CHECK(text_of(path / "config") == "new");
  CHECK(message_of<lora::ConfigError>([&] { publish(path / "config", ""); }) ==
        (path / "config").string() + ": must be a folder, got a file");
  CHECK(message_of<lora::IoError>([&] { publish(path / "config" / "x", ""); }) ==
        (path / "config").string() + ": must be a folder or be made one, got Not a directory");
  CHECK(place.entries() == 1);
}

TEST_CASE("whenever a process is killed, the old folder or the new one is there, whole", "[llm][folder][kill]") {
  const TemporaryFolder place;
  const auto path = place / "adapter";
  publish(path, "0");
  lora::Random random(4);
  for (int kill = 0; kill < 40; ++kill) {
    const pid_t writer = ::fork();
    REQUIRE(writer >= 0);
    if (writer == 0) {
      try {
        for (int i = 1;; ++i) publish(path, std::to_string(i));
      } catch (...) {
        ::_exit(1);
      }
    }
    ::usleep(static_cast<useconds_t>(random.below(20000)));
    ::kill(writer, SIGKILL);
    int status = 0;
    REQUIRE(::waitpid(writer, &status, 0) == writer);
    REQUIRE(WIFSIGNALED(status));
    CHECK(text_of(path / "config") == text_of(path / "weights"));
    CHECK_FALSE(text_of(path / "weights").empty());
  }
}

TEST_CASE("a new run makes its folder when it begins", "[llm][folder]") {
  const TemporaryFolder place;
  RunFolder run(place / "runs" / "first", Existing::Refuse);
  CHECK(place.entries() == 0);
  run.begin();
  CHECK(std::filesystem::is_directory(place / "runs" / "first"));
  CHECK(run.checkpoint() == place / "runs" / "first" / "checkpoint");
  CHECK(run.log() == place / "runs" / "first" / "log.csv");
  CHECK(run.adapter() == place / "runs" / "first" / "adapter");
  CHECK(run.gguf() == place / "runs" / "first" / "adapter.gguf");
  CHECK_FALSE(run.resumes());
}

TEST_CASE("a folder that is not empty is refused with what to do", "[llm][folder]") {
  const TemporaryFolder place;
  const auto path = place / "out";
  const auto refused = [&](Existing existing) {
    const auto message = message_of<lora::ConfigError>([&] { RunFolder(path, existing); });
    return message.substr(std::min(message.size(), path.string().size()));
  };
  CHECK(refused(Existing::Resume) ==
        ": must hold a checkpoint to go on from, got nothing there; leave --resume out to begin");
  std::filesystem::create_directory(path);
  write_text(path / ".lora-1-0.tmp", "");  // what a killed process left
  CHECK(RunFolder(path, Existing::Refuse).path() == path);

  write_text(path / "log.csv", "");  // killed before its first checkpoint
  CHECK(refused(Existing::Refuse) ==
        ": must be new or empty, got a folder with \"log.csv\" in it; use another --out or --overwrite to begin anew");
  CHECK(refused(Existing::Resume) == ": must hold a checkpoint to go on from, got none; use --overwrite to begin anew");
  write_text(path / "checkpoint", "");
  CHECK(refused(Existing::Refuse) ==
        ": must be new or empty, got a folder with a run in it; use another --out, --resume to go on with it or "
        "--overwrite to begin anew");
  CHECK(RunFolder(path, Existing::Resume).resumes());

  write_text(path / "notes.txt", "");
  CHECK(refused(Existing::Overwrite) ==
        ": may be overwritten where a run made all that is in it, got \"notes.txt\"; use another --out or remove it");
  CHECK(RunFolder(path, Existing::Overwrite, {"notes.txt"}).path() == path);
  CHECK(RunFolder(path, Existing::Resume).resumes());  // which removes nothing
  std::filesystem::remove(path / "checkpoint");
  CHECK(refused(Existing::Refuse) ==
        ": must be new or empty, got a folder with \"notes.txt\" in it; use another --out");
  std::filesystem::remove_all(path);
  write_text(path, "");
  CHECK(refused(Existing::Refuse) == ": must be a folder, got a file");
}

TEST_CASE("to overwrite removes the old run when the new one begins", "[llm][folder]") {
  const TemporaryFolder place;
  const auto path = place / "out";
  publish(path / "adapter", "old");
  for (const auto* name : {"checkpoint", "log.csv", "loss.svg", "loss.gp", "adapter.gguf", ".lora-1-0.tmp"}) {
    write_text(path / name, "old");
  }
  RunFolder run(path, Existing::Overwrite);
  CHECK(text_of(path / "checkpoint") == "old");
  CHECK(text_of(path / "adapter" / "weights") == "old");
  run.begin();
  CHECK(std::filesystem::is_empty(path));
}

TEST_CASE("to resume keeps the run and removes what a killed process left", "[llm][folder]") {
  const TemporaryFolder place;
  for (const auto* name : {"checkpoint", "log.csv", "notes.txt", ".lora-1-0.tmp"}) write_text(place / name, "old");
  RunFolder run(place.path(), Existing::Resume);
  run.begin();
  CHECK(place.entries() == 3);
}

TEST_CASE("one process at a time trains in a folder", "[llm][folder]") {
  const TemporaryFolder place;
  const auto path = place / "out";
  {
    RunFolder first(path, Existing::Refuse), second(path, Existing::Refuse);
    first.begin();
    CHECK(message_of<lora::ConfigError>([&] { second.begin(); }) ==
          path.string() + ": must not be in use, got another process that trains there");
  }
  RunFolder third(path, Existing::Refuse);
  write_text(path / "checkpoint", "");
  CHECK(message_of<lora::ConfigError>([&] { third.begin(); }).find("got a folder with a run in it") !=
        std::string::npos);
}
