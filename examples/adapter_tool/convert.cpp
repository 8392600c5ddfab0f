// SPDX-License-Identifier: MIT
// convert: PEFT, portable PEFT and GGUF, either way.
#include "adapter.hpp"
#include "text.hpp"

#include <lora/io/gguf_adapter.hpp>
#include <lora/io/peft.hpp>

#include <iostream>
#include <vector>

namespace adapter_tool {
namespace {

void save_gguf(const ConvertOptions& options, const lora::peft::Adapter<float>& adapter) {
  const auto base = base_model(options.base);
  if (!base)
    throw UsageError("--base or --config must be given: a GGUF file depends on the architecture and the head counts");
  std::vector<lora::gguf::AdapterModule> modules;
  for (const auto& [name, module] : adapter.modules) modules.push_back({name, module.factors, module.scale});
  lora::gguf::AdapterFormat format;
  if (options.type == "f16") format.type = lora::gguf::Type::F16;
  lora::gguf::save_adapter(options.to, modules, *base, format);
}

}  // namespace

Status convert(const ConvertOptions& options) {
  const bool to_gguf = options.to.extension() == ".gguf";
  if (to_gguf && options.portable) throw UsageError("--portable: goes with a PEFT directory, got a GGUF file");
  if (to_gguf && options.type == "bf16") throw UsageError("--type: must be f32 or f16 for a GGUF file, got bf16");
  const auto loaded = load(options.from, options.base, Order::Matters);
  const lora::peft::SaveOptions save{.adapter_name = "default", .type = stored_type(options.type)};
  if (to_gguf) {
    save_gguf(options, loaded.adapter);
  } else if (options.portable) {
    lora::peft::save_portable(options.to, loaded.adapter, save);
  } else {
    lora::peft::save(options.to, loaded.adapter, save);
  }
  std::cout << options.to.string() << ": "
            << (to_gguf            ? "GGUF"
                : options.portable ? "portable PEFT"
                                   : "PEFT")
            << ", " << options.type << ", " << count(loaded.adapter.modules.size(), "module") << '\n';
  return Status::Fine;
}

}  // namespace adapter_tool
