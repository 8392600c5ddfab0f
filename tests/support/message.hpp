// SPDX-License-Identifier: MIT
// The exact text that a call throws, for tests of messages: `CHECK(message_of<ShapeError>([&] { ... }) == "...")`.
#pragma once

#include <exception>
#include <string>
#include <typeinfo>

namespace lora::test {

/// What `call` throws, where it is exactly an `ErrorType`; otherwise a text that no message equals.
template <class ErrorType, class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const ErrorType& error) {
    if (typeid(error) == typeid(ErrorType)) return error.what();
    return std::string("[a derived error] ") + error.what();
  } catch (const std::exception& error) {
    return std::string("[another error] ") + error.what();
  }
  return "[no error]";
}

}  // namespace lora::test
