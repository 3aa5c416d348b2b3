// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/naive.hpp"
#include "support/random.hpp"

#include <moxie/core/math.hpp>

using namespace moxie;
using namespace moxie::test;

namespace {

template <class S>
std::vector<int> top(const std::vector<S>& z, Index k) {
  std::vector<int> chosen(naive::at(k));
  detail::top_k(z.data(), std::ssize(z), k, chosen.data());
  return chosen;
}

}  // namespace

TEMPLATE_TEST_CASE("top_k: the largest, ascending, ties to the lower index, always in range", "[core]", float,
                   double) {
  using S = TestType;
  const S inf = std::numeric_limits<S>::infinity(), nan = std::numeric_limits<S>::quiet_NaN();
  using Chosen = std::vector<int>;
  CHECK(top<S>({3, 1, 2}, 2) == Chosen{0, 2});
  CHECK(top<S>({1, 1, 1, 1}, 2) == Chosen{0, 1});
  CHECK(top<S>({0, 2, 2, 2}, 2) == Chosen{1, 2});
  CHECK(top<S>({2, 0, 2, 1, 2}, 4) == Chosen{0, 2, 3, 4});
  CHECK(top<S>({S(-0.0), S(0)}, 1) == Chosen{0});  // equal as numbers
  CHECK(top<S>({nan, 1, nan, 0}, 2) == Chosen{1, 3});
  CHECK(top<S>({nan, nan, nan}, 2) == Chosen{0, 1});
  CHECK(top<S>({-inf, -inf, -inf}, 2) == Chosen{0, 1});
  CHECK(top<S>({nan, -inf, 0}, 2) == Chosen{0, 2});
  CHECK(top<S>({inf, 0, inf}, 1) == Chosen{0});
  CHECK(top<S>({5}, 1) == Chosen{0});
  Rng rng(2);
  for (int round = 0; round < 500; ++round) {
    const Index n = rng.integer(1, 20), k = rng.integer(1, n);
    std::vector<S> z(naive::at(n));
    for (S& v : z) v = static_cast<S>(rng.integer(0, 5));  // many ties
    const std::vector<Index> wanted = naive::largest(std::vector<long double>(z.begin(), z.end()), k);
    CHECK(top(z, k) == Chosen(wanted.begin(), wanted.end()));
  }
}

TEMPLATE_TEST_CASE("log_sum_exp equals the plain formula and does not overflow", "[core]", float, double) {
  using S = TestType;
  const auto lse = [](const std::vector<S>& z) { return detail::log_sum_exp(z.data(), std::ssize(z)); };
  CHECK(lse({S(1e38), 0}) == S(1e38));
  CHECK(std::abs(lse({0, 0, 0, 0}) - std::log(S(4))) <= S(4 * unit<S>));
  CHECK(lse({-1000, -1000}) == S(-1000) + std::log(S(2)));
  const std::vector<S> z{S(0.3), S(-2), S(1.5)};
  long double sum = 0;
  for (const S v : z) sum += std::exp(static_cast<long double>(v));
  CHECK(std::abs(static_cast<long double>(lse(z)) - std::log(sum)) <= 8 * unit<S>);
}

TEMPLATE_TEST_CASE("softmax_backward adds the transposed Jacobian", "[core]", float, double) {
  using S = TestType;
  const std::vector<S> p{S(0.375), S(0.125), S(0.5)}, dp{S(0.5), S(2), S(-1)};
  std::vector<S> dz{1, 2, 3};
  detail::softmax_backward(p.data(), dp.data(), 3, dz.data());
  for (std::size_t i = 0; i < 3; ++i) {
    long double wanted = static_cast<long double>(i) + 1;
    for (std::size_t j = 0; j < 3; ++j)
      wanted += static_cast<long double>(dp[j]) * static_cast<long double>(p[j]) *
                ((i == j ? 1 : 0) - static_cast<long double>(p[i]));
    CHECK(std::abs(static_cast<long double>(dz[i]) - wanted) <= 16 * unit<S>);
  }
}
