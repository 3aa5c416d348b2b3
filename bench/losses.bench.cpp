// SPDX-License-Identifier: MIT
// Losses of the routings of one layer's seven projections, by experts and tokens.
#include "support.hpp"

namespace {

using bench::Index, bench::S, bench::Work;

constexpr Index projections = 7, sample = 64;

/// Routings of a noisy top-2 router, and a batch of samples of 64 tokens of two types.
struct Pool {
  std::vector<moxie::Routing<S>> routings, gradients;
  std::vector<const moxie::Routing<S>*> in;
  std::vector<moxie::Routing<S>*> out;
  moxie::Batch batch;

  Pool(Index experts, Index tokens)
      : routings(static_cast<std::size_t>(projections)), gradients(routings.size()) {
    constexpr Index d = 16;
    const moxie::TopKRouter<S> router(
        {.in = d, .experts = experts, .k = 2, .noise = moxie::RouterNoise::learned});
    moxie::Buffer<S> theta(static_cast<std::size_t>(router.size()));
    bench::fill(theta, 1);
    moxie::Workspace<S> workspace;
    for (std::size_t i = 0; i < routings.size(); ++i) {
      moxie::route(router, theta, bench::matrix(tokens, d, i), routings[i], workspace,
                   {.training = true, .module = i});
      gradients[i].zero_gradient_of(routings[i]);
      in.push_back(&routings[i]);
      out.push_back(&gradients[i]);
    }
    for (Index first = 0; first <= tokens; first += sample) batch.samples.push_back(first);
    for (Index b = 0; b < tokens / sample; ++b) batch.types.push_back(static_cast<int>(b % 2));
  }
};

/// A multiply-add per probability and pass: forward reads it, backward also reads and writes its gradient.
Work work(const benchmark::State& state, double passes) {
  const auto n = static_cast<double>(projections * state.range(0) * state.range(1));
  return {2 * n * passes, n * passes};
}

template <class Loss>
void loss_value(benchmark::State& state) {
  const Pool pool(state.range(0), state.range(1));
  const Loss loss{typename Loss::Config{}};
  bench::measure(state, work(state, 1), [&] { benchmark::DoNotOptimize(loss.value(pool.in, pool.batch)); });
}

template <class Loss>
void loss_backward(benchmark::State& state) {
  const Pool pool(state.range(0), state.range(1));
  const Loss loss{typename Loss::Config{}};
  bench::measure(state, work(state, 3), [&] { loss.backward(pool.in, pool.batch, 0.01, pool.out); });
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"experts", "T"})->ArgsProduct({{8, 64}, {64, 512}});
}
BENCHMARK(loss_value<moxie::LoadBalance<S>>)->Apply(shapes);
BENCHMARK(loss_value<moxie::LocalizedBalance<S>>)->Apply(shapes);
BENCHMARK(loss_value<moxie::ImportanceLoss<S>>)->Apply(shapes);
BENCHMARK(loss_value<moxie::LoadLoss<S>>)->Apply(shapes);
BENCHMARK(loss_value<moxie::ZLoss<S>>)->Apply(shapes);
BENCHMARK(loss_backward<moxie::LoadBalance<S>>)->Apply(shapes);
BENCHMARK(loss_backward<moxie::LocalizedBalance<S>>)->Apply(shapes);
BENCHMARK(loss_backward<moxie::ImportanceLoss<S>>)->Apply(shapes);
BENCHMARK(loss_backward<moxie::LoadLoss<S>>)->Apply(shapes);
BENCHMARK(loss_backward<moxie::ZLoss<S>>)->Apply(shapes);

}  // namespace
