// SPDX-License-Identifier: MIT
// What an adapter refuses, and what strange numbers and sizes do to it.
#include "support/catch.hpp"

#include "support/cases.hpp"
#include "support/refusal.hpp"

#include <moxie/experts/ia3.hpp>
#include <moxie/experts/lora.hpp>
#include <moxie/presets.hpp>
#include <moxie/routers/soft.hpp>
#include <moxie/routers/top_k.hpp>
#include <moxie/routers/uniform.hpp>

using namespace moxie;
using namespace moxie::test;

namespace {

using S = double;
using LoraSoft = MoeAdapter<LoraBank<S>, SoftRouter<S>>;
using Ia3Soft = MoeAdapter<Ia3Bank<S>, SoftRouter<S>>;
using LoraGiven = MoeAdapter<LoraBank<S>, GivenRouter<S>>;

LoraSoft lora_soft(Index in = 6, Index out = 5, Index rank = 2, Index router_in = 6) {
  return {LoraBank<S>({.in = in, .out = out, .experts = 3, .rank = rank}),
          SoftRouter<S>({.in = router_in, .experts = 3})};
}
Ia3Soft ia3_soft() {
  return {Ia3Bank<S>({.features = 6, .experts = 3}), SoftRouter<S>({.in = 6, .experts = 3})};
}

/// A call on 4 tokens whose every buffer lies in one block of memory, so that any two can be made to overlap.
template <class Adapter>
struct Call {
  Adapter adapter;
  std::vector<S> memory = std::vector<S>(4000);
  std::span<S> theta, dtheta;
  In<S> x, dy, router_x;
  Out<S> y, dx, drouter_x;
  Routing<S> drouting;
  Cache<S> cache;
  Workspace<S> workspace;
  Run run;

  explicit Call(Adapter a) : adapter(std::move(a)) {
    Rng(1).fill(memory, -1, 1);
    std::size_t next = 0;
    const auto take = [&](Index n) {
      const std::size_t begin = next;
      next += naive::at(n) + 200;  // so that whatever overlaps one buffer overlaps no other
      REQUIRE(next <= memory.size());
      return memory.data() + begin;
    };
    const Index in = adapter.in(), out = adapter.out(), n = adapter.size();
    theta = {take(n), naive::at(n)};
    dtheta = {take(n), naive::at(n)};
    x = {take(4 * in), 4, in};
    dy = {take(4 * out), 4, out};
    router_x = {take(4 * in), 4, in};
    y = {take(4 * out), 4, out};
    dx = {take(4 * in), 4, in};
    drouter_x = {take(4 * in), 4, in};
  }
  void forward() { adapter.forward(theta, x, y, cache, workspace, run, router_x); }
  void backward() {
    adapter.backward(theta, x, dy, cache, workspace, run, dx, dtheta, drouting, router_x, drouter_x);
  }
  S* writable(const S* p) { return memory.data() + (p - memory.data()); }

  /// The call after `change` is refused and has changed nothing of the caller's.
  template <class F>
  void forward_refused(F&& change, Code code, const std::vector<std::string>& words) {
    Call other(adapter);
    change(other);
    const auto before = other.memory;
    refused([&] { other.forward(); }, code, words);
    CHECK((other.memory == before));
  }
  template <class F>
  void backward_refused(F&& change, Code code, const std::vector<std::string>& words) {
    Call other(adapter);
    other.forward();
    change(other);
    const auto before = other.memory;
    refused([&] { other.backward(); }, code, words);
    CHECK((other.memory == before));
  }
};

}  // namespace

TEST_CASE("forward refuses what does not fit and changes nothing", "[adapter]") {
  using C = Call<LoraSoft>;
  C call(lora_soft());
  REQUIRE_NOTHROW(call.forward());
  const Code shape = Code::shape_mismatch;
  call.forward_refused([](C& c) { c.theta = c.theta.first(7); }, shape, {"theta", "7", "84"});
  call.forward_refused([](C& c) { c.theta = {}; }, shape, {"theta", "0", "84"});
  call.forward_refused([](C& c) { c.x.cols = 5; }, shape, {"x is [4, 5]", "[any, 6]"});
  call.forward_refused([](C& c) { c.y.rows = 3; }, shape, {"y is [3, 5]", "[4, 5]"});
  call.forward_refused([](C& c) { c.y.cols = 6; }, shape, {"y is [4, 6]", "[4, 5]"});
  call.forward_refused([](C& c) { c.x.rows = -1; }, shape, {"x is [-1, 6]"});
  call.forward_refused([](C& c) { c.router_x.rows = 3; }, shape, {"router_x is [3, 6]", "[4, 6]"});
  call.forward_refused([](C& c) { c.router_x.cols = 5; }, shape, {"router_x", "[4, 6]"});
  call.forward_refused([](C& c) { c.x.data = nullptr; }, Code::null_pointer, {"x"});
  call.forward_refused([](C& c) { c.y.data = nullptr; }, Code::null_pointer, {"y"});
  for (const Index stride : {5, 0, -6}) {
    const std::string got = "stride " + std::to_string(stride);
    call.forward_refused([&](C& c) { c.x.stride = stride; }, Code::bad_stride, {"x", got, "6"});
    call.forward_refused([&](C& c) { c.router_x.stride = stride; }, Code::bad_stride, {"router_x", got});
  }
  call.forward_refused([](C& c) { c.x.stride = Index{1} << 61; }, Code::bad_stride,
                       {"x", "2305843009213693952"});
  call.forward_refused([](C& c) { c.y.stride = Index{1} << 61; }, Code::bad_stride,
                       {"y", "2305843009213693952"});
  call.forward_refused([](C& c) { c.y.stride = 4; }, Code::bad_stride, {"y", "stride 4", "5"});
  call.forward_refused([](C& c) { c.y.data = c.writable(c.x.data); }, Code::aliased, {"y overlaps x"});
  call.forward_refused([](C& c) { c.y.data = c.writable(c.x.data) + 23; }, Code::aliased, {"y overlaps x"});
  call.forward_refused([](C& c) { c.y.data = c.theta.data() + 80; }, Code::aliased, {"y overlaps theta"});
  call.forward_refused([](C& c) { c.y.data = c.writable(c.router_x.data); }, Code::aliased,
                       {"y overlaps router_x"});
  for (const int threads : {0, -1, 1000000})
    call.forward_refused([&](C& c) { c.run.threads = threads; }, Code::config_range,
                         {"threads", "1 to 4096"});
  call.forward_refused([](C& c) { c.run.first_token = -1; }, Code::config_range, {"first_token", "-1"});
  for (const double scale : {std::nan(""), HUGE_VAL})
    call.forward_refused([&](C& c) { c.run.scale = scale; }, Code::config_range, {"scale", "finite"});
}

TEST_CASE("backward refuses what does not fit and changes nothing", "[adapter]") {
  using C = Call<LoraSoft>;
  C call(lora_soft());
  REQUIRE_NOTHROW(call.forward());
  REQUIRE_NOTHROW(call.backward());
  const Code shape = Code::shape_mismatch, aliased = Code::aliased;
  call.backward_refused([](C& c) { c.theta = c.theta.first(7); }, shape, {"theta", "7", "84"});
  call.backward_refused([](C& c) { c.dtheta = c.dtheta.first(7); }, shape, {"dtheta", "7", "84"});
  call.backward_refused([](C& c) { c.x.cols = 5; }, shape, {"x is [4, 5]", "[any, 6]"});
  call.backward_refused([](C& c) { c.dy.cols = 6; }, shape, {"dy is [4, 6]", "[4, 5]"});
  call.backward_refused([](C& c) { c.dy.rows = 3; }, shape, {"dy is [3, 5]", "[4, 5]"});
  call.backward_refused([](C& c) { c.dx.rows = 3; }, shape, {"dx is [3, 6]", "[4, 6]"});
  call.backward_refused([](C& c) { c.dx.cols = 5; }, shape, {"dx is [4, 5]", "[4, 6]"});
  call.backward_refused([](C& c) { c.router_x.rows = 3; }, shape, {"router_x is [3, 6]"});
  call.backward_refused([](C& c) { c.drouter_x.cols = 5; }, shape, {"drouter_x is [4, 5]", "[4, 6]"});
  for (const auto which : {&Routing<S>::logits, &Routing<S>::probs, &Routing<S>::gates, &Routing<S>::noisy,
                           &Routing<S>::noise_scale})
    call.backward_refused([&](C& c) { (c.drouting.*which).resize(11); }, shape, {"drouting", "11", "12"});
  call.backward_refused([](C& c) { c.dy.data = nullptr; }, Code::null_pointer, {"dy"});
  call.backward_refused([](C& c) { c.dy.stride = 4; }, Code::bad_stride, {"dy", "4", "5"});
  call.backward_refused([](C& c) { c.dx.stride = 5; }, Code::bad_stride, {"dx", "5", "6"});
  call.backward_refused([](C& c) { c.run.threads = 0; }, Code::config_range, {"threads", "0"});

  SECTION("a cache of another call") {
    const Code state = Code::state_error;
    call.backward_refused([](C& c) { c.cache = {}; }, state, {"before forward"});
    call.backward_refused([](C& c) { c.x.rows = c.dy.rows = c.dx.rows = c.router_x.rows = 3; }, state,
                          {"3 tokens", "4"});
    call.backward_refused([](C& c) { c.run.module = 1; }, state, {"another module"});
    call.backward_refused([](C& c) { c.run.training = true; }, state, {"another run"});
    call.backward_refused([](C& c) { c.run.seed = 1; }, state, {"another run", "seed"});
    call.backward_refused([](C& c) { c.run.step = 1; }, state, {"another run", "step"});
    call.backward_refused([](C& c) { c.run.first_token = 1; }, state, {"another run", "first_token"});
    call.backward_refused([](C& c) { c.run.scale = 2; }, state, {"another run", "scale"});
    // Of an adapter of other sizes: in, out, rank, experts.
    const auto cache_of = [&](const auto& adapter) {
      Call<std::decay_t<decltype(adapter)>> other(adapter);
      other.router_x = {};
      other.forward();
      call.backward_refused([&](C& c) { c.cache = other.cache; }, state, {"another module's cache"});
    };
    cache_of(lora_soft(7, 5, 2, 7));
    cache_of(lora_soft(6, 4, 2, 6));
    cache_of(lora_soft(6, 5, 3, 6));
    cache_of(LoraSoft(LoraBank<S>({.in = 6, .out = 5, .experts = 2, .rank = 3}),
                      SoftRouter<S>({.in = 6, .experts = 2})));
  }
  SECTION("threads may differ from forward's") {
    call.run.threads = 2;
    CHECK_NOTHROW(call.backward());
  }
  SECTION("outputs that overlap") {
    const auto at = [](C& c, const S* p) { return c.writable(p) + 1; };
    call.backward_refused([&](C& c) { c.dx.data = at(c, c.x.data); }, aliased, {"dx overlaps x"});
    call.backward_refused([&](C& c) { c.dx.data = at(c, c.dy.data); }, aliased, {"dx overlaps dy"});
    call.backward_refused([&](C& c) { c.dx.data = at(c, c.router_x.data); }, aliased, {"dx", "router_x"});
    call.backward_refused([&](C& c) { c.dx.data = at(c, c.drouter_x.data); }, aliased, {"dx", "drouter_x"});
    call.backward_refused([&](C& c) { c.dx.data = at(c, c.theta.data()); }, aliased, {"dx", "theta"});
    call.backward_refused([&](C& c) { c.dx.data = at(c, c.dtheta.data()); }, aliased, {"dx", "dtheta"});
    call.backward_refused([&](C& c) { c.dtheta = c.theta; }, aliased, {"dtheta", "theta"});
    const auto move = [](C& c, const S* p) { c.dtheta = {c.writable(p) + 1, c.dtheta.size()}; };
    call.backward_refused([&](C& c) { move(c, c.x.data); }, aliased, {"dtheta", "x"});
    call.backward_refused([&](C& c) { move(c, c.dy.data); }, aliased, {"dtheta", "dy"});
    call.backward_refused([&](C& c) { move(c, c.router_x.data); }, aliased, {"dtheta", "router_x"});
    call.backward_refused([&](C& c) { move(c, c.drouter_x.data); }, aliased, {"dtheta", "drouter_x"});
    call.backward_refused([&](C& c) { c.drouter_x.data = at(c, c.x.data); }, aliased, {"drouter_x", "x"});
    call.backward_refused([&](C& c) { c.drouter_x.data = at(c, c.dy.data); }, aliased, {"drouter_x", "dy"});
    call.backward_refused([&](C& c) { c.drouter_x.data = at(c, c.router_x.data); }, aliased,
                          {"drouter_x", "router_x"});
    call.backward_refused([&](C& c) { c.drouter_x.data = at(c, c.theta.data()); }, aliased,
                          {"drouter_x", "theta"});
  }
}

TEST_CASE("a router of another width needs an input of its own", "[adapter]") {
  using C = Call<LoraSoft>;
  C call(lora_soft(6, 5, 2, 9));
  call.forward_refused([](C& c) { c.router_x = {}; }, Code::shape_mismatch, {"router_x is [4, 6]", "[4, 9]"});
  const Matrix<S> wide = Rng(2).matrix<S>(4, 9);
  call.router_x = wide;
  CHECK_NOTHROW(call.forward());
}

TEST_CASE("an IA3 kind may write over its input for inference, and then refuses backward", "[adapter]") {
  using C = Call<Ia3Soft>;
  C call(ia3_soft());
  call.router_x = {};
  call.forward();
  std::vector<S> apart(call.y.data, call.y.data + 24);
  call.y.data = call.writable(call.x.data);
  call.forward();
  CHECK(std::equal(apart.begin(), apart.end(), call.y.data));
  refused([&] { call.backward(); }, Code::state_error, {"over x"});
  call.forward_refused([](C& c) { c.y.data = c.writable(c.x.data) + 1; }, Code::aliased, {"y overlaps x"});
  call.forward_refused(
      [](C& c) {
        c.y.data = c.writable(c.x.data);
        c.router_x = {c.x.data, 4, 6};
      },
      Code::aliased, {"y overlaps router_x"});
}

TEST_CASE("bank and router must agree about experts and heads", "[adapter]") {
  const Ia3Bank<S> bank({.features = 6, .heads = 2, .experts = 3});
  refused([&] { Ia3Soft(bank, SoftRouter<S>({.in = 6, .experts = 4, .heads = 2})); }, Code::config_range,
          {"experts", "4", "3"});
  refused([&] { Ia3Soft(bank, SoftRouter<S>({.in = 6, .experts = 3})); }, Code::config_range,
          {"rows per token", "1", "2"});
}

TEST_CASE("a routing from outside is checked row by row, and y is left alone", "[adapter]") {
  const LoraGiven adapter(LoraBank<S>({.in = 6, .out = 5, .experts = 3, .rank = 2}),
                          GivenRouter<S>({.experts = 3}));
  using C = Call<LoraGiven>;
  C call(adapter);
  call.router_x = {};
  Matrix<S> gates = Matrix<S>::Constant(4, 3, 0.5);
  gates(2, 1) = 0;
  const auto give = [&](C& c) {
    c.router_x = {};
    give_gates<S>(c.cache.routing, gates);
  };
  give(call);
  CHECK_NOTHROW(call.forward());
  CHECK_NOTHROW(call.backward());
  const auto bad = [&](auto change, Code code, const std::vector<std::string>& words) {
    call.forward_refused(
        [&](C& c) {
          give(c);
          change(c.cache.routing);
        },
        code, words);
  };
  using R = Routing<S>;
  const Code output = Code::router_output, shape = Code::shape_mismatch;
  bad([](R& r) { r = {}; }, shape, {"routing", "[0, 0]", "[4, 3]"});
  bad([](R& r) { r.rows = 3; }, shape, {"routing", "[3, 3]", "[4, 3]"});
  bad([](R& r) { r.experts = 2; }, shape, {"routing", "[4, 2]", "[4, 3]"});
  bad([](R& r) { r.rows_per_token = 2; }, shape, {"routing"});
  bad([](R& r) { r.gates.resize(11); }, shape, {"routing"});
  bad([](R& r) { r.count.resize(3); }, shape, {"routing"});
  bad([](R& r) { r.chosen.resize(11); }, shape, {"routing"});
  bad([](R& r) { r.count[1] = 4; }, output, {"row 1", "4", "0 to 3"});
  bad([](R& r) { r.count[1] = -1; }, output, {"row 1", "-1"});
  bad([](R& r) { r.chosen[5] = 3; }, output, {"row 1", "expert 3", "below 3"});
  bad([](R& r) { r.chosen[3] = -1; }, output, {"row 1", "expert -1"});
  bad([](R& r) { r.chosen[4] = 0; }, output, {"row 1", "expert 0", "ascending"});
  bad([](R& r) { r.gates[4] = std::nan(""); }, output, {"row 1", "expert 1", "finite"});
  bad([](R& r) { r.gates[4] = HUGE_VAL; }, output, {"row 1", "expert 1", "finite"});
  bad([](R& r) { r.count[0] = 2; }, output, {"row 0", "expert 2", "not chosen"});
  bad([](R& r) { r.gates[7] = 0.25; }, output, {"row 2", "expert 1", "not chosen"});
  bad([](R& r) { r.gates[7] = std::nan(""); }, output, {"row 2", "expert 1", "not chosen"});
  refused([&] { give_gates<S>(call.cache.routing, gates, 3); }, shape, {"4 rows", "multiple of 3"});
  refused([&] { give_gates<S>(call.cache.routing, gates, 0); }, Code::config_range, {"rows_per_token", "0"});
}

TEST_CASE("given gates: a row that chooses nothing leaves its y alone", "[adapter]") {
  const LoraGiven adapter(LoraBank<S>({.in = 6, .out = 5, .experts = 3, .rank = 2, .bias = true}),
                          GivenRouter<S>({.experts = 3}));
  Call<LoraGiven> call(adapter);
  call.router_x = {};
  Matrix<S> gates = Matrix<S>::Zero(4, 3);
  gates(1, 2) = 2;
  const auto before = call.memory;
  const auto y0 = static_cast<std::size_t>(call.y.data - call.memory.data());
  give_gates<S>(call.cache.routing, gates);
  call.forward();
  for (std::size_t i = 0; i < 20; ++i) CHECK((call.memory[y0 + i] == before[y0 + i]) == (i / 5 != 1));
}

TEMPLATE_TEST_CASE("no tokens: nothing happens, and gradients stay as they are", "[adapter]", float, double) {
  using T = TestType;
  for (const Case<T>& c : cases<T>())
    for (const int threads : {1, 2}) {
      INFO(c.name);
      Run run = training_run();
      run.threads = threads;
      const Inputs<T> none = make_inputs(c, 0, 1);
      const Outputs<T> out = evaluate(c, none, run);
      CHECK(out.y.rows() == 0);
      CHECK(same_values(out.dtheta, Buffer<T>(none.theta.size(), T(0))));
      // A view of nothing may have no memory at all.
      Cache<T> cache;
      Workspace<T> workspace;
      if (c.given()) give_gates<T>(cache.routing, none.gates, c.router.heads);
      CHECK_NOTHROW(c.adapter->forward(none.theta, In<T>(nullptr, 0, c.bank.in),
                                       Out<T>(nullptr, 0, c.bank.out), cache, workspace, run, {}));
    }
}

TEST_CASE("the memory of a call grows with its tokens, not with tokens times width", "[adapter]") {
  // Bytes of cache and workspace for one more token, of float.
  const auto grown = [](const auto& adapter, bool backward) {
    const auto bytes = [&](Index tokens) {
      const Buffer<float> theta = make_theta(adapter, 1);
      const Matrix<float> x = Matrix<float>::Ones(tokens, adapter.in());
      Matrix<float> y = x, dx = x;
      Buffer<float> dtheta(theta.size());
      Cache<float> cache;
      Workspace<float> workspace;
      adapter.forward(theta, x, y, cache, workspace);
      if (backward) adapter.backward(theta, x, x, cache, workspace, {}, dx, dtheta);
      return cache.bytes() + workspace.bytes();
    };
    return (bytes(1024) - bytes(512)) / 512;
  };
  for (const Index d : {64, 1024}) {
    const LoraBank<float> bank({.in = d, .out = d, .experts = 8, .rank = 8});
    const MoeAdapter soft(bank, SoftRouter<float>({.in = d, .experts = 8}));
    // h; logits, probs, gates, chosen, count. Then the gradient of the routing, dh and c.
    CHECK(grown(soft, false) == 4 * (64 + 4 * 8 + 1));
    CHECK(grown(soft, true) == 4 * (64 + 4 * 8 + 1) + 4 * (3 * 8 + 1 + 2 * 64));
    const MoeAdapter top2(bank, TopKRouter<float>({.in = d, .experts = 8, .k = 2}));
    CHECK(grown(top2, false) == 4 * (64 + 3 * 8 + 2 + 1));
    const auto lora = moxie::lora<float>({.in = d, .out = d, .rank = 8});
    CHECK(grown(lora, false) == 4 * (8 + 5));
    CHECK(grown(lora, true) == 4 * (8 + 5) + 4 * (4 + 2 * 8));
    const auto mov = moxie::mov<float>({.features = d, .experts = 8});
    CHECK(grown(mov, false) == 4 * (4 * 8 + 1));
    CHECK(grown(mov, true) == 4 * (4 * 8 + 1) + 4 * (3 * 8 + 1));
    CHECK(grown(ia3<float>({.features = d}), true) == 4 * 5 + 4 * 4);
  }
}

TEMPLATE_TEST_CASE("a token with NaN or infinity leaves the others' bits alone", "[adapter]", float, double) {
  using T = TestType;
  for (const Case<T>& c : cases<T>({.in = 20, .out = 18, .head = 9, .heads = 2}))
    for (const T poison : {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity(),
                           -std::numeric_limits<T>::infinity()})
      for (const bool training : {false, true}) {
        INFO(c.name << ", " << poison);
        const Run run = training ? training_run() : Run{};
        Inputs<T> data = make_inputs(c, 9, 2);
        const Outputs<T> clean = evaluate(c, data, run);
        data.x(4, 3) = poison;
        const Outputs<T> dirty = evaluate(c, data, run);
        bool same = true;
        for (const Index t : {0, 1, 2, 3, 5, 6, 7, 8}) {
          same = same && same_bits(pick(clean.y, {t}), pick(dirty.y, {t})) &&
                 same_bits(pick(clean.dx, {t}), pick(dirty.dx, {t})) &&
                 same_routing(pick(clean.routing, {t}), pick(dirty.routing, {t}));
        }
        CHECK(same);
        bool in_range = true;
        for (Index row = 0; row < dirty.routing.rows; ++row)
          for (int j = 0; j < dirty.routing.count[naive::at(row)]; ++j) {
            const int e = dirty.routing.chosen_row(row)[j];
            in_range = in_range && e >= 0 && e < dirty.routing.experts &&
                       (j == 0 || e > dirty.routing.chosen_row(row)[j - 1]);
          }
        CHECK(in_range);
      }
}

TEMPLATE_TEST_CASE("logits of any finite size give finite weights, and ties choose the lower experts",
                   "[adapter]", float, double) {
  using T = TestType;
  const T huge = std::numeric_limits<T>::max(), large = T(1e38);
  for (const Case<T>& c : cases<T>({.in = 4, .out = 5, .head = 4, .heads = 1})) {
    if (!c.routes_by_weights()) continue;
    INFO(c.name);
    Inputs<T> data = make_inputs(c, 6, 3, true);
    // The router's weights are the unit matrix, so that its input is the logits (over the temperature).
    const std::span<T> g(data.theta.data() + c.bank.size(), 16);
    for (Index e = 0; e < 16; ++e) g[naive::at(e)] = e % 5 == 0 ? T(1) : T(0);
    const T s = c.router.temperature < 1 ? T(c.router.temperature) : T(1);
    data.router_x << large, -large, large, 0,        //
        huge * s, -huge * s, 0, huge * s,            //
        -huge * s, -huge * s, -huge * s, -huge * s,  //
        0, 0, 0, 0,                                  //
        large, large, large, large,                  //
        0, 1, 1, -1;
    const Outputs<T> out = evaluate(c, data);
    for (const T p : out.routing.probs) REQUIRE((std::isfinite(p) && p >= 0 && p <= 1));
    for (const T w : out.routing.gates) REQUIRE((std::isfinite(w) && w >= 0 && w <= 1));
    REQUIRE(out.y.allFinite());
    const Routing<T>& r = out.routing;
    if (c.router.kind != naive::Router::Kind::top_k) continue;
    for (const Index row : {2, 3, 4})
      for (Index j = 0; j < c.router.k; ++j) {
        CHECK(r.chosen_row(row)[j] == static_cast<int>(j));
        if (c.router.weights != TopKWeights::masked)
          CHECK(std::abs(r.gate_row(row)[j] - 1 / T(c.router.k)) <= T(4 * unit<T>));
      }
    const auto chosen = [&](Index row) {
      return std::vector<int>(r.chosen_row(row), r.chosen_row(row) + c.router.k);
    };
    if (c.router.k == 1) CHECK(chosen(5) == std::vector<int>{1});
    if (c.router.k == 2) CHECK(chosen(0) == std::vector<int>{0, 2});
    if (c.router.k == 2) CHECK(chosen(1) == std::vector<int>{0, 3});
    if (c.router.k == 3) CHECK(chosen(5) == std::vector<int>{0, 1, 2});
  }
}

TEMPLATE_TEST_CASE("subnormal inputs give the right values", "[adapter]", float, double) {
  using T = TestType;
  const T tiny = std::numeric_limits<T>::denorm_min() * T(1000);
  for (const Case<T>& c : cases<T>()) {
    if (c.routes_by_weights() || c.random()) continue;
    INFO(c.name);
    Inputs<T> data = make_inputs(c, 5, 4);
    data.x *= tiny;
    data.y.setZero();
    const auto wanted = reference(c, point<Bounded>(data), data, {}, Run{});
    const Outputs<T> out = evaluate(c, data);
    for (std::size_t i = 0; i < wanted.y.size(); ++i) {
      // Each product may be rounded to the next subnormal number.
      const long double apart = std::abs(static_cast<long double>(out.y.data()[i]) - wanted.y[i].value);
      REQUIRE(apart <= 100 * static_cast<long double>(std::numeric_limits<T>::denorm_min()) +
                           wanted.y[i].bar * forward_gate * unit<T>);
    }
  }
}

TEST_CASE("a number of tokens that overflows is refused before anything is allocated", "[adapter]") {
  using C = Call<LoraSoft>;
  C call(lora_soft());
  call.forward_refused(
      [](C& c) {
        c.router_x = {};
        c.x.rows = c.y.rows = Index{1} << 62;
      },
      Code::too_large, {"4611686018427387904"});
}

namespace {

/// A user's router that fails at some tokens.
struct FailingRouter : SoftRouter<S> {
  using SoftRouter<S>::SoftRouter;
  void route_rows(const ForwardTile<S>& tile) const {
    if (tile.first >= 64) throw std::runtime_error(std::to_string(tile.first));
    SoftRouter<S>::route_rows(tile);
  }
};

}  // namespace

TEST_CASE("an exception of a user's router leaves the team once, the lowest tile's, and the cache is void",
          "[adapter]") {
  const MoeAdapter<LoraBank<S>, FailingRouter> adapter(LoraBank<S>({.in = 6, .out = 5, .experts = 3}),
                                                       FailingRouter({.in = 6, .experts = 3}));
  const Matrix<S> x = Rng(1).matrix<S>(3000, 6), dy = Rng(2).matrix<S>(3000, 5);
  const Buffer<S> theta = make_theta(adapter, 1);
  for (const int threads : {1, 2, 4}) {
    Matrix<S> y = Matrix<S>::Zero(3000, 5);
    Cache<S> cache;
    Workspace<S> workspace;
    std::string message;
    try {
      adapter.forward(theta, x, y, cache, workspace, {.threads = threads});
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    const int first = std::atoi(message.c_str());
    CHECK(first >= 64);
    CHECK(first < 64 + tile_tokens);
    refused([&] { adapter.backward(theta, x, dy, cache, workspace, {.threads = threads}, {}, {}); },
            Code::state_error, {"before forward"});
    // Nothing of it stays behind.
    adapter.forward(theta, x.topRows(64), y.topRows(64), cache, workspace, {.threads = threads});
    adapter.backward(theta, x.topRows(64), dy.topRows(64), cache, workspace, {.threads = threads}, {}, {});
  }
}

TEST_CASE("a thousand experts, all chosen, are the soft mixture", "[adapter]") {
  constexpr Index E = 1000;
  const auto bank = [&](ExpertPath path) {
    return LoraBank<S>({.in = 5, .out = 4, .experts = E, .rank = 1, .path = path});
  };
  const LoraSoft soft(bank(ExpertPath::dense), SoftRouter<S>({.in = 5, .experts = E}));
  const MoeAdapter<LoraBank<S>, TopKRouter<S>> all(
      bank(ExpertPath::grouped),
      TopKRouter<S>({.in = 5, .experts = E, .k = E, .weights = TopKWeights::masked}));
  Buffer<S> theta(naive::at(soft.size()));
  Rng(1).fill(theta, -1, 1);
  const Matrix<S> x = Rng(2).matrix<S>(70, 5);
  Matrix<S> y = Matrix<S>::Zero(70, 4), z = y;
  Cache<S> cache;
  Workspace<S> workspace;
  soft.forward(theta, x, y, cache, workspace);
  all.forward(theta, x, z, cache, workspace, {.threads = 2});
  CHECK(!y.isZero(1e-3));
  CHECK(same_values(y, z));
}

TEST_CASE("backward refuses a cache whose routing is not this forward's", "[adapter]") {
  const Code state = Code::state_error, shape = Code::shape_mismatch;
  using Bank = LoraBank<S>;
  Call<LoraSoft> soft(lora_soft());
  soft.backward_refused([](auto& c) { c.router_x = {}; }, state, {"without the router_x"});
  soft.backward_refused([](auto& c) { c.cache.routing.probs.clear(); }, shape, {"probs", "0", "12"});
  soft.backward_refused([](auto& c) { c.cache.routing.resize(3, 3, 1, 3); }, shape, {"[3, 3]", "[4, 3]"});
  Call<LoraGiven> given({Bank({.in = 6, .out = 5, .experts = 3, .rank = 2}), GivenRouter<S>({.experts = 3})});
  give_gates<S>(given.cache.routing, Matrix<S>::Ones(4, 3).eval());
  given.forward();
  for (const Index rows : {1, 40}) {
    give_gates<S>(given.cache.routing, Matrix<S>::Ones(rows, 3).eval());
    refused([&] { given.backward(); }, shape, {"routing", "[" + std::to_string(rows) + ", 3]", "[4, 3]"});
  }
  give_gates<S>(given.cache.routing, Matrix<S>::Ones(4, 3).eval());
  given.cache.routing.count[2] = 5000;
  refused([&] { given.backward(); }, Code::router_output, {"row 2", "5000"});

  // A router with heads, or with noise, that gets the cache of one without.
  const Matrix<S> x = Matrix<S>::Ones(70, 8);
  Matrix<S> y = x, dx = Matrix<S>::Zero(70, 8);
  Cache<S> cache;
  Workspace<S> workspace;
  const MoeAdapter flat(Ia3Bank<S>({.features = 8, .experts = 4}), UniformRouter<S>({.experts = 4}));
  const MoeAdapter heads(Ia3Bank<S>({.features = 8, .heads = 4, .experts = 4}),
                         UniformRouter<S>({.experts = 4, .heads = 4}));
  const auto theta = make_theta(flat, 1);
  flat.forward(theta, x, y, cache, workspace);
  refused([&] { heads.backward(theta, x, y, cache, workspace, {}, dx, {}); }, state, {"another module"});
  const Bank bank({.in = 8, .out = 8, .experts = 4, .rank = 2});
  const MoeAdapter quiet(bank, TopKRouter<S>({.in = 8, .experts = 4}));
  const MoeAdapter noisy(bank, TopKRouter<S>({.in = 8, .experts = 4, .noise = RouterNoise::fixed}));
  const auto weights = make_theta(quiet, 1);
  const Run training{.training = true};
  quiet.forward(weights, x, y, cache, workspace, training);
  refused([&] { noisy.backward(weights, x, y, cache, workspace, training, dx, {}); }, state, {"noise"});
  CHECK(dx.isZero(0));
}

TEST_CASE("the gradient that a workspace holds cannot come in through itself", "[adapter]") {
  Call<LoraSoft> c(lora_soft());
  c.forward();
  c.backward();
  const auto before = c.memory;
  refused(
      [&] {
        c.adapter.backward(c.theta, c.x, c.dy, c.cache, c.workspace, c.run, c.dx, c.dtheta,
                           c.workspace.drouting, c.router_x, c.drouter_x);
      },
      Code::aliased, {"drouting", "copy"});
  CHECK((c.memory == before));
}

TEST_CASE("columns side by side in one matrix are apart, and one row has no stride", "[adapter]") {
  const LoraSoft adapter = lora_soft();
  const auto theta = make_theta(adapter, 1);
  Cache<S> cache;
  Workspace<S> workspace;
  Matrix<S> both = Matrix<S>::Ones(5, 11);
  CHECK_NOTHROW(adapter.forward(theta, both.leftCols(6), both.rightCols(5), cache, workspace));
  Matrix<S> tight = Matrix<S>::Ones(5, 10);
  refused([&] { adapter.forward(theta, tight.leftCols(6), tight.rightCols(5), cache, workspace); },
          Code::aliased, {"y overlaps x"});
  const Ia3Soft vectors = ia3_soft();
  Vector<S> row = Vector<S>::Ones(6);
  CHECK_NOTHROW(vectors.forward(make_theta(vectors, 1), In<S>(row.data(), 1, 6, 60), Out<S>(row.data(), 1, 6),
                                cache, workspace));
  CHECK(cache.in_place);
}

TEST_CASE("settings and sizes beyond the scalar or an index are refused", "[adapter]") {
  const Code range = Code::config_range, shape = Code::shape_mismatch;
  refused([] { LoraBank<float>({.in = 8, .out = 8, .alpha = 1e300}); }, range, {"scale", "1.25e+299"});
  refused([] { SoftRouter<float>({.in = 8, .temperature = 1e-40}); }, range, {"temperature", "inverse"});
  refused([] { TopKRouter<double>({.in = 8, .temperature = 1e-310}); }, range, {"temperature", "inverse"});
  refused([] { TopKRouter<float>({.in = 8, .noise = RouterNoise::fixed, .noise_scale = 1e300}); }, range,
          {"noise_scale"});
  const Index huge = Index{1} << 62;
  refused([&] { LoraBank<float>({.in = huge, .out = huge, .rank = 1}); }, Code::too_large, {"LoRA"});
  refused([&] { TopKRouter<float>({.in = huge, .noise = RouterNoise::learned}); }, Code::too_large,
          {"router"});
  const LoraSoft adapter = lora_soft();
  Buffer<S> few(3);
  refused([&] { adapter.experts().init(few, 1); }, shape, {"theta", "3", "66"});
  refused([&] { adapter.router().init(few, 1); }, shape, {"theta", "3", "18"});
  refused([&] { TopKRouter<S>({.in = 6, .experts = 3}).init(few, 1); }, shape, {"theta", "3", "18"});
  refused([&] { ia3_soft().experts().init(few, 1); }, shape, {"theta", "3", "18"});
  Call<LoraSoft> call(adapter);
  call.forward_refused([&](auto& c) { c.x.stride = huge; }, Code::bad_stride, {"x", "at most"});
  const MoeAdapter single(LoraBank<float>({.in = 6, .out = 6}), UniformRouter<float>({}));
  const auto theta = make_theta(single, 1);
  Matrix<float> x = Matrix<float>::Ones(2, 6), y = x;
  Cache<float> cache;
  Workspace<float> workspace;
  refused([&] { single.forward(theta, x, y, cache, workspace, {.scale = 1e300}); }, range,
          {"scale", "1e+300"});
  CHECK((y.array() == 1).all());
}
