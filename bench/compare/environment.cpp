// SPDX-License-Identifier: MIT
#include "environment.hpp"

#include <malloc.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <climits>
#include <cstdlib>
#include <fstream>
#include <stdexcept>

#if defined(__SSE__)
#  include <xmmintrin.h>
#endif

namespace compare {
namespace {

/// Binds the process, and so the threads that libraries start while they load.
void pin(int threads) {
  cpu_set_t allowed, wanted;
  CPU_ZERO(&wanted);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  // The last ones: the first serves most interrupts.
  for (int cpu = CPU_SETSIZE - 1; cpu >= 0 && CPU_COUNT(&wanted) < threads; --cpu)
    if (CPU_ISSET(cpu, &allowed)) CPU_SET(cpu, &wanted);
  sched_setaffinity(0, sizeof wanted, &wanted);
}

}  // namespace

int run_self(const std::vector<std::string>& arguments, const Environment& environment, int cores,
             std::string* output) {
  char self[PATH_MAX] = {};
  if (readlink("/proc/self/exe", self, sizeof self - 1) < 0)
    throw std::runtime_error("cannot find this program");
  std::vector<std::string> words{self};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);

  int ends[2] = {-1, -1};
  if (output != nullptr && pipe(ends) != 0) throw std::runtime_error("no pipe to a child");
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("cannot start a child");
  if (child == 0) {
    if (output != nullptr) {
      dup2(ends[1], STDOUT_FILENO);
      close(ends[0]);
      close(ends[1]);
    }
    pin(cores);
    for (const auto& [key, value] : environment) setenv(key.c_str(), value.c_str(), 0);
    execv(self, argv.data());
    _exit(127);
  }
  if (output != nullptr) {
    close(ends[1]);
    char block[4096];
    for (ssize_t n; (n = ::read(ends[0], block, sizeof block)) > 0;)
      output->append(block, static_cast<std::size_t>(n));
    close(ends[0]);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

Environment settings(int threads, const std::string& core_type) {
  const std::string n = std::to_string(threads);
  Environment all = {
      {"OMP_NUM_THREADS", n},
      {"OPENBLAS_NUM_THREADS", n},
      {"OMP_DYNAMIC", "false"},
      // Two pools of threads share the cores, OpenMP's and OpenBLAS's: one that spins on would take
      // whole time slices from the other, one that sleeps at once pays a wake-up each time.
      {"GOMP_SPINCOUNT", "10000"},
      {"OPENBLAS_THREAD_TIMEOUT", "16"}};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
    all["ATEN_CPU_CAPABILITY"] = "avx512";
  else if (__builtin_cpu_supports("avx2"))
    all["ATEN_CPU_CAPABILITY"] = "avx2";
#endif
  if (!core_type.empty()) all["OPENBLAS_CORETYPE"] = core_type;
  return all;
}

std::vector<std::string> core_types() {
  std::vector<std::string> all;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
    all.push_back("SKYLAKEX");
    if (__builtin_cpu_supports("avx512bf16")) all.push_back("COOPERLAKE");
  }
  if (__builtin_cpu_supports("avx2")) {
    all.push_back("HASWELL");
    all.push_back("ZEN");
  }
#endif
  return all;
}

int processors() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

void flush_denormals() {
#if defined(__SSE__)
  _mm_setcsr(_mm_getcsr() | 0x8040);
#endif
}

void keep_memory() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, INT_MAX);
  mallopt(M_TOP_PAD, 64 << 20);
#endif
}

std::string processor_name() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "unknown";
}

std::string compiler_name() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "g++ " __VERSION__;
#endif
}

}  // namespace compare
