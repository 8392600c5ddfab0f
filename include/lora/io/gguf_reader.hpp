// SPDX-License-Identifier: MIT
// Reads the container of a GGUF file out of memory, with every limit that ggml's reader has, before it allocates.
#pragma once

#include <lora/core/error.hpp>
#include <lora/io/gguf_metadata.hpp>
#include <lora/io/gguf_tensor.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace lora::detail {

static_assert(std::endian::native == std::endian::little,
              "lora: GGUF files are read and written as they lie in memory");
static_assert(sizeof(std::size_t) == 8, "lora: sizes of a GGUF file have 64 bits");

inline constexpr std::string_view gguf_magic = "GGUF", gguf_alignment_key = "general.alignment";
inline constexpr std::uint32_t gguf_default_alignment = 32;

/// `size` rounded up to a multiple of `alignment`, a power of two. \pre no overflow.
constexpr std::uint64_t align_up(std::uint64_t size, std::uint64_t alignment) {
  return (size + alignment - 1) & ~(alignment - 1);
}

/// Whether the bytes are UTF-8: shortest forms only, no surrogates, at most U+10FFFF.
inline bool is_utf8(std::string_view text) {
  std::size_t i = 0;
  const auto byte = [&](std::size_t at) { return static_cast<unsigned char>(text[at]); };
  while (i < text.size()) {
    const unsigned lead = byte(i);
    const std::size_t length = lead < 0x80   ? 1
                               : lead < 0xC2 ? 0
                               : lead < 0xE0 ? 2
                               : lead < 0xF0 ? 3
                               : lead < 0xF5 ? 4
                                             : 0;
    if (length == 0 || length > text.size() - i) return false;
    for (std::size_t k = 1; k < length; ++k) {
      if ((byte(i + k) & 0xC0U) != 0x80) return false;
    }
    if (length > 2) {
      const unsigned second = byte(i + 1);
      if (lead == 0xE0 && second < 0xA0) return false;
      if (lead == 0xED && second > 0x9F) return false;
      if (lead == 0xF0 && second < 0x90) return false;
      if (lead == 0xF4 && second > 0x8F) return false;
    }
    i += length;
  }
  return true;
}

/// A text of the file in a message: its start, where it is long, without control characters.
struct Quoted {
  std::string_view text;
};
inline void append(std::string& text, Quoted quoted) {
  auto shown = quoted.text.substr(0, 80);
  const bool cut = shown.size() < quoted.text.size();
  const auto continues = [&] { return (static_cast<unsigned char>(quoted.text[shown.size()]) & 0xC0U) == 0x80; };
  while (cut && !shown.empty() && continues()) shown.remove_suffix(1);  // no half characters
  text += '"';
  append(text, Printable{shown});
  text += cut ? "...\"" : "\"";
}

/// One pass over the bytes of a file. Every allocation is bounded by a small multiple of the bytes that are there.
class GgufParser {
 public:
  struct Place {
    std::uint64_t offset, bytes;  ///< offset from the start of the data
  };

  /// `bytes`: of the file from its start, at least to the end of the tensors' descriptions. `file_size`: of all of it.
  GgufParser(std::span<const std::byte> bytes, std::uint64_t file_size, const std::string& file)
      : bytes_(bytes), file_size_(file_size), file_(file) {}

  void parse() {
    const auto magic = take(gguf_magic.size(), "the magic number");
    require(0, magic == gguf_magic, "a file must start with the bytes GGUF, got others");
    const auto version = number<std::uint32_t>("the version");
    require(4, (version & 0xFFFFU) != 0, "the file must be little-endian, got version ", version);
    require(4, version == 2 || version == 3, "the version must be 2 or 3, got ", version);
    const auto tensor_count = number<std::uint64_t>("the number of tensors");
    const auto key_count = number<std::uint64_t>("the number of keys");
    const std::uint64_t room = left();
    require(8, tensor_count <= room / least_tensor, "the tensors must fit the ", room, " bytes left, got ",
            tensor_count, " tensors");
    require(16, key_count <= room / least_item, "the keys must fit the ", room, " bytes left, got ", key_count,
            " keys");

    items_.reserve(key_count);
    for (std::uint64_t i = 0; i < key_count; ++i) read_item();
    require_once(items_, "key", [](const gguf::Metadata::Item& item) -> std::string_view { return item.first; });
    read_alignment();

    tensors_.reserve(tensor_count);
    places_.reserve(tensor_count);
    std::uint64_t end = 0;
    for (std::uint64_t i = 0; i < tensor_count; ++i) read_tensor(end);
    order_ = require_once(tensors_, "tensor", [](const gguf::Tensor& each) -> std::string_view { return each.name; });
    data_ = align_up(at_, alignment_);
    for (std::size_t i = 0; i < places_.size(); ++i) {
      const auto [offset, bytes] = places_[i];
      require(at_, data_ <= file_size_ && offset <= file_size_ - data_ && bytes <= file_size_ - data_ - offset,
              "the data of tensor ", quoted(tensors_[i].name), " must lie inside the file of ", file_size_,
              " bytes, got ", bytes, " bytes from byte ", data_ + offset);
    }
  }

  std::vector<gguf::Metadata::Item>& items() { return items_; }
  std::vector<gguf::Tensor>& tensors() { return tensors_; }  ///< without their bytes
  const std::vector<Place>& places() const { return places_; }
  std::vector<std::size_t>& order() { return order_; }  ///< the tensors sorted by name
  std::uint64_t data() const { return data_; }          ///< where the tensors' data starts

 private:
  // What a key and a value, or a tensor's description, takes at least: lengths, one letter, types, sizes.
  static constexpr std::uint64_t least_item = 8 + 1 + 4 + 1, least_tensor = 8 + 4 + 4 + 8;
  static constexpr std::uint64_t most_string = std::uint64_t{1} << 30, most_elements = std::uint64_t{1} << 30;
  static constexpr std::uint64_t most_key = 65535, most_name = 63;

  template <class... Parts>
  void require(std::uint64_t at, bool rule, const Parts&... parts) const {
    detail::require<FormatError>(rule, file_, ": byte ", at, ": ", parts...);
  }
  std::uint64_t left() const { return bytes_.size() - at_; }
  static Quoted quoted(std::string_view name) { return {name}; }

  /// The next `size` bytes; `what` they are, in one or more parts.
  template <class... What>
  std::string_view take(std::uint64_t size, const What&... what) {
    require(at_, size <= left(), what..., " must have ", size, " bytes, got the end of the file after ", left());
    const auto* start = reinterpret_cast<const char*>(bytes_.data()) + at_;
    at_ += size;
    return {start, size};
  }
  template <class Number, class... What>
  Number number(const What&... what) {
    Number value;
    std::memcpy(&value, take(sizeof value, what...).data(), sizeof value);
    return value;
  }
  template <class... What>
  std::string_view text(std::uint64_t most, const What&... what) {
    const auto at = at_;
    const auto length = number<std::uint64_t>("the length of ", what...);
    require(at, length <= most && length <= left(), what..., " must have at most ", std::min(most, left()),
            " bytes, got ", length);
    return take(length, what...);
  }

  void read_item() {
    const auto at = at_;
    const auto key = text(most_key, "a key");
    require(at, !key.empty(), "a key must not be empty");
    require(at, is_utf8(key), "a key must be UTF-8, got other bytes");
    auto& [name, value] = items_.emplace_back(std::string(key), gguf::Value{});
    const auto start = at_;
    const auto type = number<std::uint32_t>("the type of key ", quoted(name));
    require(start, type < gguf_type_names.size(), "the type of key ", quoted(name), " must lie in [0, 12], got ", type);
    read_alternative(value, type, name);
  }

  /// Reads the alternative of the variant that `type` numbers. \pre type < 13.
  template <class Variant>
  void read_alternative(Variant& value, std::uint32_t type, const std::string& key) {
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      (void)((type == I && (read(value.template emplace<I>(), key), true)) || ...);
    }
    (std::make_index_sequence<std::variant_size_v<Variant>>());
  }

  template <class Number>
  requires(std::integral<Number> || std::floating_point<Number>) void read(Number& value, const std::string& key) {
    value = number<Number>("key ", quoted(key));
  }
  void read(bool& value, const std::string& key) {
    const auto at = at_;
    const auto byte = number<std::uint8_t>("key ", quoted(key));
    require(at, byte <= 1, "a boolean of key ", quoted(key), " must be 0 or 1, got ", byte);
    value = byte == 1;
  }
  void read(std::string& value, const std::string& key) { value = text(most_string, "a string of key ", quoted(key)); }

  void read(gguf::Array& array, const std::string& key) {
    const auto at = at_;
    const auto type = number<std::uint32_t>("the element type of key ", quoted(key));
    require(at, type < gguf_type_names.size(), "the element type of key ", quoted(key), " must lie in [0, 12], got ",
            type);
    require(at, gguf_type_names[type] != "array", "key ", quoted(key), " must not be an array of arrays");
    read_alternative(array.elements, type, key);
  }
  void read(gguf::Array::Nested&, const std::string&) {}

  template <class Element>
  void read(std::vector<Element>& elements, const std::string& key) {
    const auto at = at_;
    const auto count = number<std::uint64_t>("the number of elements of key ", quoted(key));
    constexpr std::uint64_t least = std::same_as<Element, std::string> ? 8 : sizeof(Element);
    static_assert(sizeof(bool) == 1);
    const std::uint64_t most = std::min(most_elements, left() / least);
    require(at, count <= most, "key ", quoted(key), " must have at most ", most, " elements, got ", count);
    elements.reserve(count);
    if constexpr (std::same_as<Element, std::string> || std::same_as<Element, bool>) {
      for (std::uint64_t i = 0; i < count; ++i) {
        Element element{};
        read(element, key);
        elements.push_back(std::move(element));
      }
    } else if (count > 0) {
      elements.resize(count);
      std::memcpy(elements.data(), take(count * sizeof(Element), "key ", quoted(key)).data(), count * sizeof(Element));
    }
  }

  void read_alignment() {
    const auto item = std::find_if(items_.begin(), items_.end(),
                                   [](const gguf::Metadata::Item& each) { return each.first == gguf_alignment_key; });
    if (item == items_.end()) return;
    const auto* value = std::get_if<std::uint32_t>(&item->second);
    detail::require<FormatError>(value != nullptr, file_, ": key \"", gguf_alignment_key, "\" must be u32, got ",
                                 value == nullptr ? gguf_type_name(item->second) : std::string());
    detail::require<FormatError>(std::has_single_bit(*value), file_, ": key \"", gguf_alignment_key,
                                 "\" must be a power of two, got ", *value);
    alignment_ = *value;
  }

  /// `end`: where the data of the tensors so far ends, padded; the next must start there.
  void read_tensor(std::uint64_t& end) {
    gguf::Tensor& tensor = tensors_.emplace_back();
    auto at = at_;
    tensor.name = text(most_name, "the name of a tensor");
    require(at, is_utf8(tensor.name), "the name of a tensor must be UTF-8, got other bytes");
    const Quoted name = quoted(tensor.name);

    at = at_;
    const auto dims = number<std::uint32_t>("the number of dimensions of tensor ", name);
    require(at, dims <= gguf::Tensor::max_dims, "tensor ", name, " must have at most 4 dimensions, got ", dims);
    tensor.dims = static_cast<int>(dims);
    for (std::uint32_t i = 0; i < dims; ++i) {
      at = at_;
      const auto size = number<std::uint64_t>("a size of tensor ", name);
      require(at, size <= std::numeric_limits<std::int64_t>::max(), "a size of tensor ", name,
              " must be less than 2^63, got ", size);
      tensor.ne[i] = static_cast<Index>(size);
    }

    at = at_;
    tensor.type = gguf::Type{number<std::uint32_t>("the type of tensor ", name)};
    const auto* layout = gguf::block_layout(tensor.type);
    require(at, layout != nullptr, "the type of tensor ", name, " must be a stored type of ggml, got ",
            static_cast<std::uint32_t>(tensor.type));
    require(at, tensor.ne[0] % layout->elements == 0, "the first size of tensor ", name, " must be a multiple of the ",
            layout->elements, " elements of a ", layout->name, " block, got ", tensor.ne[0]);
    const auto bytes = gguf_bytes(*layout, tensor.ne);
    require(at, bytes.has_value(), "the sizes of tensor ", name, " must not overflow, got ", sizes(tensor));

    at = at_;
    const auto offset = number<std::uint64_t>("the offset of tensor ", name);
    require(at, offset == end, "the data of tensor ", name, " must start at offset ", end, ", got ", offset);
    require(at, end <= file_size_ && *bytes <= file_size_ - end, "the data of tensor ", name,
            " must lie inside the file of ", file_size_, " bytes, got ", *bytes, " bytes at offset ", end);
    places_.push_back({offset, *bytes});
    end = align_up(end + *bytes, alignment_);
  }

  /// The items sorted by name, no two of which are equal.
  template <class Items, class Name>
  std::vector<std::size_t> require_once(const Items& items, std::string_view what, const Name& name) const {
    std::vector<std::size_t> order(items.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(),
              [&](std::size_t a, std::size_t b) { return name(items[a]) < name(items[b]); });
    const auto twice = std::adjacent_find(
        order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return name(items[a]) == name(items[b]); });
    detail::require<FormatError>(twice == order.end(), file_, ": a ", what, " must stand once, got a second ",
                                 quoted(twice == order.end() ? std::string_view() : name(items[*twice])));
    return order;
  }

  std::span<const std::byte> bytes_;
  std::uint64_t file_size_;
  const std::string& file_;
  std::uint64_t at_ = 0, data_ = 0;
  std::uint32_t alignment_ = gguf_default_alignment;
  std::vector<gguf::Metadata::Item> items_;
  std::vector<gguf::Tensor> tensors_;
  std::vector<Place> places_;
  std::vector<std::size_t> order_;
};

}  // namespace lora::detail

namespace lora::gguf {

/// What a GGUF file says: metadata and tensors, whose bytes are views of the memory that was read.
///
/// Versions 2 and 3, little-endian. Refused, as by ggml: a count, string or array beyond the file; nested arrays; an
/// empty or second key; an alignment that is not a u32 power of two; a name of 64 bytes or more or a second time; more
/// than four dimensions; sizes that overflow; a row of part of a block; data out of the file or not packed one tensor
/// after another. Beyond ggml: keys and names that are not UTF-8, keys over 65535 bytes, booleans other than 0 and 1.
/// Accepted: bytes after the last tensor, no padding behind it.
class Contents {
 public:
  /// `file`: what messages call it. Time and memory are linear in the size of metadata and tensor descriptions (memory
  /// at most about 6 times that); the tensors' data is not touched.
  /// \throws FormatError  the bytes break a rule; the message names the file, the byte and the rule.
  static Contents parse(std::span<const std::byte> bytes, std::string file = "gguf") {
    detail::GgufParser parser(bytes, bytes.size(), file);
    parser.parse();
    Contents contents;
    contents.tensors_ = std::move(parser.tensors());
    for (std::size_t i = 0; i < contents.tensors_.size(); ++i) {
      const auto [offset, size] = parser.places()[i];
      contents.tensors_[i].bytes = bytes.subspan(parser.data() + offset, size);
    }
    contents.order_ = std::move(parser.order());
    contents.metadata_ = Metadata(std::move(file), std::move(parser.items()));
    return contents;
  }

  const std::string& file() const { return metadata_.file(); }
  const Metadata& metadata() const { return metadata_; }
  const std::vector<Tensor>& tensors() const { return tensors_; }  ///< in the order of the file

  /// The tensor of a name, or null; logarithmic.
  const Tensor* find(std::string_view name) const {
    const auto at = std::lower_bound(order_.begin(), order_.end(), name,
                                     [&](std::size_t i, std::string_view sought) { return tensors_[i].name < sought; });
    return at != order_.end() && tensors_[*at].name == name ? &tensors_[*at] : nullptr;
  }
  /// The tensor of a name. \throws FormatError  there is none.
  const Tensor& tensor(std::string_view name) const {
    const auto* found = find(name);
    detail::require<FormatError>(found != nullptr, file(), ": tensor ", detail::Quoted{name},
                                 " must exist, got no such tensor");
    return *found;
  }

 private:
  Metadata metadata_;
  std::vector<Tensor> tensors_;
  std::vector<std::size_t> order_;  // by name
};

}  // namespace lora::gguf
