// SPDX-License-Identifier: MIT
// What W0 may be: the concepts `FrozenBase` and `MergeableBase`.
#pragma once

#include <lora/core/factors.hpp>
#include <lora/linalg/linear_operator.hpp>

#include <concepts>
#include <string>
#include <type_traits>

namespace lora {

/// The frozen weight W0 (n x m): a linear operator that can be copied and that says what it is. Nobody writes to it.
///
/// A base of your own is a class of a dozen lines: `Scalar`, `rows`, `cols`, the two products, `describe`.
template <class Base>
concept FrozenBase = LinearOperator<Base> && std::copyable<Base> && requires(const Base& base) {
  { base.describe() } -> std::convertible_to<std::string>;
};

/// A base that owns its weight, so that an adapter may be merged into it and taken out again.
///
/// - `merge(factors, scale)`: W0 <- W0 + scale A B; a second merge throws StateError.
/// - `unmerge()`: W0 as it was, **bit for bit** (adding and subtracting would leave rounding behind).
template <class Base>
concept MergeableBase = FrozenBase<Base> &&
    requires(Base& base, const Base& frozen, ConstFactorsView<typename Base::Scalar> factors, double scale) {
  { base.merge(factors, scale) } -> std::same_as<void>;
  { base.unmerge() } -> std::same_as<void>;
  { frozen.merged() } -> std::convertible_to<bool>;
};

namespace detail {

/// "owned 64 x 256 float column-major", the pattern of all descriptions.
template <Real Scalar>
std::string describe_base(const char* kind, Index rows, Index cols, const char* storage) {
  return std::string(kind) + " " + std::to_string(rows) + " x " + std::to_string(cols) +
         (std::is_same_v<Scalar, float> ? " float" : " double") + storage;
}

constexpr const char* storage_name(int order) { return order == Eigen::RowMajor ? " row-major" : " column-major"; }

}  // namespace detail
}  // namespace lora
