// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/bounds.hpp"
#include "support/random.hpp"
#include "support/refusal.hpp"

#include <moxie/optim/adamw.hpp>

#include <cstring>

using namespace moxie;
using namespace moxie::test;

namespace {

const std::vector<ParameterGroup> groups{
    {.name = "a", .offset = 0, .size = 3},
    {.name = "frozen", .offset = 3, .size = 2, .trainable = false},
    {.name = "no decay", .offset = 5, .size = 2, .decay = false},
    {.name = "slow", .offset = 7, .size = 3, .learning_rate_factor = 0.25}};

template <class T>
bool same(std::span<const T> a, std::span<const T> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

}  // namespace

TEMPLATE_TEST_CASE("AdamW takes the published steps, group by group", "[optim]", float, double) {
  using S = TestType;
  const double b1 = 0.8, b2 = 0.97, eps = 1e-6, decay = 0.1;
  AdamW<S> optimiser(groups, {.beta1 = b1, .beta2 = b2, .epsilon = eps, .weight_decay = decay});
  Rng rng(1);
  std::vector<S> theta(10), gradient(10);
  rng.fill(theta, -1, 1);
  std::vector<double> wanted(theta.begin(), theta.end()), m(10), v(10);
  const std::vector<S> start = theta;
  for (int t = 1; t <= 20; ++t) {
    rng.fill(gradient, -2, 2);
    const double rate = 0.01 / t, clip = t % 2 == 0 ? 1.5 : 0;
    double norm = 0;
    for (std::size_t i = 0; i < 10; ++i)
      if (i != 3 && i != 4) norm += static_cast<double>(gradient[i]) * static_cast<double>(gradient[i]);
    norm = std::sqrt(norm);
    const StepResult result = optimiser.step(theta, gradient, {.learning_rate = rate, .clip_norm = clip});
    CHECK(result.applied);
    CHECK(std::abs(result.gradient_norm - norm) <= 1e-12 * norm);
    for (std::size_t i = 0; i < 10; ++i) {
      if (i == 3 || i == 4) continue;
      const double g = static_cast<double>(gradient[i]) * (clip > 0 && norm > clip ? clip / norm : 1);
      const double lr = rate * (i >= 7 ? 0.25 : 1);
      m[i] = b1 * m[i] + (1 - b1) * g;
      v[i] = b2 * v[i] + (1 - b2) * g * g;
      if (i != 5 && i != 6) wanted[i] -= lr * decay * wanted[i];
      wanted[i] -= lr * (m[i] / (1 - std::pow(b1, t))) / (std::sqrt(v[i] / (1 - std::pow(b2, t))) + eps);
    }
  }
  CHECK(optimiser.steps() == 20);
  for (std::size_t i = 0; i < 10; ++i) {
    CHECK(std::abs(static_cast<double>(theta[i]) - wanted[i]) <= 400 * unit<S>);
    CHECK((theta[i] == start[i]) == (i == 3 || i == 4));
  }
}

TEMPLATE_TEST_CASE("a step with a number that is not finite changes nothing and says where", "[optim]", float,
                   double) {
  using S = TestType;
  AdamW<S> optimiser(groups);
  std::vector<S> theta(10, S(1)), gradient(10, S(0.5));
  REQUIRE(optimiser.step(theta, gradient, {.learning_rate = 0.1}).applied);
  const std::vector<S> before = theta;
  const std::vector<S> m(optimiser.first_moment().begin(), optimiser.first_moment().end()),
      v(optimiser.second_moment().begin(), optimiser.second_moment().end());
  const auto unchanged = [&](const StepResult& result, const std::vector<std::string>& words) {
    CHECK(!result.applied);
    for (const std::string& word : words) {
      INFO(result.reason << " | wanted " << word);
      CHECK(result.reason.find(word) != std::string::npos);
    }
    CHECK(same<S>(theta, before));
    CHECK(same<S>(optimiser.first_moment(), m));
    CHECK(same<S>(optimiser.second_moment(), v));
    CHECK(optimiser.steps() == 1);
  };
  for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    auto poisoned = gradient;
    poisoned[8] = static_cast<S>(bad);
    unchanged(optimiser.step(theta, poisoned, {.learning_rate = 0.1}), {"slow", "[1]", "finite"});
    unchanged(optimiser.step(theta, gradient, {.learning_rate = 0.1, .loss = bad}), {"loss", "finite"});
  }
  auto frozen = gradient;
  frozen[3] = static_cast<S>(std::nan(""));  // of a frozen group: not looked at
  CHECK(optimiser.step(theta, frozen, {.learning_rate = 0.1}).applied);
}

TEST_CASE("AdamW refuses bad settings and sizes, and then changes nothing", "[optim]") {
  using A = AdamW<double>;
  const Code range = Code::config_range, shape = Code::shape_mismatch;
  const double nan = std::nan("");
  for (const double bad : {-0.1, 1.0, nan}) {
    refused([&] { A(groups, {.beta1 = bad}); }, range, {"beta1"});
    refused([&] { A(groups, {.beta2 = bad}); }, range, {"beta2"});
  }
  for (const double bad : {-1e-8, 0.0, nan, HUGE_VAL})
    refused([&] { A(groups, {.epsilon = bad}); }, range, {"epsilon"});
  for (const double bad : {-0.1, nan, HUGE_VAL})
    refused([&] { A(groups, {.weight_decay = bad}); }, range, {"weight_decay"});
  A optimiser(groups);
  std::vector<double> theta(10, 1), gradient(10, 1);
  for (const double bad : {-0.1, nan, HUGE_VAL}) {
    refused([&] { (void)optimiser.step(theta, gradient, {.learning_rate = bad}); }, range, {"learning rate"});
    refused([&] { (void)optimiser.step(theta, gradient, {.clip_norm = bad}); }, range, {"clip norm"});
  }
  refused([&] { AdamW<float>(groups, {.epsilon = 1e-60}); }, range, {"epsilon", "1e-60"});
  refused([&] { A({{.offset = -4, .size = 8}}, {}); }, range, {"offset", "-4"});
  refused([&] { A({{.size = -1}}, {}); }, range, {"size", "-1"});
  for (const double bad : {-1.0, nan, HUGE_VAL}) {
    A other(groups);
    other.groups()[0].learning_rate_factor = bad;
    refused([&] { (void)other.step(theta, gradient, {.learning_rate = 0.1}); }, range, {"factor"});
  }
  A grown(groups);
  grown.groups()[0].size = 500;
  std::vector<double> many(500, 1);
  refused([&] { (void)grown.step(many, many, {}); }, shape, {"state", "10", "500"});
  std::vector<double> nine(9, 1);
  refused([&] { (void)optimiser.step(nine, gradient, {}); }, shape, {"theta", "9", "10"});
  refused([&] { (void)optimiser.step(theta, nine, {}); }, shape, {"gradient", "9", "10"});
  refused([&] { optimiser.restore(nine, gradient, 3); }, shape, {"first moment", "9", "10"});
  refused([&] { optimiser.restore(gradient, nine, 3); }, shape, {"second moment", "9", "10"});
  CHECK((theta == std::vector<double>(10, 1) && optimiser.steps() == 0 && optimiser.first_moment()[0] == 0));
}

TEMPLATE_TEST_CASE("a run that is restored goes on with the same bits", "[optim]", float, double) {
  using S = TestType;
  AdamW<S> whole(groups), first(groups), second(groups);
  std::vector<S> a(10, S(0.5)), b(10, S(0.5)), gradient(10);
  const auto steps = [&](AdamW<S>& optimiser, std::vector<S>& theta, std::uint64_t from, std::uint64_t to) {
    for (std::uint64_t t = from; t < to; ++t) {
      Rng(t + 1).fill(gradient, -1, 1);
      CHECK(optimiser.step(theta, gradient, {.learning_rate = 0.03}).applied);
    }
  };
  steps(whole, a, 0, 10);
  steps(first, b, 0, 4);
  second.restore(first.first_moment(), first.second_moment(), first.steps());
  steps(second, b, 4, 10);
  CHECK(same<S>(a, b));
}
