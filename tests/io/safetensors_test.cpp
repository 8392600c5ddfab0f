// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/message.hpp"
#include "support/temporary_folder.hpp"

#include <lora/io/safetensors.hpp>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

using namespace lora;
using namespace lora::test;
using safetensors::File;
using safetensors::Tensor;
using safetensors::Tensors;
using safetensors::Type;

namespace {

std::string golden(const std::string& name) { return std::string(LORA_IO_DATA) + "/" + name; }

/// A file of this header and this many bytes 0, 1, 2, ...
std::string file_of(const std::string& header, std::size_t data = 0) {
  const std::uint64_t length = header.size();
  std::string text(reinterpret_cast<const char*>(&length), 8);
  text += header;
  for (std::size_t i = 0; i < data; ++i) text += static_cast<char>(i);
  return text;
}
File parse(const std::string& text) { return File::parse(bytes_of(text)); }
std::string message(const std::string& header, std::size_t data = 0) {
  return message_of<FormatError>([&] { parse(file_of(header, data)); });
}
/// The header of a tensor "a".
std::string tensor_a(const std::string& type, const std::string& shape, const std::string& offsets) {
  return R"({"a":{"dtype":")" + type + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

/// 11 + 37 i mod 256, as make_safetensors.py has it.
std::vector<std::byte> pattern(std::size_t size) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>((11 + 37 * i) % 256);
  return bytes;
}

const std::string good = R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1,2],"data_offsets":[2,10]},)"
                         R"("b":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}})";

}  // namespace

TEST_CASE("a file hands out names, types, shapes, bytes and metadata", "[io][safetensors]") {
  const std::string text = file_of(good, 10);
  const auto owned = parse(text);
  const auto bytes = bytes_of(text);
  const auto viewed = File::parse(bytes);
  const TemporaryFolder folder;
  write_text(folder / "file", text);
  auto opened = File::open(folder / "file");
  const auto moved = std::move(opened);
  for (const File* file : {&owned, &viewed, &moved}) {
    CHECK(file->names() == std::vector<std::string>{"a", "b"});
    CHECK(file->metadata() == safetensors::Metadata{{"format", "pt"}});
    const Tensor& a = file->at("a");
    CHECK(a.type == Type::F32);
    CHECK(a.shape == safetensors::Shape{1, 2});
    CHECK(text_of(a.bytes) == std::string("\2\3\4\5\6\7\10\11"));
    CHECK(file->at("b").shape.empty());
    CHECK(file->at("b").bytes.size() == 2);
    CHECK(file->find("c") == nullptr);
    CHECK(message_of<FormatError>([&] { file->at("c"); }) ==
          file->name() + ": must hold the tensor \"c\", got none of that name");
  }
  CHECK(viewed.at("b").bytes.data() == bytes.data() + 8 + good.size());  // no copy
}

TEST_CASE("the writer's bytes are those of the reference, in every type", "[io][safetensors]") {
  const auto types = File::open(golden("types.safetensors"));
  CHECK(types.names().size() == safetensors::types.size() - 2);  // the package does not take the 6-bit types
  for (const auto& [name, tensor] : types.tensors()) {
    CHECK(safetensors::type_name(tensor.type) == name);
    CHECK(tensor.shape == safetensors::Shape{2, 4});
    CHECK(text_of(tensor.bytes) == text_of(pattern(safetensors::bits(tensor.type))));
  }
  const TemporaryFolder folder;
  for (const std::string name : {"types.safetensors", "names.safetensors", "values.safetensors"}) {
    const auto file = File::open(golden(name));
    CHECK(text_of(safetensors::to_bytes(file.tensors(), file.metadata())) == text_of(golden(name)));
    safetensors::write(folder / name, file.tensors(), file.metadata());
    CHECK(text_of(folder / name) == text_of(golden(name)));
  }
}

TEST_CASE("every type is written and read again", "[io][safetensors]") {
  std::vector<std::vector<std::byte>> memory;
  Tensors tensors;
  for (std::size_t i = 0; i < safetensors::types.size(); ++i) {
    const auto type = static_cast<Type>(i);
    CHECK(safetensors::find_type(safetensors::type_name(type)) == type);
    memory.push_back(pattern(safetensors::bits(type)));
    tensors.emplace(safetensors::type_name(type), Tensor{type, {4, 1, 2}, memory.back()});
  }
  const auto file = File::parse(safetensors::to_bytes(tensors));
  REQUIRE(file.names().size() == tensors.size());
  for (const auto& [name, tensor] : tensors) {
    CHECK(file.at(name).type == tensor.type);
    CHECK(file.at(name).shape == tensor.shape);
    CHECK(text_of(file.at(name).bytes) == text_of(tensor.bytes));
  }
}

TEST_CASE("names and shapes of all kinds come back as the reference wrote them", "[io][safetensors]") {
  const auto file = File::open(golden("names.safetensors"));
  CHECK(file.names() == std::vector<std::string>{"", "B", "b", "bytes", "empty", "empty.rows", "five", "half", "number",
                                                 "quote \" backslash \\ slash /",
                                                 std::string("tab \t line \n bell \a delete \x7f null \0", 35),
                                                 "\u00e9 \u5b57 \U0001F600 \u2028"});
  const std::string text = "\" \\ / \b \f \n \r \t \x1f \u00e9";
  CHECK(file.metadata() == safetensors::Metadata{{"key " + text, "value " + text}});
  CHECK(file.at("number").shape == safetensors::Shape{});
  CHECK(file.at("empty.rows").shape == safetensors::Shape{3, 0});
  CHECK(file.at("five").shape == safetensors::Shape{1, 2, 1, 2, 1});
}

TEST_CASE("headers known byte by byte", "[io][safetensors]") {
  const std::vector<std::byte> six(24);
  const auto header = [&](const std::string& name, const safetensors::Shape& shape) {
    return text_of(safetensors::to_bytes({{name, Tensor{Type::F32, shape, six}}})).substr(0, 82);
  };
  CHECK(header("attn.0", {1, 2, 3}) ==
        file_of(R"({"attn.0":{"dtype":"F32","shape":[1,2,3],"data_offsets":[0,24]}})") + std::string(10, '\0'));
  CHECK(header("attn0", {1, 1, 2, 3}) ==
        file_of(R"({"attn0":{"dtype":"F32","shape":[1,1,2,3],"data_offsets":[0,24]}})" + std::string(7, ' ')) +
            std::string(2, '\0'));
  CHECK(text_of(safetensors::to_bytes({})) == file_of("{}      "));
}

TEST_CASE("what the reference tolerates is read", "[io][safetensors]") {
  CHECK(parse(file_of("{}")).names().empty());
  CHECK(parse(file_of(" \n\t\r{} \n")).names().empty());
  CHECK(parse(file_of(R"({"__metadata__":{}})")).names().empty());
  CHECK(parse(file_of(tensor_a("F32", "[0,7]", "[0,0]"))).at("a").bytes.empty());
  CHECK(parse(file_of(tensor_a("F32", "[0,18446744073709551615,2]", "[0,0]"))).at("a").bytes.empty());
  CHECK(parse(file_of(tensor_a("F4", "[2]", "[0,1]"), 1)).at("a").bytes.size() == 1);
  CHECK(parse(file_of(tensor_a("BOOL", "[3]", "[0,3]"), 3)).at("a").bytes.size() == 3);
  const std::string unknown = R"({"a":{"new":{"x":[1,-2.5,null,true,"t",{"y":{}}]},"more":1,"dtype":"U8",)";
  CHECK(parse(file_of(unknown + R"("shape":[1],"last":[],"data_offsets":[0,1]}})", 1)).at("a").bytes.size() == 1);
}

TEST_CASE("a file is refused with the rule that it breaks", "[io][safetensors]") {
  const auto short_file = [](const std::string& text) { return message_of<FormatError>([&] { parse(text); }); };
  CHECK(short_file("") == "safetensors: file must hold at least 8 bytes, got 0");
  CHECK(short_file("1234567") == "safetensors: file must hold at least 8 bytes, got 7");
  CHECK(short_file(std::string("\3\0\0\0\0\0\0\0{}", 10)) ==
        "safetensors: header of 3 bytes must lie inside the file, got a file of 10");
  CHECK(short_file(std::string("\0\xE1\xF5\5\0\0\0\0{}", 10)) ==
        "safetensors: header of 100000000 bytes must lie inside the file, got a file of 10");
  CHECK(short_file(std::string("\1\xE1\xF5\5\0\0\0\0{}", 10)) ==
        "safetensors: header length must be at most 100000000, got 100000001");
  CHECK(short_file(std::string(8, '\xFF')) ==
        "safetensors: header length must be at most 100000000, got 18446744073709551615");

  const std::string object = "safetensors: header must be a JSON object, got something else";
  for (const char* text : {"", "  ", "null", "[]", "1", "\"a\"", "\xEF\xBB\xBF{}"}) CHECK(message(text) == object);
  CHECK(message("{") == "safetensors: header must be UTF-8 JSON, got a fault at byte 2");
  CHECK(message("{}}") == "safetensors: header must be UTF-8 JSON, got a fault at byte 3");
  CHECK(message("{} /* */") == "safetensors: header must be UTF-8 JSON, got a fault at byte 4");
  CHECK(message(R"({"a":{},})") == "safetensors: tensor \"a\": must have dtype, shape and data_offsets, got fewer");
  CHECK(message(std::string("{}\0", 3)) == "safetensors: header must be JSON, got a zero byte at byte 2");
  for (const char* text : {"\xFF", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\\ud800", "\x01"}) {
    CHECK(message(R"({"__metadata__":{"a":")" + std::string(text) + "\"}}")
              .starts_with("safetensors: header must be UTF-8 JSON, got a fault at byte 2"));
  }

  const std::string a = "safetensors: tensor \"a\": ";
  for (const auto& [json, kind] : std::vector<std::pair<std::string, std::string>>{
           {"null", "null"}, {"1", "a number"}, {"[]", "an array"}, {"\"t\"", "a string"}, {"true", "a boolean"}}) {
    CHECK(message(R"({"a":)" + json + "}") == a + "must be an object, got " + kind);
    CHECK(message(R"({"__metadata__":)" + json + "}") == "safetensors: __metadata__ must be an object, got " + kind);
    if (kind != "a string") {
      CHECK(message(R"({"__metadata__":{"k":)" + json + "}}") ==
            "safetensors: __metadata__ \"k\" must be a string, got " + kind);
      CHECK(message(R"({"a":{"dtype":)" + json + "}}") == a + "dtype must be a string, got " + kind);
    }
    if (kind != "an array") {
      CHECK(message(R"({"a":{"shape":)" + json + "}}") == a + "shape must be an array of whole numbers, got " + kind);
      CHECK(message(R"({"a":{"data_offsets":)" + json + "}}") ==
            a + "data_offsets must be two whole numbers, got " + kind);
    }
  }
  const std::string wide = "a number that is not a 64-bit one";
  for (const auto& [number, kind] : std::vector<std::pair<std::string, std::string>>{{"1.0", wide},
                                                                                     {"1e3", wide},
                                                                                     {"-1", "a negative number"},
                                                                                     {"-0", "a negative number"},
                                                                                     {"18446744073709551616", wide},
                                                                                     {"[1]", "an array"},
                                                                                     {"{}", "an object"}}) {
    CHECK(message(tensor_a("F32", "[" + number + "]", "[0,4]"), 4) ==
          a + "shape must be an array of whole numbers, got " + kind);
    CHECK(message(tensor_a("F32", "[1]", "[0," + number + "]"), 4) ==
          a + "data_offsets must be two whole numbers, got " + kind);
  }
  CHECK(message(tensor_a("F32", "[1]", "[0,4,4]"), 4) == a + "data_offsets must be two whole numbers, got a third one");
  CHECK(message(tensor_a("F32", "[1]", "[0]"), 4) == a + "data_offsets must be two whole numbers, got fewer");
  CHECK(message(tensor_a("F32", "[1]", "[]"), 4) == a + "data_offsets must be two whole numbers, got fewer");
  CHECK(message(tensor_a("f32", "[1]", "[0,4]"), 4) == a + "dtype must be a known one, got \"f32\"");
  CHECK(message(R"({"a":{"dtype":"F32","shape":[1]}})", 4) == a + "must have dtype, shape and data_offsets, got fewer");
  CHECK(message(tensor_a("F32", "[1]", R"([0,4],"x":)" + std::string(200, '[') + std::string(200, ']')), 4) ==
        a + "must not be nested deeper than 127, got more");
}

TEST_CASE("whatever stands twice is refused", "[io][safetensors]") {
  const std::string u8 = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})", a = "safetensors: tensor \"a\": ";
  CHECK(message(R"({"a":)" + u8 + R"(,"b":{},"a":)" + u8 + "}", 1) ==
        "safetensors: tensor \"b\": must have dtype, shape and data_offsets, got fewer");
  CHECK(message(R"({"a":)" + u8 + R"(,"a":)" + u8 + "}", 1) == a + "a name must stand once, got a second one");
  CHECK(message(R"({"a":)" + u8 + R"(,"\u0061":)" + u8 + "}", 1) == a + "a name must stand once, got a second one");
  CHECK(message(R"({"__metadata__":{},"__metadata__":{}})") ==
        "safetensors: __metadata__ must stand once, got a second one");
  CHECK(message(R"({"__metadata__":{"k":"1","k":"1"}})") ==
        "safetensors: __metadata__ \"k\" must stand once, got a second one");
  CHECK(message(R"({"a":{"dtype":"U8","dtype":"U8"}})") == a + "dtype must stand once, got a second one");
  CHECK(message(R"({"a":{"shape":[],"shape":[]}})") == a + "shape must stand once, got a second one");
  CHECK(message(R"({"a":{"data_offsets":[0,1],"data_offsets":[0,1]}})") ==
        a + "data_offsets must stand once, got a second one");
}

TEST_CASE("sizes that overflow, overlap, leave holes or miss the end are refused", "[io][safetensors]") {
  const std::string a = "safetensors: tensor \"a\": ", huge = "18446744073709551615";
  CHECK(message(tensor_a("F32", "[" + huge + ",2,0]", "[0,0]")) ==
        a + "size must fit 64 bits, got shape [" + huge + ", 2, 0] of F32");
  CHECK(message(tensor_a("U8", "[2305843009213693952]", "[0,0]")) ==  // 2^61 elements, 2^64 bits
        a + "size must fit 64 bits, got shape [2305843009213693952] of U8");
  CHECK(message(tensor_a("F64", "[4294967296,4294967296]", "[0,0]")) ==
        a + "size must fit 64 bits, got shape [4294967296, 4294967296] of F64");
  CHECK(message(tensor_a("F4", "[3]", "[0,1]"), 1) == a + "size must be whole bytes, got 12 bits");
  CHECK(message(tensor_a("F32", "[2]", "[0,4]"), 4) ==
        a + "data_offsets must span 8 bytes for shape [2] of F32, got 4");
  CHECK(message(tensor_a("F32", "[1]", "[0,4]"), 3) ==
        a + "data_offsets must lie inside the data of 3 bytes, got [0, 4]");
  CHECK(message(tensor_a("F32", "[1]", "[0," + huge + "]"), 3) ==
        a + "data_offsets must lie inside the data of 3 bytes, got [0, " + huge + "]");
  CHECK(message(tensor_a("F32", "[1]", "[0,4]"), 5) == "safetensors: tensors must fill the data of 5 bytes, got 4");
  CHECK(message("{}", 1) == "safetensors: tensors must fill the data of 1 bytes, got 0");
  CHECK(message(tensor_a("F32", "[1]", "[4,0]"), 4) ==
        a + "data_offsets must begin where the tensor before ended, 0, got [4, 0]");
  CHECK(message(tensor_a("F32", "[1]", "[1,5]"), 5) ==
        a + "data_offsets must begin where the tensor before ended, 0, got [1, 5]");
  const auto two = [](const std::string& first, const std::string& second) {
    return R"({"b":{"dtype":"U8","shape":[4],"data_offsets":)" + first +
           R"(},"a":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}";
  };
  CHECK(message(two("[0,4]", "[4,8]"), 8) == "[no error]");
  CHECK(message(two("[4,8]", "[0,4]"), 8) == "[no error]");
  for (const std::string second : {"[0,4]", "[3,7]", "[5,9]"}) {
    CHECK(message(two("[0,4]", second), 9).find("data_offsets must begin where the tensor before ended, ") !=
          std::string::npos);
  }
}

TEST_CASE("a cut file is refused at every byte", "[io][safetensors]") {
  const std::string text = file_of(good, 10);
  const TemporaryFolder folder;
  for (std::size_t length = 0; length < text.size(); ++length) {
    const auto cut = text.substr(0, length);
    CHECK_THROWS_AS(parse(cut), FormatError);
    write_text(folder / "file", cut);
    CHECK_THROWS_AS(File::open(folder / "file"), FormatError);
  }
  CHECK_NOTHROW(parse(text));
  CHECK_THROWS_AS(parse(text + '\0'), FormatError);
}

TEST_CASE("every flipped bit gives a FormatError or a file of valid tensors", "[io][safetensors]") {
  const std::string text = file_of(good, 10);
  int refused = 0, read = 0;
  for (std::size_t bit = 0; bit < 8 * text.size(); ++bit) {
    std::string flipped = text;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    try {
      const auto file = parse(flipped);
      ++read;
      std::size_t total = 0;
      for (const auto& [name, tensor] : file.tensors()) {
        const std::string bytes = text_of(tensor.bytes);  // readable
        total += bytes.size();
      }
      CHECK(total == 10);
      // What is read can be written and read again.
      CHECK(File::parse(safetensors::to_bytes(file.tensors(), file.metadata())).names() == file.names());
    } catch (const FormatError&) {
      ++refused;
    }
  }
  CHECK(refused + read == static_cast<int>(8 * text.size()));
  CHECK(refused > read);
}

TEST_CASE("the writer refuses tensors that no reader would take", "[io][safetensors]") {
  const TemporaryFolder folder;
  const std::vector<std::byte> four(4);
  const auto refused = [&](const std::string& name, const Tensor& tensor) {
    const auto text = message_of<FormatError>([&] { safetensors::to_bytes({{name, tensor}}); });
    CHECK(message_of<FormatError>([&] { safetensors::write(folder / "file", {{name, tensor}}); }) == text);
    return text;
  };
  CHECK(refused("a", {Type::F32, {2}, four}) ==
        "safetensors: tensor \"a\": must hold 8 bytes for shape [2] of F32, got 4");
  CHECK(refused("a", {Type::F4, {7}, four}) == "safetensors: tensor \"a\": size must be whole bytes, got 28 bits");
  CHECK(refused("__metadata__", {Type::F32, {1}, four}) ==
        "safetensors: a tensor must not be called __metadata__, got one");
  CHECK(refused("\xFF", {Type::F32, {1}, four}) == "safetensors: names and metadata must be UTF-8, got other bytes");
  CHECK(message_of<FormatError>([] {
          safetensors::to_bytes({}, {{"k", "\xFF"}});
        }) == "safetensors: names and metadata must be UTF-8, got other bytes");
  CHECK(folder.entries() == 0);
}

TEST_CASE("a file can be written over the one that its tensors lie in", "[io][safetensors]") {
  const TemporaryFolder folder;
  write_text(folder / "file", text_of(golden("names.safetensors")));
  const auto file = File::open(folder / "file");
  Tensors some = file.tensors();
  some.erase("five");
  safetensors::write(folder / "file", some);
  CHECK(File::open(folder / "file").names().size() == 11);
  CHECK(file.at("five").bytes.size() == 16);
  CHECK(folder.entries() == 1);
}
