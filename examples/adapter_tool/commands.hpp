// SPDX-License-Identifier: MIT
// The commands of the tool: what each takes, and how they end.
#pragma once

#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

namespace adapter_tool {

/// What the process ends with.
enum class Status { Fine = 0, DoesNotMatch = 1, Usage = 2, BadInput = 3 };

/// A command line that makes no sense, however good the files are.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// Good files that do not go together; nothing was written.
struct Mismatch : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Where the architecture and the head counts come from that GGUF files depend on: a GGUF model, or a Hugging Face
/// config.json or its directory. Both may be empty, which is enough for most commands.
struct BaseOptions {
  std::filesystem::path gguf, config;
};

struct InspectOptions {
  std::filesystem::path adapter;
};
struct CheckOptions {
  std::filesystem::path adapter, model;  ///< no model: the adapter alone is read
};
struct ConvertOptions {
  std::filesystem::path from, to;
  bool portable = false;
  std::string type = "f32";
  BaseOptions base;
};
struct MergeOptions {
  std::filesystem::path adapter, model, out;
  double scale = 1;
  BaseOptions base;
};
struct ExtractOptions {
  std::filesystem::path before, after, out;
  long long rank = 0;  ///< 0: none given
  double energy = 1;   ///< 1: none given
  std::vector<std::string> targets;
  std::string prefix, type = "f32";
  bool fan_in_fan_out = false, not_fan_in_fan_out = false;
};
struct DiffOptions {
  std::filesystem::path left, right;
  double tolerance = 1e-6;
  BaseOptions base;
};

// Each prints its report to standard output. What throws has written nothing.
Status inspect(const InspectOptions& options);
Status check(const CheckOptions& options);
Status convert(const ConvertOptions& options);
Status merge(const MergeOptions& options);
Status extract(const ExtractOptions& options);
Status diff(const DiffOptions& options);

}  // namespace adapter_tool
