// SPDX-License-Identifier: MIT
// Any bytes as a checkpoint, as they are and with their checksum mended: restored whole, or refused and nothing
// changed.
#include <lora/base/owned_base.hpp>
#include <lora/io/checkpoint.hpp>
#include <lora/optim/adamw.hpp>
#include <lora/optim/per_factor.hpp>
#include <lora/optim/schedule.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

namespace {

struct Run {
  lora::LoraLinear<lora::OwnedBase<float>> layer{lora::OwnedBase<float>(lora::ColMatrix<float>::Ones(3, 2)),
                                                 {.rank = 1}};
  lora::Optimizer<lora::PerFactor<>, float> optimizer{lora::PerFactor<>{}, 3, 2, 1};
  lora::Random random{1};
  lora::Schedule schedule;
  std::vector<double> losses{1, 2};
  int step = 0;
  bool done = false;
  lora::Checkpoint checkpoint;

  Run() {
    checkpoint.add("layer", layer).add("optimizer", optimizer).add("random", random).add("schedule", schedule);
    checkpoint.add("losses", losses).add("step", step).add("done", done);
  }
};

/// What is restored must be what the file says, and a refusal must change nothing.
void restore(std::span<const std::byte> bytes) {
  Run run;
  const auto before = run.checkpoint.to_bytes();
  try {
    run.checkpoint.restore(bytes);
  } catch (const lora::Error&) {
    if (run.checkpoint.to_bytes() != before) std::abort();
    return;
  }
  const auto restored = run.checkpoint.to_bytes();
  Run again;
  again.checkpoint.restore(restored);
  if (again.checkpoint.to_bytes() != restored) std::abort();
}

/// With the checksum that the bytes should have, where they are so far in order that there is one.
bool mend(std::vector<std::byte>& bytes) {
  try {
    const auto file = lora::safetensors::File::parse(std::span(std::as_const(bytes)));
    const auto* tensor = file.find("lora.checksum");
    if (tensor == nullptr || tensor->bytes.size() != sizeof(std::uint64_t)) return false;
    const auto place = static_cast<std::size_t>(tensor->bytes.data() - bytes.data());
    const std::uint64_t checksum = lora::detail::checkpoint_checksum(bytes, place);
    std::memcpy(bytes.data() + place, &checksum, sizeof checksum);
    return true;
  } catch (const lora::Error&) {
    return false;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  restore(bytes);
  std::vector<std::byte> mended(bytes.begin(), bytes.end());
  if (mend(mended)) restore(mended);
  return 0;
}
