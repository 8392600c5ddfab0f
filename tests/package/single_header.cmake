# SPDX-License-Identifier: MIT
# Makes the single header twice, compares, and builds an example with it and Eigen alone, warnings as errors.
# Arguments: SOURCE (the checkout), SCRATCH, PYTHON, COMPILER, EIGEN (include folders).
set(script ${SOURCE}/docs/packaging/single_header.py)
file(REMOVE_RECURSE ${SCRATCH})
foreach(folder IN ITEMS lora again)
  execute_process(COMMAND ${PYTHON} ${script} ${SCRATCH}/${folder} COMMAND_ERROR_IS_FATAL ANY)
endforeach()

file(GLOB headers ${SCRATCH}/lora/*.hpp)
list(TRANSFORM EIGEN PREPEND -isystem)
set(compile ${COMPILER} -std=c++20 -I${SCRATCH} ${EIGEN} -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror)
foreach(header IN LISTS headers)
  cmake_path(GET header FILENAME name)
  execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files ${header} ${SCRATCH}/again/${name}
    COMMAND_ERROR_IS_FATAL ANY)
  file(STRINGS ${header} own REGEX "#include <lora/")
  file(STRINGS ${header} first LIMIT_COUNT 1)
  file(STRINGS ${header} once REGEX "#pragma once")
  if(own OR NOT first STREQUAL "// SPDX-License-Identifier: MIT" OR NOT once STREQUAL "#pragma once")
    message(FATAL_ERROR "${name}: needs the licence, one #pragma once and no header of the tree, got ${own} ${once}")
  endif()
  if(name STREQUAL "lora_io.hpp")
    file(WRITE ${SCRATCH}/io.cpp "#include <lora/lora_io.hpp>\n")
    execute_process(COMMAND ${compile} -fsyntax-only ${SCRATCH}/io.cpp COMMAND_ERROR_IS_FATAL ANY)
  endif()
endforeach()

# The example's #include <lora/lora.hpp> finds the single header: there is no other on this path.
set(example ${SOURCE}/examples/01_first_adapter)
execute_process(COMMAND ${compile} ${example}.cpp -o ${SCRATCH}/example COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${SCRATCH}/example OUTPUT_FILE ${SCRATCH}/example.actual COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files ${example}.expected ${SCRATCH}/example.actual
  COMMAND_ERROR_IS_FATAL ANY)
