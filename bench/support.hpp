// SPDX-License-Identifier: MIT
#pragma once

#include "limits.hpp"

#include <moxie/moxie.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <span>

namespace bench {

using S = float;
using moxie::Index;
using Matrix = moxie::Matrix<S>;

/// Uniform on [-1, 1), the same on every machine.
inline void fill(std::span<S> values, std::uint64_t stream) {
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<S>(2 * moxie::random::uniform(stream, i) - 1);
}
inline Matrix matrix(Index rows, Index cols, std::uint64_t stream) {
  Matrix m(rows, cols);
  fill({m.data(), static_cast<std::size_t>(m.size())}, stream);
  return m;
}

/// What one call needs at least: floating-point operations, and scalars read or written once.
struct Work {
  double flops = 0, scalars = 0;
};
inline Work operator+(Work a, Work b) { return {a.flops + b.flops, a.scalars + b.scalars}; }

/// Measured once for each number of threads.
inline const Limits& limits(int threads) {
  static std::map<int, Limits> measured;
  const auto found = measured.find(threads);
  return found != measured.end() ? found->second
                                 : measured.emplace(threads, measure_limits(threads)).first->second;
}

/// Times `call` and reports its work as FLOP/s and bytes/s, and as the share of the least time that this
/// machine allows: all its arithmetic at the peak, or all its bytes read from the nearest cache that holds
/// them.
template <class F>
void measure(benchmark::State& state, Work work, F&& call, int threads = 1) {
  using benchmark::Counter;
  const double bytes = work.scalars * sizeof(S);
  const Limits& most = limits(threads);
  const double least = 1e-9 * std::max(work.flops / most.fma_gflops, bytes / most.holding(bytes).read);
  const auto start = std::chrono::steady_clock::now();
  for ([[maybe_unused]] auto _ : state) {
    call();
    benchmark::ClobberMemory();
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  state.counters["FLOP/s"] = Counter(work.flops, Counter::kIsIterationInvariantRate);
  state.counters["bytes/s"] = Counter(bytes, Counter::kIsIterationInvariantRate, Counter::kIs1024);
  state.counters["% of limit"] = 100 * least * static_cast<double>(state.iterations()) / seconds.count();
}

/// Width d of the layer, tokens T of the call, threads.
inline void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"d", "T", "threads"})->UseRealTime();
  for (const int threads : {1, 2})
    for (const int d : {64, 768})
      for (const int tokens : {1, 64, 512}) b->Args({d, tokens, threads});
}

}  // namespace bench
