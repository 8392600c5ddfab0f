// SPDX-License-Identifier: MIT
// The commands of the program: what each takes.
#pragma once

#include "model.hpp"

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace llm {

/// Which model, and how it runs.
struct ModelOptions {
  std::filesystem::path model;    ///< a folder of transformers or a .gguf file
  std::filesystem::path adapter;  ///< a folder of PEFT or a .gguf file; empty: none
  std::string base = "float";     ///< or bf16
  int threads = 0;                ///< 0: as OpenMP says

  Storage storage() const { return base == "bf16" ? Storage::Bf16 : Storage::Float; }
};

struct TrainOptions {
  ModelOptions model;
  std::filesystem::path text, out;
  std::string method = "lora";
  std::vector<std::string> targets;  ///< ends of names; empty: all linear layers but the head
  Index rank = 8;
  double alpha = 16;
  std::optional<double> learning_rate;  ///< none: the method's
  double weight_decay = 0, clip = 1, warmup = 0.05, validation = 0.1;
  std::string schedule = "cosine";
  Index length = 256, batch = 4, accumulate = 1;
  std::optional<Index> steps;  ///< none: by epochs
  double epochs = 1;
  Index evaluate_every = 0, save_every = 50, gradient_batches = 4;
  std::uint64_t seed = 0;
  bool recompute = false, resume = false, overwrite = false;

  Keep keep() const { return recompute ? Keep::Inputs : Keep::All; }
};

struct GenerateOptions {
  ModelOptions model;
  std::string prompt;
  bool chat = false, ids = false;
  Index tokens = 128;
  double temperature = 0, top_p = 1;
  std::uint64_t seed = 0;
};

struct EvaluateOptions {
  ModelOptions model;
  std::filesystem::path text;
  Index length = 256, batch = 4;
  double validation = 0;  ///< 0: all of the text
  std::uint64_t seed = 0;
};

struct BenchOptions {
  ModelOptions model;
  Index sequences = 4, length = 256, rank = 8, steps = 5;
  bool recompute = false;
};

// Each returns what the process ends with; what throws has left no half-written output.
int train(const TrainOptions& options);
int generate(const GenerateOptions& options);
int evaluate(const EvaluateOptions& options);
int bench(const BenchOptions& options);

}  // namespace llm
