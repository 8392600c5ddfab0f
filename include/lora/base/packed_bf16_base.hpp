// SPDX-License-Identifier: MIT
// A base of 16 bits an element, packed: half the memory and half the traffic of float, sums in float.
#pragma once

#include <lora/base/frozen_base.hpp>
#include <lora/core/error.hpp>
#include <lora/core/views.hpp>
#include <lora/kernel/amx.hpp>
#include <lora/kernel/bf16.hpp>
#include <lora/kernel/product.hpp>

#include <Eigen/Core>

#include <string>
#include <type_traits>

namespace lora {

/// How a `PackedBf16Base` multiplies.
enum class Bf16Kernel {
  Widening,    ///< W is widened to float in registers, X is used as it is. Everywhere
  DotProduct,  ///< X is rounded too; AVX-512's instruction, where the program is compiled for it (AVX512_BF16)
  Amx,         ///< X is rounded too; Intel's matrix units, found at run time
};

constexpr const char* name_of(Bf16Kernel kernel) {
  switch (kernel) {
    case Bf16Kernel::Widening:
      return "Widening";
    case Bf16Kernel::DotProduct:
      return "DotProduct";
    case Bf16Kernel::Amx:
      return "Amx";
  }
  return "none of them";
}

/// Can this program on this machine multiply so?
inline bool available(Bf16Kernel kernel) {
  bool dot_product = false, amx = false;
#ifdef __AVX512BF16__
  dot_product = true;
#endif
#ifdef LORA_KERNEL_AMX
  amx = kernel::amx_works();
#endif
  return kernel == Bf16Kernel::Widening || (kernel == Bf16Kernel::DotProduct && dot_product) ||
         (kernel == Bf16Kernel::Amx && amx);
}

/// The fastest that is available: matrix units; else the dot product on AMD's processors, where it does twice the flops
/// of float (Intel's do half of them); else widening.
inline Bf16Kernel fastest_bf16_kernel() {
  if (available(Bf16Kernel::Amx)) return Bf16Kernel::Amx;
#ifdef __AVX512BF16__
  if (__builtin_cpu_is("amd") != 0) return Bf16Kernel::DotProduct;
#endif
  return Bf16Kernel::Widening;
}

/// W0 (n x m) rounded to bfloat16 (8 bits of precision, the range of float), packed for both products, sums in float.
/// As large as one pack of float; reads half of it in a product.
///
/// With v = 2^-8, twice the unit roundoff of bfloat16, elementwise and for the W0 that was given:
///
///     |Y - X W0| <= (v + gamma_(n + 32)) |X| |W0|        where X stays in float
///     |Y - X W0| <= (2 v + v^2 + gamma_(n + 32)) |X| |W0|    where it is rounded
///
/// with n + 32 for rows of zeros, up to a multiple of 32. W0 that was bfloat16 before is exact, and the first v falls
/// away. The matrix units and the dot product take numbers below 2^-126 for zero. There is no `merge`: a change below
/// 2^-9 of a weight would vanish in its rounding. Threads and memory as `PackedBase`.
class PackedBf16Base {
 public:
  using Scalar = float;

  /// From a matrix, map or block in either storage order; of float, rounded to nearest even, or of `Eigen::bfloat16`.
  /// \throws ConfigError  a kernel that is not available.
  template <class Derived>
  explicit PackedBf16Base(const Eigen::MatrixBase<Derived>& weight, Bf16Kernel kernel = fastest_bf16_kernel())
      : kernel_(checked(kernel)), forward_(weight.derived()), backward_(weight.derived().transpose()) {
    static_assert(
        std::is_same_v<typename Derived::Scalar, float> || std::is_same_v<typename Derived::Scalar, Eigen::bfloat16>,
        "lora: a bf16 base is made from float or bfloat16");
  }

  Index rows() const { return forward_.rows(); }
  Index cols() const { return forward_.cols(); }
  Bf16Kernel kernel() const { return kernel_; }
  /// W0(i, j) as it is held.
  float weight(Index i, Index j) const { return static_cast<float>(forward_(i, j)); }

  void multiply(const ConstRows<float>& X, Rows<float> Y) const {
    detail::require_multiply(rows(), cols(), X, Y, "PackedBf16Base::multiply");
    run(X, forward_, Y);
  }
  void multiply_transposed(const ConstRows<float>& dY, Rows<float> dX) const {
    detail::require_multiply(cols(), rows(), dY, dX, "PackedBf16Base::multiply_transposed");
    run(dY, backward_, dX);
  }

  std::string describe() const {
    const char* by = kernel_ == Bf16Kernel::Amx          ? " bf16, by matrix units"
                     : kernel_ == Bf16Kernel::DotProduct ? " bf16, by dot products"
                                                         : " bf16, widened";
    return detail::describe_base<float>("packed", rows(), cols(), by);
  }
  bool operator==(const PackedBf16Base&) const = default;

 private:
  using Widening = kernel::TileKernel<kernel::WideningWeights, 32>;
  using Panels = Widening::Panels;

  static Bf16Kernel checked(Bf16Kernel kernel) {
    detail::require<ConfigError>(available(kernel),
                                 "PackedBf16Base: kernel must be one that this program and machine have, got ",
                                 name_of(kernel));
    return kernel;
  }

  void run(const ConstRows<float>& X, const Panels& W, Rows<float> Y) const {
#ifdef LORA_KERNEL_AMX
    if (kernel_ == Bf16Kernel::Amx) return kernel::multiply<kernel::AmxKernel>(X, W, Y);
#endif
#ifdef __AVX512BF16__
    if (kernel_ == Bf16Kernel::DotProduct) return kernel::multiply<kernel::TileKernel<kernel::DotWeights, 32>>(X, W, Y);
#endif
    kernel::multiply<Widening>(X, W, Y);
  }

  Bf16Kernel kernel_;
  Panels forward_, backward_;
};

static_assert(FrozenBase<PackedBf16Base>);

}  // namespace lora
