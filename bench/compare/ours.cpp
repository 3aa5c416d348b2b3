// SPDX-License-Identifier: MIT
#include "problem.hpp"

#include <moxie/presets.hpp>

#include <algorithm>
#include <chrono>
#include <memory>

namespace compare {
namespace {

template <class Adapter>
struct Ours {
  using Prepared = moxie::Prepared<float>;

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
      for (const auto& copy : theta) prepared.push_back(adapter.prepare(copy));
      theta.resize(1);
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
    std::vector<double> times;
    for (int i = 0; i < 5; ++i) {
      const auto start = std::chrono::steady_clock::now();
      [[maybe_unused]] const Prepared packed = adapter.prepare(theta.front());
      times.push_back(
          std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
    }
    std::sort(times.begin(), times.end());
    return times[2];
  }

  double workspace_bytes() const { return static_cast<double>(cache.bytes() + workspace.bytes()); }
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
