// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/adapter_set.hpp>
#include <moxie/io/adapter_config.hpp>

/// What a set is made of, in the words of a config.
namespace moxie::inline MOXIE_ABI::io::detail {

/// What a config says of one module, whatever its kind, and the widths that tensors say.
struct Described {
  std::string name = {};
  bool vectors = false;   ///< IA3 and MoV
  bool shared_a = false;  ///< HydraLoRA
  Index in = 0, out = 0, experts = 1, heads = 1;
  std::vector<Index> rank = {};    ///< one per expert
  std::vector<double> alpha = {};  ///< one per expert
  std::vector<double> scale = {};  ///< one per expert, as computed with
  bool rslora = false, bias = false, mask_per_expert = false;
  double dropout = 0;
  RouterSettings router = {};
  Index parameters = 0;
};

/// The alpha whose quotient by the rank is the scale to the bit; of scales that are no such quotient in S the
/// nearest one, which reading it back refuses.
template <class S>
double alpha_of(S scale, Index rank) {
  const auto r = static_cast<double>(rank);
  const double alpha = static_cast<double>(scale) * r;
  double low = alpha, high = alpha;
  for (int i = 0; i < 4; ++i) {
    for (const double near : {low, high})
      if (static_cast<S>(near / r) == scale) return near;
    low = std::nextafter(low, -unbounded);
    high = std::nextafter(high, unbounded);
  }
  return alpha;
}

template <class S>
void describe(const LoraBank<S>& bank, Described& d) {
  const LoraConfig& c = bank.config();
  d.bias = c.bias;
  d.dropout = c.dropout;
  d.mask_per_expert = c.mask == DropoutMask::per_expert && c.experts > 1 && c.dropout > 0;
  d.rslora = c.scaling == LoraScaling::alpha_over_sqrt_rank;
  for (Index e = 0; e < c.experts; ++e) {
    d.rank.push_back(bank.rank(e));
    d.scale.push_back(static_cast<double>(bank.scale(e)));
    d.alpha.push_back(c.scaling == LoraScaling::fixed ? alpha_of(bank.scale(e), bank.rank(e)) : c.alpha);
  }
}
template <class S>
void describe(const HydraBank<S>& bank, Described& d) {
  const auto& c = bank.config();
  d.shared_a = true;
  d.dropout = c.dropout;
  d.rslora = c.scaling == LoraScaling::alpha_over_sqrt_rank;
  d.rank.assign(static_cast<std::size_t>(c.experts), c.rank);
  d.scale.assign(d.rank.size(), static_cast<double>(bank.scale()));
  d.alpha.assign(d.rank.size(), c.alpha);
}
template <class S>
void describe(const Ia3Bank<S>& bank, Described& d) {
  d.vectors = true;
  d.heads = bank.config().heads;
}
template <class Bank, class Router>
Described describe(const MoeAdapter<Bank, Router>& adapter) {
  Described d{.in = adapter.in(), .out = adapter.out(), .experts = adapter.experts().experts()};
  d.router = settings_of(adapter.router());
  d.parameters = adapter.size();
  describe(adapter.experts(), d);
  if (d.experts == 1 && adapter.router().size() == 0) d.heads = 1;  // heads of one vector are one vector
  return d;
}
template <Scalar S>
Described describe(const AnyAdapter<S>& adapter) {
  return std::visit([](const auto& a) { return describe(a); }, adapter);
}
template <Scalar S>
std::vector<Described> describe(const AdapterSet<S>& set) {
  std::vector<Described> all;
  for (const auto& entry : set.entries()) {
    all.push_back(describe<S>(entry.adapter));
    all.back().name = entry.name;
  }
  return all;
}

}  // namespace moxie::inline MOXIE_ABI::io::detail
