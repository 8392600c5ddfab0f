# SPDX-License-Identifier: MIT
# What the test scripts share. FOLDER is emptied; PROGRAM runs in it, with MODELS at hand.
file(REMOVE_RECURSE ${FOLDER})
file(MAKE_DIRECTORY ${FOLDER})

# Runs the program; its output, errors too, is then in `printed`. A status other than the expected one ends the test.
function(run expected)
  execute_process(COMMAND ${PROGRAM} ${ARGN} WORKING_DIRECTORY ${FOLDER}
    OUTPUT_VARIABLE text ERROR_VARIABLE text RESULT_VARIABLE status)
  if(NOT status EQUAL expected)
    list(JOIN ARGN " " arguments)
    message(FATAL_ERROR "llm ${arguments}\nexpected the status ${expected}, got ${status} and:\n${text}")
  endif()
  set(printed "${text}" PARENT_SCOPE)
endfunction()

# What was printed must have this in it.
function(expect text)
  string(FIND "${printed}" "${text}" position)
  if(position EQUAL -1)
    message(FATAL_ERROR "must print: ${text}\ngot: ${printed}")
  endif()
endfunction()

# Two files with the same bytes.
function(same left right)
  file(SHA256 ${FOLDER}/${left} first)
  file(SHA256 ${FOLDER}/${right} second)
  if(NOT first STREQUAL second)
    message(FATAL_ERROR "${left} and ${right} must have the same bytes")
  endif()
endfunction()
