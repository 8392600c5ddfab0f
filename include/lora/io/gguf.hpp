// SPDX-License-Identifier: MIT
// GGUF files of ggml and llama.cpp: opened by a memory map, written whole or not at all.
#pragma once

#include <lora/io/file.hpp>
#include <lora/io/gguf_metadata.hpp>
#include <lora/io/gguf_reader.hpp>
#include <lora/io/gguf_tensor.hpp>
#include <lora/io/gguf_writer.hpp>

#include <cstddef>
#include <filesystem>
#include <span>
#include <utility>

namespace lora::gguf {

/// A file and what it says. Moves, does not copy; the bytes of its tensors are gone with it.
class File {
 public:
  /// Maps the file; reads metadata and the tensors' descriptions, none of their data.
  /// \throws IoError      the file cannot be opened or mapped.
  /// \throws FormatError  see `Contents::parse`.
  explicit File(const std::filesystem::path& path)
      : map_(path), contents_(Contents::parse(map_.bytes(), path.string())) {}

  const Contents& contents() const { return contents_; }
  const Metadata& metadata() const { return contents_.metadata(); }
  const std::vector<Tensor>& tensors() const { return contents_.tensors(); }
  /// \throws FormatError  there is no tensor of that name.
  const Tensor& tensor(std::string_view name) const { return contents_.tensor(name); }
  /// The tensor's bytes need not stay in memory; see `io::MappedFile::release`.
  void release(const Tensor& tensor) const { map_.release(tensor.bytes); }

 private:
  io::MappedFile map_;
  Contents contents_;
};

inline File open(const std::filesystem::path& path) { return File(path); }

/// Writes a file as `write_to` describes it; where that fails, the old file stays.
/// \throws FormatError  a rule of the format is broken.
/// \throws IoError      what the system refuses.
inline void write(const std::filesystem::path& path, const Metadata& metadata, std::span<const Tensor> tensors) {
  io::write_atomically(path, [&](io::AtomicFile& file) {
    write_to([&](std::span<const std::byte> bytes) { file.write(bytes); }, metadata, tensors, path.string());
  });
}

}  // namespace lora::gguf
