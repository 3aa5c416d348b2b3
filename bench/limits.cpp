// SPDX-License-Identifier: MIT
#include "limits.hpp"

#include <moxie/core/parallel.hpp>
#include <moxie/core/types.hpp>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <utility>

namespace bench {
namespace {

using moxie::Index;

using Packet = Eigen::internal::packet_traits<float>::type;
constexpr Index width = sizeof(Packet) / sizeof(float);

/// Keeps the compiler from dropping what computes `value`.
template <class T>
void keep(T& value) {
  asm volatile("" : : "r"(&value) : "memory");
}

/// Seconds of f(thread) on every thread at once: the 20th percentile of short runs.
template <class F>
double seconds(int threads, int runs, F&& f) {
  std::vector<double> times;
  for (int run = 0; run < runs; ++run) {
    const auto start = std::chrono::steady_clock::now();
    moxie::for_blocks(threads, threads, [&](Index block, int) { f(block); });
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 5];
}

/// f(0) to f(n - 1) without a loop, so that an array of packets stays in registers whatever the optimiser
/// thinks.
template <int n, class F>
void unrolled(F&& f) {
  [&]<int... i>(std::integer_sequence<int, i...>) { (f(i), ...); }
  (std::make_integer_sequence<int, n>());
}

template <int n>
void keep_sum(const Packet (&parts)[n]) {
  Packet sum = parts[0];
  unrolled<n - 1>([&](int i) { sum = Eigen::internal::padd(sum, parts[i + 1]); });
  keep(sum);
}

}  // namespace

double fma_gflops(int threads, int runs, int steps) {
  using namespace Eigen::internal;
  // Chains enough for two units of latency 4 to 5; more would not fit 16 registers with their factors.
  constexpr int chains = 12;
  const double time = seconds(threads, runs, [=](Index) {
    Packet sum[chains];
    unrolled<chains>([&](int i) { sum[i] = pset1<Packet>(static_cast<float>(i)); });
    const Packet a = pset1<Packet>(0.999f), b = pset1<Packet>(0.001f);
    for (int step = 0; step < steps; ++step) unrolled<chains>([&](int i) { sum[i] = pmadd(a, sum[i], b); });
    keep_sum(sum);
  });
  return 2e-9 * chains * steps * static_cast<double>(width) * threads / time;
}

namespace {

void read(const float* p, Index n) {
  using namespace Eigen::internal;
  constexpr int chains = 8;
  Packet sum[chains];
  unrolled<chains>([&](int k) { sum[k] = pset1<Packet>(0); });
  for (Index i = 0; i + chains * width <= n; i += chains * width)
    unrolled<chains>([&](int k) { sum[k] = padd(sum[k], pload<Packet>(p + i + k * width)); });
  keep_sum(sum);
}
void update(float* p, Index n) {
  using namespace Eigen::internal;
  constexpr int packets = 4;
  float one = 1;
  asm volatile("" : "+m"(one));  // a product with a known 1 is no product
  const Packet factor = pset1<Packet>(one);
  for (Index i = 0; i + packets * width <= n; i += packets * width)
    unrolled<packets>(
        [&](int k) { pstore(p + i + k * width, pmul(pload<Packet>(p + i + k * width), factor)); });
  asm volatile("" : : "r"(p) : "memory");
}

/// Bytes of the data cache of this level that one core sees; 0 where the system does not say. What the C
/// library says of a virtual machine's L3 may be that of the whole processor, so the kernel is asked first.
double cache_bytes(int level) {
  for (int index = 0; index < 8; ++index) {
    const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    int found = 0;
    std::string type, size;
    if (!(std::ifstream(folder + "level") >> found) || found != level) continue;
    std::ifstream(folder + "type") >> type;
    if (type == "Instruction" || !(std::ifstream(folder + "size") >> size)) continue;
    return std::stod(size) * (size.back() == 'M' ? 1 << 20 : 1 << 10);
  }
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  const int names[] = {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE};
  return std::max(0.0, static_cast<double>(sysconf(names[level - 1])));
#else
  return 0;
#endif
}

}  // namespace

const Limits::Level& Limits::holding(double bytes) const {
  for (std::size_t i = 1; i + 1 < levels.size(); ++i)
    if (bytes <= levels[i].bytes) return levels[i];
  return levels.back();
}
double Limits::l2_bytes() const { return levels[1].bytes / threads; }

Limits measure_limits(int threads) {
  Limits limits{.threads = threads, .fma_gflops = fma_gflops(threads, 25, 200000), .levels = {}};
  const double l1 = std::max(32e3, cache_bytes(1)), l2 = std::max(256e3, cache_bytes(2)), l3 = cache_bytes(3);
  limits.levels = {{.name = "L1", .bytes = l1 * threads}, {.name = "L2", .bytes = l2 * threads}};
  if (l3 > l2) limits.levels.push_back({.name = "L3", .bytes = l3});
  limits.levels.push_back({.name = "DRAM"});
  const double beyond = std::clamp(4 * std::max(l2 * threads, l3), 64e6, 512e6);
  for (Limits::Level& level : limits.levels) {
    // Half of a cache leaves room for what else lives there.
    const double bytes = level.bytes > 0 ? level.bytes / 2 : beyond;
    const auto each = static_cast<Index>(bytes / 4 / threads) / 64 * 64;
    std::vector<moxie::Buffer<float>> data(static_cast<std::size_t>(threads));
    moxie::for_blocks(threads, 1, [&](Index t, int) {
      data[static_cast<std::size_t>(t)].assign(static_cast<std::size_t>(each), 1.0f);
    });
    const Index passes = std::max<Index>(1, static_cast<Index>(2e7) / (each * 4));
    const int runs = level.bytes > 0 ? 25 : 9;
    const auto rate = [&](auto&& touch, int directions) {
      const double time = seconds(threads, runs, [&](Index t) {
        for (Index pass = 0; pass < passes; ++pass) touch(data[static_cast<std::size_t>(t)].data(), each);
      });
      return 4e-9 * directions * static_cast<double>(each * passes) * threads / time;
    };
    level.read = rate([](const float* p, Index n) { read(p, n); }, 1);
    level.update = rate([](float* p, Index n) { update(p, n); }, 2);
  }
  return limits;
}

std::string text(const Limits& limits) {
  char line[160];
  std::snprintf(line, sizeof line,
                "limits, %d thread%s: %.0f GFLOP/s in packets of %d floats; GB/s read, update:",
                limits.threads, limits.threads == 1 ? "" : "s", limits.fma_gflops, static_cast<int>(width));
  std::string all = line;
  for (const Limits::Level& level : limits.levels) {
    std::snprintf(line, sizeof line, "  %s %.0f, %.0f", level.name.c_str(), level.read, level.update);
    all += line;
  }
  return all;
}

}  // namespace bench
