# SPDX-License-Identifier: MIT
# Compiles one variant of a compile-fail pair. Arguments: SOURCE, VARIANT (good or bad), COMMAND (compiler and flags).
# The good one must compile. The bad one must fail, with output that matches the first line "// expect: <regex>".
file(STRINGS ${SOURCE} first_line LIMIT_COUNT 1)
if(NOT first_line MATCHES "^// expect: (.+)$")
  message(FATAL_ERROR "${SOURCE}:1: the first line must read '// expect: <regular expression>'")
endif()
set(expected "${CMAKE_MATCH_1}")

if(VARIANT STREQUAL bad)
  list(APPEND COMMAND -DMUST_NOT_COMPILE)
endif()
execute_process(COMMAND ${COMMAND} -fsyntax-only ${SOURCE}
  RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
message("${output}")
if(VARIANT STREQUAL good AND failed)
  message(FATAL_ERROR "${SOURCE}: must compile without MUST_NOT_COMPILE")
elseif(VARIANT STREQUAL bad AND NOT failed)
  message(FATAL_ERROR "${SOURCE}: compiles with MUST_NOT_COMPILE")
elseif(VARIANT STREQUAL bad AND NOT output MATCHES "${expected}")
  message(FATAL_ERROR "${SOURCE}: fails to compile, but without the expected message '${expected}'")
endif()
