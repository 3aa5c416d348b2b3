// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/moxie.hpp>

#include <benchmark/benchmark.h>

#include <cstdint>
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

/// Reports a call's work as FLOP/s and bytes/s.
inline void report(benchmark::State& state, Work work) {
  using benchmark::Counter;
  state.counters["FLOP/s"] = Counter(work.flops, Counter::kIsIterationInvariantRate);
  state.counters["bytes/s"] =
      Counter(work.scalars * sizeof(S), Counter::kIsIterationInvariantRate, Counter::kIs1024);
}

/// Width d of the layer, tokens T of the call, threads.
inline void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"d", "T", "threads"})->UseRealTime();
  for (const int threads : {1, 2})
    for (const int d : {64, 768})
      for (const int tokens : {1, 64, 512}) b->Args({d, tokens, threads});
}

}  // namespace bench
