// SPDX-License-Identifier: MIT
// How the parts of a checkpoint become texts and tensors, and come back: one walk, two archives.
#pragma once

#include <lora/adapter/lora_linear.hpp>
#include <lora/core/error.hpp>
#include <lora/core/factors.hpp>
#include <lora/core/fields.hpp>
#include <lora/core/random.hpp>
#include <lora/core/views.hpp>
#include <lora/io/safetensors.hpp>
#include <lora/optim/optimizer.hpp>
#include <lora/optim/weight_space.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace lora::detail {

template <class Number>
concept CheckpointNumber = std::integral<Number> || Real<Number>;

template <class Type>
inline constexpr bool is_view = false;
template <class Element, int Order>
inline constexpr bool is_view<View<Element, Order>> = true;
template <class Element>
inline constexpr bool is_view<BasicFactorsView<Element>> = true;

/// What a part is, as files and messages call it.
template <class Type>
constexpr std::string_view checkpoint_kind() {
  if constexpr (std::same_as<Type, bool>) return "switch";
  if constexpr (std::integral<Type>) return "integer";
  if constexpr (Real<Type>) return "number";
  if constexpr (EigenMatrix<Type>) return "matrix";
  if constexpr (HyperParameters<Type>) return Type::name;
  return "state";
}
template <class Type>
inline constexpr std::string_view part_kind = checkpoint_kind<Type>();
template <>
inline constexpr std::string_view part_kind<Random> = "generator";
template <class Base>
inline constexpr std::string_view part_kind<LoraLinear<Base>> = "layer";
template <class Method, class Scalar>
inline constexpr std::string_view part_kind<Optimizer<Method, Scalar>> = "optimizer";
template <class Method, class Scalar>
inline constexpr std::string_view part_kind<WeightSpace<Method, Scalar>> = "weight space";
template <class Scalar>
inline constexpr std::string_view part_kind<Factors<Scalar>> = "factors";
template <class Element>
inline constexpr std::string_view part_kind<BasicFactorsView<Element>> = "factors";

/// A hyper-parameter in words; numbers in the shortest form that reads back as the same value.
template <class Value>
std::string field_text(const Value& value) {
  std::string text;
  if constexpr (std::same_as<Value, bool>) {
    text = value ? "true" : "false";
  } else if constexpr (CheckpointNumber<Value>) {
    append(text, value);
  } else if constexpr (std::is_enum_v<Value>) {
    text = name_of(value);
  } else {
    static_assert(
        requires { value.has_value(); },
        "lora: a hyper-parameter is a bool, a number, an enum with name_of(), "
        "an optional of these, or lists fields of its own");
    text = value ? field_text(*value) : "none";
  }
  return text;
}

template <CheckpointNumber Number>
constexpr safetensors::Type tensor_type() {
  using safetensors::Type;
  if constexpr (std::same_as<Number, bool>) return Type::Bool;
  if constexpr (std::integral<Number>) return std::signed_integral<Number> ? Type::I64 : Type::U64;
  return sizeof(Number) == 4 ? Type::F32 : Type::F64;
}
/// As numbers lie in files.
template <CheckpointNumber Number>
using Stored = std::conditional_t<std::same_as<Number, bool> || std::floating_point<Number>, Number,
                                  std::conditional_t<std::signed_integral<Number>, std::int64_t, std::uint64_t>>;

/// The shape of a matrix as it lies in memory: a column-major n x r is [r, n], as PyTorch sees these bytes.
template <class Matrix>
safetensors::Shape stored_shape(const Matrix& matrix) {
  const auto inner = static_cast<std::uint64_t>(matrix.innerSize()),
             outer = static_cast<std::uint64_t>(matrix.outerSize());
  if constexpr (Matrix::IsVectorAtCompileTime) return {inner};
  return {outer, inner};
}
template <class Matrix>
bool without_gaps(const Matrix& matrix) {
  return matrix.outerStride() == matrix.innerSize() || matrix.outerSize() < 2;
}

/// Visits what a checkpoint holds below `path`. Archives take texts (what must be equal) and matrices and numbers (what
/// is restored), the two of layers and generators, which have rules of their own; `text` says whether to go on below.
template <class Archive>
class CheckpointWalk {
 public:
  explicit CheckpointWalk(Archive& archive) : archive_(archive) {}

  template <class Value>
  void part(const std::string& name, Value& value) const {
    if (archive_.text(name, "", std::string(part_kind<Value>))) state(name, "", value);
  }

  /// `label` is the path within the part.
  template <class Value>
  void state(const std::string& path, const std::string& label, Value& value) const {
    using Type = std::remove_const_t<Value>;
    if constexpr (HyperParameters<Type>) {
      equal(path, label, value);
    } else if constexpr (requires { archive_.own(path, value); }) {
      archive_.own(path, value);
    } else if constexpr (CheckpointNumber<Type>) {
      archive_.number(path, value);
    } else if constexpr (EigenMatrix<Type>) {
      archive_.matrix(path, value);
    } else if constexpr (is_view<Type>) {
      archive_.matrix(path + "/A", value.A);
      archive_.matrix(path + "/B", value.B);
    } else if constexpr (requires { value[0], value.size(); }) {
      if (!archive_.text(path, label, field_text(value.size()))) return;
      for (std::size_t i = 0; i < value.size(); ++i) {
        state(path + "/" + std::to_string(i), below(label, std::to_string(i)), value[i]);
      }
    } else {
      static_assert(HasFields<Type>, "lora: a checkpoint needs the fields of this type; see lora/core/fields.hpp");
      Fields::visit(value,
                    [&](const char* name, auto&& field) { field_of(path + "/" + name, below(label, name), field); });
    }
  }

 private:
  template <class Field>
  void field_of(const std::string& path, const std::string& label, Field& field) const {
    state(path, label, field);
  }
  template <class Field>
  void field_of(const std::string& path, const std::string& label, Fixed<Field>& field) const {
    equal(path, label, field.field);
  }
  template <class Value>
  void equal(const std::string& path, const std::string& label, Value& value) const {
    if constexpr (HasFields<Value>) {
      static_assert(HyperParameters<Value>, "lora: hyper-parameters need a `static constexpr const char* name`");
      if (!archive_.text(path, label, Value::name)) return;
      Fields::visit(value, [&](const char* name, auto& field) {
        equal(path + "/" + name, std::string(Value::name) + " " + name, field);
      });
    } else {
      archive_.text(path, label, field_text(value));
    }
  }
  static std::string below(const std::string& label, const std::string& name) {
    return label.empty() ? name : label + "/" + name;
  }

  Archive& archive_;
};

/// Gathers the tensors and texts of a file; the tensors point at the parts where these have no gaps.
class CheckpointWriter {
 public:
  safetensors::Tensors tensors;
  safetensors::Metadata texts;

  bool text(const std::string& path, const std::string& /*label*/, const std::string& value) {
    texts[path] = value;
    return true;
  }
  template <class Matrix>
  void matrix(const std::string& path, const Matrix& matrix) {
    using Scalar = typename Matrix::Scalar;
    if (matrix.size() == 0) return;
    if (without_gaps(matrix)) {
      add<Scalar>(path, stored_shape(matrix), {matrix.data(), static_cast<std::size_t>(matrix.size())});
    } else {
      using Plain = typename Matrix::PlainObject;
      const auto copy = keep<Plain>(matrix);
      add<Scalar>(path, stored_shape(*copy), {copy->data(), static_cast<std::size_t>(copy->size())});
    }
  }
  template <CheckpointNumber Number>
  void number(const std::string& path, Number number) {
    add<Stored<Number>>(path, {}, {keep<Stored<Number>>(number).get(), 1});
  }
  void own(const std::string& path, const Random& random) {
    const auto& words = random.state();
    add<std::uint64_t>(path + "/state", {words.size()}, words);
  }
  /// \throws StateError  a merged layer: its base is no longer the frozen one.
  template <class Base>
  void own(const std::string& path, const LoraLinear<Base>& layer) {
    text(path + "/in_features", "", field_text(layer.in_features()));
    text(path + "/out_features", "", field_text(layer.out_features()));
    if (!layer.bias().empty()) add<typename Base::Scalar>(path + "/bias", {layer.bias().size()}, layer.bias());
    CheckpointWalk(*this).state(path, "", *keep(layer.state()));
  }

 private:
  template <class Value>
  std::shared_ptr<const Value> keep(Value value) {
    auto kept = std::make_shared<const Value>(std::move(value));
    kept_.push_back(kept);
    return kept;
  }
  template <CheckpointNumber Number>
  void add(const std::string& path, safetensors::Shape shape, std::span<const Number> numbers) {
    tensors[path] = {tensor_type<Number>(), std::move(shape), std::as_bytes(numbers)};
  }

  std::vector<std::shared_ptr<const void>> kept_;
};

/// Compares parts with a file and notes what is to be restored; changes nothing before `commit`.
class CheckpointReader {
 public:
  /// The file outlives the reader.
  explicit CheckpointReader(const safetensors::File& file) : file_(file) {}

  /// What follows belongs to the part `name`; says whether the file has it.
  bool begin(const std::string& name) {
    part_ = name;
    text_differs_ = false;
    if (file_.metadata().contains(name)) return true;
    differ("", "nothing in the file, a part here");
    return false;
  }
  /// After the last part: what else is in the file?
  void end() {
    const auto check = [this](const std::string& path, const std::string& what) {
      if (used_.contains(path) || path.starts_with("lora.")) return;
      part_ = part_of(path);
      if (differing_.contains(part_)) return;
      if (path == part_) return differ("", "a part in the file, nothing here");
      note(label_of(path), what + " in the file, nothing here");
    };
    for (const auto& [path, text] : file_.metadata()) check(path, printable(text));
    for (const auto& [path, tensor] : file_.tensors()) check(path, describe(tensor.type, tensor.shape));
  }
  const std::vector<std::string>& differences() const { return differences_; }
  /// Does not throw: every byte has been checked and every place has its size.
  void commit() {
    for (const auto& change : changes_) change();
  }

  bool text(const std::string& path, const std::string& label, const std::string& here) {
    const auto found = file_.metadata().find(path);
    used_.insert(path);
    if (found != file_.metadata().end() && found->second == here) return true;
    const bool is_there = found != file_.metadata().end();
    differ(label, (is_there ? printable(found->second) : "nothing") + " in the file, " + here + " here");
    text_differs_ = true;
    return false;
  }
  template <class Matrix>
  void matrix(const std::string& path, Matrix& matrix) {
    using Scalar = typename Matrix::Scalar;
    if (matrix.size() == 0) return;
    const auto* tensor = find(path, tensor_type<Scalar>(), stored_shape(matrix));
    if (tensor == nullptr) return;
    Scalar* const to = matrix.data();
    const auto line = static_cast<std::size_t>(matrix.innerSize()) * sizeof(Scalar);
    const Index lines = matrix.outerSize(), stride = matrix.outerStride();
    changes_.emplace_back([from = tensor->bytes.data(), to, line, lines, stride] {
      for (Index i = 0; i < lines; ++i) std::memcpy(to + i * stride, from + static_cast<std::size_t>(i) * line, line);
    });
  }
  template <CheckpointNumber Number>
  void number(const std::string& path, Number& number) {
    const auto* tensor = find(path, tensor_type<Number>(), {});
    if (tensor == nullptr) return;
    if constexpr (std::same_as<Number, bool>) {
      const auto byte = std::to_integer<int>(tensor->bytes[0]);
      require<FormatError>(byte <= 1, file_.name(), ": ", detail::quoted(path), " must be 0 or 1, got ", byte);
      changes_.emplace_back([&number, byte] { number = byte == 1; });
    } else {
      Stored<Number> stored{};
      std::memcpy(&stored, tensor->bytes.data(), sizeof stored);
      const auto value = static_cast<Number>(stored);
      if (static_cast<Stored<Number>>(value) != stored && stored == stored) {
        return differ(label_of(path), field_text(stored) + " in the file, an integer of " +
                                          std::to_string(8 * sizeof(Number)) + " bits here");
      }
      changes_.emplace_back([&number, value] { number = value; });
    }
  }
  void own(const std::string& path, Random& random) {
    Random::State words{};
    const auto* tensor = find(path + "/state", safetensors::Type::U64, {words.size()});
    if (tensor == nullptr) return;
    std::memcpy(words.data(), tensor->bytes.data(), sizeof words);
    const bool is_state = words != Random::State{};
    require<FormatError>(is_state, file_.name(), ": ", detail::quoted(path),
                         " must not be all zeros, got four zero words");
    changes_.emplace_back([&random, restored = Random(words)] { random = restored; });
  }
  template <class Base>
  void own(const std::string& path, LoraLinear<Base>& layer) {
    using Scalar = typename Base::Scalar;
    const Index n = layer.in_features(), m = layer.out_features();
    text(path + "/in_features", "in_features", field_text(n));
    text(path + "/out_features", "out_features", field_text(m));
    const auto bias = layer.bias();
    if (!bias.empty()) {
      const auto* tensor = find(path + "/bias", tensor_type<Scalar>(), {bias.size()});
      const bool equal = tensor == nullptr || std::memcmp(tensor->bytes.data(), bias.data(), bias.size_bytes()) == 0;
      if (!equal) differ("bias", "other numbers in the file than here");
    }
    LoraState<Scalar> state{AdapterState<Scalar>::zero(n, m, layer.config())};
    if (file_.find(path + "/initial/A") != nullptr) state.adapter.initial = Factors<Scalar>::zero(n, m, layer.rank());
    // Into `state` at once: the layer has rules of its own about what it takes over.
    std::vector<std::function<void()>> changes;
    const std::size_t before = differences_.size();
    changes.swap(changes_);
    CheckpointWalk(*this).state(path, "", state);
    changes.swap(changes_);
    if (text_differs_ || differences_.size() > before) return;
    for (const auto& change : changes) change();
    try {
      auto prepared = std::make_shared<typename LoraLinear<Base>::Prepared>(layer.prepare(state));
      changes_.emplace_back([&layer, prepared] { layer.commit(std::move(*prepared)); });
    } catch (const Error& error) {
      differ("", error.what());
    }
  }

 private:
  /// The tensor of that type and shape; else notes the difference, unless other hyper-parameters have explained it.
  const safetensors::Tensor* find(const std::string& path, safetensors::Type type, const safetensors::Shape& shape) {
    const auto* tensor = file_.find(path);
    used_.insert(path);
    if (tensor != nullptr && tensor->type == type && tensor->shape == shape) return tensor;
    if (!text_differs_) {
      differ(label_of(path), (tensor != nullptr ? describe(tensor->type, tensor->shape) : "nothing") +
                                 " in the file, " + describe(type, shape) + " here");
    }
    return nullptr;
  }
  void differ(const std::string& label, const std::string& difference) {
    differing_.insert(part_);
    note(label, difference);
  }
  void note(const std::string& label, const std::string& difference) {
    differences_.push_back(printable(part_) + ": " + (label.empty() ? "" : printable(label) + ": ") + difference);
  }
  /// The outermost folder with a text, or else the path itself.
  std::string part_of(const std::string& path) const {
    for (std::size_t slash = path.find('/'); slash != std::string::npos; slash = path.find('/', slash + 1)) {
      if (file_.metadata().contains(path.substr(0, slash))) return path.substr(0, slash);
    }
    return path;
  }
  std::string label_of(const std::string& path) const {
    return path.size() > part_.size() ? path.substr(part_.size() + 1) : "";
  }
  static std::string printable(const std::string& text) {
    const std::string in_quotes = detail::quoted(text);
    return in_quotes.substr(1, in_quotes.size() - 2);
  }
  static std::string describe(safetensors::Type type, const safetensors::Shape& shape) {
    return shape_text(shape) + " of " + std::string(safetensors::type_name(type));
  }

  const safetensors::File& file_;
  std::string part_;
  bool text_differs_ = false;  ///< in this part, so that its tensors need not be compared
  std::set<std::string, std::less<>> used_, differing_;
  std::vector<std::string> differences_;
  std::vector<std::function<void()>> changes_;
};

}  // namespace lora::detail
