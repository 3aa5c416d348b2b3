// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/refusal.hpp"
#include "support/routings.hpp"

#include <moxie/losses/importance.hpp>

#include <numbers>

using namespace moxie;
using namespace moxie::test;

namespace {

double cv_squared(const std::vector<double>& v) {
  double mean = 0, variance = 0;
  for (const double x : v) mean += x / static_cast<double>(v.size());
  for (const double x : v) variance += (x - mean) * (x - mean) / static_cast<double>(v.size());
  return variance / (mean * mean + 1e-10);
}
bool real(const Batch& batch, bool masked, Index token) {
  return !masked || batch.mask[naive::at(token)] != 0;
}
double plain_importance(const Routing<double>& r, const Batch& batch, bool masked) {
  std::vector<double> sum(naive::at(r.experts));
  for (Index row = 0; row < r.rows; ++row)
    for (Index e = 0; real(batch, masked, row / r.rows_per_token) && e < r.experts; ++e)
      sum[naive::at(e)] += r.gates[naive::at(row * r.experts + e)];
  return cv_squared(sum);
}
/// Phi as an integral: half of it from the left of 0, Simpson's rule.
double phi(double u) {
  const int n = 2000;
  double sum = 0;
  for (int i = 0; i <= n; ++i) {
    const double x = u * i / n;
    sum += std::exp(-x * x / 2) * (i == 0 || i == n ? 1 : i % 2 == 1 ? 4 : 2);
  }
  return 0.5 + sum * u / n / 3 / std::sqrt(2 * std::numbers::pi);
}
double plain_load(const Routing<double>& r, const Batch& batch, bool masked) {
  const Index E = r.experts, k = r.max_chosen;
  std::vector<double> sum(naive::at(E));
  for (Index row = 0; row < r.rows; ++row) {
    if (!real(batch, masked, row / r.rows_per_token)) continue;
    for (Index e = 0; e < E; ++e) {
      std::vector<double> others;
      for (Index j = 0; j < E; ++j)
        if (j != e) others.push_back(r.noisy[naive::at(row * E + j)]);
      std::sort(others.rbegin(), others.rend());
      const auto at = naive::at(row * E + e);
      sum[naive::at(e)] += k < E ? phi((r.logits[at] - others[naive::at(k - 1)]) / r.noise_scale[at]) : 1;
    }
  }
  return cv_squared(sum);
}

}  // namespace

TEST_CASE("importance equals plain loops, with its gradient", "[losses]") {
  Rng rng(1);
  const Batch batch{.mask = {1, 0, 1, 1, 0}};
  for (const bool masked : {false, true})
    for (const Index heads : {1, 3}) {
      const ImportanceLoss<double> loss({.mask_padding = masked});
      const std::vector<Routing<double>> r{random_routing<double>(rng, 5, 4, 2, heads),
                                           random_routing<double>(rng, 5, 6, 3, heads)};
      const double wanted = plain_importance(r[0], batch, masked) + plain_importance(r[1], batch, masked);
      CHECK(std::abs(value_of(loss, r, batch) - wanted) <= 1e-12);
      check_gradients(loss, r, batch);
    }
}

TEST_CASE("load equals plain loops, with its gradient", "[losses]") {
  Rng rng(2);
  const Batch batch{.mask = {1, 0, 1, 1, 0}};
  for (const bool masked : {false, true})
    for (const Index heads : {1, 2})
      for (const Index k : {1, 2, 3}) {
        const LoadLoss<double> loss({.mask_padding = masked});
        const std::vector<Routing<double>> r{random_routing<double>(rng, 5, 4, k, heads, true),
                                             random_routing<double>(rng, 5, 6, k, heads, true)};
        const double wanted = plain_load(r[0], batch, masked) + plain_load(r[1], batch, masked);
        CHECK(std::abs(value_of(loss, r, batch) - wanted) <= 1e-10);
        check_gradients(loss, r, batch);
      }
}

TEST_CASE("load of a router that chooses all is balanced, and one without noise is refused", "[losses]") {
  Rng rng(3);
  const LoadLoss<double> loss;
  CHECK(value_of(loss, std::vector{random_routing<double>(rng, 5, 4, 4, 1, true)}) == 0);
  CHECK(finite(loss, std::vector{random_routing<double>(rng, 5, 4, 4, 1, true)}));
  const std::vector<Routing<double>> quiet{random_routing<double>(rng, 5, 4, 2)};
  refused([&] { value_of(loss, quiet); }, Code::state_error, {"without noise"});
  refused([&] { gradients_of(loss, quiet); }, Code::state_error, {"without noise"});
}

TEMPLATE_TEST_CASE("importance and load are finite at every edge", "[losses]", float, double) {
  for (const auto& edge : edge_routings<TestType>(true)) {
    CHECK(finite(ImportanceLoss<TestType>(), std::vector{edge}));
    CHECK(finite(LoadLoss<TestType>(), std::vector{edge}));
    const Batch all_padding{.mask = std::vector<char>(naive::at(edge.rows), 0)};
    CHECK(finite(ImportanceLoss<TestType>({.mask_padding = true}), std::vector{edge}, all_padding));
    CHECK(finite(LoadLoss<TestType>({.mask_padding = true}), std::vector{edge}, all_padding));
  }
}

TEST_CASE("importance and load refuse a mask that does not fit, and then add nothing", "[losses]") {
  Rng rng(4);
  const std::vector<Routing<double>> r{random_routing<double>(rng, 4, 3, 2, 1, true),
                                       random_routing<double>(rng, 5, 3, 2, 1, true)};
  std::vector<Routing<double>> g(2);
  for (std::size_t i = 0; i < 2; ++i) g[i].zero_gradient_of(r[i]);
  const Batch batch{.mask = {1, 1, 1, 1}};
  refused([&] { backward_of(ImportanceLoss<double>({.mask_padding = true}), r, batch, 1, g); },
          Code::shape_mismatch, {"mask", "4", "5"});
  refused([&] { backward_of(LoadLoss<double>({.mask_padding = true}), r, batch, 1, g); },
          Code::shape_mismatch, {"mask", "4", "5"});
  for (const auto& gradient : g) CHECK((gradient.gates.empty() && gradient.logits.empty()));
}
