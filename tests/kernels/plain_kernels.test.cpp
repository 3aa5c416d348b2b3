// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/plain_kernels.hpp"

#include <moxie/core/random.hpp>
#include <moxie/kernels/dot.hpp>
#include <moxie/kernels/softmax.hpp>
#include <moxie/kernels/visits.hpp>

using namespace moxie;
using namespace moxie::test;
using kernels::Coefficients, kernels::Into, kernels::Panels, plain::Plain;

namespace {

/// A matrix of the scalar, and the same for plain Eigen.
template <class S>
struct Pair {
  Matrix<S> fast;
  Plain slow;
  Pair(Index rows, Index cols, std::uint64_t stream) : fast(rows, cols) {
    for (Index i = 0; i < fast.size(); ++i)
      fast.data()[i] = static_cast<S>(2 * moxie::random::uniform(stream, static_cast<std::uint64_t>(i)) - 1);
    slow = fast.template cast<double>();
  }
  bool agrees() const {
    const double most = std::is_same_v<S, float> ? 1e-4 : 1e-12;
    return ((fast.template cast<double>() - slow).array().abs() <= most).all() && slow.norm() > 0;
  }
};

template <class S>
Coefficients<S> all(const Matrix<S>& c) {
  return {c.data(), c.cols(), 1};
}

}  // namespace

TEMPLATE_TEST_CASE("the kernels compute what a page of plain Eigen says", "[kernels]", float, double) {
  using S = TestType;
  for (const Index tokens : {1, 3, 8, 21})
    for (const Index d : {5, 64, 150})
      for (const Index n : {1, 4, 8, 19}) {
        CAPTURE(tokens, d, n);
        const Pair<S> x(tokens, d, 1), other(tokens, d, 2), a(n, d, 3), c(tokens, n, 4),
            c2(tokens, tokens, 5);
        const Panels<S> weights{In<S>(a.fast)};
        std::vector<int> rows, depths;
        for (int t = 0; t < tokens; t += 2) rows.push_back(t);
        for (int k = 0; k < n; k += 3) depths.push_back(k);

        Pair<S> h(tokens, n, 6);
        kernels::dot<S>(x.fast, rows, weights, h.fast);
        plain::dot(x.slow, rows, a.slow, h.slow);
        CHECK(h.agrees());
        kernels::dot<S>(x.fast, weights, h.fast);
        h.slow = plain::dot(x.slow, a.slow);
        CHECK(h.agrees());
        kernels::dot<S>(x.fast, other.fast, weights, h.fast);
        h.slow = plain::dot(x.slow, other.slow, a.slow);
        CHECK(h.agrees());

        for (const Into into : {Into::set, Into::chain, Into::add, Into::multiply, Into::multiply_add})
          for (const S strength : {S(1), S(0.5)}) {
            Pair<S> out(tokens, d, 7);
            kernels::combine<S>({into, other.fast, strength}, all(c.fast), weights, out.fast);
            plain::combine(into, c.slow, a.slow, out.slow, other.slow, strength);
            CHECK(out.agrees());
          }
        Pair<S> out(tokens, d, 8);
        kernels::combine<S>(Into::add, all(c.fast), depths, weights, out.fast);
        plain::combine(c.slow, depths, a.slow, out.slow);
        CHECK(out.agrees());
        kernels::combine<S>(Into::add, all(c2.fast), In<S>(x.fast), In<S>(other.fast), out.fast);
        plain::combine(c2.slow, x.slow, other.slow, out.slow);
        CHECK(out.agrees());

        kernels::combine_visits<S>(all(c.fast), rows, weights, [&](Index t) {
          return kernels::Visit<S>{.start = &x.fast(t, 0), .add = &other.fast(t, 0), .out = &out.fast(t, 0)};
        });
        plain::combine_visits(c.slow, rows, a.slow, x.slow, other.slow, out.slow);
        CHECK(out.agrees());

        for (Index t = 0; t < tokens; ++t) kernels::softmax(c.fast.row(t).data(), n, h.fast.row(t).data());
        h.slow = plain::softmax(c.slow);
        CHECK(h.agrees());
        kernels::add<S>(x.fast, out.fast, S(0.25));
        plain::add(x.slow, out.slow, 0.25);
        CHECK(out.agrees());
      }
}
