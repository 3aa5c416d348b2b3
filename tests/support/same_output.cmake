# SPDX-License-Identifier: MIT
# Programs ONE and OTHER must print the same text, and some. EMULATOR runs them, where they are not for this machine.
execute_process(COMMAND ${EMULATOR} ${ONE} OUTPUT_VARIABLE one COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${EMULATOR} ${OTHER} OUTPUT_VARIABLE other COMMAND_ERROR_IS_FATAL ANY)
if(one STREQUAL "" OR NOT one STREQUAL other)
  message(FATAL_ERROR "${ONE} printed\n${one}\n${OTHER} printed\n${other}")
endif()
