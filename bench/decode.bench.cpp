// SPDX-License-Identifier: MIT
// A few tokens at a time, as an engine decodes: from theta, from prepared weights and from 16-bit ones.
// `copies` layers are served in turn, so that with 64 of them no weight is in a near cache when its call
// comes.
#include "support.hpp"

namespace {

using bench::Index, bench::Matrix, bench::S;

struct Theta {
  static auto prepare(const auto&, const moxie::Buffer<S>& theta) { return theta; }
};
template <class W>
struct As {
  static auto prepare(const auto& adapter, const moxie::Buffer<S>& theta) {
    return adapter.template prepare<W>(theta);
  }
};

struct Soft {
  static auto make(Index d) {
    return moxie::MoeAdapter(moxie::LoraBank<S>({.in = d, .out = d, .experts = 8, .rank = 8}),
                             moxie::SoftRouter<S>({.in = d, .experts = 8}));
  }
};
struct Top2 {
  static auto make(Index d) {
    return moxie::MoeAdapter(moxie::LoraBank<S>({.in = d, .out = d, .experts = 8, .rank = 8}),
                             moxie::TopKRouter<S>({.in = d, .experts = 8, .k = 2}));
  }
};

template <class Kind, class Weights>
void decode(benchmark::State& state) {
  const Index d = state.range(0), tokens = state.range(1), copies = state.range(2);
  const auto adapter = Kind::make(d);
  moxie::Buffer<S> theta(static_cast<std::size_t>(adapter.size()));
  bench::fill(theta, 3);
  const std::vector<decltype(Weights::prepare(adapter, theta))> layers(static_cast<std::size_t>(copies),
                                                                       Weights::prepare(adapter, theta));
  const Matrix x = bench::matrix(tokens, d, 1);
  Matrix y = bench::matrix(tokens, d, 2);
  moxie::Cache<S> cache;
  moxie::Workspace<S> workspace;
  const moxie::Run run{.threads = static_cast<int>(state.range(3))};
  std::size_t at = 0;
  for ([[maybe_unused]] auto _ : state) {
    adapter.forward(layers[at], x, y, cache, workspace, run);
    at = (at + 1) % layers.size();
  }
  state.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(tokens), benchmark::Counter::kIsIterationInvariantRate);
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"d", "T", "copies", "threads"})->UseRealTime();
  b->ArgsProduct({{768, 4096}, {1, 8}, {1, 64}, {1, 2}});
}

BENCHMARK(decode<Soft, Theta>)->Apply(shapes);
BENCHMARK(decode<Soft, As<S>>)->Apply(shapes);
BENCHMARK(decode<Soft, As<Eigen::bfloat16>>)->Apply(shapes);
BENCHMARK(decode<Soft, As<Eigen::half>>)->Apply(shapes);
BENCHMARK(decode<Top2, Theta>)->Apply(shapes);
BENCHMARK(decode<Top2, As<S>>)->Apply(shapes);
BENCHMARK(decode<Top2, As<Eigen::bfloat16>>)->Apply(shapes);

}  // namespace
