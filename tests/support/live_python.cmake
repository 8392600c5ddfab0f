# SPDX-License-Identifier: MIT
# For scripts of live tests: PYTHON, given (-DPYTHON=), from the environment variable LORA_PARITY_PYTHON, or python3.
if(NOT PYTHON)
  set(PYTHON "$ENV{LORA_PARITY_PYTHON}")
endif()
if(NOT PYTHON)
  set(PYTHON python3)
endif()
