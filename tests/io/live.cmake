# SPDX-License-Identifier: MIT
# Files that our tests write, opened by the real PEFT and by the Python package gguf.
# Arguments: PYTHON (may be empty), HERE (this folder), FOLDER (to fill), TESTS (the program).
include(${CMAKE_CURRENT_LIST_DIR}/../support/live_python.cmake)

find_packages(found "adapters that we wrote, opened by the real PEFT" io.live torch peft transformers safetensors)
if(found)
  file(REMOVE_RECURSE ${FOLDER})
  file(MAKE_DIRECTORY ${FOLDER})
  set(ENV{LORA_PEFT_LIVE} ${FOLDER})
  execute_process(COMMAND ${TESTS} "[.live]" COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND ${PYTHON} ${HERE}/peft_check.py ${FOLDER} COMMAND_ERROR_IS_FATAL ANY)
endif()
execute_process(COMMAND ${PYTHON} ${HERE}/gguf_check.py --tests ${TESTS} COMMAND_ERROR_IS_FATAL ANY)
