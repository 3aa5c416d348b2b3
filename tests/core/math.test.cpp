// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/naive.hpp"
#include "support/random.hpp"

#include <moxie/core/math.hpp>
#include <moxie/kernels/softmax.hpp>

using namespace moxie;
using namespace moxie::test;

namespace {

template <class S>
std::vector<S> softmax_of(const std::vector<S>& z) {
  std::vector<S> p(z.size());
  kernels::softmax(z.data(), std::ssize(z), p.data());
  return p;
}

template <class S>
std::vector<int> top(const std::vector<S>& z, Index k) {
  std::vector<int> chosen(naive::at(k));
  detail::top_k(z.data(), std::ssize(z), k, chosen.data());
  return chosen;
}

}  // namespace

TEMPLATE_TEST_CASE("softmax equals the plain formula, sums to 1 and ignores a shift", "[core]", float,
                   double) {
  using S = TestType;
  Rng rng(1);
  Worst worst;
  for (int round = 0; round < 300; ++round) {
    const Index n = rng.integer(1, 40);
    std::vector<S> z(naive::at(n));
    rng.fill(z, -8, 8);
    const std::vector<S> p = softmax_of(z);
    const std::vector<Bounded> wanted = naive::softmax(std::vector<Bounded>(z.begin(), z.end()));
    double sum = 0;
    for (std::size_t e = 0; e < z.size(); ++e) {
      worst.see(p[e], wanted[e]);
      sum += static_cast<double>(p[e]);
    }
    CHECK(std::abs(sum - 1) <= static_cast<double>(n + 2) * unit<S>);
    std::vector<S> shifted = z;
    for (S& v : shifted) v += S(64);  // loses low bits of z, and no more
    const std::vector<S> q = softmax_of(shifted);
    for (std::size_t e = 0; e < z.size(); ++e) CHECK(std::abs(q[e] - p[e]) <= S(300 * unit<S>) * p[e]);
  }
  CHECK(worst.trusted());
  CHECK(worst.ratio() <= 1);
}

TEMPLATE_TEST_CASE("softmax of any finite logits is finite; NaN and infinity make a row of NaN", "[core]",
                   float, double) {
  using S = TestType;
  const S huge = std::numeric_limits<S>::max(), inf = std::numeric_limits<S>::infinity(),
          nan = std::numeric_limits<S>::quiet_NaN();
  using Row = std::vector<S>;
  CHECK(softmax_of<S>({huge, -huge}) == Row{1, 0});
  CHECK(softmax_of<S>({huge, huge}) == Row{S(0.5), S(0.5)});
  CHECK(softmax_of<S>({-huge, -huge, -huge, -huge}) == Row(4, S(0.25)));
  CHECK(softmax_of<S>({S(1e38), S(-1e38), S(1e38)}) == Row{S(0.5), 0, S(0.5)});
  CHECK(std::abs(softmax_of<S>({S(80), 0})[1] / std::exp(S(-80)) - 1) < S(1e-6));
  CHECK(softmax_of<S>({S(1000), 0}) == Row{1, 0});
  CHECK(softmax_of<float>({100.0f, 0}) ==
        std::vector<float>{1, 0});  // no subnormal: it would slow what it weighs
  CHECK(softmax_of<S>({-inf, 0}) == Row{0, 1});
  for (const Row& row :
       {Row{nan, 0, 1}, Row{0, nan, 1}, Row{0, inf, 1}, Row{-inf, -inf, -inf}, Row{nan, nan, nan}})
    CHECK(std::isnan(softmax_of(row)[0]));
}

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
  const std::vector<S> z{S(0.3), S(-1), S(0.7)}, dp{S(0.5), S(2), S(-1)};
  const std::vector<S> p = softmax_of(z);
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
