// SPDX-License-Identifier: MIT
// Where results go: the folder of a training run, and folders that appear under their name only when they are complete.
#pragma once

#include <lora/core/error.hpp>
#include <lora/io/file.hpp>
#include <lora/io/safetensors_header.hpp>

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace llm {

namespace detail {

/// What an interrupted process may leave behind: ".lora-12-0.tmp".
inline bool is_leftover(const std::string& name) { return name.starts_with(".lora-") && name.ends_with(".tmp"); }

/// The names in a folder, in order; no folder has none.
/// \throws IoError  cannot be read. \throws ConfigError  not a folder.
inline std::set<std::string> names_in(const std::filesystem::path& folder) {
  std::error_code failure;
  const auto status = std::filesystem::status(folder, failure);
  if (!std::filesystem::exists(status)) return {};
  lora::detail::require<lora::ConfigError>(std::filesystem::is_directory(status), folder.string(),
                                           ": must be a folder, got a file");
  std::set<std::string> names;
  for (auto entry = std::filesystem::directory_iterator(folder, failure);
       !failure && entry != std::filesystem::directory_iterator(); entry.increment(failure)) {
    names.insert(entry->path().filename().string());
  }
  lora::detail::require<lora::IoError>(!failure, folder.string(), ": must be readable, got ", failure.message());
  return names;
}

/// The first name that is neither known nor a leftover: something of somebody else's, which nobody may remove.
inline std::optional<std::string> foreign_name(const std::set<std::string>& names, const std::set<std::string>& known) {
  const auto found = std::find_if(names.begin(), names.end(),
                                  [&](const auto& name) { return !known.contains(name) && !is_leftover(name); });
  return found == names.end() ? std::nullopt : std::optional(*found);
}

inline void make_folder(const std::filesystem::path& folder) {
  std::error_code failure;
  std::filesystem::create_directories(folder, failure);
  lora::detail::require<lora::IoError>(!failure, folder.string(), ": must be a folder or be made one, got ",
                                       failure.message());
}

/// A name beside `path` that is free.
inline std::filesystem::path temporary_beside(const std::filesystem::path& path) {
  static std::atomic<unsigned> counter{0};
  for (;;) {
    auto name =
        path.parent_path() / (".lora-" + std::to_string(::getpid()) + "-f" + std::to_string(counter++) + ".tmp");
    if (!std::filesystem::exists(std::filesystem::symlink_status(name))) return name;
  }
}

/// Without the "/" at the end that a shell likes to add: the folder itself has the name.
inline std::filesystem::path named(const std::filesystem::path& path) {
  return path.has_filename() ? path : path.parent_path();
}

}  // namespace detail

/// A folder that is filled under a temporary name beside its own, and renamed when it is complete. Whatever fails and
/// wherever the process is killed, under `path` is what was there before or the whole new folder (for a moment nothing,
/// where the system cannot exchange two names at once: then the old one stands beside it as `.lora-*.tmp`).
class StagedFolder {
 public:
  /// \param may_replace  what an old folder of this name may hold to be replaced; none: `path` must be new or empty.
  /// \throws ConfigError  a file, or a folder that holds anything else. \throws IoError  what the system refuses.
  explicit StagedFolder(const std::filesystem::path& path, const std::set<std::string>& may_replace = {})
      : path_(detail::named(path)), temporary_(detail::temporary_beside(path_)) {
    const auto foreign = detail::foreign_name(detail::names_in(path_), may_replace);
    lora::detail::require<lora::ConfigError>(!foreign, path_.string(), ": must be new or empty, got a folder with ",
                                             lora::detail::quoted(foreign.value_or("")),
                                             " in it; use another name or remove it");
    if (path_.has_parent_path()) detail::make_folder(path_.parent_path());
    detail::make_folder(temporary_);
  }
  StagedFolder(const StagedFolder&) = delete;
  StagedFolder& operator=(const StagedFolder&) = delete;
  ~StagedFolder() {
    std::error_code failure;
    std::filesystem::remove_all(temporary_, failure);
  }

  /// To be filled, with files that have reached the disk (`io::write_atomically`, `peft::save`).
  const std::filesystem::path& path() const { return temporary_; }

  /// Puts the folder under its name.
  /// \throws IoError  what the system refuses; the old folder stays.
  void commit() {
    const lora::detail::Descriptor parent(lora::detail::open_directory_of(path_));
    const bool is_renamed = ::rename(temporary_.c_str(), path_.c_str()) == 0;  // to a free name or an empty folder
    if (!is_renamed) {
      const bool is_taken = errno == EEXIST || errno == ENOTEMPTY;
      lora::detail::require_system(is_taken, path_, "must take its name");
      exchange();
    }
    lora::detail::flush_directory(parent, path_, "its new name must reach the disk (the new folder is in place)");
  }

 private:
  /// The old folder gets the temporary name, under which the destructor removes it.
  void exchange() {
#ifdef RENAME_EXCHANGE
    if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), RENAME_EXCHANGE) == 0) return;
#endif
    const auto aside = detail::temporary_beside(path_);
    lora::detail::require_system(::rename(path_.c_str(), aside.c_str()) == 0, path_, "must give up its name");
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
      const int reason = errno;
      ::rename(aside.c_str(), path_.c_str());
      errno = reason;
      lora::detail::require_system(false, path_, "must take its name");
    }
    std::error_code failure;
    std::filesystem::remove_all(aside, failure);
  }

  std::filesystem::path path_, temporary_;
};

/// What to do with a folder that is there already.
enum class Existing { Refuse, Resume, Overwrite };

/// The folder of a training run. It is made when training begins and then holds the run's checkpoint and log; what is
/// complete only at the end, the adapter, goes through a StagedFolder inside. So a killed run leaves a folder that
/// `--resume` goes on with, and no half an adapter. One process at a time: it is locked while this lives.
///
/// The constructor only looks, so that a run that is refused for another reason has changed nothing; `begin` acts.
class RunFolder {
 public:
  static constexpr const char *checkpoint_name = "checkpoint", *log_name = "log.csv", *adapter_name = "adapter",
                              *gguf_name = "adapter.gguf", *plot_name = "loss";

  /// \param others  names of what a run leaves beside the usual.
  /// \throws ConfigError  a file; to be refused and not empty; to be resumed and without a checkpoint; to be
  /// overwritten and with something in it that comes from no run. \throws IoError  cannot be read.
  RunFolder(const std::filesystem::path& path, Existing existing, std::set<std::string> others = {})
      : path_(detail::named(path)), existing_(existing), known_(std::move(others)) {
    known_.insert({checkpoint_name, log_name, adapter_name, gguf_name, std::string(plot_name) + ".gp",
                   std::string(plot_name) + ".svg"});
    check();
  }

  /// Locks the folder; makes it; or, to overwrite it, removes the old run, its checkpoint last.
  /// \throws ConfigError  another process is in it, or has changed it since. \throws IoError  what the system refuses.
  void begin() {
    detail::make_folder(path_);
    lock();
    check();
    const auto remove = [&](const std::string& name) {
      std::error_code failure;
      std::filesystem::remove_all(path_ / name, failure);
      lora::detail::require<lora::IoError>(!failure, (path_ / name).string(), ": must be removable, got ",
                                           failure.message());
    };
    for (const auto& name : detail::names_in(path_)) {
      if (detail::is_leftover(name)) remove(name);  // the lock says that nobody is at work on it
    }
    if (existing_ != Existing::Overwrite) return;
    hide(adapter_name);
    for (const auto& name : known_) {
      if (name != checkpoint_name) remove(name);
    }
    remove(checkpoint_name);
  }

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path checkpoint() const { return path_ / checkpoint_name; }
  std::filesystem::path log() const { return path_ / log_name; }
  std::filesystem::path adapter() const { return path_ / adapter_name; }
  std::filesystem::path gguf() const { return path_ / gguf_name; }
  bool resumes() const { return existing_ == Existing::Resume; }

 private:
  void check() const {
    using lora::detail::require;
    auto names = detail::names_in(path_);
    std::erase_if(names, detail::is_leftover);
    const auto foreign = detail::foreign_name(names, known_);
    const bool has_run = names.contains(checkpoint_name);
    const std::string content = has_run ? "a run"
                                        : lora::detail::quoted(foreign         ? *foreign
                                                               : names.empty() ? ""
                                                                               : *names.begin());
    switch (existing_) {
      case Existing::Refuse:
        require<lora::ConfigError>(names.empty(), path_.string(), ": must be new or empty, got a folder with ", content,
                                   " in it; use another --out",
                                   has_run   ? ", --resume to go on with it or --overwrite to begin anew"
                                   : foreign ? ""
                                             : " or --overwrite to begin anew");
        break;
      case Existing::Resume:
        require<lora::ConfigError>(
            has_run, path_.string(), ": must hold a checkpoint to go on from, got ",
            names.empty() ? "nothing there; leave --resume out to begin" : "none; use --overwrite to begin anew");
        break;
      case Existing::Overwrite:
        require<lora::ConfigError>(!foreign, path_.string(), ": may be overwritten where a run made all that is in it,",
                                   " got ", lora::detail::quoted(foreign.value_or("")),
                                   "; use another --out or remove it");
        break;
    }
  }
  /// The kernel lets go of it whenever and however the process ends.
  void lock() {
    const int number = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    lora::detail::require_system(number >= 0, path_, "must open");
    auto descriptor = std::make_unique<lora::detail::Descriptor>(number);
    const bool is_locked = ::flock(number, LOCK_EX | LOCK_NB) == 0;
    lora::detail::require<lora::ConfigError>(is_locked || errno != EWOULDBLOCK, path_.string(),
                                             ": must not be in use, got another process that trains there");
    lock_ = std::move(descriptor);  // a file system without locks is no reason not to train
  }
  /// Takes a folder's name away at once, so that none of it is ever there in part.
  void hide(const char* name) const {
    const auto from = path_ / name;
    if (!std::filesystem::exists(std::filesystem::symlink_status(from))) return;
    const auto to = detail::temporary_beside(from);
    lora::detail::require_system(::rename(from.c_str(), to.c_str()) == 0, from, "must be removable");
    std::error_code failure;
    std::filesystem::remove_all(to, failure);
  }

  std::filesystem::path path_;
  Existing existing_;
  std::set<std::string> known_;
  std::unique_ptr<lora::detail::Descriptor> lock_;
};

}  // namespace llm
