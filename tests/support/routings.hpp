// SPDX-License-Identifier: MIT
#pragma once

#include "support/catch.hpp"
#include "support/naive.hpp"
#include "support/random.hpp"

#include <moxie/losses/pool.hpp>

/// Routings for tests of losses and statistics, made by the plain loops.
namespace moxie::test {

/// The example of the golden values: T = 4, N = 4, k = 2, without ties.
inline const std::vector<double> golden_logits{2,  1, 0, -1, 0.5, 0.4, 1.5,  -0.5,
                                               -1, 0, 1, 2,  1,   -1,  0.25, 0.75};

/// Routes tokens whose logits are given. With `noise`, learned standard deviations and noisy logits too.
template <class S>
Routing<S> route_logits(const std::vector<double>& logits, Index experts, Index k, Index rows_per_token = 1,
                        Rng* noise = nullptr) {
  Routing<S> r;
  const Index rows = std::ssize(logits) / experts;
  r.resize(rows / rows_per_token, experts, rows_per_token, k, noise != nullptr);
  for (Index row = 0; row < rows; ++row) {
    std::vector<long double> z, seen;
    for (Index e = 0; e < experts; ++e) {
      const auto at = naive::at(row * experts + e);
      r.logits[at] = static_cast<S>(logits[at]);
      z.push_back(r.logits[at]);
      seen.push_back(z.back());
      if (noise == nullptr) continue;
      r.noise_scale[at] = static_cast<S>(noise->uniform(0.3, 1.5));
      r.noisy[at] = r.logits[at] + r.noise_scale[at] * static_cast<S>(noise->uniform(-2, 2));
      seen.back() = r.noisy[at];
    }
    const std::vector<long double> p = naive::softmax(seen);
    const std::vector<Index> chosen = naive::largest(seen, k);
    long double sum = 0;
    for (const Index e : chosen) sum += p[naive::at(e)];
    for (Index e = 0; e < experts; ++e) r.gates[naive::at(row * experts + e)] = 0;
    for (Index j = 0; j < k; ++j) {
      const Index e = chosen[naive::at(j)];
      r.chosen[naive::at(row * k + j)] = static_cast<int>(e);
      r.gates[naive::at(row * experts + e)] = static_cast<S>(p[naive::at(e)] / sum);
    }
    r.count[naive::at(row)] = static_cast<int>(k);
    for (Index e = 0; e < experts; ++e)
      r.probs[naive::at(row * experts + e)] = static_cast<S>(p[naive::at(e)]);
  }
  return r;
}

template <class S>
Routing<S> random_routing(Rng& rng, Index tokens, Index experts, Index k, Index rows_per_token = 1,
                          bool noisy = false) {
  std::vector<double> logits(naive::at(tokens * rows_per_token * experts));
  rng.fill(logits, -2, 2);
  return route_logits<S>(logits, experts, k, rows_per_token, noisy ? &rng : nullptr);
}

/// A loss over owned routings.
template <class Loss, class S>
double value_of(const Loss& loss, const std::vector<Routing<S>>& routings, const Batch& batch = {}) {
  std::vector<const Routing<S>*> pointers;
  for (const Routing<S>& r : routings) pointers.push_back(&r);
  return loss.value(pointers, batch);
}
template <class Loss, class S>
void backward_of(const Loss& loss, const std::vector<Routing<S>>& routings, const Batch& batch, double weight,
                 std::vector<Routing<S>>& gradients) {
  std::vector<const Routing<S>*> pointers;
  std::vector<Routing<S>*> to;
  for (const Routing<S>& r : routings) pointers.push_back(&r);
  for (Routing<S>& g : gradients) to.push_back(&g);
  loss.backward(pointers, batch, weight, to);
}
template <class Loss, class S>
std::vector<Routing<S>> gradients_of(const Loss& loss, const std::vector<Routing<S>>& routings,
                                     const Batch& batch = {}, double weight = 1) {
  std::vector<Routing<S>> gradients(routings.size());
  for (std::size_t i = 0; i < routings.size(); ++i) gradients[i].zero_gradient_of(routings[i]);
  backward_of(loss, routings, batch, weight, gradients);
  return gradients;
}

/// The gradient of every part of every routing against central differences of the value, in the metric
/// |g - g_fd| / max(1, |g|) <= 1e-8; parts without a gradient must not matter to the value. The weight is
/// chosen negative, and what the gradients held before must stay part of them.
template <class Loss>
void check_gradients(const Loss& loss, std::vector<Routing<double>> routings, const Batch& batch = {}) {
  constexpr double h = 6e-6, weight = -2.5;
  const auto gradients = gradients_of(loss, routings, batch, weight);
  double largest = 1, apart = 0, seen = 0;
  for (std::size_t i = 0; i < routings.size(); ++i)
    for (const auto which : {&Routing<double>::logits, &Routing<double>::probs, &Routing<double>::gates,
                             &Routing<double>::noisy, &Routing<double>::noise_scale}) {
      auto& values = routings[i].*which;
      const auto& g = gradients[i].*which;
      REQUIRE((g.empty() || g.size() == values.size()));
      for (std::size_t j = 0; j < values.size(); ++j) {
        const double kept = values[j];
        values[j] = kept + h;
        const double up = value_of(loss, routings, batch);
        values[j] = kept - h;
        const double down = value_of(loss, routings, batch);
        values[j] = kept;
        const double got = g.empty() ? 0 : g[j];
        apart = std::max(apart, std::abs(weight * (up - down) / (2 * h) - got));
        largest = std::max(largest, std::abs(got));
        seen = std::max(seen, std::abs(got));
      }
    }
  INFO("apart " << apart << ", largest " << largest);
  CHECK(apart / largest <= 1e-8);
  CHECK(seen > 1e-4);
  // Backward adds.
  auto twice = gradients;
  backward_of(loss, routings, batch, weight, twice);
  bool added = true;
  for (std::size_t i = 0; i < twice.size(); ++i)
    for (const auto which : {&Routing<double>::logits, &Routing<double>::probs, &Routing<double>::gates,
                             &Routing<double>::noisy, &Routing<double>::noise_scale})
      for (std::size_t j = 0; j < (gradients[i].*which).size(); ++j)
        added = added && std::abs((twice[i].*which)[j] - 2 * (gradients[i].*which)[j]) <=
                             1e-14 * std::max(1.0, largest);
  CHECK(added);
}

template <class Loss, class S>
bool finite(const Loss& loss, const std::vector<Routing<S>>& routings, const Batch& batch = {}) {
  bool all = std::isfinite(value_of(loss, routings, batch));
  for (const Routing<S>& g : gradients_of(loss, routings, batch))
    for (const auto which : {&Routing<S>::logits, &Routing<S>::probs, &Routing<S>::gates, &Routing<S>::noisy,
                             &Routing<S>::noise_scale})
      for (const S v : g.*which) all = all && std::isfinite(v);
  return all;
}

/// The edges where balance losses have failed in other systems: no tokens, one token, one expert, an expert
/// that nobody chose, perfect balance.
template <class S>
std::vector<Routing<S>> edge_routings(bool noisy) {
  Rng rng(1);
  std::vector<Routing<S>> edges;
  const auto add = [&](const std::vector<double>& logits, Index experts, Index k) {
    edges.push_back(route_logits<S>(logits, experts, k, 1, noisy ? &rng : nullptr));
  };
  add({}, 4, 2);
  add({1, 2, 0, -1}, 4, 2);
  add({0.5, 1, 2}, 1, 1);
  add({9, 8, -9, -9, 8, 9, -9, -9}, 4, 2);
  add({1, 0, 0, 1}, 2, 1);
  add(std::vector<double>(16, 0.0), 4, 4);
  add({1e30, -1e30, 0, 0}, 4, 2);
  return edges;
}

}  // namespace moxie::test
