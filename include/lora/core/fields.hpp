// SPDX-License-Identifier: MIT
// How a type lists its fields by name, once for all who walk them: checkpoints, comparisons, descriptions.
#pragma once

#include <concepts>
#include <type_traits>

namespace lora {

/// A type that can be walked lists its fields in one place, for `self` const or not:
///
///     struct Lion {
///       static constexpr const char* name = "Lion";  // hyper-parameters have a name, states have none
///       double learning_rate = 1e-4, beta = 0.9;
///
///       static void fields(auto& self, const auto& visit) {
///         visit("learning_rate", self.learning_rate);
///         visit("beta", self.beta);
///       }
///     };
///
/// - **Hyper-parameters** have a `name`: who goes on with a run must have equal ones.
/// - **State** has none: it is what a step changes, and what goes on. `fixed(self.rows)` marks the fields of a state
///   that were decided when it was made (sizes, a mode), which must be equal too.
///
/// A field is a bool, an integer, a float or double, an enum with a `name_of(value)`, an Eigen matrix, a std::optional
/// or std::vector of these, or a type that lists fields itself. Scratch, which nothing reads after the step, is left
/// out. A type with private state keeps its list private too and has `Fields` as a friend.
struct Fields {
  /// Calls `visit(name, field)` for every field of `self`, in order; `field` is a reference, or a `Fixed` of one.
  template <class Self, class Visit>
  static void visit(Self& self, const Visit& visit) {
    std::remove_const_t<Self>::fields(self, visit);
  }

  /// Takes any field and does nothing.
  struct Ignore {
    template <class Field>
    void operator()(const char* /*name*/, Field&& /*field*/) const {}
  };
  template <class Type>
  static constexpr bool listed_by = requires(Type& value, const Ignore& ignore) {
    std::remove_const_t<Type>::fields(value, ignore);
  };
};

/// A type that lists its fields.
template <class Type>
concept HasFields = Fields::listed_by<Type>;

/// A type that lists its fields and has a name: hyper-parameters.
template <class Type>
concept HyperParameters = HasFields<Type> && requires {
  { Type::name } -> std::convertible_to<const char*>;
};

/// A field of a state that was decided when the state was made.
template <class Field>
struct Fixed {
  Field& field;
};
template <class Field>
Fixed<Field> fixed(Field& field) {
  return {field};
}

}  // namespace lora
