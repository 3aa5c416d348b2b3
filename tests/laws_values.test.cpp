// SPDX-License-Identifier: MIT
// Every adapter of the list against plain loops, and the limits where one method becomes another.
#include "support/catch.hpp"

#include "support/cases.hpp"

using namespace moxie;
using namespace moxie::test;

namespace {

template <class S>
const Case<S>& named(const std::vector<Case<S>>& list, const std::string& bank, const std::string& router) {
  for (const Case<S>& c : list)
    if (c.bank_name == bank && c.router_name == router) return c;
  FAIL("no case " << bank << ", " << router);
  return list.front();
}

template <class S>
bool same_chosen(const Routing<S>& routing, const naive::Routed<Bounded>& wanted) {
  for (Index row = 0; row < routing.rows; ++row) {
    const auto& chosen = wanted.chosen[naive::at(row)];
    if (routing.count[naive::at(row)] != std::ssize(chosen) ||
        !std::equal(chosen.begin(), chosen.end(), routing.chosen_row(row)))
      return false;
  }
  return true;
}

template <class S>
Worst compare(const Buffer<S>& got, const std::vector<Bounded>& wanted) {
  REQUIRE(got.size() == wanted.size());
  Worst worst;
  for (std::size_t i = 0; i < got.size(); ++i) worst.see(got[i], wanted[i]);
  return worst;
}
template <class S>
Worst compare(const Matrix<S>& got, const std::vector<Bounded>& wanted) {
  REQUIRE(naive::at(got.size()) == wanted.size());
  Worst worst;
  for (std::size_t i = 0; i < wanted.size(); ++i) worst.see(got.data()[i], wanted[i]);
  return worst;
}

}  // namespace

TEMPLATE_TEST_CASE("forward equals plain loops within the bounds", "[laws]", float, double) {
  using S = TestType;
  double seen = 0;
  for (const Sizes& sizes : {Sizes{}, Sizes{.in = 70, .out = 37, .head = 33, .heads = 2},
                             Sizes{.in = 1, .out = 1, .head = 1, .heads = 1, .experts = 2},
                             Sizes{.in = 17, .out = 16, .head = 8, .heads = 4, .experts = 9},
                             Sizes{.in = 40, .out = 130, .head = 129, .heads = 1, .experts = 33}})
    for (const Case<S>& c : cases<S>(sizes))
      for (const bool training : {false, true})
        for (const double scale : {1.0, -0.75}) {
          Run run = training ? training_run() : Run{};
          run.scale = scale;
          INFO(c.name << ", experts " << c.bank.experts << ", in " << c.bank.in
                      << (training ? ", training" : ""));
          const bool apart = !training;
          const Index tokens = 9;
          const Inputs<S> data = make_clear_inputs(c, tokens, 1, run, apart, false, 1e-5);
          const auto wanted = reference(c, point<Bounded>(data), data, draws(c, tokens, run), run);
          Cache<S> cache;
          Workspace<S> workspace;
          const Matrix<S> y = run_forward(c, *c.adapter, data, run, cache, workspace);
          CHECK(same_chosen(cache.routing, wanted.routed));
          const Worst of_y = compare(y, wanted.y);
          CHECK(of_y.trusted());
          CHECK(of_y.ratio() <= 1);
          seen = std::max(seen, of_y.ratio());
          for (const auto& [got, reference] :
               {std::pair(&cache.routing.logits, &wanted.routed.logits),
                std::pair(&cache.routing.probs, &wanted.routed.probs),
                std::pair(&cache.routing.gates, &wanted.routed.gates),
                std::pair(&cache.routing.noisy, &wanted.routed.noisy),
                std::pair(&cache.routing.noise_scale, &wanted.routed.noise_scale)}) {
            if (c.given() && got == &cache.routing.logits) continue;
            CHECK(compare(*got, *reference).ratio() <= 1);
          }
          // Not chosen is exactly 0, and the probabilities sum to 1.
          const Routing<S>& r = cache.routing;
          for (Index row = 0; row < r.rows; ++row) {
            S sum = 0;
            for (Index e = 0; e < r.experts; ++e) {
              sum += r.probs[naive::at(row * r.experts + e)];
              const auto& chosen = wanted.routed.chosen[naive::at(row)];
              if (std::find(chosen.begin(), chosen.end(), e) == chosen.end())
                REQUIRE(r.gate_row(row)[e] == 0);
            }
            if (!c.given()) REQUIRE(std::abs(sum - 1) <= S(2 * unit<S>) * static_cast<S>(r.experts + 2));
          }
        }
  INFO("worst " << seen << " of what is allowed");
  CHECK(seen > 0.001);  // the bound is of the size of the errors
}

TEMPLATE_TEST_CASE("integers come out exactly", "[laws]", float, double) {
  // Small integers, a power of two for every scale: each product and sum is a number of S, so that any order
  // of summation gives the same, and the reference is exact.
  using S = TestType;
  for (const Sizes& sizes : {Sizes{}, Sizes{.in = 70, .out = 133, .head = 37, .heads = 2}})
    for (const Case<S>& c : cases<S>(sizes)) {
      const bool exact_scales = std::all_of(c.bank.scales.begin(), c.bank.scales.end(), [](double s) {
        int exponent = 0;
        return std::abs(std::frexp(s, &exponent)) == 0.5;
      });
      if (!exact_scales || (c.router.kind != naive::Router::Kind::uniform && !c.given() &&
                            c.router_name != "top-1 renormalised"))
        continue;
      INFO(c.name);
      Rng rng(3);
      Inputs<S> data = make_clear_inputs(c, 40, 2, Run{});
      const auto integers = [&](std::span<S> values, Index limit) {
        for (S& v : values) v = static_cast<S>(rng.integer(-limit, limit));
      };
      integers(std::span<S>(data.theta).first(naive::at(c.bank.size())), 4);
      integers({data.x.data(), naive::at(data.x.size())}, 4);
      integers({data.y.data(), naive::at(data.y.size())}, 9);
      for (Index i = 0; i < data.gates.size(); ++i) data.gates.data()[i] = static_cast<S>(rng.integer(-2, 2));
      const auto wanted = reference(c, point<long double>(data), data, {}, Run{});
      if (c.router.kind == naive::Router::Kind::top_k && wanted.routed.gap < 1e-3) continue;
      const Outputs<S> got = evaluate(c, data);
      bool exact = true;
      for (std::size_t i = 0; i < wanted.y.size(); ++i)
        exact = exact && static_cast<long double>(got.y.data()[i]) == wanted.y[i];
      CHECK(!mostly_zero(got.y));
      CHECK(exact);
    }
}

TEMPLATE_TEST_CASE("as initialised, an adapter is the identity", "[laws]", float, double) {
  using S = TestType;
  for (const Case<S>& c : cases<S>())
    for (const bool training : {false, true}) {
      if (c.given()) continue;
      INFO(c.name << (training ? ", training" : ""));
      const Run run = training ? training_run() : Run{};
      Inputs<S> data = make_inputs(c, 12, 4);
      c.adapter->init(data.theta, 99);
      const Outputs<S> out = evaluate(c, data, run);
      if (!c.adapter->multiplicative()) {
        CHECK(same_values(out.y, data.y));
        // ... from which B gets a gradient, and with it the adapter moves.
        const std::span<const S> d(out.dtheta);
        const auto b =
            d.subspan(naive::at(c.bank.rows_of_a() * c.bank.in), naive::at(c.bank.total_rank() * c.bank.out));
        CHECK(!same_values(b, std::span<const S>(Buffer<S>(b.size(), S(0)))));
      } else if (c.router.kind == naive::Router::Kind::uniform) {
        CHECK(same_values(out.y, data.x));
      } else if (c.router.kind == naive::Router::Kind::top_k && c.router.weights == TopKWeights::masked &&
                 c.router.chosen_at(training, run.step) < c.router.experts) {
        // Weights that sum to less than 1 scale the activation (methods.md D4): the reference says how far.
        const auto wanted = reference(c, point<Bounded>(data), data, draws(c, 12, run), run);
        CHECK(compare(out.y, wanted.y).ratio() <= 1);
        CHECK(!((out.y - data.x).cwiseAbs().array() < S(0.01)).all());
      } else {
        const S allowed = static_cast<S>(2 * static_cast<double>(c.router.experts + 2) * unit<S>);
        CHECK(((out.y - data.x).cwiseAbs().array() <= allowed * data.x.cwiseAbs().array()).all());
      }
    }
}

TEMPLATE_TEST_CASE("initial values depend on the seed and lie where the methods put them", "[laws]", float,
                   double) {
  using S = TestType;
  for (const Case<S>& c : cases<S>(Sizes{.in = 70, .out = 33})) {
    INFO(c.name);
    const auto n = naive::at(c.adapter->size());
    Buffer<S> first(n, S(5)), again(n, S(6)), other(n, S(7));
    c.adapter->init(first, 1);
    c.adapter->init(again, 1);
    c.adapter->init(other, 2);
    CHECK(same_bits(first, again));
    std::size_t begin = 0;
    for (const Field& field : c.adapter->fields()) {
      const auto values = std::span<const S>(first).subspan(begin, naive::at(field.size()));
      INFO(field.name);
      if (field.name == "lora_A" || field.name == "router") {
        const double bound = 1 / std::sqrt(static_cast<double>(field.shape.back()));
        double low = 1, high = -1, sum = 0;
        for (const S v : values) {
          low = std::min(low, static_cast<double>(v));
          high = std::max(high, static_cast<double>(v));
          sum += static_cast<double>(v);
        }
        CHECK(low >= -bound);
        CHECK(high <= bound);
        CHECK(high - low > bound);
        CHECK(std::abs(sum / static_cast<double>(values.size())) < 0.5 * bound);
        CHECK(!same_values(values, std::span<const S>(other).subspan(begin, values.size())));
      } else {
        const S start = field.name == "ia3_l" ? S(1) : S(0);
        CHECK(std::all_of(values.begin(), values.end(), [&](S v) { return v == start; }));
      }
      begin += values.size();
    }
    CHECK(begin == n);  // the fields are theta, without a gap
  }
}

TEMPLATE_TEST_CASE("one expert equals the plain adapter to the bit", "[laws]", float, double) {
  using S = TestType;
  for (const Sizes& sizes :
       {Sizes{.experts = 1}, Sizes{.in = 70, .out = 133, .head = 37, .heads = 2, .experts = 1}}) {
    const auto list = cases<S>(sizes);
    for (const Case<S>& c : list) {
      if (!c.routes_by_weights() || c.bank_name.find("LoRA ") == 0 || c.bank_name == "rsLoRA") continue;
      INFO(c.name);
      const Case<S>& plain_adapter = named(list, c.bank_name, "uniform");
      const Inputs<S> data = make_inputs(c, 70, 5);
      Inputs<S> without_router = data;
      without_router.theta.resize(naive::at(c.bank.size()));
      for (const Run& run : {Run{}, training_run()}) {
        if (run.training && c.router.k_steps > 0) continue;
        const Outputs<S> one = evaluate(c, data, run),
                         plain_outputs = evaluate(plain_adapter, without_router, run);
        CHECK(!mostly_zero(one.y));
        CHECK(same_bits(one.y, plain_outputs.y));
        CHECK(same_values(one.dx, plain_outputs.dx));
        const std::span<const S> d(one.dtheta);
        CHECK(same_bits(d.first(naive::at(c.bank.size())), std::span<const S>(plain_outputs.dtheta)));
        const auto of_router = d.subspan(naive::at(c.bank.size()));
        CHECK(std::all_of(of_router.begin(), of_router.end(), [](S v) { return v == 0; }));
      }
    }
  }
}

TEMPLATE_TEST_CASE("choosing all experts equals soft routing", "[laws]", float, double) {
  using S = TestType;
  const auto list = cases<S>({.in = 70, .out = 133, .head = 37, .heads = 2});
  for (const Case<S>& c : list) {
    if (c.router_name.find("top-4") != 0) continue;
    INFO(c.name);
    const Case<S>& soft = named(list, c.bank_name, "soft");
    const Inputs<S> data = make_inputs(c, 70, 6, false, true);
    const Outputs<S> top = evaluate(c, data), all = evaluate(soft, data);
    if (c.router.weights == TopKWeights::masked) {
      CHECK(same_bits(top.y, all.y));
      CHECK(same_bits(top.dx, all.dx));
      CHECK(same_bits(top.dtheta, all.dtheta));
    }
    const auto wanted = reference(soft, point<Bounded>(data), data, {}, Run{});
    CHECK(compare(top.y, wanted.y).ratio() <= 1);
    CHECK(compare(top.routing.gates, wanted.routed.gates).ratio() <= 1);
  }
}

TEMPLATE_TEST_CASE("permuting the experts with their router rows changes nothing", "[laws]", float, double) {
  using S = TestType;
  const std::vector<Index> order{2, 0, 3, 1};
  for (const Case<S>& c : cases<S>({.in = 20, .out = 33, .head = 9, .heads = 2})) {
    INFO(c.name);
    const Index E = c.bank.experts, T = 11;
    const Inputs<S> data = make_clear_inputs(c, T, 7, Run{}, false, false, 1e-4);
    // Where each number of the permuted theta comes from.
    std::vector<Index> source;
    const auto rows = [&](Index begin, Index width, const std::vector<Index>& heights) {
      std::vector<Index> start{begin};
      for (const Index h : heights) start.push_back(start.back() + h * width);
      for (const Index e : order)
        for (Index i = start[naive::at(e)]; i < start[naive::at(e) + 1]; ++i) source.push_back(i);
    };
    const std::vector<Index> one_each(naive::at(E), 1);
    if (c.bank.kind == naive::Bank::Kind::lora) {
      const Index ranks = c.bank.total_rank();
      const Index of_a = c.bank.rows_of_a() * c.bank.in;
      if (c.bank.shared_a)  // nothing to permute
        for (Index i = 0; i < of_a; ++i) source.push_back(i);
      else
        rows(0, c.bank.in, c.bank.ranks);
      rows(of_a, c.bank.out, c.bank.ranks);
      if (c.bank.bias) rows(of_a + ranks * c.bank.out, c.bank.out, one_each);
    } else {
      const Index d = c.bank.in / c.bank.heads;
      for (Index h = 0; h < c.bank.heads; ++h) rows(h * E * d, d, one_each);
    }
    for (Index begin = c.bank.size(); begin < c.adapter->size(); begin += E * c.router.features())
      rows(begin, c.router.features(), one_each);
    REQUIRE(std::ssize(source) == c.adapter->size());
    Inputs<S> moved = data;
    for (std::size_t i = 0; i < source.size(); ++i) moved.theta[i] = data.theta[naive::at(source[i])];
    for (Index e = 0; e < (c.given() ? E : 0); ++e) moved.gates.col(e) = data.gates.col(order[naive::at(e)]);
    const Outputs<S> before = evaluate(c, data), after = evaluate(c, *c.permuted(order), moved);
    const auto wanted = reference(c, point<Bounded>(data), data, {}, Run{});
    CHECK(!same_values(moved.theta, data.theta));
    CHECK(compare(before.y, wanted.y).ratio() <= 1);
    CHECK(compare(after.y, wanted.y).ratio() <= 1);
    for (Index row = 0; row < c.rows(T); ++row)
      for (Index e = 0; e < E; ++e)
        CHECK((after.routing.gate_row(row)[e] == 0) ==
              (before.routing.gate_row(row)[order[naive::at(e)]] == 0));
    const double scale = static_cast<double>(before.dx.cwiseAbs().maxCoeff());
    CHECK(static_cast<double>((before.dx - after.dx).cwiseAbs().maxCoeff()) <= 1000 * unit<S> * scale);
    double largest = 0, apart = 0;
    for (std::size_t i = 0; i < source.size(); ++i) {
      const auto b = static_cast<double>(before.dtheta[naive::at(source[i])]);
      largest = std::max(largest, std::abs(b));
      apart = std::max(apart, std::abs(static_cast<double>(after.dtheta[i]) - b));
    }
    CHECK(apart <= 1000 * unit<S> * largest);
  }
}

TEMPLATE_TEST_CASE("a renormalised top-1 gives its router exactly no task gradient", "[laws]", float,
                   double) {
  using S = TestType;
  for (const Case<S>& c : cases<S>()) {
    if (c.router_name.find("top-1") != 0) continue;
    INFO(c.name);
    const Inputs<S> data = make_inputs(c, 20, 8, true);
    const Outputs<S> out = evaluate(c, data);
    const auto of_router = std::span<const S>(out.dtheta).subspan(naive::at(c.bank.size()));
    const bool none = std::all_of(of_router.begin(), of_router.end(), [](S v) { return v == 0; }) &&
                      out.drouter_x.isZero(0);
    CHECK(none == (c.router.weights == TopKWeights::renormalised));
    for (const S gate : out.routing.gates)
      if (c.router.weights == TopKWeights::renormalised) REQUIRE((gate == 0 || gate == 1));
    // ... but a loss of the routing still reaches it.
    const Outputs<S> with_losses = evaluate(c, make_inputs(c, 20, 8, true, true));
    CHECK(!mostly_zero(std::span<const S>(with_losses.dtheta).subspan(naive::at(c.bank.size()))));
  }
}
