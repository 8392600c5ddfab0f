// SPDX-License-Identifier: MIT
// libFuzzer: any bytes as a safetensors file. What is read must be readable, writable and the same afterwards.
#include <lora/io/safetensors.hpp>
#include <lora/io/safetensors_matrix.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  namespace st = lora::safetensors;
  try {
    const auto file = st::File::parse(std::as_bytes(std::span(data, size)));
    const auto bytes = st::to_bytes(file.tensors(), file.metadata());
    const auto again = st::File::parse(std::span(bytes));
    if (again.metadata() != file.metadata() || again.names() != file.names()) std::abort();
    for (const auto& [name, tensor] : file.tensors()) {
      const auto& other = again.at(name);
      if (other.type != tensor.type || other.shape != tensor.shape) std::abort();
      if (!std::equal(other.bytes.begin(), other.bytes.end(), tensor.bytes.begin(), tensor.bytes.end())) std::abort();
      try {
        st::to_matrix<float>(tensor);
        st::to_matrix<double>(tensor, st::Layout::Transposed);
      } catch (const lora::FormatError&) {  // not a matrix
        continue;
      }
    }
  } catch (const lora::FormatError&) {
    return 0;
  }
  return 0;
}
