// SPDX-License-Identifier: MIT
// Walks over the fields that a type lists, for tests that none is forgotten.
#pragma once

#include <lora/core/fields.hpp>
#include <lora/core/views.hpp>

#include <concepts>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <typeindex>
#include <utility>
#include <vector>

namespace lora::test {

/// Calls `visit(leaf)` for every value below that lists no fields itself, in order.
template <class Value, class Visit>
void for_each_leaf(Value& value, const Visit& visit);
template <class Value, class Visit>
void for_each_leaf(Fixed<Value>& value, const Visit& visit) {
  for_each_leaf(value.field, visit);
}
template <class Value, class Visit>
void for_each_leaf(Value& value, const Visit& visit) {
  if constexpr (HasFields<Value>) {
    Fields::visit(value, [&](const char* /*name*/, auto&& field) { for_each_leaf(field, visit); });
  } else if constexpr (requires { value.front(); }) {
    for (auto& element : value) for_each_leaf(element, visit);
  } else {
    visit(value);
  }
}

template <class Value>
std::vector<std::string> field_names(const Value& value) {
  std::vector<std::string> names;
  Fields::visit(value, [&](const char* name, auto&& /*field*/) { names.emplace_back(name); });
  return names;
}

/// Copies every listed field, and nothing else.
template <class Value>
void copy_fields(const Value& from, Value& to) {
  std::vector<std::pair<std::type_index, const void*>> leaves;
  for_each_leaf(from, [&](const auto& leaf) { leaves.emplace_back(typeid(leaf), &leaf); });
  std::size_t next = 0;
  for_each_leaf(to, [&](auto& leaf) {
    const auto& [type, source] = leaves.at(next++);
    if (type != std::type_index(typeid(leaf))) throw std::logic_error("the fields differ in type");
    leaf = *static_cast<const std::remove_reference_t<decltype(leaf)>*>(source);
  });
  if (next != leaves.size()) throw std::logic_error("the fields differ in number");
}

/// Another value of the same kind.
template <class Leaf>
void change(Leaf& leaf) {
  if constexpr (std::same_as<Leaf, bool>) {
    leaf = !leaf;
  } else if constexpr (std::is_enum_v<Leaf>) {
    const auto next = static_cast<Leaf>(static_cast<int>(leaf) + 1);
    leaf = std::string(name_of(next)) == "unknown" ? static_cast<Leaf>(0) : next;
  } else if constexpr (lora::detail::EigenMatrix<Leaf>) {
    if (leaf.size() == 0) leaf.setZero(1, 1);
    leaf(leaf.size() / 2 % leaf.rows(), 0) += 1;
  } else {
    leaf = leaf - leaf == 0 ? leaf + 1 : 3;  // infinity, too
  }
}

/// `count` copies, each with another field changed.
template <class Value>
std::vector<Value> with_one_change(const Value& value) {
  std::size_t leaves = 0;
  for_each_leaf(value, [&](const auto& /*leaf*/) { ++leaves; });
  std::vector<Value> changed(leaves, value);
  for (std::size_t i = 0; i < leaves; ++i) {
    std::size_t next = 0;
    for_each_leaf(changed[i], [&](auto& leaf) {
      if (next++ == i) change(leaf);
    });
  }
  return changed;
}

namespace detail {

struct Anything {
  template <class Type>
  operator Type() const;  // NOLINT: stands for any initializer
};
template <class Aggregate, std::size_t... Index>
constexpr bool takes(std::index_sequence<Index...> /*count*/) {
  return requires { Aggregate{(static_cast<void>(Index), Anything{})...}; };
}

}  // namespace detail

/// How many fields an aggregate has: as many initializers as it takes.
template <class Aggregate, std::size_t Most = 20>
constexpr std::size_t aggregate_size() {
  static_assert(std::is_aggregate_v<Aggregate>);
  if constexpr (Most == 0 || detail::takes<Aggregate>(std::make_index_sequence<Most>())) {
    return Most;
  } else {
    return aggregate_size<Aggregate, Most - 1>();
  }
}

}  // namespace lora::test
