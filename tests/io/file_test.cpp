// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/message.hpp"
#include "support/temporary_folder.hpp"

#include <lora/io/file.hpp>

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <span>
#include <string>
#include <utility>

using namespace lora;
using namespace lora::test;

namespace {

/// A disk that is full after `bytes`, for as long as this lives: the system refuses longer files.
class FullAfter {
 public:
  explicit FullAfter(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit{bytes, old_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  FullAfter(const FullAfter&) = delete;
  FullAfter& operator=(const FullAfter&) = delete;
  ~FullAfter() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  void (*handler_)(int);
  rlimit old_{};
};

void save(const std::filesystem::path& path, const std::string& text) {
  io::write_atomically(path, [&](io::AtomicFile& file) { file.write(text); });
}

unsigned permissions(const std::filesystem::path& path) {
  return static_cast<unsigned>(std::filesystem::status(path).permissions());
}

}  // namespace

TEST_CASE("a file comes back as it was written, mapped and read", "[io][file]") {
  const TemporaryFolder folder;
  const auto path = folder / "file";
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{4096}, std::size_t{65536},
                                 std::size_t{65537}, std::size_t{300000}}) {
    std::string text(size, 'x');
    for (std::size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 31 >> 3);
    save(path, text);
    CHECK(text_of(path) == text);
    CHECK(text_of(io::read_file(path)) == text);
    CHECK(text_of(io::MappedFile(path).bytes()) == text);
  }
  CHECK(folder.entries() == 1);
}

TEST_CASE("released bytes leave the memory, and are there again when they are read", "[io][file]") {
  const TemporaryFolder folder;
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  std::string text(8 * page + 100, 'x');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 31 >> 3);
  save(folder / "file", text);
  const io::MappedFile file(folder / "file");
  const auto bytes = file.bytes();
  for (const auto& part : {bytes, bytes.subspan(page + 7, 3 * page), bytes.subspan(8 * page + 1), bytes.first(0)}) {
    file.release(part);
    CHECK(text_of(bytes) == text);
  }
  const std::string other = text;  // not of the file: stays as it is
  file.release(std::as_bytes(std::span(other)));
  io::MappedFile().release(bytes);
  CHECK(other == text);
#ifdef __linux__
  const auto resident = [&] {  // from "Rss: 12 kB" of the mapping's pages
    std::ifstream maps("/proc/self/smaps");
    std::string line, name = (folder / "file").string();
    bool ours = false;
    while (std::getline(maps, line)) {
      if (line.ends_with(name)) ours = true;
      if (ours && line.starts_with("Rss:")) return std::stoul(line.substr(4));
    }
    return 0UL;
  };
  CHECK(text_of(bytes) == text);
  CHECK(resident() > 0);
  file.release(bytes);
  CHECK(resident() == 0);
#endif
}

TEST_CASE("pieces of all sizes are written in order", "[io][file]") {
  const TemporaryFolder folder;
  std::string expected;
  io::write_atomically(folder / "file", [&](io::AtomicFile& file) {
    for (const std::size_t size : std::initializer_list<std::size_t>{1, 0, 65535, 65536, 1, 65537, 3, 200000, 2}) {
      const std::string piece(size, static_cast<char>('a' + expected.size() % 26));
      file.write(piece);
      expected += piece;
      CHECK(file.written() == expected.size());
    }
  });
  CHECK(text_of(folder / "file") == expected);
}

TEST_CASE("a mapping moves, and outlives the replacement and the removal of its file", "[io][file]") {
  const TemporaryFolder folder;
  save(folder / "file", "old");
  io::MappedFile first(folder / "file");
  io::MappedFile second(std::move(first));
  first = io::MappedFile();
  save(folder / "file", "a longer text");
  CHECK(text_of(second.bytes()) == "old");
  first = std::move(second);
  std::filesystem::remove(folder / "file");
  CHECK(text_of(first.bytes()) == "old");
}

TEST_CASE("whatever the writer throws, the old file stays and nothing is left behind", "[io][file]") {
  const TemporaryFolder folder;
  const auto path = folder / "file";
  const auto fail = [&](std::size_t bytes) {
    io::write_atomically(path, [&](io::AtomicFile& file) {
      file.write(std::string(bytes, 'n'));
      throw StateError("stop");
    });
  };
  CHECK(message_of<StateError>([&] { fail(100000); }) == "stop");
  CHECK(folder.entries() == 0);
  save(path, "old");
  CHECK(message_of<StateError>([&] { fail(3); }) == "stop");
  CHECK(text_of(path) == "old");
  CHECK(folder.entries() == 1);
}

TEST_CASE("on a full disk the old file stays and nothing is left behind", "[io][file]") {
  const TemporaryFolder folder;
  const auto path = folder / "file";
  save(path, "old");
  for (const std::size_t size : {std::size_t{1001}, std::size_t{100000}, std::size_t{1000000}}) {
    const auto message = message_of<IoError>([&] {
      const FullAfter limit(1000);
      save(path, std::string(size, 'n'));
    });
    CHECK(message == path.string() + ": must take all its bytes, got File too large");
    CHECK(text_of(path) == "old");
    CHECK(folder.entries() == 1);
  }
}

TEST_CASE("a process that is killed while it writes leaves the old file", "[io][file]") {
  const TemporaryFolder folder;
  const auto path = folder / "file";
  save(path, "old");
  const auto child = ::fork();
  if (child == 0) {
    io::write_atomically(path, [&](io::AtomicFile& file) {
      file.write(std::string(200000, 'n'));
      ::raise(SIGKILL);
    });
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status));
  CHECK(text_of(path) == "old");
  CHECK(folder.entries() == 2);  // a kill gives no time to clean up
  save(path, "new");
  CHECK(text_of(path) == "new");
}

TEST_CASE("a new file obeys the mask of the process, a replaced one keeps its permissions", "[io][file]") {
  const TemporaryFolder folder;
  const auto path = folder / "file";
  const auto mask = ::umask(0027);
  save(path, "one");
  ::umask(mask);
  CHECK(permissions(path) == 0640);
  std::filesystem::permissions(path, std::filesystem::perms{0600});
  save(path, "two");
  CHECK(permissions(path) == 0600);
}

TEST_CASE("a symbolic link is replaced, not followed", "[io][file]") {
  const TemporaryFolder folder;
  save(folder / "target", "old");
  std::filesystem::create_symlink("target", folder / "link");
  save(folder / "link", "new");
  CHECK(text_of(folder / "target") == "old");
  CHECK(text_of(folder / "link") == "new");
}

TEST_CASE("the longest name that the system takes can be written to", "[io][file]") {
  const TemporaryFolder folder;
  const auto path = folder / std::string(255, 'x');
  save(path, "text");
  CHECK(text_of(path) == "text");
  CHECK(message_of<IoError>([&] {
          save(folder / std::string(256, 'x'), "text");
        }).ends_with("x: must take its name, got File name too long"));
  CHECK(folder.entries() == 1);
}

TEST_CASE("messages about files name the path and the system's words", "[io][file]") {
  const TemporaryFolder folder;
  const auto missing = folder / "missing", pipe = folder / "pipe", file = folder / "file";
  const auto deep = folder / "none" / "file";
  save(file, "12345");
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  const std::string words = "No such file or directory", here = folder.path().string();
  const auto map = [](const auto& path) { return message_of<IoError>([&] { io::MappedFile{path}; }); };
  const auto read = [](const auto& path) { return message_of<IoError>([&] { io::read_file(path); }); };
  const auto write = [](const auto& path) { return message_of<IoError>([&] { save(path, "text"); }); };
  CHECK(map(missing) == missing.string() + ": must open for reading, got " + words);
  CHECK(read(missing) == missing.string() + ": must open for reading, got " + words);
  CHECK(map(folder.path()) == here + ": must be a regular file, got a directory");
  CHECK(read(folder.path()) == here + ": must be a regular file, got a directory");
  CHECK(map(pipe) == pipe.string() + ": must be a regular file, got a device, pipe or socket");
  CHECK(read("/dev/zero") == "/dev/zero: must be a regular file, got a device, pipe or socket");
  CHECK(message_of<IoError>([&] { io::read_file(file, 4); }) == file.string() + ": must hold at most 4 bytes, got 5");
  CHECK(io::read_file(file, 5).size() == 5);
  CHECK(write(deep) == deep.string() + ": needs a directory that opens, got " + words);
  CHECK(write(folder.path()) == here + ": must be new or a regular file, got a directory");
  CHECK(write(folder / "") == here + "/: must name a file, got a directory");
  CHECK(write(pipe) == pipe.string() + ": must be new or a regular file, got a device, pipe or socket");
  CHECK(write(std::filesystem::path("/dev/full")) ==
        "/dev/full: must be new or a regular file, got a device, pipe or socket");
  CHECK(folder.entries() == 2);
}

TEST_CASE("a directory without rights is refused, and the old file stays", "[io][file]") {
  const TemporaryFolder folder;
  const auto path = folder / "file";
  save(path, "old");
  std::filesystem::permissions(folder.path(), std::filesystem::perms{0500});
  if (::access(folder.path().c_str(), W_OK) == 0) {
    // The superuser writes everywhere but into the kernel's own file system.
    const auto message = message_of<IoError>([&] { save("/proc/self/lora", "new"); });
    CHECK(message.starts_with("/proc/self/lora: needs a directory that can be written to, got "));
  } else {
    CHECK(message_of<IoError>([&] { save(path, "new"); }) ==
          path.string() + ": needs a directory that can be written to, got Permission denied");
  }
  std::filesystem::permissions(folder.path(), std::filesystem::perms{0700});
  CHECK(text_of(path) == "old");
  CHECK(folder.entries() == 1);
}
