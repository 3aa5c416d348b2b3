# SPDX-License-Identifier: MIT
# Two files of one program, compiled with every pair of options. Equal options must link and run; others must
# not link, because layout and inlined kernels may differ (a program that links and then corrupts memory is worse).
cmake_minimum_required(VERSION 3.22)
cmake_host_system_information(RESULT processor QUERY OS_PLATFORM)
set(options "" "-fopenmp")
if(processor MATCHES "x86_64|AMD64")
  list(APPEND options "-mavx2 -mfma")
endif()
list(TRANSFORM SYSTEM PREPEND -isystem)
file(MAKE_DIRECTORY ${BUILD})

function(compile source option object)
  separate_arguments(flags UNIX_COMMAND "${option}")
  execute_process(COMMAND ${COMPILER} -std=c++20 ${flags} -I${INCLUDE} ${SYSTEM} -c ${SOURCES}/${source}.cpp -o ${object}
                  COMMAND_ERROR_IS_FATAL ANY)
endfunction()

foreach(option IN LISTS options)
  string(MAKE_C_IDENTIFIER "with${option}" name)
  compile(main "${option}" ${BUILD}/main.${name}.o)
  compile(sum "${option}" ${BUILD}/sum.${name}.o)
endforeach()
foreach(one IN LISTS options)
  foreach(other IN LISTS options)
    string(MAKE_C_IDENTIFIER "with${one}" one_name)
    string(MAKE_C_IDENTIFIER "with${other}" other_name)
    execute_process(COMMAND ${COMPILER} -fopenmp ${BUILD}/main.${one_name}.o ${BUILD}/sum.${other_name}.o -o ${BUILD}/program
                    RESULT_VARIABLE failed ERROR_VARIABLE output)
    if(one STREQUAL other AND failed)
      message(FATAL_ERROR "\"${one}\" does not link with itself:\n${output}")
    elseif(NOT one STREQUAL other AND NOT failed)
      message(FATAL_ERROR "\"${one}\" links with \"${other}\"")
    endif()
    if(one STREQUAL other AND NOT one MATCHES "avx")
      execute_process(COMMAND ${BUILD}/program COMMAND_ERROR_IS_FATAL ANY)
    endif()
  endforeach()
endforeach()
