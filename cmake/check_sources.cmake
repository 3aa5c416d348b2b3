# SPDX-License-Identifier: MIT
# cmake -DROOT=<project> -P check_sources.cmake: the include floors and the other rules that a compiler does not see.
cmake_minimum_required(VERSION 3.22)
get_filename_component(ROOT ${ROOT} ABSOLUTE)

# A header includes only headers of lower floors: nothing upwards, nothing sideways, so no cycles. Lowest first;
# paths under include/moxie without ".hpp". "folder/*" stands for what no floor names.
set(floors
    "core/version"
    "core/types"
    "core/code"
    "core/error"
    "core/run"
    "core/parallel core/random io/file io/dtype io/checksum"
    "core/params core/math io/json io/zip io/pickle_values io/report io/automaton"
    "core/routing core/init kernels/packet kernels/panels io/tensor_info io/pickle io/config_reader io/pattern"
    "kernels/dot kernels/combine kernels/softmax concepts io/safetensors_header io/module_rule"
    "kernels/visits experts/dropout experts/path routers/projection losses/pool optim/step"
    "experts/lora_config"
    "experts/lora_shape"
    "experts/* routers/* losses/* optim/*"
    "workspace"
    "prepared checks"
    "adapter"
    "linear allocation presets route experts/lora_init io/adapter_router"
    "adapter_set plot/canvas io/adapter_config"
    "analysis tensor plot/axis io/safetensors io/torch_archive io/adapter_layout io/adapter_describe"
    "plot/* io/safetensors_writer io/torch_bin io/adapter_files io/adapter_settings io/adapter_holds"
    "plot/svg io/adapter_shape io/adapter_write_config"
    "io/adapter_plan"
    "io/adapter_compare"
    "io/adapter_load"
    "io/* moxie")
# Leaves: headers that the umbrella leaves out, because they bring more than the core needs.
set(leaves "^(tensor|experts/lora_init|plot/.*|io/.*|moxie)$")

set(faults 0)
function(fault text)
  message("${text}")
  math(EXPR faults "${faults} + 1")
  set(faults ${faults} PARENT_SCOPE)
endfunction()

function(floor_of header result)
  cmake_path(GET header PARENT_PATH folder)
  foreach(name ${header} ${folder}/*)
    set(level 0)
    foreach(floor IN LISTS floors)
      string(REPLACE " " ";" names "${floor}")
      if(name IN_LIST names)
        set(${result} ${level} PARENT_SCOPE)
        return()
      endif()
      math(EXPR level "${level} + 1")
    endforeach()
  endforeach()
  set(${result} -1 PARENT_SCOPE)
endfunction()

# What a pattern may not match in code (comments, texts and characters are blanked), but in files that `where` names.
function(ban pattern where why)
  if(NOT header MATCHES "${where}" AND code MATCHES "${pattern}")
    fault("${file}: \"${CMAKE_MATCH_0}\": ${why}")
    set(faults ${faults} PARENT_SCOPE)
  endif()
endfunction()

set(nowhere "^$")
set(before "(^|[^A-Za-z0-9_])")
set(included)
file(GLOB_RECURSE headers RELATIVE ${ROOT}/include/moxie ${ROOT}/include/moxie/*.hpp)
foreach(file IN LISTS headers)
  file(READ ${ROOT}/include/moxie/${file} text)
  string(REGEX REPLACE "\\.hpp$" "" header ${file})
  string(REGEX REPLACE "'\\\\?.'" "''" code "${text}")
  string(REGEX REPLACE "\"[^\"\n]*\"" "\"\"" code "${code}")
  string(REGEX REPLACE "//[^\n]*" "" code "${code}")

  floor_of(${header} floor)
  if(floor EQUAL -1)
    fault("${file}: has no floor; give it one in cmake/check_sources.cmake")
  endif()
  string(REGEX MATCHALL "# *include <moxie/[^>]*\\.hpp>" includes "${code}")
  foreach(include IN LISTS includes)
    string(REGEX REPLACE ".*<moxie/(.*)\\.hpp>" "\\1" include ${include})
    list(APPEND included ${include})
    floor_of(${include} below)
    if(NOT below LESS floor)
      fault("${file}: includes <moxie/${include}.hpp>, which is not on a lower floor")
    endif()
    if(header STREQUAL "moxie" AND include MATCHES "${leaves}")
      fault("${file}: the umbrella includes the leaf <moxie/${include}.hpp>")
    endif()
  endforeach()

  string(REGEX MATCHALL "\n" lines "${text}")
  list(LENGTH lines lines)
  if(lines GREATER 300)
    fault("${file}: ${lines} lines, at most 300")
  endif()
  if(NOT text MATCHES "#pragma once")
    fault("${file}: no #pragma once")
  endif()
  if(header STREQUAL "moxie" AND code MATCHES "\n[^#\n]")
    fault("${file}: the umbrella only includes")
  endif()

  ban("# *include \"" ${nowhere} "own headers are included as <moxie/...>")
  ban("#[ ]*pragma omp|omp_[a-z_]+" "^core/parallel$" "OpenMP only in core/parallel.hpp")
  ban("reduction *\\(|omp atomic" ${nowhere} "no sum may depend on the number of threads")
  ban("Eigen::internal" "^(kernels/|core/types$)" "packet primitives only in kernels/")
  ban("${before}assert *\\(" ${nowhere} "input is refused by fail(), inner invariants are eigen_assert")
  ban("${before}s?rand *\\(|setRandom|::Random *\\(|random_device" ${nowhere} "randomness only through an argument")
  ban("std::(cout|cerr|clog)|[^a-z_]printf *\\(" ${nowhere} "a library does not print")
  ban("(atof|strtod|strtof|sscanf|std::stod|std::stof) *\\(" ${nowhere} "reads numbers by the locale")
  ban("${before}virtual " ${nowhere} "static inside")
  ban("${before}new +[A-Za-z_:]" ${nowhere} "no owning raw pointers")
  ban("\nusing namespace" ${nowhere} "not in a header")
  ban("TODO|FIXME" ${nowhere} "finish it")
endforeach()

if(EXISTS ${ROOT}/include/moxie/moxie.hpp)
  foreach(file IN LISTS headers)
    string(REGEX REPLACE "\\.hpp$" "" header ${file})
    if(NOT header MATCHES "${leaves}" AND NOT header IN_LIST included)
      fault("${file}: nobody includes it; the umbrella should")
    endif()
  endforeach()
endif()

foreach(folder include tests bench examples)
  file(GLOB_RECURSE files RELATIVE ${ROOT} ${ROOT}/${folder}/*.hpp ${ROOT}/${folder}/*.cpp)
  foreach(file IN LISTS files)
    file(STRINGS ${ROOT}/${file} licence REGEX "^// SPDX-License-Identifier: MIT$" LIMIT_COUNT 1)
    if(NOT licence)
      fault("${file}: no SPDX line")
    endif()
  endforeach()
endforeach()

# The README's first example is the program itself.
if(EXISTS ${ROOT}/README.md)
  file(READ ${ROOT}/README.md readme)
  file(READ ${ROOT}/examples/quickstart.cpp quickstart)
  string(FIND "${readme}" "${quickstart}" at)
  if(at EQUAL -1)
    fault("README.md: does not show examples/quickstart.cpp as it is")
  endif()
endif()

list(LENGTH headers count)
if(count EQUAL 0)
  fault("no headers under ${ROOT}/include/moxie")
endif()
if(faults GREATER 0)
  message(FATAL_ERROR "${faults} faults in ${count} headers")
endif()
message("${count} headers keep the rules")
