# SPDX-License-Identifier: MIT
# Programs ONE and OTHER must print the same text, and some.
execute_process(COMMAND ${ONE} OUTPUT_VARIABLE one COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${OTHER} OUTPUT_VARIABLE other COMMAND_ERROR_IS_FATAL ANY)
if(one STREQUAL "" OR NOT one STREQUAL other)
  message(FATAL_ERROR "${ONE} printed\n${one}\n${OTHER} printed\n${other}")
endif()
