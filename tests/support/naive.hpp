// SPDX-License-Identifier: MIT
#pragma once

#include "support/bounds.hpp"

#include <moxie/core/types.hpp>
#include <moxie/routers/top_k.hpp>

#include <cmath>
#include <cstdint>
#include <vector>

/// The adapters in plain loops, written from the published formulas and not from the library's code. R is the
/// scalar: long double for values, Bounded for values with their error bound, Dual<...> for gradients.
namespace moxie::test::naive {

/// LoRA: y = sum over e of w_e s_e (B_e A_e x_e + b_e) (arXiv:2106.09685, eq. 3; arXiv:2309.05444, section
/// 3.2). IA3: y = x * sum over e of w_e l_e, every head by itself (arXiv:2309.05444, eq. 5).
struct Bank {
  enum class Kind { lora, ia3 } kind = Kind::lora;
  Index in = 0, out = 0, experts = 1, heads = 1;
  std::vector<Index> ranks = {};    ///< LoRA: one per expert
  std::vector<double> scales = {};  ///< LoRA: one per expert
  bool bias = false;
  double dropout = 0;
  bool mask_per_expert = false;
  bool shared_a = false;  ///< LoRA: the first expert's A is everybody's (arXiv:2404.19245, eq. 4)

  Index total_rank() const {
    Index sum = 0;
    for (const Index r : ranks) sum += r;
    return sum;
  }
  Index size() const {
    return kind == Kind::ia3 ? in * experts
                             : rows_of_a() * in + total_rank() * out + (bias ? experts * out : 0);
  }
  Index rows_of_a() const { return shared_a ? ranks.front() : total_rank(); }
};

struct Router {
  enum class Kind { uniform, given, soft, top_k } kind = Kind::uniform;
  Index in = 0, experts = 1, heads = 1;
  double temperature = 1, jitter = 0;
  Index k = 1;
  TopKWeights weights = TopKWeights::renormalised;
  RouterNoise noise = RouterNoise::none;
  double noise_scale = 1;
  Index k_start = 0;
  std::uint64_t k_steps = 0;

  Index features() const { return heads > 0 ? in / heads : 0; }
  Index size() const {
    const bool reads = kind == Kind::soft || kind == Kind::top_k;
    return reads ? experts * features() * (noise == RouterNoise::learned ? 2 : 1) : 0;
  }
  /// SMoE-Dropout (arXiv:2303.01610): linear growth from k_start to all experts.
  Index chosen_at(bool training, std::uint64_t step) const {
    if (kind != Kind::top_k) return experts;
    if (!training || k_steps == 0) return k;
    const std::uint64_t done = step < k_steps ? step : k_steps;
    return k_start + static_cast<Index>(static_cast<std::uint64_t>(experts - k_start) * done / k_steps);
  }
};

/// The random numbers of a call, made explicit; empty where there are none.
struct Draws {
  std::vector<double> dropout;  ///< [experts, T, in] 0 or 1 / (1 - p)
  std::vector<double> jitter;   ///< [T, router in] factors
  std::vector<double> noise;    ///< [T * heads, experts] standard normal
};

template <class R>
struct Routed {
  std::vector<R> logits, probs, gates, noisy, noise_scale;  ///< [T * heads, experts]
  std::vector<std::vector<Index>> chosen;                   ///< per row, ascending
  /// Smallest distance over all rows between the last that is chosen and the best that is not.
  double gap = std::numeric_limits<double>::infinity();
};

inline std::size_t at(Index i) { return static_cast<std::size_t>(i); }

template <class R>
std::vector<R> softmax(const std::vector<R>& z) {
  using std::exp;
  long double top = plain(z[0]);
  for (const R& v : z) top = std::max(top, plain(v));
  std::vector<R> p;
  R sum(0);
  for (const R& v : z) {
    p.push_back(exp(v - R(top)));
    sum += p.back();
  }
  for (R& v : p) v = v / sum;
  return p;
}

/// The k largest, ascending by index; equal values: the lower index first.
template <class R>
std::vector<Index> largest(const std::vector<R>& z, Index k) {
  std::vector<Index> order;
  for (Index e = 0; e < std::ssize(z); ++e) order.push_back(e);
  std::stable_sort(order.begin(), order.end(),
                   [&](Index a, Index b) { return plain(z[at(a)]) > plain(z[at(b)]); });
  order.resize(at(k));
  std::sort(order.begin(), order.end());
  return order;
}

/// x [T, in], weights [experts, in / heads]; given: [T * heads, experts] gates, for Kind::given.
template <class R>
Routed<R> route(const Router& router, const std::vector<R>& weights, const std::vector<R>& x, Index tokens,
                const std::vector<R>& given, const Draws& draws, bool training, std::uint64_t step) {
  using std::exp;
  using std::log;
  Routed<R> routed;
  const Index E = router.experts, H = router.heads, d = router.features();
  for (Index row = 0; row < tokens * H; ++row) {
    std::vector<R> z(at(E), R(0)), p(at(E), R(1.0L / static_cast<long double>(E))), w = p;
    std::vector<R> noisy, sigma;
    std::vector<Index> chosen;
    for (Index e = 0; e < E; ++e) chosen.push_back(e);
    if (router.kind == Router::Kind::given) {
      chosen.clear();
      for (Index e = 0; e < E; ++e) {
        p[at(e)] = w[at(e)] = given[at(row * E + e)];
        if (plain(w[at(e)]) != 0) chosen.push_back(e);
      }
    }
    if (router.kind == Router::Kind::soft || router.kind == Router::Kind::top_k) {
      const auto project = [&](Index from, Index e) {
        R sum(0);
        for (Index i = 0; i < d; ++i) {
          const Index feature = row / H * router.in + row % H * d + i;
          const R seen =
              draws.jitter.empty() ? x[at(feature)] : x[at(feature)] * R(draws.jitter[at(feature)]);
          sum += seen * weights[at(from + e * d + i)];
        }
        return sum;
      };
      for (Index e = 0; e < E; ++e) z[at(e)] = project(0, e) / R(router.temperature);
      std::vector<R> seen = z;
      if (router.noise != RouterNoise::none && training) {
        for (Index e = 0; e < E; ++e) {
          sigma.push_back(router.noise == RouterNoise::fixed ? R(router.noise_scale)
                                                             : log(R(1) + exp(project(E * d, e))) + R(0.01L));
          noisy.push_back(z[at(e)] + R(draws.noise[at(row * E + e)]) * sigma.back());
        }
        seen = noisy;
      }
      p = softmax(seen);
      w = p;
      if (router.kind == Router::Kind::top_k) {
        const Index k = router.chosen_at(training, step);
        chosen = largest(seen, k);
        w.assign(at(E), R(0));
        std::vector<R> of_chosen;
        R sum(0);
        for (const Index e : chosen) {
          of_chosen.push_back(seen[at(e)]);
          sum += p[at(e)];
        }
        const std::vector<R> among = softmax(of_chosen);
        for (Index j = 0; j < k; ++j) {
          const Index e = chosen[at(j)];
          w[at(e)] = router.weights == TopKWeights::masked         ? p[at(e)]
                     : router.weights == TopKWeights::renormalised ? p[at(e)] / sum
                                                                   : among[at(j)];
        }
        std::vector<long double> sorted;
        for (const R& v : seen) sorted.push_back(plain(v));
        std::sort(sorted.rbegin(), sorted.rend());
        if (k < E) routed.gap = std::min(routed.gap, static_cast<double>(sorted[at(k - 1)] - sorted[at(k)]));
      }
    }
    const auto append = [](std::vector<R>& all, const std::vector<R>& more) {
      all.insert(all.end(), more.begin(), more.end());
    };
    append(routed.logits, z);
    append(routed.probs, p);
    append(routed.gates, w);
    append(routed.noisy, noisy);
    append(routed.noise_scale, sigma);
    routed.chosen.push_back(chosen);
  }
  return routed;
}

/// What the bank makes of x [T, in] under the gates: LoRA the update of y, IA3 y itself.
template <class R>
std::vector<R> mix(const Bank& bank, const std::vector<R>& theta, const std::vector<R>& x, Index tokens,
                   const Routed<R>& routed, const Draws& draws, const R& strength) {
  std::vector<R> y(at(tokens * bank.out), R(0));
  const Index E = bank.experts;
  if (bank.kind == Bank::Kind::ia3) {
    const Index d = bank.in / bank.heads;
    for (Index t = 0; t < tokens; ++t)
      for (Index i = 0; i < bank.in; ++i) {
        const Index head = i / d, row = t * bank.heads + head;
        R s(0);
        for (const Index e : routed.chosen[at(row)])
          s += routed.gates[at(row * E + e)] * theta[at((head * E + e) * d + i % d)];
        if (plain(strength) != 1) s = R(1) + strength * (s - R(1));
        y[at(t * bank.in + i)] = x[at(t * bank.in + i)] * s;
      }
    return y;
  }
  const Index R_all = bank.total_rank(), b = bank.rows_of_a() * bank.in;
  for (Index t = 0; t < tokens; ++t) {
    Index begin = 0;
    for (Index e = 0; e < E; begin += bank.ranks[at(e)], ++e) {
      const auto& chosen = routed.chosen[at(t)];
      if (std::find(chosen.begin(), chosen.end(), e) == chosen.end()) continue;
      const R weight = routed.gates[at(t * E + e)] * R(bank.scales[at(e)]) * strength;
      for (Index j = begin; j < begin + bank.ranks[at(e)]; ++j) {
        R h(0);
        for (Index i = 0; i < bank.in; ++i) {
          R seen = x[at(t * bank.in + i)];
          if (!draws.dropout.empty()) seen = seen * R(draws.dropout[at((e * tokens + t) * bank.in + i)]);
          h += theta[at((bank.shared_a ? j - begin : j) * bank.in + i)] * seen;
        }
        for (Index o = 0; o < bank.out; ++o)
          y[at(t * bank.out + o)] += weight * h * theta[at(b + j * bank.out + o)];
      }
      if (bank.bias)
        for (Index o = 0; o < bank.out; ++o)
          y[at(t * bank.out + o)] += weight * theta[at(b + R_all * bank.out + e * bank.out + o)];
    }
  }
  return y;
}

/// h[t, j] = <x[t], a[j]>: the rank product of the kernels, to be read.
template <class R>
std::vector<R> dot(const std::vector<R>& x, Index tokens, const std::vector<R>& a, Index n, Index d) {
  std::vector<R> h(at(tokens * n), R(0));
  for (Index t = 0; t < tokens; ++t)
    for (Index j = 0; j < n; ++j)
      for (Index i = 0; i < d; ++i) h[at(t * n + j)] += x[at(t * d + i)] * a[at(j * d + i)];
  return h;
}

/// out[r, i] = sum over k of c[r, k] m[k, i]: the up product, to be read.
template <class R>
std::vector<R> combine(const std::vector<R>& c, Index rows, Index depth, const std::vector<R>& m,
                       Index cols) {
  std::vector<R> out(at(rows * cols), R(0));
  for (Index r = 0; r < rows; ++r)
    for (Index k = 0; k < depth; ++k)
      for (Index i = 0; i < cols; ++i) out[at(r * cols + i)] += c[at(r * depth + k)] * m[at(k * cols + i)];
  return out;
}

}  // namespace moxie::test::naive
