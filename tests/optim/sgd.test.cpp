// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/bounds.hpp"
#include "support/random.hpp"
#include "support/refusal.hpp"

#include <moxie/optim/sgd.hpp>

using namespace moxie;
using namespace moxie::test;

namespace {
const std::vector<ParameterGroup> groups{
    {.name = "a", .offset = 0, .size = 2},
    {.name = "frozen", .offset = 2, .size = 1, .trainable = false},
    {.name = "plain", .offset = 3, .size = 2, .decay = false, .learning_rate_factor = 2}};
}

TEMPLATE_TEST_CASE("SGD takes the published steps, group by group", "[optim]", float, double) {
  using S = TestType;
  Sgd<S> optimiser(groups, {.momentum = 0.7, .weight_decay = 0.05});
  Rng rng(1);
  std::vector<S> theta(5), gradient(5);
  rng.fill(theta, -1, 1);
  std::vector<double> wanted(theta.begin(), theta.end()), m(5);
  for (int t = 0; t < 10; ++t) {
    rng.fill(gradient, -2, 2);
    CHECK(optimiser.step(theta, gradient, {.learning_rate = 0.02}).applied);
    for (std::size_t i = 0; i < 5; ++i) {
      if (i == 2) continue;
      m[i] = 0.7 * m[i] + static_cast<double>(gradient[i]) + (i < 2 ? 0.05 * wanted[i] : 0);
      wanted[i] -= 0.02 * (i > 2 ? 2 : 1) * m[i];
    }
  }
  for (std::size_t i = 0; i < 5; ++i)
    CHECK(std::abs(static_cast<double>(theta[i]) - wanted[i]) <= 100 * unit<S>);
}

TEST_CASE("SGD with a gradient that is not finite changes nothing", "[optim]") {
  Sgd<double> optimiser(groups, {.momentum = 0.5});
  std::vector<double> theta(5, 1), gradient(5, 1);
  REQUIRE(optimiser.step(theta, gradient, {.learning_rate = 0.1}).applied);
  const auto before = theta;
  const std::vector<double> m(optimiser.momentum().begin(), optimiser.momentum().end());
  gradient[4] = std::nan("");
  const StepResult result = optimiser.step(theta, gradient, {.learning_rate = 0.1});
  CHECK(!result.applied);
  CHECK(result.reason.find("plain [1]") != std::string::npos);
  CHECK(theta == before);
  CHECK(std::equal(m.begin(), m.end(), optimiser.momentum().begin()));
  CHECK(!optimiser.step(theta, std::vector<double>(5, 1), {.learning_rate = 0.1, .loss = std::nan("")})
             .applied);
  CHECK(theta == before);
}

TEST_CASE("clipping scales the gradient down to the norm, over the trainable groups", "[optim]") {
  std::vector<double> theta(5, 0), gradient{3, 0, 100, 0, 4};
  Sgd<double> optimiser(groups);
  const StepResult result = optimiser.step(theta, gradient, {.learning_rate = 1, .clip_norm = 1});
  CHECK(result.gradient_norm == 5);
  CHECK(std::abs(theta[0] + 0.6) <= 1e-15);
  CHECK(theta[2] == 0);
  CHECK(std::abs(theta[4] + 1.6) <= 1e-15);  // factor 2
  std::vector<double> small(5, 0);
  CHECK(optimiser.step(small, std::vector<double>{0.3, 0, 0, 0, 0.4}, {.learning_rate = 1, .clip_norm = 1})
            .applied);
  CHECK(small[0] == -0.3);
}

TEST_CASE("clipping a gradient whose square overflows keeps its direction", "[optim]") {
  const std::vector<double> gradient{3e200, 4e200};
  std::vector<double> theta{1, 1};
  Sgd<double> sgd(std::vector<ParameterGroup>{{.size = 2}});
  const StepResult result = sgd.step(theta, gradient, {.learning_rate = 1, .clip_norm = 0.5});
  CHECK(result.applied);
  CHECK(std::abs(result.gradient_norm / 5e200 - 1) < 1e-15);
  CHECK((std::abs(theta[0] - 0.7) < 1e-15 && std::abs(theta[1] - 0.6) < 1e-15));
}

TEST_CASE("SGD refuses bad settings and sizes", "[optim]") {
  const double nan = std::nan("");
  for (const double bad : {-0.1, 1.0, nan})
    refused([&] { Sgd<double>(groups, {.momentum = bad}); }, Code::config_range, {"momentum"});
  for (const double bad : {-0.1, nan})
    refused([&] { Sgd<double>(groups, {.weight_decay = bad}); }, Code::config_range, {"weight_decay"});
  Sgd<double> optimiser(groups);
  std::vector<double> four(4), five(5);
  refused([&] { (void)optimiser.step(four, five, {}); }, Code::shape_mismatch, {"theta", "4", "5"});
}
