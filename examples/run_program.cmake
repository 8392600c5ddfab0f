# SPDX-License-Identifier: MIT
# What the test scripts of the programs share: PROGRAM runs in FOLDER.

# Runs the program; its output, errors too, is then in `printed`. A status other than the expected one ends the test.
function(run expected)
  execute_process(COMMAND ${PROGRAM} ${ARGN} WORKING_DIRECTORY ${FOLDER}
    OUTPUT_VARIABLE text ERROR_VARIABLE text RESULT_VARIABLE status)
  if(NOT status EQUAL expected)
    list(JOIN ARGN " " arguments)
    cmake_path(GET PROGRAM FILENAME name)
    message(FATAL_ERROR "${name} ${arguments}\nexpected the status ${expected}, got ${status} and:\n${text}")
  endif()
  set(printed "${text}" PARENT_SCOPE)
endfunction()

# Two files with the same bytes.
function(same left right)
  file(SHA256 ${FOLDER}/${left} first)
  file(SHA256 ${FOLDER}/${right} second)
  if(NOT first STREQUAL second)
    message(FATAL_ERROR "${left} and ${right} must have the same bytes")
  endif()
endfunction()
