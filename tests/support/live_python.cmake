# SPDX-License-Identifier: MIT
# For scripts of live tests: PYTHON, given (-DPYTHON=), from the environment variable LORA_PARITY_PYTHON, or python3.
if(NOT PYTHON)
  set(PYTHON "$ENV{LORA_PARITY_PYTHON}")
endif()
if(NOT PYTHON)
  set(PYTHON python3)
endif()

# Can PYTHON import the packages? `found` says so; else `what`, the test of that name, is reported as skipped.
#   find_packages(<found> <what> <test> <package>...)
function(find_packages found what test)
  list(JOIN ARGN ", " packages)
  execute_process(COMMAND ${PYTHON} -c "import ${packages}\nfor p in ${packages},: print(p.__name__, p.__version__)"
    RESULT_VARIABLE failed OUTPUT_VARIABLE versions ERROR_VARIABLE reason)
  if(failed)
    message("
**********************************************************************
** SKIPPED: ${what}.
** To run it, name a Python that has ${packages}:
**   LORA_PARITY_PYTHON=/path/to/venv/bin/python ctest -R ${test}
**********************************************************************")
    message("${PYTHON}: ${failed}\n${reason}")
    set(${found} FALSE PARENT_SCOPE)
  else()
    message("${PYTHON}:\n${versions}")
    set(${found} TRUE PARENT_SCOPE)
  endif()
endfunction()
