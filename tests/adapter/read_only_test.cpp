// SPDX-License-Identifier: MIT
// A base in memory that is mapped read-only: a write to it would end the process.
#include "support/catch.hpp"

#if __has_include(<sys/mman.h>)
#include "support/matrices.hpp"
#include "support/tolerances.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/init/gradient_svd.hpp>
#include <lora/init/principal_svd.hpp>
#include <lora/linalg/batch_gradient.hpp>
#include <lora/optim/adamw.hpp>
#include <lora/optim/per_factor.hpp>

#include <cstdio>
#include <memory>

#include <sys/mman.h>

using namespace lora;
using namespace lora::test;

namespace {

/// A temporary file that holds `values`, mapped to be read and not written.
class MappedFile {
 public:
  explicit MappedFile(const ColMatrix<float>& values) : size_(sizeof(float) * static_cast<std::size_t>(values.size())) {
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::tmpfile(), std::fclose);
    REQUIRE(file != nullptr);
    REQUIRE(std::fwrite(values.data(), 1, size_, file.get()) == size_);
    REQUIRE(std::fflush(file.get()) == 0);
    memory_ = mmap(nullptr, size_, PROT_READ, MAP_SHARED, fileno(file.get()), 0);
    REQUIRE(memory_ != MAP_FAILED);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() { munmap(memory_, size_); }

  const float* data() const { return static_cast<const float*>(memory_); }

 private:
  std::size_t size_;
  void* memory_ = nullptr;
};

constexpr Index n = 96, m = 64, r = 8, b = 20;

}  // namespace

TEST_CASE("LoRA-GA and PiSSA start and train on a base in memory that is mapped read-only", "[init][adapter]") {
  const bool lora_ga = GENERATE(true, false);
  Random random{1};
  const auto W0 = random_columns<float>(n, m, random);
  const MappedFile file(W0);
  LoraLinear<ViewBase<float>> layer({file.data(), n, m}, {.rank = r, .alpha = 12});
  const auto X = random_rows<float>(b, n, random), target = random_rows<float>(b, m, random);
  RowMatrix<float> Y(b, m), dX(b, n);
  SavedState<float> saved;
  auto gradient = layer.zero_gradient();
  const auto error = [&] {
    layer.forward(X, Y, saved);
    return (Y - target).squaredNorm() / 2;
  };
  error();
  const RowMatrix<float> dY = Y - target;
  if (lora_ga) {
    layer.initialize(GradientSvd{.clip = true}, BatchGradient<float>(X, dY), random);
  } else {
    layer.initialize(PrincipalSvd{}, random);
  }
  const float before = error();

  // The initial output is the base's, within the rounding of X W0 + s (X A) B - s (X A0) B0.
  const auto& initial = layer.initial_factors();
  REQUIRE(initial.rank() == r);
  const Wide branch = product(product(absolute(wide(X)), absolute(wide(initial.A))), absolute(wide(initial.B)));
  const Wide terms = product(absolute(wide(X)), absolute(wide(W0))) + 2 * layer.scale() * branch;
  const double ratio = worst_ratio(Y, product(wide(X), wide(W0)), rounding_bound<float>(layer_roundings(n, r)) * terms);
  INFO((lora_ga ? "LoRA-GA" : "PiSSA") << ": the initial output is " << ratio << " of the bound off the base's");
  CHECK(ratio <= 1);

  const PerFactor method{AdamW{.learning_rate = 1e-3}};
  auto state = method.init<float>(n, m, r);
  for (int step = 0; step < 3; ++step) {
    error();
    const RowMatrix<float> difference = Y - target;
    gradient.set_zero();
    layer.backward(difference, saved, gradient, dX);
    method.step(state, layer.factors(), gradient, layer.scale(), 1);
  }
  const float after = error();
  INFO("error " << before << ", after three steps " << after);
  CHECK(after < before);
  CHECK(layer.base().weight().data() == file.data());
  CHECK(same_bits(layer.base().weight(), W0));
}

#else

TEST_CASE("LoRA-GA and PiSSA start and train on a base in memory that is mapped read-only", "[init][adapter]") {
  WARN("NOT TESTED: needs mmap");
}

#endif
