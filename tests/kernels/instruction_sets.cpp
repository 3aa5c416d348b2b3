// SPDX-License-Identifier: MIT
// What a build for another instruction set must show, small enough for an emulator and without Catch2: LoRA,
// MoV, MoLoRA and MoLA against plain loops, forward and backward, and the same bits for a token in every
// batch. It calls adapters only, so that it does not depend on how kernels are called.
#include "support/case_list.hpp"

#include <moxie/presets.hpp>

#include <cstdio>

namespace moxie::test {
namespace {

/// Wide enough for whole register blocks, with and without tails.
constexpr Index shapes[][2] = {{133, 70}, {64, 96}};
constexpr Index all_tokens = 70;  // more than a tile

template <class S>
std::vector<Case<S>> published(Index in, Index out) {
  std::vector<Case<S>> list;
  const auto add = [&](const char* name, const auto& preset) {
    list.push_back(entry(name, preset.experts(), std::to_string(in), preset.router()));
  };
  add("lora", moxie::lora<S>({.in = in, .out = out, .rank = 5}));
  add("mov", moxie::mov<S>({.features = in / 2 * 2, .heads = 2, .experts = 3}));
  add("molora", moxie::molora<S>({.in = in, .out = out, .experts = 5, .rank = 3}));
  add("mola", moxie::mola<S>({.in = in, .out = out, .experts = 5, .top_k = 2, .rank = 4}));
  add("mola of most", moxie::mola<S>({.in = in, .out = out, .experts = 4, .top_k = 3, .rank = 2}));
  return list;
}

/// Every output and, along random directions, the gradients of theta and x: a direction has a sign for each
/// coordinate, so that one number checks them all, within the sum of their bounds.
template <class S>
Worst against_loops(const Case<S>& c) {
  constexpr Index tokens = 11;
  Worst worst;
  const Inputs<S> data = make_clear_inputs(c, tokens, 1, Run{});
  const Outputs<S> got = evaluate(c, data);
  const auto wanted = reference(c, point<Bounded>(data), data, {}, Run{});
  for (std::size_t i = 0; i < wanted.y.size(); ++i) worst.see(got.y.data()[i], wanted.y[i]);

  using R = Dual<Bounded>;
  Rng rng(2);
  Point<R> at = point<R>(data);
  const auto along = [&](std::vector<R> Point<R>::*which, const S* gradient, std::size_t begin,
                         std::size_t end) {
    long double slope = 0;
    for (std::size_t i = begin; i < end; ++i) {
      const double sign = rng.integer(0, 1) == 0 ? -1 : 1;
      (at.*which)[i].slope = Bounded(sign);
      slope += sign * static_cast<long double>(gradient[i]);
    }
    worst.see(static_cast<S>(slope), objective(reference(c, at, data, {}, Run{}), data).slope, gradient_gate);
    for (std::size_t i = begin; i < end; ++i) (at.*which)[i].slope = Bounded(0);
  };
  for (int direction = 0; direction < 3; ++direction) {
    std::size_t begin = 0;
    for (const Field& field : c.adapter->fields()) {
      const std::size_t end = begin + naive::at(field.size());
      along(&Point<R>::theta, got.dtheta.data(), begin, end);
      begin = end;
    }
    along(&Point<R>::x, got.dx.data(), 0, at.x.size());
  }
  return worst;
}

/// A token's y and dx alone, among others and on both paths; threads change nothing.
template <class S>
bool same_bits_everywhere(const Case<S>& c) {
  const Inputs<S> data = make_clear_inputs(c, all_tokens, 3, Run{});
  const Outputs<S> whole = evaluate(c, data);
  bool same = !mostly_zero(whole.y) && !mostly_zero(whole.dx);
  for (const auto& [first, count] :
       {std::pair<Index, Index>{0, 1}, {1, 2}, {5, 3}, {6, 6}, {20, 17}, {2, 64}, {63, 7}, {69, 1}}) {
    const Outputs<S> part = evaluate(c, pick(data, range(first, count)));
    same = same && same_bits(part.y, pick(whole.y, range(first, count))) &&
           same_bits(part.dx, pick(whole.dx, range(first, count)));
  }
  const auto equal = [&](const Outputs<S>& a, const Outputs<S>& b) {
    same = same && same_bits(a.y, b.y) && same_bits(a.dx, b.dx) && same_values(a.dtheta, b.dtheta);
  };
  equal(evaluate(c, *c.dense, data), whole);
  equal(evaluate(c, *c.grouped, data), whole);
  const Inputs<S> many = make_clear_inputs(c, team_tokens(c.adapter->size()), 4, Run{});
  equal(evaluate(c, many), evaluate(c, many, {.threads = 2}));
  return same;
}

template <class S>
int check() {
  int failures = 0;
  double largest = 0;
  for (const auto& [in, out] : shapes)
    for (const Case<S>& c : published<S>(in, out)) {
      const Worst worst = against_loops(c);
      largest = std::max(largest, worst.ratio());
      if (worst.ratio() > 1 || !worst.trusted()) {
        std::printf("%s: error %.3g of what is allowed\n", c.name.c_str(), worst.ratio());
        ++failures;
      }
      if (!same_bits_everywhere(c)) {
        std::printf("%s: other bits in another batch, path or number of threads\n", c.name.c_str());
        ++failures;
      }
    }
  std::printf("%s: packets of %d, largest error %.3f of what is allowed\n",
              std::is_same_v<S, float> ? "float" : "double",
              static_cast<int>(Eigen::internal::packet_traits<S>::size), largest);
  return failures;
}

/// Not inlined, so that `main` does nothing that an older processor cannot.
[[gnu::noinline]] int run() {
  std::printf("Eigen uses %s\n", Eigen::SimdInstructionSetsInUse());
  const int failures = check<float>() + check<double>();
  if (failures == 0) std::printf("All tests passed\n");
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace moxie::test

int main() {
#if defined(__AVX2__)
  if (__builtin_cpu_supports("avx2") == 0 || __builtin_cpu_supports("fma") == 0) {
    std::printf("SKIPPED: this processor has no AVX2. All tests passed\n");
    return 0;
  }
#endif
  return moxie::test::run();
}
