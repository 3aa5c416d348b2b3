// SPDX-License-Identifier: MIT
// Banks alone, 64 tokens of 768 features on one thread, with gates given: by rank, experts and experts
// chosen.
#include "support.hpp"

namespace {

using bench::Index, bench::Matrix, bench::S, bench::Work;

constexpr Index d = 768, tokens = 64;

/// A bank under gates of which each row has `chosen` of `experts`, another set row by row.
template <class Bank>
struct Call {
  const moxie::MoeAdapter<Bank, moxie::GivenRouter<S>> adapter;
  moxie::Buffer<S> theta, gradient;
  Matrix x = bench::matrix(tokens, d, 1), y = bench::matrix(tokens, d, 2), dx = Matrix::Zero(tokens, d);
  moxie::Cache<S> cache;
  moxie::Workspace<S> workspace;

  Call(const Bank& bank, Index chosen)
      : adapter(bank, moxie::GivenRouter<S>({.experts = bank.experts(), .heads = bank.rows_per_token()})),
        theta(static_cast<std::size_t>(bank.size())),
        gradient(theta.size()) {
    bench::fill(theta, 3);
    Matrix gates = Matrix::Zero(tokens * bank.rows_per_token(), bank.experts());
    for (Index row = 0; row < gates.rows(); ++row)
      for (Index j = 0; j < chosen; ++j) gates(row, (row + j) % gates.cols()) = 1 / static_cast<S>(chosen);
    moxie::give_gates<S>(cache.routing, gates, bank.rows_per_token());
  }
  void forward() { adapter.forward(theta, x, y, cache, workspace); }
  void backward(const Matrix& dy) { adapter.backward(theta, x, dy, cache, workspace, {}, dx, gradient); }
};

Call<moxie::LoraBank<S>> lora_call(const benchmark::State& state, moxie::ExpertPath path) {
  const moxie::LoraBank<S>::Config config{
      .in = d, .out = d, .experts = state.range(0), .rank = state.range(1), .path = path};
  return {moxie::LoraBank<S>(config), state.range(2)};
}
/// Both products, each 2 d operations per token and chosen rank.
Work lora_work(const benchmark::State& state) {
  const auto ranks = static_cast<double>(state.range(1)), n = static_cast<double>(d * tokens);
  return {4 * n * ranks * static_cast<double>(state.range(2)),
          2 * static_cast<double>(d * state.range(0)) * ranks + 3 * n};
}

template <moxie::ExpertPath path>
void lora_forward(benchmark::State& state) {
  auto call = lora_call(state, path);
  bench::measure(state, lora_work(state), [&] { call.forward(); });
}
template <moxie::ExpertPath path>
void lora_backward(benchmark::State& state) {
  auto call = lora_call(state, path);
  const Matrix dy = bench::matrix(tokens, d, 4);
  call.forward();
  bench::measure(state, lora_work(state) + lora_work(state), [&] { call.backward(dy); });
}

Call<moxie::Ia3Bank<S>> ia3_call(const benchmark::State& state) {
  return {moxie::Ia3Bank<S>({.features = d, .heads = state.range(1), .experts = state.range(0)}),
          state.range(0)};
}
/// The mixture of the vectors and its product with x.
Work ia3_work(const benchmark::State& state) {
  const auto experts = static_cast<double>(state.range(0)), n = static_cast<double>(d * tokens);
  return {n * (2 * experts + 1), static_cast<double>(d) * experts + 2 * n};
}
void ia3_forward(benchmark::State& state) {
  auto call = ia3_call(state);
  bench::measure(state, ia3_work(state), [&] { call.forward(); });
}
void ia3_backward(benchmark::State& state) {
  auto call = ia3_call(state);
  const Matrix dy = bench::matrix(tokens, d, 4);
  call.forward();
  bench::measure(state, ia3_work(state) + ia3_work(state) + ia3_work(state), [&] { call.backward(dy); });
}

void lora_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"experts", "rank", "chosen"})->Args({1, 8, 1})->Args({1, 16, 1});
  for (const int chosen : {1, 2, 8}) b->Args({8, 8, chosen});
}
using moxie::ExpertPath;
BENCHMARK(lora_forward<ExpertPath::dense>)->Apply(lora_shapes);
BENCHMARK(lora_forward<ExpertPath::grouped>)->Apply(lora_shapes);
BENCHMARK(lora_backward<ExpertPath::dense>)->Apply(lora_shapes);
BENCHMARK(lora_backward<ExpertPath::grouped>)->Apply(lora_shapes);
BENCHMARK(ia3_forward)->ArgNames({"experts", "heads"})->Args({1, 1})->Args({10, 1})->Args({10, 12});
BENCHMARK(ia3_backward)->ArgNames({"experts", "heads"})->Args({1, 1})->Args({10, 1})->Args({10, 12});

}  // namespace
