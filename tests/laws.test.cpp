// SPDX-License-Identifier: MIT
// Laws that hold to the bit, for every adapter of the list.
#include "support/catch.hpp"

#include "support/cases.hpp"

using namespace moxie;
using namespace moxie::test;

namespace {

/// Large enough for whole register blocks, tails, several tiles of tokens and several blocks of columns.
constexpr Sizes large{.in = 70, .out = 133, .head = 37, .heads = 2};

/// Evaluation; and training where it differs.
template <class S>
std::vector<Run> runs(const Case<S>& c) {
  std::vector<Run> all{Run{}};
  if (c.random()) all.push_back(training_run());
  return all;
}

template <class S>
bool same_outputs(const Outputs<S>& a, const Outputs<S>& b) {
  return same_bits(a.y, b.y) && same_bits(a.dx, b.dx) && same_bits(a.drouter_x, b.drouter_x) &&
         same_bits(a.dtheta, b.dtheta) && same_routing(a.routing, b.routing);
}

}  // namespace

TEMPLATE_TEST_CASE("splitting a batch changes no bit of y, routing and dx", "[laws]", float, double) {
  using S = TestType;
  for (const Case<S>& c : cases<S>(large))
    for (const Run& run : runs(c))
      for (const bool apart : {false, true}) {
        INFO(c.name << (run.training ? ", training" : "") << (apart ? ", router_x" : ""));
        const Inputs<S> whole = make_inputs(c, 97, 1, apart, true);
        const Outputs<S> all = evaluate(c, whole, run);
        REQUIRE(!mostly_zero(all.y));
        REQUIRE(!mostly_zero(all.dx));
        bool same = true;
        for (const auto& [first, count] : {std::pair<Index, Index>{0, 1}, {1, 3}, {4, 65}, {69, 28}}) {
          Run of_part = run;
          of_part.first_token += first;
          const auto tokens = range(first, count);
          const Outputs<S> part = evaluate(c, pick(whole, tokens), of_part);
          same =
              same && same_bits(part.y, pick(all.y, tokens)) && same_bits(part.dx, pick(all.dx, tokens)) &&
              (!apart || !c.routes_by_weights() || same_bits(part.drouter_x, pick(all.drouter_x, tokens))) &&
              same_routing(part.routing, pick(all.routing, tokens));
        }
        CHECK(same);
      }
}

TEMPLATE_TEST_CASE("permuting the tokens of a batch changes no bit of theirs in evaluation", "[laws]", float,
                   double) {
  using S = TestType;
  for (const Case<S>& c : cases<S>(large)) {
    INFO(c.name);
    constexpr Index tokens = 77;
    std::vector<Index> order;
    for (Index t = 0; t < tokens; ++t) order.push_back(t * 30 % tokens);
    const Inputs<S> data = make_inputs(c, tokens, 2, false, true);
    const Outputs<S> all = evaluate(c, data), moved = evaluate(c, pick(data, order));
    CHECK(same_bits(moved.y, pick(all.y, order)));
    CHECK(same_bits(moved.dx, pick(all.dx, order)));
    CHECK(same_routing(moved.routing, pick(all.routing, order)));
  }
}

TEMPLATE_TEST_CASE("the number of threads changes no bit, weight gradients included", "[laws]", float,
                   double) {
  using S = TestType;
  // Enough work for a team, whatever the kind.
  for (const Case<S>& c : cases<S>({.in = 130, .out = 133, .head = 101, .heads = 2}))
    for (Run run : runs(c)) {
      INFO(c.name << (run.training ? ", training" : ""));
      const Inputs<S> data = make_inputs(c, team_tokens(c.adapter->size()), 3, false, true);
      const Outputs<S> one = evaluate(c, data, run);
      bool same = true;
      for (const int threads : {2, 3, 8}) {
        run.threads = threads;
        same = same && same_outputs(one, evaluate(c, data, run));
      }
      CHECK(same);
    }
}

TEMPLATE_TEST_CASE("a second run gives the same bits, whatever cache and workspace held before", "[laws]",
                   float, double) {
  using S = TestType;
  Cache<S> cache;
  Workspace<S> workspace;
  for (const Case<S>& c : cases<S>(large)) {
    INFO(c.name);
    const Run run = c.random() ? training_run() : Run{};
    const Inputs<S> data = make_inputs(c, 66, 4, false, true);
    const Outputs<S> fresh = evaluate(c, data, run);
    std::fill(workspace.scratch.begin(), workspace.scratch.end(), std::numeric_limits<S>::quiet_NaN());
    std::fill(workspace.factors.begin(), workspace.factors.end(), std::numeric_limits<S>::quiet_NaN());
    std::fill(cache.h.begin(), cache.h.end(), std::numeric_limits<S>::quiet_NaN());
    for (const auto which : {&Routing<S>::logits, &Routing<S>::probs, &Routing<S>::gates})
      std::fill((workspace.drouting.*which).begin(), (workspace.drouting.*which).end(),
                std::numeric_limits<S>::quiet_NaN());
    Outputs<S> again;
    again.y = run_forward(c, *c.adapter, data, run, cache, workspace);
    again.dx = Matrix<S>::Zero(66, c.adapter->in());
    again.dtheta.assign(data.theta.size(), S(0));
    c.adapter->backward(data.theta, data.x, data.dy, cache, workspace, run, again.dx, again.dtheta,
                        data.drouting, {}, {});
    again.routing = cache.routing;
    CHECK(same_outputs(fresh, again));
  }
}

TEMPLATE_TEST_CASE("backward again adds the same again, and writes neither dy nor the cache", "[laws]", float,
                   double) {
  using S = TestType;
  for (const Case<S>& c : cases<S>(large))
    for (const Run& run : runs(c)) {
      INFO(c.name << (run.training ? ", training" : ""));
      const Inputs<S> data = make_inputs(c, 70, 5, false, true);
      Cache<S> cache;
      Workspace<S> workspace;
      run_forward(c, *c.adapter, data, run, cache, workspace);
      const Cache<S> before = cache;
      const Inputs<S> inputs_before = data;
      Matrix<S> dx = Matrix<S>::Zero(70, c.adapter->in());
      Buffer<S> dtheta(data.theta.size(), S(0));
      const auto backward = [&] {
        c.adapter->backward(data.theta, data.x, data.dy, cache, workspace, run, dx, dtheta, data.drouting, {},
                            {});
      };
      backward();
      const Matrix<S> dx_once = dx;
      const Buffer<S> once = dtheta;
      REQUIRE(!mostly_zero(std::span<const S>(once).first(naive::at(c.bank.size()))));
      backward();
      Buffer<S> twice;
      for (const S g : once) twice.push_back(g + g);
      CHECK(same_bits(dtheta, twice));
      // dx takes the bank's part and then the router's, so that twice the sum is reached on another way.
      const S largest = dx_once.cwiseAbs().maxCoeff();
      CHECK((dx - S(2) * dx_once).cwiseAbs().maxCoeff() <= S(16 * unit<S>) * largest);
      CHECK(same_routing(before.routing, cache.routing));
      CHECK(same_bits(before.h, cache.h));
      CHECK(same_bits(inputs_before.dy, data.dy));
      CHECK(same_bits(inputs_before.x, data.x));
      CHECK(same_bits(inputs_before.theta, data.theta));
    }
}

TEMPLATE_TEST_CASE("what dtheta held before decides no order of summation", "[laws]", float, double) {
  using S = TestType;
  for (const Case<S>& c : cases<S>(large)) {
    INFO(c.name);
    const Run run = c.random() ? training_run() : Run{};
    const Inputs<S> data = make_inputs(c, 70, 6, true, true);
    const Outputs<S> from_zero = evaluate(c, data, run);
    Cache<S> cache;
    Workspace<S> workspace;
    run_forward(c, *c.adapter, data, run, cache, workspace);
    Rng rng(7);
    Buffer<S> dtheta(data.theta.size());
    rng.fill(dtheta, -3, 3);
    Matrix<S> dx = rng.matrix<S>(70, c.adapter->in());
    Matrix<S> drouter_x = rng.matrix<S>(70, data.router_x.cols());
    Buffer<S> wanted(dtheta);
    for (std::size_t i = 0; i < wanted.size(); ++i) wanted[i] += from_zero.dtheta[i];
    const Matrix<S> wanted_dx = dx + from_zero.dx;
    const bool apart = data.router_x.size() > 0;
    c.adapter->backward(data.theta, data.x, data.dy, cache, workspace, run, dx, dtheta, data.drouting,
                        apart ? In<S>(data.router_x) : In<S>(), apart ? Out<S>(drouter_x) : Out<S>());
    CHECK(same_bits(dtheta, wanted));
    if (!c.adapter->multiplicative()) CHECK(same_bits(dx, wanted_dx));
    CHECK((dx - wanted_dx).cwiseAbs().maxCoeff() <= S(4 * unit<S>) * wanted_dx.cwiseAbs().maxCoeff());
  }
}

TEMPLATE_TEST_CASE("the dense path equals the grouped path, the sign of zero aside", "[laws]", float,
                   double) {
  using S = TestType;
  for (const Sizes& sizes :
       {large, Sizes{}, Sizes{.in = 33, .out = 18, .head = 9, .heads = 3, .experts = 19}})
    for (const Case<S>& c : cases<S>(sizes))
      for (const Run& run : runs(c)) {
        INFO(c.name << (run.training ? ", training" : ""));
        const Inputs<S> data = make_inputs(c, 67, 8, false, true);
        const Outputs<S> dense = evaluate(c, *c.dense, data, run),
                         grouped = evaluate(c, *c.grouped, data, run),
                         automatic = evaluate(c, *c.adapter, data, run);
        CHECK(same_values(dense.y, grouped.y));
        CHECK(same_values(dense.dx, grouped.dx));
        CHECK(same_values(dense.dtheta, grouped.dtheta));
        CHECK(same_values(automatic.y, grouped.y));
        CHECK(same_values(automatic.dx, grouped.dx));
        CHECK(same_values(automatic.dtheta, grouped.dtheta));
        CHECK(same_routing(dense.routing, grouped.routing));
      }
}

TEMPLATE_TEST_CASE("an output that is not wanted changes nothing else", "[laws]", float, double) {
  using S = TestType;
  for (const Case<S>& c : cases<S>(large))
    for (const Run& run : runs(c)) {
      INFO(c.name << (run.training ? ", training" : ""));
      const Inputs<S> data = make_inputs(c, 66, 9, false, true);
      const Outputs<S> all = evaluate(c, data, run);
      Cache<S> cache;
      Workspace<S> workspace;
      run_forward(c, *c.adapter, data, run, cache, workspace);
      Buffer<S> dtheta(data.theta.size(), S(0));
      c.adapter->backward(data.theta, data.x, data.dy, cache, workspace, run, {}, dtheta, data.drouting, {},
                          {});
      CHECK(same_bits(dtheta, all.dtheta));
      Matrix<S> dx = Matrix<S>::Zero(66, c.adapter->in());
      c.adapter->backward(data.theta, data.x, data.dy, cache, workspace, run, dx, {}, data.drouting, {}, {});
      CHECK(same_bits(dx, all.dx));
    }
}

TEMPLATE_TEST_CASE("strides and addresses change no bit", "[laws]", float, double) {
  using S = TestType;
  for (const Case<S>& c : cases<S>(large)) {
    INFO(c.name);
    const Run run = c.random() ? training_run() : Run{};
    const Inputs<S> data = make_inputs(c, 69, 10, true);
    const Outputs<S> plain_views = evaluate(c, data, run);
    const Index T = 69, in = c.adapter->in(), out = c.adapter->out(), wide_in = in + 5, wide_out = out + 3;
    // Everything one scalar off its alignment, in rows that are longer than their features.
    const auto spread = [](const Matrix<S>& m, Index stride) {
      std::vector<S> memory(naive::at(1 + m.rows() * stride), S(777));
      for (Index t = 0; t < m.rows(); ++t)
        std::copy_n(m.data() + t * m.cols(), m.cols(), memory.data() + 1 + t * stride);
      return memory;
    };
    const std::vector<S> x = spread(data.x, wide_in), dy = spread(data.dy, wide_out),
                         router_x = spread(data.router_x, data.router_x.cols() + 7);
    std::vector<S> y = spread(data.y, wide_out), dx = spread(Matrix<S>::Zero(T, in), wide_in),
                   drouter_x = spread(Matrix<S>::Zero(T, data.router_x.cols()), data.router_x.cols() + 2);
    std::vector<S> theta(data.theta.size() + 1), dtheta(data.theta.size() + 1, S(0));
    std::copy(data.theta.begin(), data.theta.end(), theta.begin() + 1);
    const In<S> x_view(x.data() + 1, T, in, wide_in), dy_view(dy.data() + 1, T, out, wide_out);
    const bool apart = data.router_x.size() > 0;
    const Index routed = data.router_x.cols();
    const In<S> r_view = apart ? In<S>(router_x.data() + 1, T, routed, routed + 7) : In<S>();
    const Out<S> dr_view = apart ? Out<S>(drouter_x.data() + 1, T, routed, routed + 2) : Out<S>();
    const auto tail = [](auto& v) { return std::span(v).subspan(1); };
    Cache<S> cache;
    Workspace<S> workspace;
    if (c.given()) give_gates<S>(cache.routing, data.gates, c.router.heads);
    c.adapter->forward(tail(theta), x_view, {y.data() + 1, T, out, wide_out}, cache, workspace, run, r_view);
    c.adapter->backward(tail(theta), x_view, dy_view, cache, workspace, run, {dx.data() + 1, T, in, wide_in},
                        tail(dtheta), {}, r_view, dr_view);
    CHECK(y == spread(plain_views.y, wide_out));  // what lies between the rows is untouched too
    CHECK(dx == spread(plain_views.dx, wide_in));
    if (apart) CHECK(drouter_x == spread(plain_views.drouter_x, routed + 2));
    CHECK(same_values(std::span<const S>(tail(dtheta)), std::span<const S>(plain_views.dtheta)));
  }
}

TEMPLATE_TEST_CASE("a router run by itself and handed on equals the fused adapter to the bit", "[laws]",
                   float, double) {
  using S = TestType;
  for (const Case<S>& c : cases<S>(large))
    for (Run run : runs(c))
      for (const bool losses : {false, true}) {
        if (c.given()) continue;
        INFO(c.name << (run.training ? ", training" : "") << (losses ? ", losses" : ""));
        run.threads = c.router_name == "soft" ? 2 : 1;
        const Inputs<S> data = make_inputs(c, 70, 11, false, losses);
        const Outputs<S> fused = evaluate(c, data, run);
        const std::span<const S> theta(data.theta);
        const auto of_bank = theta.first(naive::at(c.bank.size())), of_router = theta.subspan(of_bank.size());
        Cache<S> cache;
        Workspace<S> workspace;
        Matrix<S> y = data.y, dx = Matrix<S>::Zero(70, c.adapter->in());
        Buffer<S> dtheta(theta.size(), S(0));
        const std::span<S> d(dtheta);
        c.adapter->route(of_router, data.x, cache.routing, workspace, run);
        const Routing<S> routing = cache.routing;
        CHECK(same_routing(routing, fused.routing));
        c.under_given->forward(of_bank, data.x, y, cache, workspace, run, {});
        CHECK(same_bits(y, fused.y));
        c.under_given->backward(of_bank, data.x, data.dy, cache, workspace, run, dx, d.first(of_bank.size()),
                                data.drouting, {}, {});
        Routing<S> gradient = workspace.drouting;
        c.adapter->route_backward(of_router, data.x, routing, gradient, workspace, run, dx,
                                  d.subspan(of_bank.size()));
        CHECK(same_bits(dx, fused.dx));
        CHECK(same_bits(dtheta, fused.dtheta));
      }
}

TEMPLATE_TEST_CASE("a router that reads another input sends its gradient there alone", "[laws]", float,
                   double) {
  using S = TestType;
  for (const Case<S>& c : cases<S>(large))
    for (const Run& run : runs(c)) {
      // Jitter scales the router's part on its way into dx, and two projections are two parts.
      if (!c.routes_by_weights() || (run.training && c.router.jitter > 0) ||
          (run.training && c.router.noise == RouterNoise::learned))
        continue;
      INFO(c.name << (run.training ? ", training" : ""));
      Inputs<S> data = make_inputs(c, 70, 12, false, true);
      const Outputs<S> joined = evaluate(c, data, run);
      data.router_x = data.x;
      const Outputs<S> apart = evaluate(c, data, run);
      CHECK(same_bits(joined.y, apart.y));
      CHECK(same_bits(joined.dtheta, apart.dtheta));
      CHECK(same_bits(joined.dx, Matrix<S>(apart.dx + apart.drouter_x)));
      CHECK(!same_values(joined.dx, apart.dx));
    }
}

TEMPLATE_TEST_CASE("Run::scale: 0 is the base, 1 is no scale, 2 is twice the update", "[laws]", float,
                   double) {
  using S = TestType;
  for (const Case<S>& c : cases<S>(large)) {
    INFO(c.name);
    const bool lora = !c.adapter->multiplicative();
    Inputs<S> data = make_inputs(c, 30, 13);
    Run run;
    const Outputs<S> as_trained = evaluate(c, data);
    run.scale = 1;
    CHECK(same_outputs(as_trained, evaluate(c, data, run)));
    run.scale = 0;
    const Outputs<S> off = evaluate(c, data, run);
    CHECK(same_values(off.y, lora ? data.y : data.x));
    CHECK(!same_values(as_trained.y, off.y));
    CHECK(same_values(off.dx, lora ? Matrix<S>(Matrix<S>::Zero(30, c.adapter->in())) : data.dy));
    CHECK(same_values(off.dtheta, Buffer<S>(data.theta.size(), S(0))));
    if (!lora) continue;
    data.y.setZero();
    run.scale = 2;
    const Outputs<S> once = evaluate(c, data), twice = evaluate(c, data, run);
    CHECK(same_values(twice.y, Matrix<S>(S(2) * once.y)));
    // The router's part doubles too, since its gates' gradients do.
    CHECK(same_values(twice.dx, Matrix<S>(S(2) * once.dx)));
  }
}

TEMPLATE_TEST_CASE("dropout, jitter and noise differ between steps, modules, seeds and tokens", "[laws]",
                   float, double) {
  using S = TestType;
  for (const Case<S>& c : cases<S>(large)) {
    if (!c.random()) continue;
    INFO(c.name);
    const Inputs<S> data = make_inputs(c, 20, 14);
    const Run run = training_run();
    const Outputs<S> first = evaluate(c, data, run), evaluation = evaluate(c, data);
    CHECK(!same_values(first.y, evaluation.y));
    if (c.bank.dropout == 0 && c.router.jitter == 0 && c.router.noise == RouterNoise::none) continue;
    for (const auto change : {+[](Run& r) { r.step += 1; }, +[](Run& r) { r.module += 1; },
                              +[](Run& r) { r.seed += 1; }, +[](Run& r) { r.first_token += 1; }}) {
      Run other = run;
      change(other);
      if (c.router.k_steps > 0) other.step = run.step;
      if (c.router.k_steps > 0 && other.module == run.module && other.seed == run.seed &&
          other.first_token == run.first_token)
        continue;
      CHECK(!same_values(first.y, evaluate(c, data, other).y));
    }
  }
}
