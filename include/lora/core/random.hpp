// SPDX-License-Identifier: MIT
// The library's random numbers: xoshiro256++ (Blackman and Vigna, arXiv:1805.01407) and a normal transform of our own.
#pragma once

#include <lora/core/error.hpp>
#include <lora/core/matrix.hpp>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace lora {

namespace detail {

/// Horner's rule, lowest coefficient first. Each step is one std::fma, which rounds once on every platform; written as
/// `a * b + c` it would be fused or not at the compiler's choice and the last bit of a draw would depend on its flags.
template <std::size_t Count>
double polynomial(const std::array<double, Count>& coefficients, double x) {
  double value = coefficients[Count - 1];
  for (std::size_t i = Count - 1; i-- > 0;) value = std::fma(value, x, coefficients[i]);
  return value;
}

/// log(x) for finite x > 0, to 2 ulp, from operations that IEEE 754 rounds exactly (std::log differs by
/// platform).
inline double portable_log(double x) {
  int exponent = 0;
  double mantissa = std::frexp(x, &exponent);  // [1/2, 1)
  if (mantissa < 0.70710678118654752) {
    mantissa *= 2;
    --exponent;
  }
  // log m = 2 artanh f = z - f (z - R), |f| <= 0.172: z is exact and the rest small. The first term of R left out is
  // below 1e-18.
  static constexpr std::array<double, 10> series{1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11,
                                                 1.0 / 13, 1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21};
  const double z = mantissa - 1;
  const double f = z / (mantissa + 1);
  const double square = f * f;
  const double rest = std::fma(-2 * square, polynomial(series, square), z);
  return std::fma(exponent, 0.69314718055994531, std::fma(-f, rest, z));
}

/// The quantile of the standard normal distribution at p in (0, 1), relative error below 1e-14 (about 15 roundings in
/// each polynomial). \see Wichura, Algorithm AS 241, Applied Statistics 37(3), 1988 (its rational approximations).
inline double normal_quantile(double p) {
  static constexpr std::array<double, 8> a{3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3,
                                           1.3731693765509461125e4, 4.5921953931549871457e4, 6.7265770927008700853e4,
                                           3.3430575583588128105e4, 2.5090809287301226727e3};
  static constexpr std::array<double, 8> b{1.0000000000000000000e0, 4.2313330701600911252e1, 6.8718700749205790830e2,
                                           5.3941960214247511077e3, 2.1213794301586595867e4, 3.9307895800092710610e4,
                                           2.8729085735721942674e4, 5.2264952788528545610e3};
  static constexpr std::array<double, 8> c{
      1.42343711074968357734e0, 4.63033784615654529590e0,  5.76949722146069140550e0,  3.64784832476320460504e0,
      1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4};
  static constexpr std::array<double, 8> d{
      1.00000000000000000000e0,  2.05319162663775882187e0,  1.67638483018380384940e0,  6.89767334985100004550e-1,
      1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9};
  static constexpr std::array<double, 8> e{
      6.65790464350110377720e0,  5.46378491116411436990e0,  1.78482653991729133580e0,  2.96560571828504891230e-1,
      2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7};
  static constexpr std::array<double, 8> f{
      1.00000000000000000000e0,  5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
      7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15};
  const double centred = p - 0.5;
  if (std::abs(centred) <= 0.425) {
    const double r = std::fma(-centred, centred, 0.180625);
    return centred * polynomial(a, r) / polynomial(b, r);
  }
  const double tail = std::sqrt(-portable_log(centred < 0 ? p : 1 - p));
  const double size = tail <= 5 ? polynomial(c, tail - 1.6) / polynomial(d, tail - 1.6)
                                : polynomial(e, tail - 5) / polynomial(f, tail - 5);
  return centred < 0 ? -size : size;
}

}  // namespace detail

/// A generator whose draws are the same bits on every platform: no `std::normal_distribution`, no `Eigen::Random`.
///
/// A value: copy it to repeat a sequence, compare it, keep `state()` in a checkpoint. Not for cryptography.
/// \note Draw in statements of their own: C++ leaves the order of two draws within one expression open.
class Random {
 public:
  using State = std::array<std::uint64_t, 4>;
  using result_type = std::uint64_t;  ///< with min, max and (): a standard uniform random bit generator

  explicit Random(std::uint64_t seed) {
    for (auto& word : state_) {  // SplitMix64, as the authors of xoshiro advise
      seed += 0x9E3779B97F4A7C15ULL;
      std::uint64_t mixed = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9ULL;
      mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBULL;
      word = mixed ^ (mixed >> 31);
    }
  }
  /// Goes on from a saved state.
  /// \throws ConfigError  all four words zero: the sequence would be constant.
  explicit Random(const State& state) : state_(state) {
    detail::require<ConfigError>((state[0] | state[1] | state[2] | state[3]) != 0,
                                 "Random: the state must not be all zeros, got four zero words");
  }

  const State& state() const { return state_; }
  bool operator==(const Random&) const = default;

  static constexpr result_type min() { return 0; }
  static constexpr result_type max() { return std::numeric_limits<result_type>::max(); }
  result_type operator()() {
    const std::uint64_t result = std::rotl(state_[0] + state_[3], 23) + state_[0];
    const std::uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = std::rotl(state_[3], 45);
    return result;
  }

  /// Uniform in [0, 1), a multiple of 2^-53.
  double uniform() { return static_cast<double>((*this)() >> 11) * 0x1p-53; }

  /// Standard normal, one generator word a draw, |x| < 8.3; tested against the distribution function to 1e-14.
  double normal() { return detail::normal_quantile((static_cast<double>((*this)() >> 12) + 0.5) * 0x1p-52); }

  /// Uniform in {0, ..., bound - 1}, exactly (rejection); for shuffles and samples.
  /// \throws ConfigError  bound < 1.
  Index below(Index bound) {
    detail::require<ConfigError>(bound >= 1, "Random::below: bound must be at least 1, got ", bound);
    const auto range = static_cast<std::uint64_t>(bound);
    const std::uint64_t rejected = (max() % range + 1) % range;  // 2^64 mod range
    std::uint64_t word = (*this)();
    while (word > max() - rejected) word = (*this)();
    return static_cast<Index>(word % range);
  }

 private:
  State state_{};
};

}  // namespace lora
