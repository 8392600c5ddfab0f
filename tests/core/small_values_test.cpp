// SPDX-License-Identifier: MIT
// Scaling, errors, the buffer, the saved state.
#include "support/catch.hpp"
#include "support/message.hpp"

#include <lora/core/buffer.hpp>
#include <lora/core/error.hpp>
#include <lora/core/saved_state.hpp>
#include <lora/core/scaling.hpp>

#include <cmath>
#include <limits>
#include <type_traits>

using namespace lora;
using namespace lora::test;

TEST_CASE("the scale is alpha / r, or alpha / sqrt r where it is rank-stabilised", "[core][scaling]") {
  CHECK(scale(16, 8, Scaling::Standard) == 2);
  CHECK(scale(8, 4, Scaling::RankStabilized) == 4);
  CHECK(scale(1, 3, Scaling::Standard) == 1.0 / 3);
  CHECK(scale(1, 3, Scaling::RankStabilized) == 1 / std::sqrt(3.0));
}

TEST_CASE("a rank or an alpha that has no scale is refused", "[core][scaling][errors]") {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  CHECK(message_of<ConfigError>([] { scale(1, 0, Scaling::Standard); }) == "scale: rank must be at least 1, got 0");
  CHECK(message_of<ConfigError>([] { scale(0, 1, Scaling::Standard); }) ==
        "scale: alpha must be positive and finite, got 0");
  CHECK(message_of<ConfigError>([] { scale(-0.5, 1, Scaling::RankStabilized); }) ==
        "scale: alpha must be positive and finite, got -0.5");
  CHECK(message_of<ConfigError>([] { scale(infinity, 1, Scaling::Standard); }) ==
        "scale: alpha must be positive and finite, got inf");
  CHECK(message_of<ConfigError>([] { scale(std::nan(""), 1, Scaling::Standard); }) ==
        "scale: alpha must be positive and finite, got nan");
}

TEST_CASE("every error is an Error, and an Error is a runtime_error", "[core][error]") {
  CHECK(std::is_base_of_v<std::runtime_error, Error>);
  CHECK(std::is_base_of_v<Error, ShapeError>);
  CHECK(std::is_base_of_v<Error, ConfigError>);
  CHECK(std::is_base_of_v<Error, NumericalError>);
  CHECK(std::is_base_of_v<Error, StateError>);
  CHECK_THROWS_AS(throw StateError("x"), Error);
}

TEST_CASE("numbers in messages are the shortest that read back the same", "[core][error]") {
  CHECK(message_of<ConfigError>([] {
          detail::require<ConfigError>(false, "x: ", 0.1, " ", 1e300, " ", 0.1F, " ", -7);
        }) == "x: 0.1 1e+300 0.1 -7");
  CHECK(message_of<ShapeError>([] { detail::require_shape(RowMatrix<float>(2, 3), 4, 5, "f: ", "X"); }) ==
        "f: X must be 4 x 5, got 2 x 3");
  CHECK_NOTHROW(detail::require<ConfigError>(true, "never"));
}

TEMPLATE_TEST_CASE("a buffer keeps its memory as its shape shrinks and grows again", "[core][buffer]", float, double) {
  Buffer<TestType> buffer;
  CHECK(buffer.view().size() == 0);
  const auto* address = buffer.reshape(8, 5).data();
  CHECK(buffer.view().rows() == 8);
  CHECK(buffer.reshape(3, 5).data() == address);
  CHECK(buffer.view().rows() == 3);
  CHECK(buffer.reshape(5, 8).data() == address);
  CHECK(buffer.view().outerStride() == 8);
  CHECK(buffer.reshape(0, 5).rows() == 0);
  CHECK(buffer.reshape(8, 5).data() == address);
  const Buffer<TestType> copy = buffer;
  CHECK(copy.view().data() != address);
  CHECK(copy.view().rows() == 8);
}

TEST_CASE("a fresh saved state holds no forward", "[core][saved_state]") {
  const SavedState<float> saved;
  CHECK(saved.branch == SavedState<float>::Branch::NoForward);
  CHECK(saved.tokens == 0);
  CHECK(saved.P.view().size() == 0);
}
