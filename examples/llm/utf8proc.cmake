# SPDX-License-Identifier: MIT
# llm_utf8proc: the library of Unicode's classes, where it is found. Debian's package has no CMake config.
if(NOT TARGET llm_utf8proc)
  find_path(UTF8PROC_INCLUDE_DIR utf8proc.h)
  find_library(UTF8PROC_LIBRARY utf8proc)
  mark_as_advanced(UTF8PROC_INCLUDE_DIR UTF8PROC_LIBRARY)
  if(UTF8PROC_INCLUDE_DIR AND UTF8PROC_LIBRARY)
    add_library(llm_utf8proc INTERFACE)
    target_include_directories(llm_utf8proc SYSTEM INTERFACE ${UTF8PROC_INCLUDE_DIR})
    target_link_libraries(llm_utf8proc INTERFACE ${UTF8PROC_LIBRARY})
  endif()
endif()
