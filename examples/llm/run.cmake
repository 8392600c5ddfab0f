# SPDX-License-Identifier: MIT
# What the test scripts share. FOLDER is emptied; MODELS are at hand.
include(${CMAKE_CURRENT_LIST_DIR}/../run_program.cmake)
file(REMOVE_RECURSE ${FOLDER})
file(MAKE_DIRECTORY ${FOLDER})

# What was printed must have this in it.
function(expect text)
  string(FIND "${printed}" "${text}" position)
  if(position EQUAL -1)
    message(FATAL_ERROR "must print: ${text}\ngot: ${printed}")
  endif()
endfunction()
