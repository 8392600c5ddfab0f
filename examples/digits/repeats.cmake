# SPDX-License-Identifier: MIT
# Runs PROGRAM twice in two folders and compares what it printed and wrote, byte for byte.
file(REMOVE_RECURSE ${FOLDER})
foreach(run first second)
  file(MAKE_DIRECTORY ${FOLDER}/${run})
  execute_process(COMMAND ${PROGRAM} --quick --out results WORKING_DIRECTORY ${FOLDER}/${run}
    OUTPUT_VARIABLE printed ERROR_VARIABLE progress RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "the ${run} run failed with ${status}:\n${printed}${progress}")
  endif()
  file(WRITE ${FOLDER}/${run}/results/printed.txt "${printed}")
endforeach()
foreach(file printed.txt summary.csv sweep.csv curves.csv alignment.csv)
  execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files ${FOLDER}/first/results/${file} ${FOLDER}/second/results/${file}
    RESULT_VARIABLE different)
  if(different)
    message(FATAL_ERROR "two runs with the same seeds differ in ${file}")
  endif()
endforeach()
message(STATUS "two runs agree:\n${printed}")
