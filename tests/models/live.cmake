# SPDX-License-Identifier: MIT
# Whole models made on the spot with another seed: PEFT's adapters opened by ours, ours opened by PEFT.
# Arguments: PYTHON (may be empty), HERE (this folder), FOLDER (to fill), TESTS (the program).
include(${CMAKE_CURRENT_LIST_DIR}/../support/live_python.cmake)

find_packages(found "whole models, live, with transformers and PEFT; the recorded data was compared" models.live
  torch peft transformers safetensors)
if(NOT found)
  return()
endif()

file(REMOVE_RECURSE ${FOLDER})
file(MAKE_DIRECTORY ${FOLDER})
execute_process(COMMAND ${PYTHON} ${HERE}/make_models.py --seed 20261122 --out ${FOLDER}/made
  COMMAND_ERROR_IS_FATAL ANY)
foreach(models ${HERE}/data ${FOLDER}/made)
  cmake_path(GET models FILENAME name)
  set(ENV{LORA_MODELS_DATA} ${models})
  set(ENV{LORA_MODELS_LIVE} ${FOLDER}/written_${name})
  execute_process(COMMAND ${TESTS} COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND ${TESTS} "[.live]" COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND ${PYTHON} ${HERE}/models_check.py ${FOLDER}/written_${name} ${models}
    COMMAND_ERROR_IS_FATAL ANY)
endforeach()
