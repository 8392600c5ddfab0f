// SPDX-License-Identifier: MIT
// libFuzzer: any text as an adapter_config.json. What is read is written and read the same; its patterns can be asked.
#include <lora/io/peft_config.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto config = lora::peft::AdapterConfig::parse({reinterpret_cast<const char*>(data), size});
    const std::string text = config.to_json();
    if (lora::peft::AdapterConfig::parse(text).to_json() != text) std::abort();
    config.unknown_keys();
    const lora::detail::PatternTable<lora::Index> ranks(config.rank_pattern, "rank_pattern");
    const lora::detail::PatternTable<double> alphas(config.alpha_pattern, "alpha_pattern");
    for (const char* name : {"model.layers.11.self_attn.q_proj", "q"}) {
      ranks.of(name, 1);
      alphas.of(name, 1);
    }
  } catch (const lora::FormatError&) {
    return 0;
  }
  return 0;
}
