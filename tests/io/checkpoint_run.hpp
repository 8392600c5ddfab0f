// SPDX-License-Identifier: MIT
// A small training run with all that a checkpoint must hold: dropout, schedule, generator, bias, an offset start.
#pragma once

#include "support/matrices.hpp"
#include "support/starts.hpp"

#include <lora/adapter/lora_linear.hpp>
#include <lora/base/owned_base.hpp>
#include <lora/core/random.hpp>
#include <lora/io/checkpoint.hpp>
#include <lora/optim/optimizer.hpp>
#include <lora/optim/schedule.hpp>

#include <unistd.h>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace lora::test {

template <Real RealScalar, class Method>
struct Run {
  using Scalar = RealScalar;
  static constexpr Index n = 13, m = 11, r = 3, tokens = 8;

  Random data{1};
  ColMatrix<Scalar> W0 = random_columns<Scalar>(n, m, data);
  RowMatrix<Scalar> X = random_rows<Scalar>(tokens, n, data), T = random_rows<Scalar>(tokens, m, data);
  std::vector<Scalar> bias = std::vector<Scalar>(m, Scalar{0.25});
  LoraLinear<OwnedBase<Scalar>> layer;
  Optimizer<Method, Scalar> optimizer;
  Random random;
  Schedule schedule{.warmup_steps = 20, .total_steps = 150, .tail = Schedule::Tail::Cosine};
  Index step = 0;
  SavedState<Scalar> saved;
  Checkpoint checkpoint;

  /// Runs of one method differ by the seed alone.
  explicit Run(const Method& method, std::uint64_t seed, LoraConfig config = {.rank = r, .alpha = 6, .dropout = 0.25})
      : layer(OwnedBase<Scalar>(W0), config), optimizer(method, n, m, config.rank), random(seed) {
    layer.set_bias(bias);
    if (seed % 2 == 0) layer.initialize(RandomOffset{}, random);
    checkpoint.add("layer", layer).add("optimizer", optimizer).add("random", random);
    checkpoint.add("schedule", schedule).add("step", step);
  }
  Run(const Run&) = delete;  // the checkpoint refers to its parts
  Run& operator=(const Run&) = delete;

  void train(int count) {
    RowMatrix<Scalar> Y(tokens, m);
    for (int i = 0; i < count; ++i) {
      layer.forward(X, Y, saved, random);
      const RowMatrix<Scalar> dY = (Y - T) / static_cast<Scalar>(tokens);
      auto gradient = layer.zero_gradient();
      layer.backward(dY, saved, gradient);
      optimizer.step(layer, gradient, schedule(step++));
    }
  }
  bool same_as(const Run& other) const {
    return layer == other.layer && same_bits(layer.factors(), other.layer.factors()) && optimizer == other.optimizer &&
           random == other.random && step == other.step;
  }
};

/// A folder of the test's own, removed with all that is in it.
struct Folder {
  std::filesystem::path path;

  explicit Folder(const std::string& name)
      : path(std::filesystem::temp_directory_path() / ("lora-" + name + "-" + std::to_string(::getpid()))) {
    std::filesystem::remove_all(path);
    std::filesystem::create_directories(path);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { std::filesystem::remove_all(path); }
  std::filesystem::path operator/(const std::string& name) const { return path / name; }
  int files() const {
    int count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(path)) count += entry.is_regular_file() ? 1 : 0;
    return count;
  }
};

}  // namespace lora::test
