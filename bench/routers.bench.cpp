// SPDX-License-Identifier: MIT
// Routers alone, 768 features on one thread: by experts and tokens.
#include "support.hpp"

namespace {

using bench::Index, bench::Matrix, bench::S, bench::Work;

constexpr Index d = 768;

struct Soft {
  static auto make(Index experts) { return moxie::SoftRouter<S>({.in = d, .experts = experts}); }
};
struct Top2 {
  static auto make(Index experts) { return moxie::TopKRouter<S>({.in = d, .experts = experts, .k = 2}); }
};
struct NoisyTop2 {
  static auto make(Index experts) {
    return moxie::TopKRouter<S>({.in = d, .experts = experts, .k = 2, .noise = moxie::RouterNoise::learned});
  }
};

/// The product x G^T and what it reads and writes; noise has a product of its own.
template <class Kind>
Work work(Index experts, Index tokens) {
  const auto products = static_cast<double>(Kind::make(experts).size()) / static_cast<double>(experts * d);
  const auto e = static_cast<double>(experts), t = static_cast<double>(tokens), n = static_cast<double>(d);
  return {products * 2 * t * n * e, products * n * e + t * n + 3 * t * e};
}

template <class Kind>
void router_forward(benchmark::State& state) {
  const Index experts = state.range(0), tokens = state.range(1);
  const auto router = Kind::make(experts);
  moxie::Buffer<S> theta(static_cast<std::size_t>(router.size()));
  bench::fill(theta, 1);
  const Matrix x = bench::matrix(tokens, d, 2);
  moxie::Routing<S> routing;
  moxie::Workspace<S> workspace;
  const moxie::Run run{.training = true};
  bench::measure(state, work<Kind>(experts, tokens),
                 [&] { moxie::route(router, theta, x, routing, workspace, run); });
}

template <class Kind>
void router_backward(benchmark::State& state) {
  const Index experts = state.range(0), tokens = state.range(1);
  const auto router = Kind::make(experts);
  moxie::Buffer<S> theta(static_cast<std::size_t>(router.size())), dtheta(theta.size());
  bench::fill(theta, 1);
  const Matrix x = bench::matrix(tokens, d, 2);
  Matrix dx = Matrix::Zero(tokens, d);
  moxie::Buffer<S> dgates(static_cast<std::size_t>(tokens * experts));
  bench::fill(dgates, 3);
  moxie::Routing<S> routing, gradient;
  moxie::Workspace<S> workspace;
  const moxie::Run run{.training = true};
  moxie::route(router, theta, x, routing, workspace, run);
  bench::measure(state, work<Kind>(experts, tokens) + work<Kind>(experts, tokens), [&] {
    gradient.zero_gradient_of(routing);
    gradient.gates = dgates;
    moxie::route_backward(router, theta, x, routing, gradient, workspace, run, dx, dtheta);
  });
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"experts", "T"})->ArgsProduct({{8, 64}, {1, 512}});
}
BENCHMARK(router_forward<Soft>)->Apply(shapes);
BENCHMARK(router_forward<Top2>)->Apply(shapes);
BENCHMARK(router_forward<NoisyTop2>)->Apply(shapes);
BENCHMARK(router_backward<Soft>)->Apply(shapes);
BENCHMARK(router_backward<Top2>)->Apply(shapes);
BENCHMARK(router_backward<NoisyTop2>)->Apply(shapes);

}  // namespace
