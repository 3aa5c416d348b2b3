// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/refusal.hpp"
#include "support/routings.hpp"

#include <moxie/losses/z.hpp>

using namespace moxie;
using namespace moxie::test;

TEST_CASE("the z-loss has the golden value", "[losses]") {
  const std::vector<Routing<double>> r{route_logits<double>(golden_logits, 4, 2)};
  CHECK(std::abs(value_of(ZLoss<double>(), r) - 4.96186037) <= 1e-8);
}

TEST_CASE("the z-loss equals plain loops, with its gradient", "[losses]") {
  Rng rng(1);
  const Batch batch{.mask = {1, 0, 1, 1, 0}};
  for (const bool masked : {false, true})
    for (const Index heads : {1, 3}) {
      const std::vector<Routing<double>> r{random_routing<double>(rng, 5, 4, 2, heads),
                                           random_routing<double>(rng, 5, 6, 3, heads)};
      double sum = 0, rows = 0;
      for (const auto& routing : r)
        for (Index row = 0; row < routing.rows; ++row) {
          if (masked && batch.mask[naive::at(row / heads)] == 0) continue;
          double z = 0;
          for (Index e = 0; e < routing.experts; ++e)
            z += std::exp(routing.logits[naive::at(row * routing.experts + e)]);
          sum += std::log(z) * std::log(z);
          rows += 1;
        }
      const ZLoss<double> loss({.mask_padding = masked});
      CHECK(std::abs(value_of(loss, r, batch) - sum / rows) <= 1e-12);
      check_gradients(loss, r, batch);
    }
}

TEMPLATE_TEST_CASE("the z-loss is finite at every edge", "[losses]", float, double) {
  for (const auto& edge : edge_routings<TestType>(false)) {
    CHECK(finite(ZLoss<TestType>(), std::vector{edge}));
    CHECK(finite(ZLoss<TestType>({.mask_padding = true}), std::vector{edge},
                 {.mask = std::vector<char>(naive::at(edge.rows), 0)}));
  }
  CHECK(value_of(ZLoss<TestType>(), std::vector<Routing<TestType>>{}) == 0);
}

TEST_CASE("the z-loss refuses a mask that does not fit, and then adds nothing", "[losses]") {
  Rng rng(2);
  const std::vector<Routing<double>> r{random_routing<double>(rng, 4, 3, 2),
                                       random_routing<double>(rng, 5, 3, 2)};
  std::vector<Routing<double>> g(2);
  for (std::size_t i = 0; i < 2; ++i) g[i].zero_gradient_of(r[i]);
  refused(
      [&] {
        backward_of(ZLoss<double>({.mask_padding = true}), r, {.mask = {1, 1, 1, 1}}, 1, g);
      },
      Code::shape_mismatch, {"mask", "4", "5"});
  CHECK((g[0].logits.empty() && g[1].logits.empty()));
}
