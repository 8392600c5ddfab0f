// SPDX-License-Identifier: MIT
// What holds between the sizes of a Llama, whatever file they come from.
#pragma once

#include "config.hpp"

#include <lora/core/error.hpp>

#include <cmath>
#include <string>
#include <string_view>

namespace llm {

/// Of every size, so that no product of two and a few bytes each overflows.
inline constexpr Index largest_size = 1 << 24;

/// What the fields of a kind of file are called.
struct FieldNames {
  std::string_view hidden_size, heads, kv_heads, head_dim, rms_norm_eps, rope_theta;
};

/// The rules between fields. `where` begins the messages.
inline void check_config(const LlamaConfig& config, const std::string& where, const FieldNames& names) {
  const auto check = [&](bool rule, const auto&... parts) {
    lora::detail::require<lora::FormatError>(rule, where, ": ", parts...);
  };
  check(config.num_attention_heads % config.num_key_value_heads == 0, names.heads, " must be a multiple of ",
        names.kv_heads, " = ", config.num_key_value_heads, ", got ", config.num_attention_heads);
  check(config.head_dim % 2 == 0, names.head_dim, " must be even, for rotations turn pairs of numbers, got ",
        config.head_dim);
  check(config.head_dim <= largest_size / config.num_attention_heads, names.heads, " times ", names.head_dim,
        " must be at most ", largest_size, ", got ", config.num_attention_heads, " times ", config.head_dim);
  check(config.rms_norm_eps > 0 && config.rms_norm_eps < 1, names.rms_norm_eps, " must lie between 0 and 1, got ",
        config.rms_norm_eps);
  check(config.rope_theta > 0 && std::isfinite(config.rope_theta), names.rope_theta, " must be positive, got ",
        config.rope_theta);
}

}  // namespace llm
