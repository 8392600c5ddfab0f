// SPDX-License-Identifier: MIT
#include <lora/lora.hpp>

#ifdef WITH_IO
#include <nlohmann/json.hpp>
#endif

#include <cstdio>

int main() {
  const lora::ColMatrix<float> W0 = lora::ColMatrix<float>::Identity(8, 8);
  std::printf("lora %d.%d.%d: %s\n", LORA_VERSION_MAJOR, LORA_VERSION_MINOR, LORA_VERSION_PATCH,
              lora::LoraLinear{W0, {.rank = 2}}.describe().c_str());
}
