// SPDX-License-Identifier: MIT
// Whole adapters on a d x d layer, beside what the frozen layer itself costs.
#include "support.hpp"

namespace {

using bench::Index, bench::Matrix, bench::S, bench::Work;

/// A forward whose tokens are each served by `ranks` of `all_ranks`, under a router over `experts` or none
/// (0).
Work lora_work(Index d, Index tokens, Index ranks, Index all_ranks, Index experts) {
  const auto n = [](Index v) { return static_cast<double>(v); };
  return {2 * n(tokens) * n(d) * n(2 * ranks + experts),
          n(d) * n(2 * std::min(all_ranks, tokens * ranks) + experts) + n(tokens) * n(3 * d + ranks)};
}
Work ia3_work(Index d, Index tokens, Index experts, bool routed) {
  const auto n = [](Index v) { return static_cast<double>(v); };
  return {n(tokens) * n(d) * n(1 + (routed ? 4 : 1) * experts),
          n(d) * n((routed ? 2 : 1) * experts + 2 * tokens)};
}

struct Lora {
  static auto make(Index d) { return moxie::lora<S>({.in = d, .out = d}); }
  static Work work(Index d, Index tokens) { return lora_work(d, tokens, 8, 8, 0); }
};
struct MoLoRA {
  static auto make(Index d) { return moxie::molora<S>({.in = d, .out = d, .experts = 8}); }
  static Work work(Index d, Index tokens) { return lora_work(d, tokens, 32, 32, 8); }
};
struct MoLA {
  static auto make(Index d) { return moxie::mola<S>({.in = d, .out = d, .experts = 8, .dropout = 0}); }
  static Work work(Index d, Index tokens) { return lora_work(d, tokens, 16, 64, 8); }
};
struct MoV {
  static auto make(Index d) { return moxie::mov<S>({.features = d}); }
  static Work work(Index d, Index tokens) { return ia3_work(d, tokens, 10, true); }
};
struct Ia3 {
  static auto make(Index d) { return moxie::ia3<S>({.features = d}); }
  static Work work(Index d, Index tokens) { return ia3_work(d, tokens, 1, false); }
};

template <class Kind>
struct Call {
  const Index d, tokens;
  const decltype(Kind::make(1)) adapter;
  moxie::Buffer<S> theta, gradient;
  Matrix x, y, dx;
  moxie::Cache<S> cache;
  moxie::Workspace<S> workspace;
  moxie::Run run;

  explicit Call(const benchmark::State& state)
      : d(state.range(0)),
        tokens(state.range(1)),
        adapter(Kind::make(d)),
        theta(static_cast<std::size_t>(adapter.size())),
        gradient(theta.size()),
        x(bench::matrix(tokens, d, 1)),
        y(bench::matrix(tokens, d, 2)),
        dx(Matrix::Zero(tokens, d)) {
    bench::fill(theta, 3);
    run.threads = static_cast<int>(state.range(2));
  }
};

template <class Kind>
void adapter_forward(benchmark::State& state) {
  Call<Kind> c(state);
  bench::measure(
      state, Kind::work(c.d, c.tokens),
      [&] { c.adapter.forward(c.theta, c.x, c.y, c.cache, c.workspace, c.run); }, c.run.threads);
}

template <class Kind>
void adapter_backward(benchmark::State& state) {
  Call<Kind> c(state);
  const Matrix dy = bench::matrix(c.tokens, c.d, 4);
  c.adapter.forward(c.theta, c.x, c.y, c.cache, c.workspace, c.run);
  const Work once = Kind::work(c.d, c.tokens);
  bench::measure(
      state, once + once,
      [&] { c.adapter.backward(c.theta, c.x, dy, c.cache, c.workspace, c.run, c.dx, c.gradient); },
      c.run.threads);
}

/// y = x W^T in plain Eigen, on one thread.
void frozen_layer(benchmark::State& state) {
  const Index d = state.range(0), tokens = state.range(1);
  const Matrix x = bench::matrix(tokens, d, 1), weight = bench::matrix(d, d, 2);
  Matrix y(tokens, d);
  const auto n = static_cast<double>(d), t = static_cast<double>(tokens);
  bench::measure(state, {2 * t * n * n, n * n + 2 * t * n}, [&] { y.noalias() = x * weight.transpose(); });
}

BENCHMARK(frozen_layer)->ArgNames({"d", "T"})->UseRealTime()->ArgsProduct({{64, 768}, {1, 64, 512}});
BENCHMARK(adapter_forward<Lora>)->Apply(bench::shapes);
BENCHMARK(adapter_forward<MoLoRA>)->Apply(bench::shapes);
BENCHMARK(adapter_forward<MoLA>)->Apply(bench::shapes);
BENCHMARK(adapter_forward<MoV>)->Apply(bench::shapes);
BENCHMARK(adapter_forward<Ia3>)->Apply(bench::shapes);
BENCHMARK(adapter_backward<Lora>)->Apply(bench::shapes);
BENCHMARK(adapter_backward<MoLoRA>)->Apply(bench::shapes);
BENCHMARK(adapter_backward<MoLA>)->Apply(bench::shapes);
BENCHMARK(adapter_backward<MoV>)->Apply(bench::shapes);
BENCHMARK(adapter_backward<Ia3>)->Apply(bench::shapes);

}  // namespace
