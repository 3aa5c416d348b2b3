// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/naive.hpp"
#include "support/random.hpp"

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

}  // namespace

TEMPLATE_TEST_CASE("softmax equals the plain formula, sums to 1 and ignores a shift", "[kernels]", float,
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

TEMPLATE_TEST_CASE("softmax of any finite logits is finite; NaN and infinity make a row of NaN", "[kernels]",
                   float, double) {
  using S = TestType;
  const S huge = std::numeric_limits<S>::max(), inf = std::numeric_limits<S>::infinity(),
          nan = std::numeric_limits<S>::quiet_NaN();
  using Row = std::vector<S>;
  CHECK(softmax_of<S>({huge, -huge}) == Row{1, 0});
  CHECK(softmax_of<S>({huge, huge}) == Row{S(0.5), S(0.5)});
  CHECK(softmax_of<S>({-huge, -huge, -huge, -huge}) == Row(4, S(0.25)));
  CHECK(softmax_of<S>({S(1e38), S(-1e38), S(1e38)}) == Row{S(0.5), 0, S(0.5)});
  CHECK(std::abs(softmax_of<S>({S(80), 0})[1] / std::exp(S(-80)) - 1) <= S(8 * unit<S>));
  CHECK(softmax_of<S>({S(1000), 0}) == Row{1, 0});
  CHECK(softmax_of<float>({100.0f, 0}) ==
        std::vector<float>{1, 0});  // no subnormal: it would slow what it weighs
  CHECK(softmax_of<S>({-inf, 0}) == Row{0, 1});
  for (const Row& row :
       {Row{nan, 0, 1}, Row{0, nan, 1}, Row{0, inf, 1}, Row{-inf, -inf, -inf}, Row{nan, nan, nan}})
    CHECK(std::isnan(softmax_of(row)[0]));
}
