# SPDX-License-Identifier: MIT
# What our own tests, examples and benchmarks have in common. Nothing of it reaches users of moxie::moxie.

add_library(moxie_own INTERFACE)
# Eigen's threads inside ours would make sums depend on the number of threads.
target_compile_definitions(moxie_own INTERFACE EIGEN_DONT_PARALLELIZE)
if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
  target_compile_options(moxie_own INTERFACE -Wall -Wextra -Wpedantic -Wconversion -Wshadow
                                             $<$<BOOL:${MOXIE_WERROR}>:-Werror>)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # False alarms of GCC 12: in its own AVX-512 header (bug 105593) and in sums of std::string (bug 105651).
  target_compile_options(moxie_own INTERFACE -Wno-uninitialized -Wno-maybe-uninitialized -Wno-array-bounds -Wno-restrict
                                             -Wno-stringop-overflow)
endif()
# A program that sets MOXIE_ARCHITECTURE is built for that one.
set(architecture $<TARGET_PROPERTY:MOXIE_ARCHITECTURE>)
target_compile_options(moxie_own INTERFACE $<$<BOOL:${architecture}>:-march=${architecture}>)
if(MOXIE_NATIVE)
  target_compile_options(moxie_own INTERFACE $<$<NOT:$<BOOL:${architecture}>>:-march=native>)
endif()
if(MOXIE_SANITIZE)
  target_compile_options(moxie_own INTERFACE -fsanitize=${MOXIE_SANITIZE} -fno-sanitize-recover=all
                                             -fno-omit-frame-pointer)
  target_link_options(moxie_own INTERFACE -fsanitize=${MOXIE_SANITIZE})
endif()

# moxie_add_program(name SOURCES file... [LIBRARIES target...] [NO_OPENMP])
# NO_OPENMP compiles against the same headers as a program that has never heard of OpenMP.
function(moxie_add_program name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "NO_OPENMP" "" "SOURCES;LIBRARIES")
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE moxie_own ${arg_LIBRARIES})
  if(arg_NO_OPENMP)
    target_include_directories(${name} PRIVATE $<TARGET_PROPERTY:moxie,INTERFACE_INCLUDE_DIRECTORIES>)
    target_compile_features(${name} PRIVATE cxx_std_20)
    target_link_libraries(${name} PRIVATE Eigen3::Eigen)
  else()
    target_link_libraries(${name} PRIVATE moxie::moxie)
  endif()
endfunction()
