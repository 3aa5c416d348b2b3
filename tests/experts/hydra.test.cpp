// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/random.hpp"
#include "support/refusal.hpp"

#include <moxie/adapter.hpp>
#include <moxie/experts/hydra.hpp>
#include <moxie/experts/lora.hpp>
#include <moxie/routers/soft.hpp>

using namespace moxie;
using namespace moxie::test;
using Bank = HydraBank<double>;

TEST_CASE("a bank with one A refuses settings out of range by name", "[experts]") {
  const Code range = Code::config_range;
  refused([] { Bank({.in = 0, .out = 3}); }, range, {"LoRA in", "0"});
  refused([] { Bank({.in = 3, .out = 3, .experts = 0}); }, range, {"experts", "0"});
  refused([] { Bank({.in = 3, .out = 3, .rank = 0}); }, range, {"rank", "0"});
  refused([] { Bank({.in = 3, .out = 3, .dropout = 1}); }, range, {"dropout", "1"});
}

TEST_CASE("a bank with one A is a LoRA bank whose experts have the same A", "[experts]") {
  constexpr Index in = 7, out = 5, experts = 3, rank = 2, tokens = 9;
  const Bank one({.in = in, .out = out, .experts = experts, .rank = rank, .alpha = 3});
  CHECK((one.fields()[0].shape == std::vector<Index>{rank, in}));
  CHECK((one.fields()[1].shape == std::vector<Index>{experts * rank, out}));
  const SoftRouter<double> router({.in = in, .experts = experts});
  const MoeAdapter hydra(one, router);
  const MoeAdapter lora(
      LoraBank<double>({.in = in, .out = out, .experts = experts, .rank = rank, .alpha = 3}), router);

  Rng rng(1);
  std::vector<double> theta(static_cast<std::size_t>(hydra.size()));
  for (double& value : theta) value = rng.uniform(-1, 1);
  std::vector<double> repeated;
  const auto a = theta.begin(), b = a + rank * in;
  for (Index e = 0; e < experts; ++e) repeated.insert(repeated.end(), a, b);
  repeated.insert(repeated.end(), b, theta.end());
  REQUIRE(std::ssize(repeated) == lora.size());

  const Matrix<double> x = rng.matrix<double>(tokens, in), dy = rng.matrix<double>(tokens, out);
  const auto run = [&](const auto& adapter, const std::vector<double>& weights, Matrix<double>& y,
                       Matrix<double>& dx) {
    Cache<double> cache;
    Workspace<double> workspace;
    std::vector<double> gradient(weights.size(), 0.0);
    y = Matrix<double>::Zero(tokens, out);
    dx = Matrix<double>::Zero(tokens, in);
    adapter.forward(weights, x, y, cache, workspace);
    adapter.backward(weights, x, dy, cache, workspace, {}, Out<double>(dx), std::span<double>(gradient));
    return gradient;
  };
  Matrix<double> y, dx, wanted_y, wanted_dx;
  const std::vector<double> got = run(hydra, theta, y, dx), wanted = run(lora, repeated, wanted_y, wanted_dx);
  CHECK((y - wanted_y).norm() <= 1e-14 * wanted_y.norm());
  CHECK((dx - wanted_dx).norm() <= 1e-14 * wanted_dx.norm());
  // The gradient of the one A is the sum of those of its copies; all else is the same.
  for (Index i = 0; i < rank * in; ++i) {
    double sum = 0;
    for (Index e = 0; e < experts; ++e) sum += wanted[static_cast<std::size_t>(e * rank * in + i)];
    CHECK(std::abs(got[static_cast<std::size_t>(i)] - sum) <= 1e-12);
  }
  for (Index i = rank * in; i < hydra.size(); ++i)
    CHECK(std::abs(got[static_cast<std::size_t>(i)] -
                   wanted[static_cast<std::size_t>(i + (experts - 1) * rank * in)]) <= 1e-12);
}
