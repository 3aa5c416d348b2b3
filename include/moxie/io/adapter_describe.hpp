// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/adapter_set.hpp>
#include <moxie/io/adapter_config.hpp>

/// What a set is made of, in the words of a config.
namespace moxie::inline MOXIE_ABI::io::detail {

/// What the config says of one module, whatever its kind.
struct Described {
  bool vectors = false;
  Index experts = 1, heads = 1;
  std::string router = "uniform";
  std::vector<Index> rank = {};  ///< one, or one per expert
  bool rslora = false, bias = false, mask_per_expert = false;
  bool shared_a = false;
  std::vector<double> alpha = {};  ///< one, or one per expert
  double dropout = 0;
  Index top_k = 0;
  double temperature = 1, jitter = 0, noise_scale = 1;
  std::string weights = "renormalised", noise = "none";
  bool frozen = false;  ///< with a frozen router, or one whose k grows

  bool same_router(const Described& o) const {
    return router == o.router && temperature == o.temperature && jitter == o.jitter &&
           noise_scale == o.noise_scale && weights == o.weights && noise == o.noise;
  }
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
  d.experts = c.experts;
  d.bias = c.bias;
  d.dropout = c.dropout;
  d.mask_per_expert = c.mask == DropoutMask::per_expert && c.experts > 1 && c.dropout > 0;
  d.rslora = c.scaling == LoraScaling::alpha_over_sqrt_rank;
  for (Index e = 0; e < c.experts; ++e) {
    d.rank.push_back(bank.rank(e));
    d.alpha.push_back(c.scaling == LoraScaling::fixed ? alpha_of(bank.scale(e), bank.rank(e)) : c.alpha);
  }
}
template <class S>
void describe(const HydraBank<S>& bank, Described& d) {
  const auto& c = bank.config();
  d.experts = c.experts;
  d.dropout = c.dropout;
  d.rslora = c.scaling == LoraScaling::alpha_over_sqrt_rank;
  d.shared_a = true;
  d.rank = {c.rank};
  d.alpha = {c.alpha};
}
template <class S>
void describe(const Ia3Bank<S>& bank, Described& d) {
  d.vectors = true;
  d.experts = bank.experts();
  d.heads = bank.config().heads;
}
template <class S>
void describe(const UniformRouter<S>&, Described&) {}
template <class S>
void describe(const GivenRouter<S>&, Described& d) {
  d.router = "given";
}
template <class S>
void describe(const SoftRouter<S>& router, Described& d) {
  d.router = "soft";
  d.temperature = router.config().temperature;
  d.jitter = router.config().jitter;
}
template <class S>
void describe(const TopKRouter<S>& router, Described& d) {
  const auto& c = router.config();
  d.router = "top_k";
  d.top_k = c.k;
  d.temperature = c.temperature;
  d.jitter = c.jitter;
  constexpr std::string_view weights[] = {"renormalised", "masked", "softmax_of_chosen"},
                             noise[] = {"none", "fixed", "learned"};
  d.weights = weights[static_cast<std::size_t>(c.weights)];
  d.noise = noise[static_cast<std::size_t>(c.noise)];
  d.noise_scale = c.noise_scale;
  d.frozen = c.frozen || c.k_steps > 0;
}
template <Scalar S>
std::vector<Described> describe(const AdapterSet<S>& set) {
  std::vector<Described> all;
  for (const auto& entry : set.entries()) {
    Described d;
    std::visit(
        [&](const auto& a) {
          describe(a.experts(), d);
          describe(a.router(), d);
        },
        entry.adapter);
    all.push_back(std::move(d));
  }
  return all;
}

}  // namespace moxie::inline MOXIE_ABI::io::detail
