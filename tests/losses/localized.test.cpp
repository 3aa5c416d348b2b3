// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/refusal.hpp"
#include "support/routings.hpp"

#include <moxie/losses/localized.hpp>

using namespace moxie;
using namespace moxie::test;

namespace {

using Loss = LocalizedBalance<double>;
const Batch golden_batch{.samples = {0, 2, 4}, .types = {1, 0}};

/// Dispersion of I * Q in plain loops, as methods.md 3.3 has it.
double plain_value(const Routing<double>& r, const Batch& batch, const std::vector<Index>& group_of_expert,
                   const std::vector<int>& group_of_type, double delta, bool squared, bool masked) {
  std::vector<double> z;
  for (std::size_t b = 0; b + 1 < batch.samples.size(); ++b)
    for (Index e = 0; e < r.experts; ++e) {
      double q = 0;
      for (Index row = batch.samples[b] * r.rows_per_token; row < batch.samples[b + 1] * r.rows_per_token;
           ++row)
        if (!masked || batch.mask[naive::at(row / r.rows_per_token)] != 0)
          q += r.probs[naive::at(row * r.experts + e)];
      const bool matches = group_of_type[naive::at(batch.types[b])] == group_of_expert[naive::at(e)];
      z.push_back(q * (matches ? 1 + delta : 1 - delta));
    }
  double mean = 0, variance = 0;
  for (const double v : z) mean += v / static_cast<double>(z.size());
  for (const double v : z) variance += (v - mean) * (v - mean) / static_cast<double>(z.size() - 1);
  return variance / ((squared ? mean * mean : mean) + 1e-10);
}

}  // namespace

TEST_CASE("the localized constraint has the golden values", "[losses]") {
  const std::vector<Routing<double>> r{route_logits<double>(golden_logits, 4, 4)};
  CHECK(std::abs(0.1 * value_of(Loss(), r, golden_batch) - 0.04388687) <= 1e-8);
  CHECK(std::abs(0.1 * value_of(Loss({.dispersion = Dispersion::variance_over_mean}), r, golden_batch) -
                 0.02267582) <= 1e-8);
}

TEST_CASE("the localized constraint equals plain loops in every form, with its gradient", "[losses]") {
  Rng rng(1);
  struct Groups {
    std::vector<Index> sizes, of_expert;
    std::vector<int> of_type;
    Index experts;
  };
  const std::vector<Groups> all_groups{{{}, {0, 0, 0, 1, 1, 1}, {1, 0}, 6},
                                       {{2, 3, 1}, {0, 0, 1, 1, 1, 2}, {2, 0, 1, 0}, 6},
                                       {{1, 1, 1, 1, 3}, {0, 1, 2, 3, 4, 4, 4}, {4, 3, 2, 1, 0}, 7}};
  for (const Groups& groups : all_groups)
    for (const auto dispersion : {Dispersion::cv_squared, Dispersion::variance_over_mean})
      for (const double delta : {0.0, 0.1, 0.5})
        for (const bool masked : {false, true})
          for (const Index heads : {1, 2}) {
            const Loss loss({.delta = delta,
                             .dispersion = dispersion,
                             .group_sizes = groups.sizes,
                             .group_of_type = groups.of_type,
                             .mask_padding = masked});
            const Batch batch{.samples = {0, 3, 4, 9},
                              .mask = {1, 1, 0, 1, 1, 1, 1, 0, 0},
                              .types = {1, 0, static_cast<int>(groups.of_type.size()) - 1}};
            const std::vector<Routing<double>> r{random_routing<double>(rng, 9, groups.experts, 2, heads),
                                                 random_routing<double>(rng, 9, groups.experts, 2, heads)};
            double wanted = 0;
            for (const auto& routing : r)
              wanted += plain_value(routing, batch, groups.of_expert, groups.of_type, delta,
                                    dispersion == Dispersion::cv_squared, masked);
            CHECK(std::abs(value_of(loss, r, batch) - wanted) <= 1e-12);
            check_gradients(loss, r, batch);
          }
}

TEST_CASE("minimising the localized constraint gives the matching group the smaller share", "[losses]") {
  // Z = I * Q has no variance where Q is proportional to 1 / I: shares (1 - delta) / 2 and (1 + delta) / 2.
  constexpr double delta = 0.1;
  const Loss loss({.delta = delta});
  std::vector<double> logits(16, 0.0);
  for (int step = 0; step < 3000; ++step) {
    const std::vector<Routing<double>> r{route_logits<double>(logits, 4, 4)};
    const auto g = gradients_of(loss, r, golden_batch);
    for (std::size_t row = 0; row < 4; ++row) {
      double mean = 0;
      for (std::size_t e = 0; e < 4; ++e) mean += r[0].probs[4 * row + e] * g[0].probs[4 * row + e];
      for (std::size_t e = 0; e < 4; ++e)
        logits[4 * row + e] -= 2 * r[0].probs[4 * row + e] * (g[0].probs[4 * row + e] - mean);
    }
  }
  const Routing<double> r = route_logits<double>(logits, 4, 4);
  // Sample 0 is of type 1, whose group is the first half.
  for (std::size_t row = 0; row < 2; ++row)
    CHECK(std::abs(r.probs[4 * row] + r.probs[4 * row + 1] - (1 - delta) / 2) < 1e-3);
  for (std::size_t row = 2; row < 4; ++row)
    CHECK(std::abs(r.probs[4 * row + 2] + r.probs[4 * row + 3] - (1 - delta) / 2) < 1e-3);
}

TEMPLATE_TEST_CASE("the localized constraint is finite at every edge", "[losses]", float, double) {
  using S = TestType;
  for (const auto dispersion : {Dispersion::cv_squared, Dispersion::variance_over_mean})
    for (const auto& edge : edge_routings<S>(false)) {
      const LocalizedBalance<S> loss(
          {.dispersion = dispersion,
           .group_sizes = edge.experts == 1 ? std::vector<Index>{1} : std::vector<Index>{1, edge.experts - 1},
           .group_of_type = {0, 0}});
      const Batch batch{.samples = {0, edge.rows}, .types = {1}};
      CHECK(finite(loss, std::vector{edge}, batch));
    }
  // One sample, one expert: n = 1 has no variance.
  const LocalizedBalance<S> single({.group_sizes = {1}, .group_of_type = {0}});
  const std::vector<Routing<S>> one{route_logits<S>({0.5, 1, 2}, 1, 1)};
  CHECK(value_of(single, one, {.samples = {0, 3}, .types = {0}}) == 0);
}

TEST_CASE("the localized constraint refuses what does not fit, and then adds nothing", "[losses]") {
  const std::vector<Routing<double>> r{route_logits<double>(golden_logits, 4, 2)};
  std::vector<Routing<double>> g(1);
  g[0].zero_gradient_of(r[0]);
  const auto bad = [&](const Loss& loss, const Batch& batch, Code code,
                       const std::vector<std::string>& words) {
    refused([&] { value_of(loss, r, batch); }, code, words);
    refused([&] { backward_of(loss, r, batch, 1, g); }, code, words);
    CHECK(g[0].probs.empty());
  };
  const Code shape = Code::shape_mismatch;
  bad(Loss(), {}, shape, {"samples", "4"});
  bad(Loss(), {.samples = {0, 2, 3}, .types = {0, 1}}, shape, {"samples"});
  bad(Loss(), {.samples = {1, 4}, .types = {0}}, shape, {"samples"});
  bad(Loss(), {.samples = {0, 3, 2, 4}, .types = {0, 1, 0}}, shape, {"samples"});
  bad(Loss(), {.samples = {0, 2, 4}, .types = {0}}, shape, {"types", "1", "2"});
  bad(Loss(), {.samples = {0, 2, 4}, .types = {0, 2}}, Code::config_range, {"type", "2", "0 to 1"});
  bad(Loss(), {.samples = {0, 2, 4}, .types = {0, -1}}, Code::config_range, {"type", "-1"});
  bad(Loss({.mask_padding = true}), {.samples = {0, 2, 4}, .mask = {1, 1}, .types = {0, 1}}, shape, {"mask"});
  bad(Loss({.group_sizes = {2, 1}}), golden_batch, shape, {"3", "4 experts"});
  const Code range = Code::config_range;
  for (const double delta : {-0.1, 1.0, std::nan("")})
    refused([&] { Loss({.delta = delta}); }, range, {"delta"});
  refused([] { Loss({.group_sizes = {2, 0}}); }, range, {"group size", "0"});
  refused([] { Loss({.group_of_type = {0, 2}}); }, range, {"group", "2", "0 to 1"});
  const std::vector<Routing<double>> odd{route_logits<double>({1, 2, 3}, 3, 2)};
  refused([&] { value_of(Loss(), odd, {.samples = {0, 1}, .types = {0}}); }, shape, {"3 experts"});
}
