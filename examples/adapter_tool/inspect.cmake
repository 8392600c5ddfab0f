# SPDX-License-Identifier: MIT
# What `inspect` says of adapters that PEFT and the Python package gguf wrote.
include(${CMAKE_CURRENT_LIST_DIR}/run.cmake)
set(all "")
foreach(adapter peft/lora peft/rslora peft/patterns peft/bf16 peft/conv1d peft/lora_ga peft/pissa peft/named/second
                gguf/adapter.gguf)
  run(0 inspect ${ADAPTERS}/${adapter})
  string(APPEND all "${adapter}: ${printed}\n")
endforeach()
file(WRITE ${FOLDER}/inspect.actual "${all}")
file(READ ${CMAKE_CURRENT_LIST_DIR}/inspect.expected expected)
if(NOT all STREQUAL expected)
  message(FATAL_ERROR "expected:\n${expected}\ngot (${FOLDER}/inspect.actual):\n${all}")
endif()
