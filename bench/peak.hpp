// SPDX-License-Identifier: MIT
// What the processor can do in registers: the yardstick of every rate.
#pragma once

#include <lora/core/matrix.hpp>

#include <Eigen/Core>

namespace bench {

/// `rounds` times 12 independent multiply-adds of packets: more chains than latency times ports of any x86-64 core asks
/// for. Returns the flops.
inline double multiply_add(int rounds) {
  using Packet = Eigen::internal::packet_traits<float>::type;
  using Eigen::internal::pmadd, Eigen::internal::pset1;
  constexpr int lanes = Eigen::internal::packet_traits<float>::size;
  volatile float half = 0.5F;  // not to be computed at compile time
  const float value = half;
  const Packet factor = pset1<Packet>(value), term = factor;
  Packet sums[12];
  for (auto& sum : sums) sum = pset1<Packet>(1.0F);
  for (int round = 0; round < rounds; ++round) {
    for (auto& sum : sums) sum = pmadd(sum, factor, term);
  }
  auto total = sums[0];  // one value to the outside: the address of `sums` itself would keep them in memory
  for (int chain = 1; chain < 12; ++chain) total = Eigen::internal::padd(total, sums[chain]);
  half = Eigen::internal::pfirst(total);
  return 2.0 * rounds * 12 * lanes;
}

}  // namespace bench
