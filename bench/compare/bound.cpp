// SPDX-License-Identifier: MIT
#include "bound.hpp"

#include <algorithm>
#include <cmath>

namespace compare {

Json to_json(const Limits& limits) {
  const auto rounded = [](double v) { return std::round(10 * v) / 10; };
  Json json = {{"fma_gflops", rounded(limits.fma_gflops)}};
  for (const Limits::Level& level : limits.levels)
    json[level.name] = {
        {"bytes", level.bytes}, {"read_gbs", rounded(level.read)}, {"update_gbs", rounded(level.update)}};
  return json;
}

double bound_us(const Problem& problem, const Limits& limits, double peak) {
  const Cell& c = problem.cell;
  const auto n = [](Index v) { return static_cast<double>(v); };
  const double td = n(c.tokens) * n(c.d), experts = c.routed() ? n(c.experts) : 0;
  const double ranks = n(c.op == Op::top2 ? c.chosen * c.rank : c.ranks());
  const double sloped = c.op == Op::top2 ? n(c.chosen) : experts;
  double flops = c.lora_kind() ? 2 * td * (2 * ranks + experts) : 2 * td * 2 * experts + td;
  if (c.backward) flops += c.lora_kind() ? 2 * td * (4 * ranks + 2 * sloped) : 2 * td * 4 * experts + 3 * td;
  if (c.backward && c.op == Op::ia3) flops += td;

  const double rows = 4 * td;
  const double per_expert = n(c.lora_kind() ? 2 * c.rank : 1);
  const double params = 4 * n(c.d) * (n(problem.touched) * per_expert + experts);
  const Limits::Level& level = limits.holding(c.backward ? 4 * rows + 2 * params : 2 * rows + params);
  const Limits::Level& weights = c.cold ? limits.holding(n(problem.copies) * 4 * n(c.weights())) : level;
  double traffic = rows / level.read + params / weights.read + 2 * rows / level.update;
  if (c.backward)
    traffic += 2 * rows / level.read + params / weights.read + 2 * (rows + params) / level.update;
  return 1e-3 * std::max(flops / peak, traffic);
}

}  // namespace compare
