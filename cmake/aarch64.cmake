# SPDX-License-Identifier: MIT
# Toolchain for 64-bit ARM on another Linux machine, with Debian's g++-aarch64-linux-gnu; its programs run in qemu-user.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
# Libraries of that processor only; packages of headers, such as Eigen, are those of this machine.
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE BOTH)
find_program(MOXIE_QEMU_AARCH64 qemu-aarch64)
if(MOXIE_QEMU_AARCH64)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${MOXIE_QEMU_AARCH64} -L /usr/aarch64-linux-gnu)
endif()
