// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include <moxie/core/init.hpp>
#include <moxie/core/random.hpp>

#include <set>

using namespace moxie;

TEST_CASE("keys depend on every counter and on their order", "[core]") {
  std::set<std::uint64_t> keys;
  for (const auto use : {random::Use::init, random::Use::dropout, random::Use::jitter, random::Use::noise})
    for (std::uint64_t a = 0; a < 10; ++a)
      for (std::uint64_t b = 0; b < 10; ++b) keys.insert(random::key(use, {a, b}));
  CHECK(keys.size() == 400);
}

TEST_CASE("the numbers are those of the first release", "[core]") {
  // A change here would change every dropout mask and every start of a training run.
  CHECK(random::mix(0) == 0xe220a8397b1dcdafu);
  CHECK(random::mix(1) == 0x910a2dec89025cc1u);
  STATIC_REQUIRE(random::key({1, 2}) == random::mix(random::mix(1) ^ 2));
  STATIC_REQUIRE(random::key(random::Use::dropout, {1}) == random::mix(2 ^ random::mix(1)));
}

TEST_CASE("uniform numbers have a uniform's moments and stay below 1", "[core]") {
  constexpr int n = 100000;
  double sum = 0, squares = 0, low = 1, high = 0;
  for (std::uint64_t i = 0; i < n; ++i) {
    const double v = random::uniform(7, i);
    sum += v;
    squares += v * v;
    low = std::min(low, v);
    high = std::max(high, v);
  }
  CHECK(low >= 0);
  CHECK(high < 1);
  CHECK(std::abs(sum / n - 0.5) < 0.005);
  CHECK(std::abs(squares / n - 1.0 / 3) < 0.005);
}

TEST_CASE("normal numbers have a normal's moments", "[core]") {
  constexpr int n = 100000;
  double moments[4] = {};
  for (std::uint64_t i = 0; i < n; ++i) {
    const double v = random::normal(9, i);
    REQUIRE(std::isfinite(v));
    moments[0] += v / n;
    moments[1] += v * v / n;
    moments[2] += v * v * v / n;
    moments[3] += v * v * v * v / n;
  }
  CHECK(std::abs(moments[0]) < 0.015);
  CHECK(std::abs(moments[1] - 1) < 0.02);
  CHECK(std::abs(moments[2]) < 0.05);
  CHECK(std::abs(moments[3] - 3) < 0.15);
}

TEST_CASE("a threshold is passed as often as its probability says", "[core]") {
  for (const double p : {0.0, 0.05, 0.5, 0.95}) {
    int below = 0;
    for (std::uint64_t i = 0; i < 100000; ++i) below += random::bits(3, i) < random::threshold(p);
    CHECK(std::abs(below / 100000.0 - p) < 0.005);
  }
}

TEST_CASE("neighbouring streams are not correlated", "[core]") {
  double sum = 0;
  for (std::uint64_t i = 0; i < 100000; ++i)
    sum += (random::uniform(random::key({1, 1}), i) - 0.5) * (random::uniform(random::key({1, 2}), i) - 0.5);
  CHECK(std::abs(sum / 100000 * 12) < 0.02);
}

TEMPLATE_TEST_CASE("initial values have the deviation of their name", "[core]", float, double) {
  using S = TestType;
  const auto deviation = [](Init init, Index fan_in, Index rank) {
    std::vector<S> values(40000);
    detail::initialise(std::span<S>(values), init, fan_in, rank, 5);
    double sum = 0, squares = 0;
    for (const S v : values) {
      sum += static_cast<double>(v);
      squares += static_cast<double>(v) * static_cast<double>(v);
    }
    CHECK((init == Init::one || std::abs(sum / 40000) < 0.02 * std::sqrt(squares / 40000) + 1e-30));
    return std::sqrt(squares / 40000);
  };
  CHECK(deviation(Init::zero, 8, 2) == 0);
  CHECK(deviation(Init::one, 8, 2) == 1);
  CHECK(std::abs(deviation(Init::kaiming_uniform, 12, 2) - 1 / std::sqrt(36.0)) < 0.002);
  CHECK(std::abs(deviation(Init::gaussian, 12, 4) - 0.25) < 0.005);
  CHECK(std::abs(deviation(Init::normal_002, 12, 4) - 0.02) < 0.0005);
}
