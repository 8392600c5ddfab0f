// SPDX-License-Identifier: MIT
// Bytes as a GGUF file: read or refused with a FormatError, and what is read can be written and read again.
#include <lora/io/gguf_adapter.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

using namespace lora;

namespace {

/// Stops the fuzzer where a promise does not hold.
void promise(bool holds) {
  if (!holds) std::abort();
}

void write_and_read_again(const gguf::Contents& file) {
  const auto bytes = gguf::to_bytes(file.metadata(), file.tensors());
  const auto again = gguf::Contents::parse(bytes);
  promise(again.metadata().items().size() == file.metadata().items().size());
  promise(again.tensors().size() == file.tensors().size());
  for (std::size_t i = 0; i < again.tensors().size(); ++i) {
    promise(again.tensors()[i].name == file.tensors()[i].name);
    promise(again.tensors()[i].bytes.size() == file.tensors()[i].bytes.size());
  }
}

void read_as_adapter(const gguf::Contents& file, gguf::Architecture architecture) {
  try {
    const gguf::BaseModel base{architecture, 2, 1, true};
    const auto modules = gguf::read_adapter(file, base);
    promise(!modules.empty());
    for (const auto& [name, factors, scale] : modules) {
      promise(gguf::tensor_name(architecture, name).has_value());
      promise(factors.rank() >= 1 && factors.A.cols() == factors.B.rows());
    }
  } catch (const FormatError&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto file = gguf::Contents::parse(std::as_bytes(std::span(data, size)));
    for (const auto& tensor : file.tensors()) {
      promise(file.find(tensor.name) == &tensor);
      try {
        promise(gguf::dequantised(tensor).size() == tensor.elements());
      } catch (const FormatError&) {
      }
    }
    // A large alignment makes a large file out of a small one.
    if (file.metadata().get_or<std::uint32_t>("general.alignment", 32) <= 4096) write_and_read_again(file);
    read_as_adapter(file, gguf::Architecture::Llama);
    read_as_adapter(file, gguf::Architecture::Gpt2);
    gguf::describe(file);
  } catch (const FormatError&) {
  }
  return 0;
}
