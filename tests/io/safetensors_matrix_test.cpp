// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"
#include "support/temporary_folder.hpp"

#include <lora/io/safetensors_matrix.hpp>

#include <bit>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

using namespace lora;
using namespace lora::test;
using safetensors::File;
using safetensors::Layout;
using safetensors::Tensor;
using safetensors::to_matrix;
using safetensors::Type;

namespace {

template <class Value>
Tensor tensor(Type type, const safetensors::Shape& shape, const std::vector<Value>& values) {
  return {type, shape, std::as_bytes(std::span(values))};
}

}  // namespace

TEMPLATE_TEST_CASE("numbers of all types become matrices of either order, either way round", "[io][safetensors]", float,
                   double) {
  const auto file = File::open(std::string(LORA_IO_DATA) + "/values.safetensors");
  REQUIRE(file.names().size() == 13);
  for (const auto& [name, stored] : file.tensors()) {
    RowMatrix<TestType> expected(3, 4);
    for (Index i = 0; i < 12; ++i) {
      const auto whole = static_cast<TestType>(i);
      expected.data()[i] = name[0] == 'f' || name[0] == 'b' ? (whole - 5) * TestType(0.75) : whole;
      if (name == "BOOL") expected.data()[i] = static_cast<TestType>(i % 2);
    }
    CHECK(same_bits(to_matrix<TestType>(stored), expected));
    CHECK(same_bits(to_matrix<TestType, Eigen::ColMajor>(stored), expected));
    CHECK(same_bits(to_matrix<TestType>(stored, Layout::Transposed), expected.transpose()));
    CHECK(same_bits(to_matrix<TestType, Eigen::ColMajor>(stored, Layout::Transposed), expected.transpose()));
  }
}

TEMPLATE_TEST_CASE("matrices larger than a tile are transposed too", "[io][safetensors]", float, double) {
  Random random{3};
  const auto M = random_rows<TestType>(67, 101, random);
  const auto stored = safetensors::as_tensor(M);
  CHECK(same_bits(to_matrix<TestType>(stored), M));
  CHECK(same_bits(to_matrix<TestType, Eigen::ColMajor>(stored), M));
  CHECK(same_bits(to_matrix<TestType>(stored, Layout::Transposed), M.transpose()));
}

TEST_CASE("a row alone has the numbers of the whole tensor", "[io][safetensors]") {
  const auto file = File::open(std::string(LORA_IO_DATA) + "/values.safetensors");
  for (const auto& [name, stored] : file.tensors()) {
    const auto all = to_matrix<double>(stored);
    RowMatrix<double> rows(3, 4);
    for (Index i = 0; i < 3; ++i) safetensors::copy_row(stored, i, std::span(rows.row(i).data(), 4));
    CHECK(same_bits(rows, all));
  }
  const std::vector<float> values{1, 2, 3};
  std::vector<float> row(3);
  safetensors::copy_row(tensor(Type::F32, {3}, values), 0, std::span(row));
  CHECK(row == values);
  const auto refused = [&](Index i, std::size_t room) {
    return message_of<ShapeError>(
        [&] { safetensors::copy_row(tensor(Type::F32, {3}, values), i, std::span(row).first(room), "here"); });
  };
  CHECK(refused(1, 3) == "here: row must lie in [0, 1), got 1");
  CHECK(refused(-1, 3) == "here: row must lie in [0, 1), got -1");
  CHECK(refused(0, 2) == "here: a row must have 3 numbers, got room for 2");
}

TEST_CASE("an unaligned tensor is copied, an aligned one of the same type may be viewed", "[io][safetensors]") {
  alignas(8) std::byte memory[40];
  const std::vector<float> values{1, 2, 3, 4, 5, 6};
  std::memcpy(memory, values.data(), 24);
  const auto aligned = safetensors::view<float>({Type::F32, {2, 3}, {memory, 24}});
  REQUIRE(aligned.has_value());
  CHECK(static_cast<const void*>(aligned->data()) == memory);
  CHECK((*aligned)(1, 0) == 4);
  CHECK(transposed(*aligned)(0, 1) == 4);
  CHECK_FALSE(safetensors::view<double>({Type::F32, {2, 3}, {memory, 24}}).has_value());

  std::memcpy(memory + 1, values.data(), 24);
  const Tensor unaligned{Type::F32, {2, 3}, {memory + 1, 24}};
  CHECK_FALSE(safetensors::view<float>(unaligned).has_value());
  CHECK(to_matrix<float>(unaligned)(1, 2) == 6);
}

TEST_CASE("numbers, vectors and empty tensors are matrices too", "[io][safetensors]") {
  const std::vector<float> values{1, 2, 3};
  CHECK(to_matrix<float>(tensor<float>(Type::F32, {}, {7})) == RowMatrix<float>::Constant(1, 1, 7));
  CHECK(to_matrix<float>(tensor(Type::F32, {3}, values)).rows() == 1);
  CHECK(to_matrix<float>(tensor(Type::F32, {3}, values), Layout::Transposed).rows() == 3);
  const auto empty = to_matrix<float>({Type::F32, {0, 5}, {}});
  CHECK(empty.rows() == 0);
  CHECK(empty.cols() == 5);
  CHECK(safetensors::view<float>({Type::F32, {5, 0}, {}})->rows() == 5);

  constexpr Index many = Index{1} << 61;  // lines to walk through for the rest of time
  const Tensor lines{Type::F32, {static_cast<std::uint64_t>(many), 0}, {}};
  CHECK(to_matrix<float>(lines).rows() == many);
  CHECK(to_matrix<float>(lines, Layout::Transposed).cols() == many);
  CHECK(safetensors::encode(ConstRows<float>(nullptr, many, 0), Type::F16).empty());
}

TEST_CASE("half precision widens exactly, all 65536 values", "[io][safetensors]") {
  std::vector<std::uint16_t> all(65536);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  for (const Type type : {Type::F16, Type::BF16}) {
    const auto values = to_matrix<float>(tensor(type, {256, 256}, all));
    const auto back = safetensors::encode(ConstRows<float>(values), type);
    for (std::size_t i = 0; i < all.size(); ++i) {
      const float value = values.data()[i];
      if (type == Type::BF16 && !std::isnan(value)) {
        REQUIRE(std::bit_cast<std::uint32_t>(value) == static_cast<std::uint32_t>(i) << 16);
      }
      const auto stored = detail::load<std::uint16_t>(back.data() + 2 * i);
      if (!std::isnan(value)) REQUIRE(stored == all[i]);
    }
  }
}

TEST_CASE("encode rounds to the nearest, ties to even", "[io][safetensors]") {
  RowMatrix<double> values(1, 4);
  values << 1 + 0x1p-8, 1 + 3 * 0x1p-8, 1 + 0x1p-11, 1 + 3 * 0x1p-11;
  const auto rounded = [&](Type type) {
    const auto bytes = safetensors::encode(ConstRows<double>(values), type);
    return to_matrix<double>({type, {1, 4}, bytes});
  };
  CHECK(rounded(Type::BF16)(0, 0) == 1);
  CHECK(rounded(Type::BF16)(0, 1) == 1 + 0x1p-6);
  CHECK(rounded(Type::F16)(0, 2) == 1);
  CHECK(rounded(Type::F16)(0, 3) == 1 + 0x1p-9);
  CHECK(same_bits(rounded(Type::F64), values));
}

TEMPLATE_TEST_CASE("a column-major matrix is its transpose's tensor, with the same bytes", "[io][safetensors]", float,
                   double) {
  Random random{5};
  const auto A = random_columns<TestType>(7, 3, random);
  const auto stored = safetensors::as_tensor(A);
  CHECK(stored.type == safetensors::type_of<TestType>);
  CHECK(stored.shape == safetensors::Shape{3, 7});
  CHECK(static_cast<const void*>(stored.bytes.data()) == A.data());
  CHECK(text_of(stored.bytes) ==
        text_of(safetensors::encode(ConstColumns<TestType>(A), stored.type, Layout::Transposed)));
  CHECK(same_bits(to_matrix<TestType>(stored), A.transpose()));
}

TEST_CASE("what cannot be a matrix, or a tensor, is refused", "[io][safetensors]") {
  const std::vector<std::byte> bytes(64);
  const auto refused = [&](Type type, const safetensors::Shape& shape, std::size_t size) {
    const Tensor bad{type, shape, std::span(bytes).first(size)};
    return message_of<FormatError>([&] { to_matrix<float>(bad, Layout::AsStored, "here"); });
  };
  CHECK(refused(Type::F32, {1, 2, 2}, 16) == "here: tensor must have at most 2 dimensions, got shape [1, 2, 2]");
  CHECK(refused(Type::C64, {2}, 16) == "here: type must be F64, F32, F16, BF16, an integer or BOOL, got C64");
  CHECK(refused(Type::F8E4M3, {2}, 2) == "here: type must be F64, F32, F16, BF16, an integer or BOOL, got F8_E4M3");
  CHECK(refused(Type::F32, {2}, 4) == "here: bytes must fit the shape [2] of F32, got 4");
  CHECK(refused(Type::F32, {0, 9223372036854775808ULL}, 0) ==
        "here: sizes must fit a matrix, got shape [0, 9223372036854775808]");

  RowMatrix<double> values = RowMatrix<double>::Constant(2, 3, 70000);
  const auto encoded = [&](Type type) {
    return message_of<FormatError>([&] { safetensors::encode(ConstRows<double>(values), type); });
  };
  CHECK(encoded(Type::F16) == "safetensors::encode: values must fit F16, got 70000");
  CHECK(encoded(Type::BF16) == "[no error]");
  CHECK(encoded(Type::I32) == "safetensors::encode: type must be F64, F32, F16 or BF16, got I32");
  values(0, 0) = 1e300;
  CHECK(encoded(Type::F32) == "safetensors::encode: values must fit F32, got 1e+300");
  values.setConstant(std::numeric_limits<double>::infinity());
  CHECK(encoded(Type::F16) == "[no error]");  // it was infinite before
  CHECK(message_of<ShapeError>([&] { safetensors::as_tensor(ConstRows<double>(values.leftCols(2))); }) ==
        "safetensors::as_tensor: matrix must have no gaps, got a stride of 3 for 2");
}
