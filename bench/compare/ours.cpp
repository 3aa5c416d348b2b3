// SPDX-License-Identifier: MIT
#include "problem.hpp"

#include <moxie/presets.hpp>

#include <algorithm>
#include <chrono>
#include <memory>

namespace compare {
namespace {

/// Weights packed for inference, or theta itself while an adapter has no `prepare`.
template <class Adapter>
auto prepare(const Adapter& adapter, const moxie::Buffer<float>& theta) {
  if constexpr (requires { adapter.prepare(std::span<const float>(theta)); })
    return adapter.prepare(std::span<const float>(theta));
  else
    return std::span<const float>(theta);
}

template <class Adapter>
struct Ours {
  using Prepared = decltype(prepare(std::declval<const Adapter&>(), moxie::Buffer<float>()));

  Problem& problem;
  const Adapter adapter;
  const moxie::Run run;
  std::vector<moxie::Buffer<float>> theta;  // a copy each
  std::vector<Prepared> prepared;
  moxie::Buffer<float> gradient;
  moxie::Cache<float> cache;
  moxie::Workspace<float> workspace;

  Ours(Problem& p, const Adapter& a, int threads) : problem(p), adapter(a), run{.threads = threads} {
    moxie::Buffer<float> all;
    for (const Matrix* m : {&p.weights.a, &p.weights.b, &p.weights.l, &p.weights.router})
      all.insert(all.end(), m->data(), m->data() + m->size());
    theta.assign(static_cast<std::size_t>(p.copies), all);
    if (p.cell.backward) {
      gradient.assign(all.size(), 0.0f);
    } else {
      for (const auto& copy : theta) prepared.push_back(prepare(adapter, copy));
      if constexpr (!std::is_same_v<Prepared, std::span<const float>>) theta.resize(1);
    }
  }

  void call(Index copy) {
    const auto at = static_cast<std::size_t>(copy);
    if (!problem.cell.backward) {
      adapter.forward(prepared[at], problem.x, problem.y, cache, workspace, run);
    } else {
      adapter.forward(theta[at], problem.x, problem.y, cache, workspace, run);
      adapter.backward(theta[at], problem.x, problem.dy, cache, workspace, run, problem.dx, gradient);
    }
  }

  double pack_us() const {
    if constexpr (std::is_same_v<Prepared, std::span<const float>>) return 0;
    std::vector<double> times;
    for (int i = 0; i < 5; ++i) {
      const auto start = std::chrono::steady_clock::now();
      [[maybe_unused]] const Prepared packed = prepare(adapter, theta.front());
      times.push_back(
          std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
    }
    std::sort(times.begin(), times.end());
    return times[2];
  }

  double workspace_bytes() const {
    std::size_t scalars = cache.h.size() + workspace.factors.size() + workspace.scratch.size();
    for (const moxie::Routing<float>* routing : {&cache.routing, &workspace.drouting})
      scalars += routing->logits.size() + routing->probs.size() + routing->gates.size();
    return static_cast<double>(scalars * sizeof(float));
  }
};

template <class Adapter>
Contestants make(Problem& problem, const Adapter& adapter) {
  Contestants all;
  for (const int threads : {problem.cell.threads, 1}) {
    if (all.size() == 1 && threads == problem.cell.threads) break;
    auto state = std::make_shared<Ours<Adapter>>(problem, adapter, threads);
    Variant variant{.name = "", .call = [state](Index copy) { state->call(copy); }};
    if (problem.cell.backward)
      variant.gradient = [state] {
        return std::vector<float>(state->gradient.begin(), state->gradient.end());
      };
    all.push_back({.name = all.empty() ? "ours" : "ours_one_thread",
                   .variants = {variant},
                   .pack_us = problem.cell.backward ? 0 : state->pack_us(),
                   .workspace_bytes = [state] { return state->workspace_bytes(); }});
  }
  return all;
}

}  // namespace

Contestants ours(Problem& p) {
  using namespace moxie;
  const Cell& c = p.cell;
  const double alpha = p.scale * static_cast<double>(c.rank);
  if (c.op == Op::ia3) return make(p, moxie::ia3<float>({.features = c.d}));
  if (c.op == Op::mov) return make(p, moxie::mov<float>({.features = c.d, .experts = c.experts}));
  if (c.op == Op::lora)
    return make(p, moxie::lora<float>({.in = c.d, .out = c.d, .rank = c.rank, .alpha = alpha}));
  const LoraBank<float> bank({.in = c.d, .out = c.d, .experts = c.experts, .rank = c.rank, .alpha = alpha});
  if (c.op == Op::soft)
    return make(p, MoeAdapter(bank, SoftRouter<float>({.in = c.d, .experts = c.experts})));
  return make(p, MoeAdapter(bank, TopKRouter<float>({.in = c.d, .experts = c.experts, .k = c.chosen})));
}

}  // namespace compare
