// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/refusal.hpp"
#include "support/routings.hpp"

#include <moxie/route.hpp>
#include <moxie/routers/given.hpp>
#include <moxie/routers/soft.hpp>
#include <moxie/routers/top_k.hpp>
#include <moxie/routers/uniform.hpp>

using namespace moxie;
using namespace moxie::test;
using S = double;

namespace {

/// Routes rows that are the logits themselves: the weights are a unit matrix.
template <class R>
Routing<S> route_directly(const R& router, const Matrix<S>& logits, const Run& run = {}) {
  const Index n = logits.cols();
  std::vector<S> theta(naive::at(router.size()), 0.0);
  for (Index e = 0; e < n; ++e) theta[naive::at(e * (n + 1))] = 1;
  Routing<S> routing;
  Workspace<S> workspace;
  route<R>(router, theta, logits, routing, workspace, run);
  return routing;
}
Matrix<S> golden() { return Eigen::Map<const Matrix<S>>(golden_logits.data(), 4, 4); }

}  // namespace

TEST_CASE("routers refuse settings out of range by name", "[routers]") {
  using Soft = SoftRouter<S>;
  using TopK = TopKRouter<S>;
  const Code range = Code::config_range;
  const double nan = std::nan("");
  refused([] { UniformRouter<S>({.experts = 0}); }, range, {"UniformRouter experts", "0"});
  refused([] { UniformRouter<S>({.experts = 1, .heads = 0}); }, range, {"UniformRouter heads", "0"});
  refused([] { GivenRouter<S>({.experts = -1}); }, range, {"GivenRouter experts", "-1"});
  refused([] { GivenRouter<S>({.experts = 1, .heads = 0}); }, range, {"GivenRouter heads", "0"});
  refused([] { Soft({.in = 0, .experts = 2}); }, range, {"router in", "0"});
  refused([] { Soft({.in = 4, .experts = 0}); }, range, {"router experts", "0"});
  for (const Index heads : {0, 3})
    refused([&] { Soft({.in = 4, .experts = 2, .heads = heads}); }, range, {"router heads", "4"});
  for (const double bad : {0.0, -1.0, nan, HUGE_VAL}) {
    refused([&] { Soft({.in = 4, .experts = 2, .temperature = bad}); }, range, {"temperature"});
    refused([&] { TopK({.in = 4, .experts = 2, .temperature = bad}); }, range, {"temperature"});
    refused([&] { TopK({.in = 4, .experts = 2, .noise = RouterNoise::fixed, .noise_scale = bad}); }, range,
            {"noise_scale"});
  }
  for (const double bad : {-0.1, 1.0, nan})
    refused([&] { Soft({.in = 4, .experts = 2, .jitter = bad}); }, range, {"jitter"});
  for (const Index k : {0, -1, 3})
    refused([&] { TopK({.in = 4, .experts = 2, .k = k}); }, range, {"k", "1 to 2"});
  for (const Index k : {0, 3})
    refused([&] { TopK({.in = 4, .experts = 2, .k_start = k, .k_steps = 5}); }, range, {"k_start", "1 to 2"});
  refused([] { Soft({.in = Index{1} << 40, .experts = Index{1} << 40}); }, Code::too_large, {"router"});
}

TEST_CASE("soft and top-2 routing have the golden values", "[routers]") {
  const Routing<S> soft = route_directly(SoftRouter<S>({.in = 4, .experts = 4}), golden());
  const double row[] = {0.64391426, 0.23688282, 0.08714432, 0.03205860};
  for (std::size_t e = 0; e < 4; ++e) CHECK(std::abs(soft.gates[e] - row[e]) <= 1e-8);
  for (const auto weights : {TopKWeights::renormalised, TopKWeights::softmax_of_chosen}) {
    const Routing<S> top =
        route_directly(TopKRouter<S>({.in = 4, .experts = 4, .k = 2, .weights = weights}), golden());
    CHECK(top.chosen == Buffer<int>{0, 1, 0, 2, 2, 3, 0, 3});
    CHECK(std::abs(top.gates[0] - 0.73105858) <= 1e-8);
    CHECK(std::abs(top.gates[1] - 0.26894142) <= 1e-8);
    CHECK(std::abs(top.gates[6] - 0.73105858) <= 1e-8);
    CHECK(std::abs(top.gates[11] - 0.73105858) <= 1e-8);
    CHECK(std::abs(top.gates[12] - 0.56217650) <= 1e-8);
    CHECK(std::abs(top.gates[15] - 0.43782350) <= 1e-8);
  }
}

TEST_CASE("temperature divides the logits, which the routing keeps divided", "[routers]") {
  const Routing<S> cold =
      route_directly(SoftRouter<S>({.in = 4, .experts = 4, .temperature = 0.5}), golden());
  CHECK(cold.logits[0] == 4);
  CHECK(std::abs(cold.probs[0] / cold.probs[1] - std::exp(2.0)) <= 1e-13);
}

TEST_CASE("SMoE-Dropout's k grows linearly in training and is k in evaluation", "[routers]") {
  const TopKRouter<S> router({.in = 4, .experts = 9, .k = 3, .frozen = true, .k_start = 1, .k_steps = 100});
  const auto at = [&](std::uint64_t step, bool training) {
    return router.chosen_at({.training = training, .step = step});
  };
  CHECK(at(0, true) == 1);
  CHECK(at(12, true) == 1);
  CHECK(at(13, true) == 2);  // 1 + floor(8 * 0.13)
  CHECK(at(50, true) == 5);
  CHECK(at(99, true) == 8);
  CHECK(at(100, true) == 9);
  CHECK(at(1000000, true) == 9);
  CHECK(at(50, false) == 3);
  Index last = 0;
  for (std::uint64_t step = 0; step <= 100; ++step) {
    // Exactly the floor, where the division has no rest too.
    CHECK(at(step, true) == 1 + static_cast<Index>(8 * step / 100));
    CHECK(at(step, true) >= last);
    last = at(step, true);
  }
  for (const Index experts : {4, 7, 64})
    for (std::uint64_t steps = 1; steps < 60; ++steps) {
      const TopKRouter<S> other({.in = 4, .experts = experts, .k_start = 1, .k_steps = steps});
      for (std::uint64_t step = 0; step <= steps; ++step)
        REQUIRE(other.chosen_at({.training = true, .step = step}) ==
                1 + static_cast<Index>(static_cast<std::uint64_t>(experts - 1) * step / steps));
    }
  for (const Field& field : router.fields()) CHECK(!field.trainable);
}

TEST_CASE("noise has the deviation it says, in training only", "[routers]") {
  const Matrix<S> logits = Matrix<S>::Zero(20000, 4);
  for (const auto noise : {RouterNoise::fixed, RouterNoise::learned}) {
    const TopKRouter<S> router({.in = 4, .experts = 4, .k = 2, .noise = noise, .noise_scale = 0.3});
    const Routing<S> calm = route_directly(router, logits),
                     r = route_directly(router, logits, {.training = true});
    CHECK((calm.noisy.empty() && r.noisy.size() == 80000));
    // Learned noise starts with W_noise = 0: softplus(0) + 0.01.
    const double sigma = noise == RouterNoise::fixed ? 0.3 : std::log(2.0) + 0.01;
    double squares = 0, sum = 0;
    for (std::size_t i = 0; i < 80000; ++i) {
      REQUIRE(r.logits[i] == 0);
      squares += r.noisy[i] * r.noisy[i] / 80000;
      sum += r.noisy[i] / 80000;
      REQUIRE(std::abs(r.noise_scale[i] - sigma) <= 1e-12);
    }
    CHECK(std::abs(std::sqrt(squares) / sigma - 1) < 0.02);
    CHECK(std::abs(sum) < 0.02 * sigma);
    const TopKRouter<S> fields({.in = 4, .experts = 4, .noise = noise});
    CHECK(fields.fields().size() == (noise == RouterNoise::learned ? 2 : 1));
  }
}

TEST_CASE("jitter moves the router's input by at most its size, in training only", "[routers]") {
  const Matrix<S> ones = Matrix<S>::Ones(5000, 4);
  const SoftRouter<S> router({.in = 4, .experts = 4, .jitter = 0.1});
  CHECK(route_directly(router, ones).logits[7] == 1);
  const Routing<S> r = route_directly(router, ones, {.training = true});
  double sum = 0, low = 2, high = 0;
  for (const S z : r.logits) {
    sum += z;
    low = std::min(low, z);
    high = std::max(high, z);
  }
  CHECK((low >= 0.9 && low < 0.901 && high <= 1.1 && high > 1.099));
  CHECK(std::abs(sum / 20000 - 1) < 0.002);
}

TEST_CASE("a router run by itself refuses what does not fit", "[routers]") {
  const SoftRouter<S> router({.in = 6, .experts = 3});
  std::vector<S> theta(18, 0.1), dtheta(18, 0.0);
  Matrix<S> x = Matrix<S>::Ones(4, 6), dx = Matrix<S>::Zero(4, 6), other(3, 6), narrow(4, 5);
  Routing<S> routing, gradient;
  Workspace<S> workspace;
  const std::span<const S> t(theta);
  const Code shape = Code::shape_mismatch;
  refused([&] { route(router, t.first(17), In<S>(x), routing, workspace); }, shape, {"theta", "17", "18"});
  refused([&] { route(router, t, In<S>(narrow), routing, workspace); }, shape, {"x", "[4, 5]", "[any, 6]"});
  route(router, t, In<S>(x), routing, workspace);
  gradient.zero_gradient_of(routing);
  gradient.part(&Routing<S>::gates)[3] = 1;
  const auto backward = [&](In<S> input, Out<S> to, std::span<S> d, Routing<S>& g) {
    route_backward(router, t, input, routing, g, workspace, Run{}, to, d);
  };
  refused([&] { backward(other, dx, dtheta, gradient); }, shape, {"x", "[3, 6]", "[4, 6]"});
  refused([&] { backward(x, other, dtheta, gradient); }, shape, {"dx", "[3, 6]"});
  refused([&] { backward(x, dx, std::span(dtheta).first(3), gradient); }, shape, {"dtheta", "3", "18"});
  refused([&] { backward(x, x, dtheta, gradient); }, Code::aliased, {"dx overlaps x"});
  const auto over = [](const S* p) { return std::span<S>(const_cast<S*>(p), 18); };
  refused([&] { backward(x, {theta.data(), 3, 6}, dtheta, gradient); }, shape, {"dx"});
  refused([&] { backward(x, dx, over(theta.data()), gradient); }, Code::aliased, {"dtheta overlaps theta"});
  refused([&] { backward(x, dx, over(x.data()), gradient); }, Code::aliased, {"dtheta overlaps x"});
  refused([&] { backward(x, dx, over(dx.data()), gradient); }, Code::aliased, {"dtheta overlaps dx"});
  Routing<S> bad = gradient;
  bad.rows = 3;
  refused([&] { backward(x, dx, dtheta, bad); }, shape, {"gradient", "[3, 3]", "[4, 3]"});
  const SoftRouter<S> wider({.in = 6, .experts = 30});
  refused(
      [&] {
        const std::vector<S> weights(180);
        route_backward(wider, std::span<const S>(weights), In<S>(x), routing, gradient, workspace, Run{},
                       Out<S>(dx), std::span<S>());
      },
      shape, {"routing", "[4, 3]", "[4, 30]"});
  bad = gradient;
  bad.probs.resize(11);
  refused([&] { backward(x, dx, dtheta, bad); }, shape, {"gradient", "11", "12"});
  CHECK(dx.isZero(0));
  CHECK(dtheta == std::vector<S>(18, 0.0));
  backward(x, dx, dtheta, gradient);
  CHECK(!dx.isZero(0));
}

TEST_CASE("given gates are chosen where they are not 0", "[routers]") {
  Matrix<S> gates(4, 3);
  gates << 0.5, 0, 1, 0, 0, 0, -1, 0, 0, 2, 3, 4;
  Routing<S> r;
  give_gates<S>(r, gates, 2);
  CHECK((r.rows == 4 && r.rows_per_token == 2 && r.tokens() == 2 && r.experts == 3));
  CHECK(r.count == Buffer<int>{2, 0, 1, 3});
  CHECK((r.chosen_row(0)[0] == 0 && r.chosen_row(0)[1] == 2 && r.chosen_row(2)[0] == 0 && r.gates[11] == 4));
}
