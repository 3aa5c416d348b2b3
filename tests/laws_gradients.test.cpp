// SPDX-License-Identifier: MIT
// The gradients of every adapter of the list, against dual numbers through plain loops and, in double,
// against central differences of the library's own forward.
#include "support/catch.hpp"

#include "support/cases.hpp"

using namespace moxie;
using namespace moxie::test;

namespace {

struct Mode {
  std::string name;
  bool training = false, apart = false, losses = false;
  double scale = 1;
};
const std::vector<Mode> modes{{.name = "evaluation"},
                              {.name = "router_x and losses", .apart = true, .losses = true},
                              {.name = "scaled", .scale = -1.5},
                              {.name = "training with losses", .training = true, .losses = true},
                              {.name = "training, router_x", .training = true, .apart = true}};
constexpr Sizes small{.in = 6, .out = 5, .head = 3, .heads = 2};
constexpr Index tokens = 5;

Run run_of(const Mode& mode) {
  Run run = mode.training ? training_run() : Run{};
  run.scale = mode.scale;
  return run;
}

}  // namespace

TEMPLATE_TEST_CASE("gradients equal those of plain loops, taken by dual numbers", "[laws]", float, double) {
  using S = TestType;
  using R = Dual<Bounded>;
  double seen = 0;
  for (const Case<S>& c : cases<S>(small))
    for (const Mode& mode : modes) {
      if (mode.training && !c.random()) continue;
      INFO(c.name << ", " << mode.name);
      const Run run = run_of(mode);
      const Inputs<S> data = make_clear_inputs(c, tokens, 1, run, mode.apart, mode.losses);
      const Outputs<S> got = evaluate(c, data, run);
      const naive::Draws random = draws(c, tokens, run);
      Point<R> at = point<R>(data);
      const auto slopes = [&](std::vector<R> Point<R>::*which, const S* gradient) {
        Worst worst;
        std::vector<R>& values = at.*which;
        for (std::size_t i = 0; i < values.size(); ++i) {
          values[i].slope = Bounded(1);
          const R f = objective(reference(c, at, data, random, run), data);
          values[i].slope = Bounded(0);
          worst.see(gradient[i], f.slope, gradient_gate);
        }
        seen = std::max(seen, worst.ratio());
        return worst;
      };
      const Worst of_theta = slopes(&Point<R>::theta, got.dtheta.data());
      CHECK(of_theta.ratio() <= 1);
      CHECK(!of_theta.nothing_but_zeros());
      const Worst of_x = slopes(&Point<R>::x, got.dx.data());
      CHECK(of_x.ratio() <= 1);
      CHECK(!of_x.nothing_but_zeros());
      if (data.router_x.size() > 0) CHECK(slopes(&Point<R>::router_x, got.drouter_x.data()).ratio() <= 1);
      if (!c.given()) continue;
      // The gradient of given gates, of those that are chosen.
      Worst of_gates;
      for (std::size_t i = 0; i < at.gates.size(); ++i) {
        if (plain(at.gates[i]) == 0) continue;
        at.gates[i].slope = Bounded(1);
        // A given routing's probabilities repeat its gates; the library's gradient is that of the gates.
        Inputs<S> without_probs = data;
        without_probs.drouting.probs.clear();
        const R f = objective(reference(c, at, data, random, run), without_probs);
        at.gates[i].slope = Bounded(0);
        of_gates.see(got.drouting.gates[i], f.slope, gradient_gate);
      }
      CHECK(of_gates.trusted());
      CHECK(of_gates.ratio() <= 1);
    }
  INFO("worst " << seen << " of what is allowed");
  CHECK(seen > 0.001);
}

TEST_CASE("gradients equal central differences of forward", "[laws]") {
  using S = double;
  constexpr double h = 6e-6;
  double seen = 0;
  for (const Case<S>& c : cases<S>(small))
    for (const Mode& mode : modes) {
      if (mode.training && !c.random()) continue;
      INFO(c.name << ", " << mode.name);
      const Run run = run_of(mode);
      Inputs<S> data = make_clear_inputs(c, tokens, 2, run, mode.apart, mode.losses);
      const Outputs<S> got = evaluate(c, data, run);
      Cache<S> cache;
      Workspace<S> workspace;
      const auto f = [&] {
        const Matrix<S> y = run_forward(c, *c.adapter, data, run, cache, workspace);
        double sum = (y.array() * data.dy.array()).sum();
        for (const auto which : {&Routing<S>::logits, &Routing<S>::probs, &Routing<S>::gates,
                                 &Routing<S>::noisy, &Routing<S>::noise_scale}) {
          const auto& weights = data.drouting.*which;
          const auto& values = cache.routing.*which;
          if (!weights.empty())
            for (std::size_t i = 0; i < values.size(); ++i) sum += weights[i] * values[i];
        }
        return sum;
      };
      const auto error = [&](double* values, const double* gradient, Index n) {
        double largest = 1, apart = 0;
        for (Index i = 0; i < n; ++i) {
          const double kept = values[i];
          values[i] = kept + h;
          const double up = f();
          values[i] = kept - h;
          const double down = f();
          values[i] = kept;
          apart = std::max(apart, std::abs((up - down) / (2 * h) - gradient[i]));
          largest = std::max(largest, std::abs(gradient[i]));
        }
        seen = std::max(seen, apart / largest);
        return apart / largest;
      };
      CHECK(error(data.theta.data(), got.dtheta.data(), std::ssize(data.theta)) <= 1e-8);
      CHECK(error(data.x.data(), got.dx.data(), data.x.size()) <= 1e-8);
      CHECK(error(data.router_x.data(), got.drouter_x.data(), data.router_x.size()) <= 1e-8);
    }
  INFO("worst " << seen);
  CHECK(seen > 1e-14);
}
