// SPDX-License-Identifier: MIT
#include "io/gguf_bytes.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"

#include <lora/io/gguf.hpp>
#include <lora/io/quantised_blocks.hpp>

#include <cmath>
#include <cstring>

using namespace lora;
using namespace lora::test;

namespace {

/// Equal bits, or both some NaN.
bool same_number(float left, float right) {
  return std::memcmp(&left, &right, sizeof left) == 0 || (std::isnan(left) && std::isnan(right));
}

std::vector<float> numbers_of(gguf::Type type, std::span<const std::byte> bytes, std::size_t count) {
  std::vector<float> numbers(count);
  gguf::dequantise(type, bytes, numbers);
  return numbers;
}

}  // namespace

TEST_CASE("every type gives the bits that the Python package gives", "[io][gguf]") {
  const auto file = gguf::open(gguf_data("blocks.gguf"));
  const auto name = GENERATE("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K");
  const auto& tensor = file.tensor(name);
  CHECK(gguf::type_name(tensor.type) == name);
  CHECK(gguf::can_dequantise(tensor.type));
  const auto ours = gguf::dequantised(tensor), theirs = gguf::dequantised(file.tensor(std::string(name) + ".expected"));
  REQUIRE(ours.rows() == theirs.rows());
  REQUIRE(ours.cols() == theirs.cols());
  Index different = 0, finite = 0;
  for (Index i = 0; i < ours.size(); ++i) {
    if (!same_number(ours.data()[i], theirs.data()[i])) ++different;
    if (std::isfinite(theirs.data()[i])) ++finite;
  }
  INFO(name << ": " << different << " of " << ours.size() << " numbers differ, " << finite << " are finite");
  CHECK(different == 0);
  CHECK(2 * finite > ours.size());
}

TEST_CASE("every half-precision number becomes the same number in float", "[io][gguf]") {
  std::vector<std::uint16_t> bits(1U << 16);
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
  const auto numbers = numbers_of(gguf::Type::F16, std::as_bytes(std::span(bits)), bits.size());
  int different = 0;
  for (std::size_t i = 0; i < bits.size(); ++i) {
    const int exponent = static_cast<int>(i >> 10 & 31U), digits = static_cast<int>(i & 1023U);
    double value = exponent == 0    ? std::ldexp(digits, -24)
                   : exponent == 31 ? (digits == 0 ? INFINITY : NAN)
                                    : std::ldexp(1024 + digits, exponent - 25);
    if (i >= 1U << 15) value = -value;
    if (!same_number(numbers[i], static_cast<float>(value))) ++different;
  }
  CHECK(different == 0);
}

TEST_CASE("a block of Q8_0 and one of Q4_0 done by hand", "[io][gguf]") {
  std::vector<std::uint8_t> q8(34), q4(18);
  q8[1] = 0x38;  // d = 0.5
  q8[2] = 3;
  q8[33] = 0x80;  // -128
  const auto eight = numbers_of(gguf::Type::Q8_0, std::as_bytes(std::span(q8)), 32);
  CHECK(eight[0] == 1.5F);
  CHECK(eight[1] == 0.0F);
  CHECK(eight[31] == -64.0F);
  q4[1] = 0xC0;  // d = -2
  q4[2] = 0x1F;  // element 0: 15, element 16: 1
  const auto four = numbers_of(gguf::Type::Q4_0, std::as_bytes(std::span(q4)), 32);
  CHECK(four[0] == -14.0F);
  CHECK(four[16] == 14.0F);
  CHECK(four[1] == 16.0F);
}

TEST_CASE("a row alone has the numbers of the whole", "[io][gguf]") {
  const auto file = gguf::open(gguf_data("blocks.gguf"));
  for (const auto& tensor : file.tensors()) {
    const auto all = gguf::dequantised(tensor);
    std::vector<float> row(static_cast<std::size_t>(tensor.ne[0]));
    for (Index i = 0; i < tensor.ne[1]; ++i) {
      gguf::dequantise_row(tensor, i, row);
      INFO(tensor.name << ", row " << i);
      CHECK(std::memcmp(row.data(), all.col(i).data(), row.size() * sizeof(float)) == 0);
    }
    CHECK(message_of<ShapeError>([&] { gguf::dequantise_row(tensor, tensor.ne[1], row); }) ==
          "dequantise_row: row of tensor \"" + tensor.name + "\" must lie in [0, " + std::to_string(tensor.ne[1]) +
              "), got " + std::to_string(tensor.ne[1]));
    CHECK(message_of<ShapeError>([&] { gguf::dequantise_row(tensor, 0, std::span(row).first(1)); }) ==
          "dequantise_row: row of tensor \"" + tensor.name + "\" must have " + std::to_string(tensor.ne[0]) +
              " numbers, got room for 1");
  }
}

TEST_CASE("a tensor without inputs has no rows, whatever its other sizes", "[io][gguf]") {
  constexpr Index huge = Index{1} << 62;  // five times that is more than an Index holds
  const gguf::Tensor tensor{"w", gguf::Type::F32, 4, {0, huge, 5, 1}, {}};
  CHECK(message_of<ShapeError>([&] { gguf::dequantise_row(tensor, 0, {}); }) ==
        "dequantise_row: row of tensor \"w\" must lie in [0, 0), got 0");
}

TEST_CASE("dequantising refuses other types and sizes", "[io][gguf]") {
  const std::vector<std::byte> bytes(144);
  std::vector<float> numbers(256);
  CHECK(message_of<FormatError>([&] { gguf::dequantise(gguf::Type::IQ4_NL, bytes, numbers); }) ==
        "dequantise: type must be F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K, got IQ4_NL");
  CHECK(message_of<ShapeError>([&] { gguf::dequantise(gguf::Type::Q6_K, bytes, numbers); }) ==
        "dequantise: Q6_K must have 210 bytes for each 256 numbers, got 144 bytes for 256");
  CHECK(message_of<ShapeError>([&] { gguf::dequantise(gguf::Type::Q4_K, bytes, std::span(numbers).first(255)); }) ==
        "dequantise: Q4_K must have 144 bytes for each 256 numbers, got 144 bytes for 255");
  gguf::dequantise(gguf::Type::Q4_K, bytes, numbers);
  const auto file = gguf::open(gguf_data("fields.gguf"));
  CHECK(message_of<FormatError>([&] { gguf::dequantised(file.tensor("cube.i8")); }) ==
        "dequantised: tensor \"cube.i8\" must be a matrix, got 4 x 3 x 2");
  CHECK(message_of<FormatError>([&] { gguf::dequantised(file.tensor("vector.i32")); }) ==
        "dequantised: tensor \"vector.i32\" must have a type that can be dequantised, got I32");
}
