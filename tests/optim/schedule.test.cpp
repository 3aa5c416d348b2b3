// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/refusal.hpp"

#include <moxie/optim/schedule.hpp>

using namespace moxie;

TEST_CASE("warm-up rises in equal steps and already learns at step 0", "[optim]") {
  const Schedule s{.peak = 2, .warmup = 4, .steps = 10};
  CHECK(s.at(0) == 0.5);
  CHECK(s.at(1) == 1);
  CHECK(s.at(3) == 2);
  CHECK(s.at(4) == 2);
  CHECK(s.at(1000) == 2);
}

TEST_CASE("cosine and linear fall from the peak to the floor and stay there", "[optim]") {
  for (const Decay decay : {Decay::cosine, Decay::linear}) {
    const Schedule s{.peak = 3, .warmup = 2, .steps = 12, .decay = decay, .floor = 0.1};
    CHECK(s.at(2) == 3);
    CHECK(std::abs(s.at(7) - 3 * 0.55) <= 1e-15);  // half way
    CHECK(std::abs(s.at(12) - 0.3) <= 1e-15);
    CHECK(std::abs(s.at(99) - 0.3) <= 1e-15);
    for (std::uint64_t t = 2; t < 12; ++t) CHECK(s.at(t + 1) < s.at(t));
  }
  const Schedule cosine{.peak = 1, .steps = 4, .decay = Decay::cosine};
  CHECK(std::abs(cosine.at(1) - (1 + std::sqrt(0.5)) / 2) <= 1e-15);
}

TEST_CASE("a schedule refuses bad settings", "[optim]") {
  const double nan = std::nan("");
  for (const double peak : {-1.0, nan, HUGE_VAL})
    test::refused([&] { (void)Schedule{.peak = peak}.at(0); }, Code::config_range, {"peak"});
  for (const double floor : {-0.1, 1.1, nan})
    test::refused([&] { (void)Schedule{.floor = floor}.at(0); }, Code::config_range, {"floor"});
  test::refused([&] { (void)Schedule{.warmup = 3, .steps = 2}.at(0); }, Code::config_range, {"warmup", "3"});
}
