# SPDX-License-Identifier: MIT
# cmake -DVALGRIND=... -DPROGRAM=... -DBUILD=... -DMOST=... -P instructions.cmake: counts the instructions of one
# forward of a soft mixture (d = 768, E = 8, r = 8, packets of 8) and compares them with the multiply-adds that it
# needs: at most MOST instructions for 100 fused multiply-adds of a packet, loads, stores and all else included. The
# count does not depend on the machine's speed or load.
cmake_minimum_required(VERSION 3.22)

# At 1024 tokens a token may cost this many hundredths of what it costs at 64.
set(most_growth 105)

# Fused multiply-adds of a token: (E r + E) rows of A and router, E r rows of B, d / 8 packets each.
math(EXPR needed "(8 * 8 + 8 + 8 * 8) * 768 / 8")

# instructions(tokens result)
function(instructions tokens result)
  set(file ${BUILD}/${name}.${tokens}.callgrind)
  execute_process(COMMAND ${VALGRIND} --tool=callgrind "--toggle-collect=measured*" --callgrind-out-file=${file}
                          ${PROGRAM} ${tokens}
                  RESULT_VARIABLE code OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(code EQUAL 77)
    message("SKIPPED: this processor has no AVX2. All tests passed")
    set(${result} 0 PARENT_SCOPE)
    return()
  elseif(NOT code EQUAL 0)
    message(FATAL_ERROR "${PROGRAM} ${tokens} under ${VALGRIND}: ${code}\n${output}")
  endif()
  file(STRINGS ${file} total REGEX "^(summary|totals): [0-9]+" LIMIT_COUNT 1)
  string(REGEX MATCH "[0-9]+" total "${total}")
  if(NOT total)
    message(FATAL_ERROR "${file} has no total, or nothing was counted")
  endif()
  set(${result} ${total} PARENT_SCOPE)
endfunction()

get_filename_component(name ${PROGRAM} NAME)
file(MAKE_DIRECTORY ${BUILD})
instructions(64 few)
if(few EQUAL 0)
  return()
endif()
instructions(1024 many)
math(EXPR per_token "${few} / 64")
math(EXPR per_token_of_many "${many} / 1024")
math(EXPR per_hundred "100 * ${per_token} / ${needed}")
message("${per_token} instructions a token at T = 64, ${per_token_of_many} at T = 1024, for ${needed} multiply-adds of "
        "packets: ${per_hundred} for 100, allowed ${MOST}")
if(per_hundred LESS 100)
  message(FATAL_ERROR "fewer instructions than multiply-adds: not all was counted")
endif()
if(per_hundred GREATER MOST)
  message(FATAL_ERROR "too many instructions")
endif()
math(EXPR growth "100 * ${per_token_of_many} / ${per_token}")
if(growth GREATER most_growth)
  message(FATAL_ERROR "a token of 1024 costs ${growth} % of one of 64, allowed ${most_growth} %")
endif()
