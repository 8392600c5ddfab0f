// SPDX-License-Identifier: MIT
// A folder that appears under its name only when all its files are there.
#pragma once

#include <lora/core/error.hpp>
#include <lora/io/file.hpp>

#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>

namespace adapter_tool {

/// Files are written into a folder beside it, which `commit` renames. Without a commit nothing is left, save after a
/// kill: `.lora-<process>.tmp`.
class NewFolder {
 public:
  /// \throws lora::IoError  the name is taken, unless by an empty folder; no folder can be made beside it.
  explicit NewFolder(const std::filesystem::path& path)
      : path_(without_slash(path)), parent_(lora::detail::open_directory_of(path_)) {
    std::error_code failure;
    const bool is_empty = std::filesystem::is_directory(std::filesystem::symlink_status(path_)) &&
                          std::filesystem::is_empty(path_, failure);
    if (!is_empty && std::filesystem::exists(std::filesystem::symlink_status(path_)))
      throw lora::IoError(path_.string() + ": must be new or an empty folder, got a file or a full folder");
    auto temporary = path_.parent_path() / (".lora-" + std::to_string(::getpid()) + ".tmp");
    if (!std::filesystem::create_directory(temporary, failure))
      throw lora::IoError(path_.string() + ": needs a directory that can be written to, got " +
                          (failure ? failure.message() : temporary.string() + " of a killed process in it"));
    temporary_ = std::move(temporary);
  }
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;
  ~NewFolder() {
    std::error_code ignored;
    if (!temporary_.empty()) std::filesystem::remove_all(temporary_, ignored);
  }

  /// Where a file is to be written, by `lora::io::write_atomically`, which flushes it.
  std::filesystem::path operator/(const std::string& name) const { return temporary_ / name; }

  void commit() {
    lora::detail::require_system(std::rename(temporary_.c_str(), path_.c_str()) == 0, path_, "must take its name");
    temporary_.clear();
    lora::detail::flush_directory(parent_, path_, "its new name must reach the disk (the new folder is in place)");
  }

 private:
  static std::filesystem::path without_slash(const std::filesystem::path& path) {
    return path.has_filename() ? path : path.parent_path();
  }

  std::filesystem::path path_, temporary_;
  lora::detail::Descriptor parent_;
};

}  // namespace adapter_tool
