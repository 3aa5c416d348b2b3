// SPDX-License-Identifier: MIT
// save_once FILE LETTER SIZE [--short]: saves SIZE times the letter, in two parts, for save_faults.sh to
// break. Calls of getppid() mark where it begins and ends. --short: at most 7 bytes a write, and every
// other one is interrupted. save_once FILE: reads it. Exit 0, or 2 with the error's text.
#include <moxie/io/file.hpp>

#include <sys/syscall.h>

#include <cstdio>

namespace {
bool short_writes = false;
}

// In place of the C library's.
extern "C" ssize_t write(int fd, const void* bytes, size_t n) {
  static bool interrupt = false;
  interrupt = !interrupt;
  if (short_writes && interrupt) {
    errno = EINTR;
    return -1;
  }
  return syscall(SYS_write, fd, bytes, short_writes ? std::min<size_t>(n, 7) : n);
}

int main(int argc, char** argv) {
  if (argc != 2 && argc != 4 && argc != 5) return 64;
  short_writes = argc == 5;
  try {
    if (argc == 2) {
      getppid();
      moxie::io::read_file(argv[1], 1 << 20);
      getppid();
    } else {
      const std::string all(std::stoul(argv[3]), argv[2][0]);
      const std::span<const char> bytes(all),
          parts[] = {bytes.first(all.size() / 3), bytes.subspan(all.size() / 3)};
      getppid();
      moxie::io::save_file(argv[1], std::span<const std::span<const char>>(parts));
      getppid();
    }
  } catch (const moxie::Error& error) {
    short_writes = false;
    std::puts(error.what());
    return 2;
  }
}
