// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/refusal.hpp"

#include <moxie/experts/lora.hpp>

using namespace moxie;
using namespace moxie::test;
using Bank = LoraBank<double>;

TEST_CASE("a LoRA bank refuses settings out of range by name", "[experts]") {
  const Code range = Code::config_range;
  const double nan = std::nan("");
  refused([] { Bank({.in = 0, .out = 3}); }, range, {"LoRA in", "0", "1 or more"});
  refused([] { Bank({.in = 3, .out = -2}); }, range, {"LoRA out", "-2"});
  refused([] { Bank({.in = 3, .out = 3, .experts = 0}); }, range, {"LoRA experts", "0"});
  for (const Index rank : {Index{0}, Index{-1}, Index{1} << 31})
    refused([&] { Bank({.in = 3, .out = 3, .rank = rank}); }, range, {"LoRA rank", "1 to 2^24"});
  refused([] { Bank({.in = 3, .out = 3, .experts = 2, .ranks = {1, 0}}); }, range, {"LoRA rank", "0"});
  refused([] { Bank({.in = 3, .out = 3, .experts = 2, .ranks = {1}}); }, range, {"ranks", "1", "2"});
  refused([] { Bank({.in = 3, .out = 3, .scales = {1}}); }, range, {"scales", "1", "0 unless"});
  refused([] { Bank({.in = 3, .out = 3, .experts = 2, .scaling = LoraScaling::fixed, .scales = {1}}); },
          range, {"scales", "1", "2"});
  refused([&] { Bank({.in = 3, .out = 3, .scaling = LoraScaling::fixed, .scales = {nan}}); }, range,
          {"scale"});
  for (const double alpha : {nan, HUGE_VAL})
    refused([&] { Bank({.in = 3, .out = 3, .alpha = alpha}); }, range, {"alpha"});
  for (const double dropout : {-0.1, 1.0, 2.0, nan})
    refused([&] { Bank({.in = 3, .out = 3, .dropout = dropout}); }, range, {"dropout", "below 1"});
  refused([] { Bank({.in = Index{1} << 62, .out = 3}); }, Code::too_large, {"LoRA A"});
  refused([] { Bank({.in = 3, .out = Index{1} << 62}); }, Code::too_large, {"LoRA B"});
}

TEST_CASE("scales are alpha / r, alpha / sqrt(r), or what was given", "[experts]") {
  const Bank plain({.in = 3, .out = 3, .experts = 2, .ranks = {4, 16}, .alpha = 8});
  CHECK((plain.scale(0) == 2 && plain.scale(1) == 0.5));
  const Bank rs({.in = 3,
                 .out = 3,
                 .experts = 2,
                 .ranks = {4, 16},
                 .alpha = 8,
                 .scaling = LoraScaling::alpha_over_sqrt_rank});
  CHECK((rs.scale(0) == 4 && rs.scale(1) == 2));
  const Bank fixed({.in = 3, .out = 3, .experts = 2, .scaling = LoraScaling::fixed, .scales = {3, -1}});
  CHECK((fixed.scale(0) == 3 && fixed.scale(1) == -1));
}

TEST_CASE("fields are A, B transposed, and the biases, which do not decay", "[experts]") {
  const Bank bank({.in = 3, .out = 5, .experts = 2, .ranks = {4, 1}, .bias = true});
  const auto fields = bank.fields();
  REQUIRE(fields.size() == 3);
  CHECK((fields[0].shape == std::vector<Index>{5, 3} && fields[0].decay));
  CHECK((fields[1].shape == std::vector<Index>{5, 5} && fields[1].decay));
  CHECK((fields[2].shape == std::vector<Index>{2, 5} && !fields[2].decay));
  CHECK((bank.size() == 50 && total_size(fields) == 50 && bank.begin(1) == 4 && bank.rank(1) == 1));
}

TEST_CASE("dropout keeps its share, scales what it keeps, and differs between experts only where asked",
          "[experts]") {
  constexpr Index features = 20000;
  const std::vector<double> x(features, 1);
  const auto mask = [&](std::uint64_t id, Index token, double p) {
    std::vector<double> y(features);
    detail::drop(p, id, In<double>(x.data(), 1, features), 0, features, token, Run{.training = true},
                 y.data(), features);
    return y;
  };
  for (const double p : {0.05, 0.5, 0.9}) {
    const auto y = mask(0, 3, p);
    double kept = 0;
    for (const double v : y) {
      REQUIRE((v == 0 || v == 1 / (1 - p)));
      kept += v != 0;
    }
    CHECK(std::abs(kept / features - (1 - p)) < 0.015);
    CHECK(y != mask(1, 3, p));
    CHECK(y != mask(0, 4, p));
    CHECK(y == mask(0, 3, p));
  }
}
