# SPDX-License-Identifier: MIT
# cmake -DFUZZER=program -DSECONDS=30 -DFOLDER=folder [-DDICTIONARY=file] [-DSEEDS=program] -P run.cmake
# Runs a fuzzer on a fresh corpus. What it crashes on is printed in base64 and stays in the folder.
file(REMOVE_RECURSE ${FOLDER})
file(MAKE_DIRECTORY ${FOLDER}/corpus)
if(SEEDS)
  execute_process(COMMAND ${SEEDS} ${FOLDER}/corpus COMMAND_ERROR_IS_FATAL ANY)
endif()
set(options -max_total_time=${SECONDS} -max_len=4096 -timeout=60 -rss_limit_mb=1024 -malloc_limit_mb=64
            -artifact_prefix=${FOLDER}/ -print_final_stats=1)
if(DICTIONARY)
  list(APPEND options -dict=${DICTIONARY})
endif()
execute_process(COMMAND ${FUZZER} ${FOLDER}/corpus ${options} RESULT_VARIABLE failed OUTPUT_VARIABLE log ERROR_VARIABLE log)
if(failed)
  message("${log}")
  message(FATAL_ERROR "${FUZZER}: ${failed}")
endif()
string(REGEX MATCH "Done [0-9]+ runs[^\n]*" done "${log}")
if(NOT done)
  message(FATAL_ERROR "${FUZZER} did not run:\n${log}")
endif()
message("${done}")
