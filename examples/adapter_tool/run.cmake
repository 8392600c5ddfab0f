# SPDX-License-Identifier: MIT
# What the test scripts share. FOLDER becomes a copy of data/.
include(${CMAKE_CURRENT_LIST_DIR}/../run_program.cmake)
file(REMOVE_RECURSE ${FOLDER})
file(COPY ${CMAKE_CURRENT_LIST_DIR}/data/ DESTINATION ${FOLDER})
