# SPDX-License-Identifier: MIT
# Makes fresh golden data with the installed PyTorch and PEFT, then runs the parity tests on it.
# Arguments: PYTHON (may be empty), SCRIPT, DATA (folder to fill), TESTS (the program).
include(${CMAKE_CURRENT_LIST_DIR}/../support/live_python.cmake)

execute_process(COMMAND ${PYTHON} -c "import torch, peft; print('torch', torch.__version__, 'peft', peft.__version__)"
  RESULT_VARIABLE failed OUTPUT_VARIABLE versions ERROR_VARIABLE reason)
if(failed)
  message([[
**********************************************************************
** SKIPPED: live parity with PyTorch and PEFT.
** They cannot be imported, so only the recorded data was compared.
** To run it, name a Python that has both:
**   LORA_PARITY_PYTHON=/path/to/venv/bin/python ctest -R parity.live
**********************************************************************]])
  message("${PYTHON}: ${failed}\n${reason}")
  return()
endif()

message("${PYTHON}: ${versions}")
file(REMOVE_RECURSE ${DATA})
execute_process(COMMAND ${PYTHON} ${SCRIPT} --seed 20261121 --out ${DATA} COMMAND_ERROR_IS_FATAL ANY)
set(ENV{LORA_GOLDEN_DIR} ${DATA})
execute_process(COMMAND ${TESTS} COMMAND_ERROR_IS_FATAL ANY)
