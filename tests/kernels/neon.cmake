# SPDX-License-Identifier: MIT
# Compiles instruction_sets.cpp for 64-bit ARM and runs it in an emulator.
cmake_minimum_required(VERSION 3.22)
list(TRANSFORM SYSTEM PREPEND -isystem)
get_filename_component(folder ${PROGRAM} DIRECTORY)
file(MAKE_DIRECTORY ${folder})
execute_process(COMMAND ${COMPILER} -std=c++20 -O2 -static -DEIGEN_DONT_PARALLELIZE -I${ROOT}/include -I${ROOT}/tests
                        ${SYSTEM} ${ROOT}/tests/kernels/instruction_sets.cpp -o ${PROGRAM}
                COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${QEMU} ${PROGRAM} OUTPUT_VARIABLE output COMMAND_ECHO NONE COMMAND_ERROR_IS_FATAL ANY)
message("${output}")
if(NOT output MATCHES "ARM NEON")
  message(FATAL_ERROR "not built for NEON")
endif()
