// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/refusal.hpp"
#include "support/routings.hpp"

#include <moxie/losses/load_balance.hpp>

using namespace moxie;
using namespace moxie::test;

namespace {

/// N sum of f_e P_e in plain loops, of routings that are one list.
template <class S>
double plain_value(const std::vector<const Routing<S>*>& routings, ShareSum sum, ShareCount count,
                   const std::vector<char>& mask) {
  const Index N = routings[0]->experts;
  std::vector<double> c(naive::at(N)), p(naive::at(N));
  double rows = 0, choices = 0;
  for (const Routing<S>* r : routings)
    for (Index row = 0; row < r->rows; ++row) {
      if (!mask.empty() && mask[naive::at(row / r->rows_per_token)] == 0) continue;
      rows += 1;
      Index best = 0;
      for (Index e = 0; e < N; ++e) {
        p[naive::at(e)] += static_cast<double>(r->probs[naive::at(row * N + e)]);
        if (r->probs[naive::at(row * N + e)] > r->probs[naive::at(row * N + best)]) best = e;
        const int* chosen = r->chosen_row(row);
        const bool served =
            count == ShareCount::chosen &&
            std::find(chosen, chosen + r->count[naive::at(row)], e) != chosen + r->count[naive::at(row)];
        c[naive::at(e)] += served ? 1 : 0;
        choices += served ? 1 : 0;
      }
      if (count == ShareCount::most_likely) c[naive::at(best)] += 1, choices += 1;
    }
  double loss = 0;
  for (Index e = 0; e < N; ++e)
    loss += static_cast<double>(N) * c[naive::at(e)] / (sum == ShareSum::one ? choices : rows) *
            p[naive::at(e)] / rows;
  return loss;
}

}  // namespace

TEST_CASE("the load balance losses have the golden values", "[losses]") {
  const std::vector<Routing<double>> r{route_logits<double>(golden_logits, 4, 2)};
  CHECK(std::abs(value_of(LoadBalance<double>::mola(), r) - 1.09166589) <= 1e-8);
  CHECK(std::abs(value_of(LoadBalance<double>::mixtral(), r) - 2.18333179) <= 1e-8);
  CHECK(std::abs(value_of(LoadBalance<double>::switch_transformer(), r) - 1.18333179) <= 1e-8);
  CHECK(std::abs(value_of(LoadBalance<double>::adamole(), r) - 2.18333179) <= 1e-8);
  CHECK(std::abs(value_of(LoadBalance<double>::ld_mole(), r) - 1.09166589) <= 1e-8);
  CHECK(std::abs(value_of(LoadBalance<double>::hmora(), r) - 1.09166589) <= 1e-8);
  // The routing itself: softmax and top-2 of the first row.
  CHECK(std::abs(r[0].probs[0] - 0.64391426) <= 1e-8);
  CHECK(std::abs(r[0].gates[0] - 0.73105858) <= 1e-8);
  CHECK(std::abs(r[0].gates[12] - 0.56217650) <= 1e-8);
}

TEMPLATE_TEST_CASE("load balance equals plain loops in every form, with its gradient", "[losses]", float,
                   double) {
  using S = TestType;
  Rng rng(2);
  const std::vector<Routing<S>> routings{random_routing<S>(rng, 7, 5, 2), random_routing<S>(rng, 7, 5, 2),
                                         random_routing<S>(rng, 7, 5, 2)};
  const std::vector<char> mask{1, 1, 0, 1, 1, 0, 1};
  for (const auto sum : {ShareSum::one, ShareSum::k})
    for (const auto count : {ShareCount::chosen, ShareCount::most_likely})
      for (const auto pool : {Pool::concatenate, Pool::sum, Pool::mean})
        for (const bool masked : {false, true}) {
          const LoadBalance<S> loss({.sum = sum, .count = count, .pool = pool, .mask_padding = masked});
          const Batch batch{.mask = mask};
          const auto used = masked ? mask : std::vector<char>{};
          double wanted = 0;
          if (pool == Pool::concatenate)
            wanted = plain_value<S>({&routings[0], &routings[1], &routings[2]}, sum, count, used);
          else
            for (const auto& r : routings)
              wanted += plain_value<S>({&r}, sum, count, used) / (pool == Pool::mean ? 3 : 1);
          CHECK(std::abs(value_of(loss, routings, batch) - wanted) <= 1e-12);
          if constexpr (std::is_same_v<S, double>) check_gradients(loss, routings, batch);
        }
}

TEST_CASE("load balance counts heads as rows, and may sum losses of different numbers of experts",
          "[losses]") {
  Rng rng(3);
  const std::vector<Routing<double>> heads{random_routing<double>(rng, 4, 3, 2, 5)};
  const Batch batch{.mask = {1, 0, 1, 1}};
  check_gradients(LoadBalance<double>::mixtral(), heads, batch);
  CHECK(std::abs(value_of(LoadBalance<double>::mixtral(), heads, batch) -
                 plain_value<double>({&heads[0]}, ShareSum::k, ShareCount::chosen, batch.mask)) <= 1e-12);
  const std::vector<Routing<double>> layers{random_routing<double>(rng, 4, 3, 2),
                                            random_routing<double>(rng, 6, 8, 2)};
  check_gradients(LoadBalance<double>::adamole(), layers);
  refused([&] { value_of(LoadBalance<double>::mola(), layers); }, Code::shape_mismatch,
          {"3", "8", "Pool::sum"});
}

TEST_CASE("load balance is 1 or k at uniform routing and does not move when experts are permuted",
          "[losses]") {
  // Every expert chosen equally often, equal probabilities.
  std::vector<Routing<double>> r{route_logits<double>(std::vector<double>(16, 0.0), 4, 2)};
  for (Index row = 0; row < 4; ++row) {
    r[0].chosen[naive::at(2 * row)] = static_cast<int>(row % 2 * 2);
    r[0].chosen[naive::at(2 * row + 1)] = static_cast<int>(row % 2 * 2 + 1);
  }
  CHECK(std::abs(value_of(LoadBalance<double>::mola(), r) - 1) <= 1e-14);
  CHECK(std::abs(value_of(LoadBalance<double>::mixtral(), r) - 2) <= 1e-14);
  std::vector<double> swapped = golden_logits;
  for (std::size_t row = 0; row < 4; ++row) std::swap(swapped[4 * row], swapped[4 * row + 3]);
  CHECK(std::abs(value_of(LoadBalance<double>::mola(), std::vector{route_logits<double>(swapped, 4, 2)}) -
                 1.09166589) <= 1e-8);
}

TEMPLATE_TEST_CASE("load balance is finite at every edge", "[losses]", float, double) {
  for (const auto& edge : edge_routings<TestType>(false))
    for (const auto& loss : {LoadBalance<TestType>::mola(), LoadBalance<TestType>::mixtral(),
                             LoadBalance<TestType>::switch_transformer(), LoadBalance<TestType>::ld_mole()}) {
      CHECK(finite(loss, std::vector{edge}));
      CHECK(finite(loss, std::vector{edge}, {.mask = std::vector<char>(naive::at(edge.rows), 0)}));
    }
  CHECK(value_of(LoadBalance<TestType>::mola(), std::vector<Routing<TestType>>{}) == 0);
}

TEST_CASE("load balance refuses masks and gradients that do not fit, and then adds nothing", "[losses]") {
  Rng rng(4);
  const std::vector<Routing<double>> r{random_routing<double>(rng, 4, 3, 2),
                                       random_routing<double>(rng, 5, 3, 2)};
  const auto loss = LoadBalance<double>::hmora();
  std::vector<Routing<double>> g(2);
  g[0].zero_gradient_of(r[0]);
  g[1].zero_gradient_of(r[1]);
  refused(
      [&] {
        backward_of(loss, r, {.mask = {1, 1, 1, 1}}, 1, g);
      },
      Code::shape_mismatch, {"mask", "4", "5"});
  CHECK((g[0].probs.empty() && g[1].probs.empty()));
  refused([&] { value_of(loss, r, {.mask = {1, 1, 1, 1}}); }, Code::shape_mismatch, {"mask", "4", "5"});
  const Routing<double> no_probs = [&] {
    Routing<double> copy = r[0];
    copy.probs.clear();
    return copy;
  }();
  const Routing<double>* pool[] = {&r[0], &no_probs};
  refused([&] { (void)loss.value(pool, {}); }, Code::shape_mismatch, {"probs", "0", "12"});
  pool[1] = nullptr;
  refused([&] { (void)loss.value(pool, {}); }, Code::null_pointer, {"routing", "null"});
  g[1].probs.resize(3);
  refused([&] { backward_of(loss, r, {}, 1, g); }, Code::shape_mismatch, {"gradient", "3", "15"});
  g[1].probs.clear();
  g.pop_back();
  refused([&] { backward_of(loss, r, {}, 1, g); }, Code::shape_mismatch, {"gradients", "1", "2"});
  g.push_back(g[0]);
  refused([&] { backward_of(loss, r, {}, 1, g); }, Code::shape_mismatch, {"[4, 3]", "[5, 3]"});
  CHECK((g[0].probs.empty() && g[1].probs.empty()));
}
