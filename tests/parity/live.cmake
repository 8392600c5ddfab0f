# SPDX-License-Identifier: MIT
# Makes fresh golden data with the installed PyTorch and PEFT, then runs the parity tests on it.
# Arguments: PYTHON (may be empty), SCRIPT, DATA (folder to fill), TESTS (the program).
include(${CMAKE_CURRENT_LIST_DIR}/../support/live_python.cmake)

find_packages(found "live parity with PyTorch and PEFT; the recorded data was compared" parity.live torch peft)
if(NOT found)
  return()
endif()

file(REMOVE_RECURSE ${DATA})
execute_process(COMMAND ${PYTHON} ${SCRIPT} --seed 20261121 --out ${DATA} COMMAND_ERROR_IS_FATAL ANY)
set(ENV{LORA_GOLDEN_DIR} ${DATA})
execute_process(COMMAND ${TESTS} COMMAND_ERROR_IS_FATAL ANY)
