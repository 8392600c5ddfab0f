// SPDX-License-Identifier: MIT
#include "io/gguf_bytes.hpp"
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/matrices.hpp"
#include "support/message.hpp"

#include <lora/io/gguf.hpp>
#include <lora/io/quantised_blocks.hpp>

#include <cstring>
#include <filesystem>

#include <unistd.h>

using namespace lora;
using namespace lora::test;

namespace {

using gguf::Contents;

template <class... Numbers>
std::vector<std::byte> bytes_of(const std::vector<Numbers>&... numbers) {
  std::vector<std::byte> result;
  const auto add = [&](const auto& vector) {
    const auto bytes = std::as_bytes(std::span(vector));
    result.insert(result.end(), bytes.begin(), bytes.end());
  };
  (add(numbers), ...);
  return result;
}

std::vector<std::byte> bytes_of(const gguf::Tensor& tensor) { return {tensor.bytes.begin(), tensor.bytes.end()}; }

/// What parsing `bytes` says, "[no error]" where they are accepted.
std::string refusal(std::span<const std::byte> bytes) {
  return message_of<FormatError>([&] { Contents::parse(bytes, "x.gguf"); });
}
/// The same for one key with these bytes as its type and value.
std::string refusal_of_value(const GgufBytes& value) {
  GgufBytes file;
  file.start(0, 1).string("k");
  const std::span<const std::byte> bytes = value;
  file.raw({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  return refusal(file);
}
/// The same for the tensors that `describe` adds after the head (of `count` tensors), with `data` bytes of data.
template <class Describe>
std::string refusal_of_tensors(std::uint64_t count, std::size_t data, const Describe& describe) {
  GgufBytes file;
  file.start(count, 0);
  describe(file);
  file.pad(32).zeros(data);
  return refusal(file);
}

gguf::Metadata every_type() {
  gguf::Metadata metadata;
  metadata.set("u8", std::uint8_t{200});
  metadata.set("i8", std::int8_t{-100});
  metadata.set("u16", std::uint16_t{60000});
  metadata.set("i16", std::int16_t{-30000});
  metadata.set("u32", std::uint32_t{4000000000});
  metadata.set("i32", std::int32_t{-2000000000});
  metadata.set("f32", 0.1F);
  metadata.set("bool", true);
  metadata.set("string", std::string("Gr\u00fc\u00dfe"));
  metadata.set("empty", std::string());
  metadata.set("u64", std::uint64_t{1} << 63);
  metadata.set("i64", std::int64_t{-5});
  metadata.set("f64", 0.1);
  metadata.set("array.u8", gguf::Array{std::vector<std::uint8_t>{1, 2}});
  metadata.set("array.bool", gguf::Array{std::vector<bool>{true, false}});
  metadata.set("array.string", gguf::Array{std::vector<std::string>{"a", "", "bcd"}});
  metadata.set("array.f64", gguf::Array{std::vector<double>{}});
  return metadata;
}

}  // namespace

TEST_CASE("every type of field that the Python package writes is read", "[io][gguf]") {
  const auto file = gguf::open(gguf_data("fields.gguf"));
  const auto& metadata = file.metadata();
  CHECK(metadata.get<std::string>("general.architecture") == "llama");
  CHECK(metadata.get<std::uint32_t>("general.alignment") == 64);
  CHECK(metadata.get<std::uint8_t>("test.u8") == 200);
  CHECK(metadata.get<std::int8_t>("test.i8") == -100);
  CHECK(metadata.get<std::uint16_t>("test.u16") == 60000);
  CHECK(metadata.get<std::int16_t>("test.i16") == -30000);
  CHECK(metadata.get<std::uint32_t>("test.u32") == 4000000000U);
  CHECK(metadata.get<std::int32_t>("test.i32") == -2000000000);
  CHECK(metadata.get<float>("test.f32") == 0.1F);
  CHECK(metadata.get<bool>("test.bool"));
  CHECK(metadata.get<std::string>("test.string") == "Gr\u00fc\u00dfe, \u4e16\u754c");
  CHECK(metadata.get<std::uint64_t>("test.u64") == (std::uint64_t{1} << 63) + 5);
  CHECK(metadata.get<std::int64_t>("test.i64") == -(std::int64_t{1} << 62) - 1);
  CHECK(metadata.get<double>("test.f64") == 0.1);

  CHECK(metadata.get<std::vector<std::uint8_t>>("test.array.u8") == std::vector<std::uint8_t>{0, 1, 255});
  CHECK(metadata.get<std::vector<std::int8_t>>("test.array.i8") == std::vector<std::int8_t>{-128, 127});
  CHECK(metadata.get<std::vector<std::uint16_t>>("test.array.u16") == std::vector<std::uint16_t>{65535});
  CHECK(metadata.get<std::vector<std::int16_t>>("test.array.i16") == std::vector<std::int16_t>{-32768, 0, 32767});
  CHECK(metadata.get<std::vector<std::uint32_t>>("test.array.u32") == std::vector<std::uint32_t>{1, 4294967295U});
  CHECK(metadata.get<std::vector<std::int32_t>>("test.array.i32") ==
        std::vector<std::int32_t>{std::numeric_limits<std::int32_t>::min(), 7});
  CHECK(metadata.get<std::vector<float>>("test.array.f32") == std::vector<float>{0.5F, -1.5F});
  CHECK(metadata.get<std::vector<bool>>("test.array.bool") == std::vector<bool>{true, false, true});
  CHECK(metadata.get<std::vector<std::string>>("test.array.string") ==
        std::vector<std::string>{"<s>", "\u0120the", std::string(40, 'x')});
  CHECK(metadata.get<std::vector<std::uint64_t>>("test.array.u64") ==
        std::vector<std::uint64_t>{std::numeric_limits<std::uint64_t>::max()});
  CHECK(metadata.get<std::vector<std::int64_t>>("test.array.i64") ==
        std::vector<std::int64_t>{std::numeric_limits<std::int64_t>::min(), 1});
  CHECK(metadata.get<std::vector<double>>("test.array.f64") == std::vector<double>{1e300, -0.0});
}

TEST_CASE("the tensors that the Python package writes are read with their sizes and bytes", "[io][gguf]") {
  const auto file = gguf::open(gguf_data("fields.gguf"));
  REQUIRE(file.tensors().size() == 7);
  CHECK(file.tensors()[3].name == "cube.i8");
  for (const auto& tensor : file.tensors()) CHECK(&file.tensor(tensor.name) == &tensor);

  // 5 rows of 3 in numpy are 3 inputs and 5 outputs here.
  CHECK(same_bits(gguf::dequantised(file.tensor("matrix.f32")), ColMatrix<float>(gguf_numbers(1, 5, 3).transpose())));
  CHECK(same_bits(gguf::dequantised(file.tensor("matrix.f16")), ColMatrix<float>(gguf_numbers(2, 3, 7).transpose())));
  CHECK(file.tensor("matrix.f16").type == gguf::Type::F16);

  std::vector<double> f64;
  for (Index j = 0; j < 9; ++j) f64.push_back(static_cast<double>(gguf_number(3, 0, j)));
  CHECK(bytes_of(file.tensor("vector.f64")) == bytes_of(f64));
  CHECK(file.tensor("vector.f64").dims == 1);
  std::vector<std::int8_t> cube;
  for (int i = 0; i < 24; ++i) cube.push_back(static_cast<std::int8_t>(i));
  CHECK(bytes_of(file.tensor("cube.i8")) == bytes_of(cube));
  CHECK(file.tensor("cube.i8").ne == std::array<Index, 4>{4, 3, 2, 1});
  CHECK(file.tensor("four.i16").ne == std::array<Index, 4>{2, 2, 2, 2});
  CHECK(file.tensor("four.i16").type == gguf::Type::I16);
  CHECK(bytes_of(file.tensor("vector.i32")) == bytes_of(std::vector<std::int32_t>{0, 1, 2}));
  CHECK(bytes_of(file.tensor("vector.i64")) == bytes_of(std::vector<std::int64_t>{0}));
}

TEST_CASE("a file written again with the same metadata and tensors has the same bytes", "[io][gguf]") {
  const auto name = GENERATE("fields.gguf", "blocks.gguf", "adapter.gguf");
  const auto original = io::read_file(gguf_data(name));
  const auto contents = Contents::parse(original);
  CHECK(gguf::to_bytes(contents.metadata(), contents.tensors()) == original);
}

TEST_CASE("what is written is read back, of every type and any number of dimensions", "[io][gguf]") {
  const auto alignment = GENERATE(1U, 8U, 32U, 8192U);
  auto metadata = every_type();
  if (alignment != 32) metadata.set("general.alignment", alignment);
  const auto numbers = bytes_of(std::vector<float>{1, 2, 3, 4, 5, 6});
  const std::span<const std::byte> data(numbers);
  const std::vector<gguf::Tensor> tensors{
      {"a", gguf::Type::F32, 2, {3, 2, 1, 1}, data},
      {"scalar", gguf::Type::F32, 0, {1, 1, 1, 1}, data.first(4)},
      {"none", gguf::Type::Q4_K, 2, {256, 0, 1, 1}, {}},
      {"four", gguf::Type::I8, 4, {1, 2, 1, 3}, data.first(6)},
      {std::string(63, 'n'), gguf::Type::F64, 1, {3, 1, 1, 1}, data},
  };
  const auto bytes = gguf::to_bytes(metadata, tensors);
  CHECK(bytes.size() % alignment == 0);
  const auto read = Contents::parse(bytes);
  CHECK(read.metadata() == metadata);
  REQUIRE(read.tensors().size() == tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto& tensor = read.tensors()[i];
    CHECK(tensor.name == tensors[i].name);
    CHECK(tensor.type == tensors[i].type);
    CHECK(tensor.dims == tensors[i].dims);
    CHECK(tensor.ne == tensors[i].ne);
    CHECK(bytes_of(tensor) == bytes_of(tensors[i]));
    if (!tensor.bytes.empty())
      CHECK((tensor.bytes.data() - bytes.data()) % static_cast<std::ptrdiff_t>(alignment) == 0);
  }
}

TEST_CASE("a file on disk is written whole, or the old one stays", "[io][gguf]") {
  const auto path = std::filesystem::temp_directory_path() / ("lora_gguf_test_" + std::to_string(::getpid()) + ".gguf");
  const auto metadata = every_type();
  gguf::write(path, metadata, {});
  CHECK(gguf::open(path).metadata() == metadata);
  const std::vector<gguf::Tensor> wrong{{"a", gguf::Type::F32, 1, {3, 1, 1, 1}, {}}};
  CHECK(message_of<FormatError>([&] { gguf::write(path, metadata, wrong); }) ==
        path.string() + ": tensor \"a\" must have the bytes of 3 F32, got 0");
  CHECK(gguf::open(path).metadata() == metadata);
  std::filesystem::remove(path);
  CHECK(message_of<IoError>([&] { gguf::open(path); }) ==
        path.string() + ": must open for reading, got No such file or directory");
}

TEST_CASE("getters say which key has which type instead", "[io][gguf]") {
  const gguf::Metadata metadata("m.gguf", every_type().items());
  CHECK(message_of<FormatError>([&] { metadata.get<float>("u8"); }) == "m.gguf: key \"u8\" must be f32, got u8");
  CHECK(message_of<FormatError>([&] { metadata.get<std::string>("none"); }) ==
        "m.gguf: key \"none\" must be string, got no such key");
  CHECK(message_of<FormatError>([&] { metadata.get<std::vector<float>>("array.u8"); }) ==
        "m.gguf: key \"array.u8\" must be array of f32, got array of u8");
  CHECK(message_of<FormatError>([&] { metadata.get<std::vector<bool>>("bool"); }) ==
        "m.gguf: key \"bool\" must be array of bool, got bool");
  CHECK(message_of<FormatError>([&] { metadata.get_or<std::uint32_t>("array.string", 1); }) ==
        "m.gguf: key \"array.string\" must be u32, got array of string");
  CHECK(metadata.get_or<std::uint32_t>("none", 7) == 7);
  CHECK(metadata.get_or<std::uint32_t>("u32", 7) == 4000000000U);

  auto changed = metadata;
  changed.set("u8", std::string("now a string"));
  CHECK(changed.items().size() == metadata.items().size());
  CHECK(changed.get<std::string>("u8") == "now a string");
  CHECK_FALSE(changed == metadata);
  const auto file = gguf::open(gguf_data("adapter.gguf"));
  CHECK(message_of<FormatError>([&] { file.tensor("blk.0.attn_q.weight"); }) ==
        file.contents().file() + ": tensor \"blk.0.attn_q.weight\" must exist, got no such tensor");
}

TEST_CASE("the head of a file is checked", "[io][gguf]") {
  CHECK(refusal(GgufBytes()) == "x.gguf: byte 0: the magic number must have 4 bytes, got the end of the file after 0");
  CHECK(refusal(GgufBytes().raw("GGML").u32(3).u64(0).u64(0)) ==
        "x.gguf: byte 0: a file must start with the bytes GGUF, got others");
  CHECK(refusal(GgufBytes().start(0, 0, 1)) == "x.gguf: byte 4: the version must be 2 or 3, got 1");
  CHECK(refusal(GgufBytes().start(0, 0, 4)) == "x.gguf: byte 4: the version must be 2 or 3, got 4");
  CHECK(refusal(GgufBytes().start(0, 0, 0x03000000)) ==
        "x.gguf: byte 4: the file must be little-endian, got version 50331648");
  CHECK(refusal(GgufBytes().start(0, 0, 2)) == "[no error]");
  CHECK(refusal(GgufBytes().start(0, 0)) == "[no error]");
  CHECK(refusal(GgufBytes().start(0, 3).zeros(41)) ==
        "x.gguf: byte 16: the keys must fit the 41 bytes left, got 3 keys");
  CHECK(refusal(GgufBytes().start(std::uint64_t{1} << 60, 0).zeros(9)) ==
        "x.gguf: byte 8: the tensors must fit the 9 bytes left, got 1152921504606846976 tensors");
}

TEST_CASE("keys and values are checked", "[io][gguf]") {
  const auto one = [](const GgufBytes& key_and_value) {
    GgufBytes file;
    file.start(0, 1);
    const std::span<const std::byte> bytes = key_and_value;
    return refusal(file.raw({reinterpret_cast<const char*>(bytes.data()), bytes.size()}));
  };
  CHECK(one(GgufBytes().string("").u32(0).zeros(9)) == "x.gguf: byte 24: a key must not be empty");
  CHECK(one(GgufBytes().string("\xFF").u32(0).zeros(9)) == "x.gguf: byte 24: a key must be UTF-8, got other bytes");
  CHECK(one(GgufBytes().u64(20).zeros(12)) == "x.gguf: byte 24: a key must have at most 12 bytes, got 20");
  CHECK(one(GgufBytes().u64(65536).zeros(70000)) == "x.gguf: byte 24: a key must have at most 65535 bytes, got 65536");
  CHECK(one(GgufBytes().u64(~std::uint64_t{0}).zeros(12)) ==
        "x.gguf: byte 24: a key must have at most 12 bytes, got 18446744073709551615");

  CHECK(refusal_of_value(GgufBytes().u32(13).zeros(9)) ==
        "x.gguf: byte 33: the type of key \"k\" must lie in [0, 12], got 13");
  CHECK(refusal_of_value(GgufBytes().u32(10).zeros(7)) ==
        "x.gguf: byte 37: key \"k\" must have 8 bytes, got the end of the file after 7");
  CHECK(refusal_of_value(GgufBytes().u32(7).number(std::uint8_t{2})) ==
        "x.gguf: byte 37: a boolean of key \"k\" must be 0 or 1, got 2");
  CHECK(refusal_of_value(GgufBytes().u32(8).u64(4).zeros(3)) ==
        "x.gguf: byte 37: a string of key \"k\" must have at most 3 bytes, got 4");

  CHECK(refusal_of_value(GgufBytes().u32(9).u32(9).u64(0)) ==
        "x.gguf: byte 37: key \"k\" must not be an array of arrays");
  CHECK(refusal_of_value(GgufBytes().u32(9).u32(99).u64(0)) ==
        "x.gguf: byte 37: the element type of key \"k\" must lie in [0, 12], got 99");
  CHECK(refusal_of_value(GgufBytes().u32(9).u32(4).u64(3).zeros(11)) ==
        "x.gguf: byte 41: key \"k\" must have at most 2 elements, got 3");
  CHECK(refusal_of_value(GgufBytes().u32(9).u32(8).u64(std::uint64_t{1} << 61).zeros(17)) ==
        "x.gguf: byte 41: key \"k\" must have at most 2 elements, got 2305843009213693952");
  CHECK(refusal_of_value(GgufBytes().u32(9).u32(8).u64(2).u64(1).zeros(8)) ==
        "x.gguf: byte 58: the length of a string of key \"k\" must have 8 bytes, got the end of the file after 7");
  CHECK(refusal_of_value(GgufBytes().u32(9).u32(7).u64(2).number(std::uint8_t{1}).number(std::uint8_t{255})) ==
        "x.gguf: byte 50: a boolean of key \"k\" must be 0 or 1, got 255");

  GgufBytes twice;
  twice.start(0, 3).string("b").u32(0).zeros(1).string("a").u32(0).zeros(1).string("b").u32(1).zeros(1);
  CHECK(refusal(twice) == "x.gguf: a key must stand once, got a second \"b\"");

  const auto alignment = [](const GgufBytes& value) {
    GgufBytes file;
    file.start(0, 1).string("general.alignment");
    const std::span<const std::byte> bytes = value;
    return refusal(file.raw({reinterpret_cast<const char*>(bytes.data()), bytes.size()}));
  };
  CHECK(alignment(GgufBytes().u32(10).u64(32)) == "x.gguf: key \"general.alignment\" must be u32, got u64");
  CHECK(alignment(GgufBytes().u32(4).u32(0)) == "x.gguf: key \"general.alignment\" must be a power of two, got 0");
  CHECK(alignment(GgufBytes().u32(4).u32(24)) == "x.gguf: key \"general.alignment\" must be a power of two, got 24");
  CHECK(alignment(GgufBytes().u32(4).u32(0x80000000U)) == "[no error]");
}

TEST_CASE("descriptions of tensors are checked", "[io][gguf]") {
  const auto one = [](std::size_t data, std::string_view name, const std::vector<std::uint64_t>& ne, std::uint32_t type,
                      std::uint64_t offset = 0) {
    return refusal_of_tensors(1, data, [&](GgufBytes& file) { file.tensor(name, ne, type, offset); });
  };
  constexpr auto huge = std::uint64_t{1} << 62;
  CHECK(one(12, "w", {3}, 0) == "[no error]");
  CHECK(one(11, "w", {3}, 0) ==
        "x.gguf: byte 57: the data of tensor \"w\" must lie inside the file of 75 bytes, got 12 bytes from byte 64");
  CHECK(one(12, std::string(64, 'w'), {3}, 0) ==
        "x.gguf: byte 24: the name of a tensor must have at most 63 bytes, got 64");
  CHECK(one(12, std::string(63, 'w'), {3}, 0) == "[no error]");
  CHECK(one(12, "\xC0\x80", {3}, 0) == "x.gguf: byte 24: the name of a tensor must be UTF-8, got other bytes");
  CHECK(one(64, "w", {1, 1, 1, 1, 1}, 0) == "x.gguf: byte 33: tensor \"w\" must have at most 4 dimensions, got 5");
  CHECK(one(64, "\x1b\n", {1, 1, 1, 1, 1}, 0) ==
        "x.gguf: byte 34: tensor \"??\" must have at most 4 dimensions, got 5");
  CHECK(one(64, "w", {2, huge * 2}, 0) ==
        "x.gguf: byte 45: a size of tensor \"w\" must be less than 2^63, got 9223372036854775808");
  for (const std::uint32_t type : {4U, 5U, 9U, 31U, 38U, 42U, 0xFFFFFFFFU}) {  // retired, Q8_1, unknown
    CHECK(one(64, "w", {1}, type) ==
          "x.gguf: byte 45: the type of tensor \"w\" must be a stored type of ggml, got " + std::to_string(type));
  }
  CHECK(
      one(64, "w", {48}, 8) ==
      "x.gguf: byte 45: the first size of tensor \"w\" must be a multiple of the 32 elements of a Q8_0 block, got 48");
  CHECK(one(144, "w", {128, 2}, 12) ==
        "x.gguf: byte 53: the first size of tensor \"w\" must be a multiple of the 256 elements of a Q4_K block, got "
        "128");
  CHECK(one(64, "w", {huge, 4}, 24) ==
        "x.gguf: byte 53: the sizes of tensor \"w\" must not overflow, got 4611686018427387904 x 4");
  CHECK(one(64, "w", {huge}, 0) ==
        "x.gguf: byte 45: the sizes of tensor \"w\" must not overflow, got 4611686018427387904");
  CHECK(
      one(64, "w", {huge / 8, 3}, 0) ==
      "x.gguf: byte 57: the data of tensor \"w\" must lie inside the file of 160 bytes, got 6917529027641081856 bytes "
      "at offset 0");
  CHECK(one(64, "w", {3}, 0, 32) == "x.gguf: byte 49: the data of tensor \"w\" must start at offset 0, got 32");

  const auto two = [](std::string_view second, std::uint64_t offset) {
    return refusal_of_tensors(2, 64,
                              [&](GgufBytes& file) { file.tensor("v", {3}, 0, 0).tensor(second, {3}, 0, offset); });
  };
  CHECK(two("w", 32) == "[no error]");
  CHECK(two("v", 32) == "x.gguf: a tensor must stand once, got a second \"v\"");
  for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{12}, std::uint64_t{64}, ~std::uint64_t{0}}) {
    CHECK(two("w", offset) ==
          "x.gguf: byte 82: the data of tensor \"w\" must start at offset 32, got " + std::to_string(offset));
  }
}

TEST_CASE("a file may have bytes after the last tensor, or no padding behind it", "[io][gguf]") {
  for (const std::size_t data : {12U, 32U, 33U, 500U}) {
    CHECK(refusal_of_tensors(1, data, [](GgufBytes& file) { file.tensor("w", {3}, 0, 0); }) == "[no error]");
  }
}

TEST_CASE("names are UTF-8 or refused", "[io][gguf]") {
  for (const char* text :
       {"", "a", "\u00e9", "\u4e16", "\U0001F600", "\xED\x9F\xBF", "\xEE\x80\x80", "\xF4\x8F\xBF\xBF"})
    CHECK(detail::is_utf8(text));
  for (const char* text : {"\x80", "\xC3", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
                           "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xE4\xB8", "\xC3(", "a\xFE"})
    CHECK_FALSE(detail::is_utf8(text));
}

TEST_CASE("the writer refuses what the reader would", "[io][gguf]") {
  const std::vector<std::byte> data(12);
  const gguf::Tensor good{"a", gguf::Type::F32, 1, {3, 1, 1, 1}, data};
  const auto refused = [](const gguf::Metadata& metadata, const std::vector<gguf::Tensor>& tensors) {
    return message_of<FormatError>([&] { gguf::to_bytes(metadata, tensors, "y.gguf"); });
  };
  CHECK(refused({}, {good}) == "[no error]");
  CHECK(refused({}, {good, good}) == "y.gguf: a tensor must stand once, got a second \"a\"");
  auto tensor = good;
  tensor.name = std::string(64, 'a');
  CHECK(refused({}, {tensor}) == "y.gguf: byte 24: the name of a tensor must have at most 63 bytes, got 64");
  tensor = good;
  tensor.dims = 5;
  CHECK(refused({}, {tensor}) == "y.gguf: tensor \"a\" must have 0 to 4 dimensions, got 5");
  tensor.dims = 0;
  CHECK(refused({}, {tensor}) ==
        "y.gguf: tensor \"a\" must have no negative size, and 1 beyond its dimensions, got 3 as size 0");
  tensor.dims = 2;
  tensor.ne = {-3, -1, 1, 1};
  CHECK(refused({}, {tensor}) ==
        "y.gguf: tensor \"a\" must have no negative size, and 1 beyond its dimensions, got -3 as size 0");
  tensor = good;
  tensor.type = gguf::Type{9};
  CHECK(refused({}, {tensor}) == "y.gguf: tensor \"a\" must have a stored type of ggml, got type 9");
  tensor.type = gguf::Type::Q8_0;  // 3 elements are no block, and no bytes
  tensor.bytes = {};
  CHECK(refused({}, {tensor}) ==
        "y.gguf: byte 45: the first size of tensor \"a\" must be a multiple of the 32 elements of a Q8_0 block, got 3");

  gguf::Metadata metadata;
  metadata.set("", 1.0);
  CHECK(refused(metadata, {}) == "y.gguf: byte 24: a key must not be empty");
  metadata = {};
  metadata.set("nested", gguf::Array{gguf::Array::Nested{}});
  CHECK(refused(metadata, {}) == "y.gguf: byte 42: key \"nested\" must not be an array of arrays");
  metadata = {};
  metadata.set("general.alignment", std::uint32_t{3});
  CHECK(refused(metadata, {good}) == "y.gguf: key \"general.alignment\" must be a power of two, got 3");
}

TEST_CASE("a file cut anywhere before the end of its data is refused, with little memory", "[io][gguf]") {
  const auto name = GENERATE("fields.gguf", "adapter.gguf");
  const auto whole = io::read_file(gguf_data(name));
  const auto contents = Contents::parse(whole);
  const auto& last = contents.tensors().back();
  const auto end = static_cast<std::size_t>(last.bytes.data() + last.bytes.size() - whole.data());
  long peak = 0;
  for (std::size_t size = 0; size < end; ++size) {
    const std::vector<std::byte> cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    std::string message;
    peak = std::max(peak, peak_bytes_in([&] { message = refusal(cut); }));
    if (!message.starts_with("x.gguf: byte ")) FAIL_CHECK("cut to " << size << " bytes: " << message);
  }
  INFO("most memory: " << peak << " bytes for a file of " << whole.size());
  if (!allocations_are_counted) WARN(not_counted);
  CHECK(peak <= 6 * static_cast<long>(whole.size()) + 1024);
  CHECK(refusal(std::span(whole).first(end)) == "[no error]");
}

TEST_CASE("a file with any one bit flipped is read or refused, with little memory", "[io][gguf]") {
  const auto name = GENERATE("fields.gguf", "adapter.gguf");
  auto bytes = io::read_file(gguf_data(name));
  const auto header = static_cast<std::size_t>(Contents::parse(bytes).tensors().front().bytes.data() - bytes.data());
  long peak = 0;
  int refused = 0;
  for (std::size_t i = 0; i < 8 * header; ++i) {
    const auto bit = std::byte{1} << static_cast<int>(i % 8);
    bytes[i / 8] ^= bit;
    std::string message;
    peak = std::max(peak, peak_bytes_in([&] { message = refusal(bytes); }));
    if (message.starts_with("x.gguf: ")) {
      ++refused;
    } else if (message != "[no error]") {
      FAIL_CHECK("bit " << i << ": " << message);
    }
    bytes[i / 8] ^= bit;
  }
  INFO(refused << " of " << 8 * header << " refused; most memory " << peak << " bytes for " << bytes.size());
  CHECK(refused > 0);
  CHECK(peak <= 6 * static_cast<long>(bytes.size()) + 1024);
}

TEST_CASE("memory stays a small multiple of the file where it holds nothing but keys, strings or tensors",
          "[io][gguf]") {
  constexpr int count = 5000;
  GgufBytes keys, strings, tensors;
  keys.start(0, count);
  strings.start(0, 1).string("k").u32(9).u32(8).u64(count);
  tensors.start(count, 0);
  for (int i = 0; i < count; ++i) {
    const auto name = std::to_string(i);
    keys.string(name).u32(0).zeros(1);
    strings.string("");
    tensors.tensor(name, {}, 24, static_cast<std::uint64_t>(32 * i));
  }
  tensors.pad(32).zeros(32 * count);
  for (const auto* file : {&keys, &strings, &tensors}) {
    std::string message;
    const long peak = peak_bytes_in([&] { message = refusal(*file); });
    CHECK(message == "[no error]");
    CHECK(peak <= 6 * static_cast<long>(file->size()) + 1024);
  }
}
