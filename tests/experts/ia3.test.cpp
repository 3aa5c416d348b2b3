// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/refusal.hpp"
#include "support/routings.hpp"

#include <moxie/adapter.hpp>
#include <moxie/experts/ia3.hpp>
#include <moxie/routers/top_k.hpp>

using namespace moxie;
using namespace moxie::test;
using Bank = Ia3Bank<double>;

TEST_CASE("an IA3 bank refuses settings out of range by name", "[experts]") {
  const Code range = Code::config_range;
  refused([] { Bank({.features = 0}); }, range, {"IA3 features", "0"});
  refused([] { Bank({.features = 6, .experts = 0}); }, range, {"IA3 experts", "0"});
  for (const Index heads : {0, -1, 4})
    refused([&] { Bank({.features = 6, .heads = heads}); }, range, {"IA3 heads", "6"});
  refused([] { Bank({.features = Index{1} << 40, .experts = Index{1} << 40}); }, Code::too_large, {"IA3"});
}

TEST_CASE("vectors lie per head, start at 1 and do not decay", "[experts]") {
  const Bank flat({.features = 6, .experts = 3}), heads({.features = 6, .heads = 2, .experts = 3});
  CHECK(flat.fields()[0].shape == std::vector<Index>{3, 6});
  CHECK(heads.fields()[0].shape == std::vector<Index>{2, 3, 3});
  CHECK((!flat.fields()[0].decay && flat.size() == 18 && heads.size() == 18));
}

TEST_CASE("top-2 without renormalising scales the activation by the golden values at the start",
          "[experts]") {
  // A unit matrix for router makes x the logits; every vector is 1.
  const MoeAdapter<Bank, TopKRouter<double>> adapter(
      Bank({.features = 4, .experts = 4}),
      TopKRouter<double>({.in = 4, .experts = 4, .k = 2, .weights = TopKWeights::masked}));
  std::vector<double> theta(32, 0.0);
  std::fill_n(theta.begin(), 16, 1.0);
  for (std::size_t e = 0; e < 4; ++e) theta[16 + 5 * e] = 1;
  Matrix<double> x = Eigen::Map<const Matrix<double>>(golden_logits.data(), 4, 4), y(4, 4);
  Cache<double> cache;
  Workspace<double> workspace;
  adapter.forward(theta, x, y, cache, workspace);
  const double golden[] = {0.88079708, 0.74499756, 0.88079708, 0.74535882};
  for (Index t = 0; t < 4; ++t)
    for (Index i = 0; i < 4; ++i)
      if (x(t, i) != 0) CHECK(std::abs(y(t, i) / x(t, i) - golden[t]) <= 1e-8);
}
