// SPDX-License-Identifier: MIT
// Whole files: mapped or read into memory, and written so that a crash leaves the old one (POSIX).
#pragma once

#include <lora/core/error.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace lora {

namespace detail {

/// Throws IoError with the system's words: "path: rule, got No such file or directory".
inline void require_system(bool succeeded, const std::filesystem::path& path, std::string_view rule) {
  if (succeeded) [[likely]]
    return;
  const std::string words = std::generic_category().message(errno);
  require<IoError>(false, path.string(), ": ", rule, ", got ", words);
}

/// Owns an open file.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  int get() const { return number_; }
  /// Closes now, for those who must know whether it worked.
  bool close() { return ::close(std::exchange(number_, -1)) == 0; }

 private:
  int number_;
};

/// The size of an open regular file.
inline std::uint64_t file_size(const Descriptor& file, const std::filesystem::path& path) {
  struct stat status {};
  require_system(::fstat(file.get(), &status) == 0, path, "must tell its size");
  require<IoError>(S_ISREG(status.st_mode), path.string(), ": must be a regular file, got ",
                   S_ISDIR(status.st_mode) ? "a directory" : "a device, pipe or socket");
  return static_cast<std::uint64_t>(status.st_size);
}

/// O_NONBLOCK, so that a pipe is refused instead of waited for.
inline int open_to_read(const std::filesystem::path& path) {
  const int number = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  require_system(number >= 0, path, "must open for reading");
  return number;
}

/// The directory that a file is or will be in, to flush it.
inline int open_directory_of(const std::filesystem::path& path) {
  const auto directory = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  const int number = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  require_system(number >= 0, path, "needs a directory that opens");
  return number;
}
/// Names that came and went reach the disk. Some file systems cannot do that, and say so with EINVAL.
inline void flush_directory(const Descriptor& directory, const std::filesystem::path& path, std::string_view rule) {
  require_system(::fsync(directory.get()) == 0 || errno == EINVAL, path, rule);
}

}  // namespace detail

namespace io {

/// A file in memory, read-only, without reading what nobody looks at.
///
/// \pre Nobody shortens the file while it is mapped: the kernel answers with SIGBUS. `write_atomically` never does, it
/// puts a new file in the place of the old one, which stays readable here.
class MappedFile {
 public:
  /// No bytes.
  MappedFile() = default;
  /// \throws IoError  cannot be opened or mapped; not a regular file; its size changes meanwhile.
  explicit MappedFile(const std::filesystem::path& path) {
    const detail::Descriptor file(detail::open_to_read(path));
    const std::uint64_t size = detail::file_size(file, path);
    detail::require<IoError>(size <= static_cast<std::uint64_t>(std::numeric_limits<std::ptrdiff_t>::max()),
                             path.string(), ": must fit the address space, got ", size, " bytes");
    if (size > 0) {  // mmap refuses an empty file
      void* const memory = ::mmap(nullptr, static_cast<std::size_t>(size), PROT_READ, MAP_PRIVATE, file.get(), 0);
      detail::require_system(memory != MAP_FAILED, path, "must map into memory");
      data_ = static_cast<const std::byte*>(memory);
      size_ = static_cast<std::size_t>(size);
    }
    const std::uint64_t now = detail::file_size(file, path);
    if (now == size) return;
    unmap();
    detail::require<IoError>(false, path.string(), ": must keep its size of ", size, " bytes, got ", now);
  }
  MappedFile(MappedFile&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~MappedFile() { unmap(); }

  std::span<const std::byte> bytes() const { return {data_, size_}; }

  /// Gives the memory behind some of the bytes back; who reads them again finds them again, from the file. For those
  /// who go through a large file once: until then all that they have read counts as theirs. Works on whole pages, and
  /// not at all on bytes that are not of this file or where the system has no such call.
  void release([[maybe_unused]] std::span<const std::byte> bytes) const {
#ifdef MADV_DONTNEED
    const auto map = reinterpret_cast<std::uintptr_t>(data_), first = reinterpret_cast<std::uintptr_t>(bytes.data());
    if (bytes.empty() || first < map || bytes.size() > size_ || first - map > size_ - bytes.size()) return;
    const std::uintptr_t before = first % static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    ::madvise(const_cast<std::byte*>(bytes.data() - before), bytes.size() + before, MADV_DONTNEED);
#endif
  }

 private:
  void unmap() {
    if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
    data_ = nullptr;
    size_ = 0;
  }

  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// All of a file of at most `limit` bytes, in memory of its own.
/// \throws IoError  cannot be opened or read; not a regular file; longer than `limit`; its size changes meanwhile.
inline std::vector<std::byte> read_file(const std::filesystem::path& path,
                                        std::uint64_t limit = std::numeric_limits<std::ptrdiff_t>::max()) {
  const detail::Descriptor file(detail::open_to_read(path));
  const std::uint64_t size = detail::file_size(file, path);
  detail::require<IoError>(size <= limit, path.string(), ": must hold at most ", limit, " bytes, got ", size);
  std::vector<std::byte> bytes(static_cast<std::size_t>(size) + 1);  // one more, to see a file that grows
  std::size_t filled = 0;
  while (filled < bytes.size()) {
    const auto count = ::read(file.get(), bytes.data() + filled, bytes.size() - filled);
    if (count < 0 && errno == EINTR) continue;
    detail::require_system(count >= 0, path, "must be readable");
    if (count == 0) break;
    filled += static_cast<std::size_t>(count);
  }
  detail::require<IoError>(filled == size, path.string(), ": must keep its size of ", size, " bytes, got ",
                           filled > size ? "a longer file" : "a shorter file");
  bytes.resize(filled);
  return bytes;
}

/// A file that appears under its name only when it is complete; see `write_atomically`, which commits it.
class AtomicFile {
 public:
  /// Makes a temporary file beside `path`: on the same file system, so that it can be renamed.
  explicit AtomicFile(std::filesystem::path path)
      : path_(std::move(path)), directory_(detail::open_directory_of(path_)), file_(create(path_, temporary_)) {
    try {
      keep_permissions();
      buffer_.reserve(buffer_size);
    } catch (...) {  // no destructor runs for a half-made object
      ::unlink(temporary_.c_str());
      throw;
    }
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile() {
    if (!renamed_) ::unlink(temporary_.c_str());
  }

  /// Appends; small pieces are gathered. \throws IoError  the disk is full, or any other reason of the system.
  void write(std::span<const std::byte> bytes) {
    if (bytes.size() > buffer_size - buffer_.size()) {
      write_through(buffer_);
      buffer_.clear();
    }
    if (bytes.size() > buffer_size) {
      write_through(bytes);
    } else {
      buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    }
    written_ += bytes.size();
  }
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  /// How many bytes so far.
  std::uint64_t written() const { return written_; }
  /// Whether it has its name; so too after a `commit` that failed to flush the directory and nothing else.
  bool in_place() const { return renamed_; }

  /// The bytes reach the disk, the name stays away: for those who put several files in place at once. Nothing may be
  /// written afterwards.
  void prepare() {
    write_through(buffer_);
    buffer_.clear();
    detail::require_system(::fsync(file_.get()) == 0, path_, "must reach the disk");
    detail::require_system(file_.close(), path_, "must reach the disk");
    prepared_ = true;
  }
  /// Puts the file under its name, once and for all; `prepare` comes first, if it did not yet.
  void commit() {
    if (!prepared_) prepare();
    detail::require_system(::rename(temporary_.c_str(), path_.c_str()) == 0, path_, "must take its name");
    renamed_ = true;
    detail::flush_directory(directory_, path_, "its new name must reach the disk (the new file is in place)");
  }

 private:
  static constexpr std::size_t buffer_size = std::size_t{1} << 16;

  /// A new file with a name of its own. It does not contain the final name, which may already be as long as names get.
  static int create(const std::filesystem::path& path, std::filesystem::path& temporary) {
    struct stat old {};
    const bool exists = ::lstat(path.c_str(), &old) == 0;
    detail::require<IoError>(path.has_filename(), path.string(), ": must name a file, got a directory");
    detail::require<IoError>(!exists || S_ISREG(old.st_mode) || S_ISLNK(old.st_mode), path.string(),
                             ": must be new or a regular file, got ",
                             S_ISDIR(old.st_mode) ? "a directory" : "a device, pipe or socket");
    static std::atomic<unsigned> counter{0};
    for (int attempt = 0;; ++attempt) {
      std::string name = ".lora-";
      detail::append(name, ::getpid());
      detail::append(name, "-");
      detail::append(name, counter++);
      temporary = path.parent_path() / (name + ".tmp");
      const int number = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (number < 0 && errno == EEXIST && attempt < 1000) continue;  // what a killed process of this number left
      detail::require_system(number >= 0, path, "needs a directory that can be written to");
      return number;
    }
  }
  /// Whoever closed a file to others wants it closed after the next save too.
  void keep_permissions() {
    struct stat old {};
    if (::lstat(path_.c_str(), &old) != 0 || !S_ISREG(old.st_mode)) return;
    detail::require_system(::fchmod(file_.get(), old.st_mode & 0777) == 0, path_, "must keep its permissions");
  }
  void write_through(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const auto count = ::write(file_.get(), bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR) continue;
      detail::require_system(count >= 0, path_, "must take all its bytes");
      bytes = bytes.subspan(static_cast<std::size_t>(count));
    }
  }

  std::filesystem::path path_, temporary_;
  detail::Descriptor directory_, file_;
  std::vector<std::byte> buffer_;
  std::uint64_t written_ = 0;
  bool prepared_ = false, renamed_ = false;
};

/// Writes a file as a whole or not at all: `write_atomically("a.bin", [&](io::AtomicFile& file) { file.write(...); })`.
///
/// The bytes go to a temporary file in the same directory, which is flushed to the disk and then renamed, and the
/// directory is flushed too. Whatever fails, and wherever the process is killed, `path` holds the old file or the new
/// one; a failure removes the temporary file, a kill leaves it (`.lora-<process>-<number>.tmp`). An old file keeps its
/// permission bits. A symbolic link is replaced, not followed.
/// \throws IoError  what the system refuses; and whatever `writer` throws. Nothing has changed then, save one case that
/// the message names: the new name is in place, but the system failed to flush the directory.
template <class Writer>
void write_atomically(const std::filesystem::path& path, const Writer& writer) {
  AtomicFile file(path);
  writer(file);
  file.commit();
}

/// Removes a file for good: it does not come back after a power failure. No such file is fine too.
/// \throws IoError  what the system refuses.
inline void remove_file(const std::filesystem::path& path) {
  const detail::Descriptor directory(detail::open_directory_of(path));
  detail::require_system(::unlink(path.c_str()) == 0 || errno == ENOENT, path, "must be removable");
  detail::flush_directory(directory, path, "its removal must reach the disk");
}

}  // namespace io
}  // namespace lora
