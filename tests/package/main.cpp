// SPDX-License-Identifier: MIT
// What every consumer builds: the one header, and a line with the version.
#include <lora/lora.hpp>

#ifdef EXPECT_IO
#include <nlohmann/json.hpp>
#if __has_include(<lora/io/safetensors.hpp>)
#include <lora/io/safetensors.hpp>
#endif
#endif

#include <cstdio>

#if defined(EXPECT_TUNED) && (!defined(NDEBUG) || !defined(__OPTIMIZE__))
#error "lora::tuned did not bring its flags"
#endif
#if defined(EXPECT_AVX2) && !defined(__AVX2__)
#error "lora::tuned did not bring its -march"
#endif

int main() { std::printf("lora %d.%d.%d\n", LORA_VERSION_MAJOR, LORA_VERSION_MINOR, LORA_VERSION_PATCH); }
