// SPDX-License-Identifier: MIT
// Prepared weights, and every way in which a forward may read its weights or share out its work: the bits are
// those of a token alone, from theta, on one thread.
#include "support/catch.hpp"

#include "support/naive.hpp"
#include "support/random.hpp"
#include "support/refusal.hpp"

#include <moxie/adapter_set.hpp>
#include <moxie/linear.hpp>

#include <cstring>

using namespace moxie;
using namespace moxie::test;

namespace {

/// Rows of 4 KiB in either scalar, which training packs, and rows of which the last panel is not full.
constexpr Index widths[] = {1024, 150};

/// f(name, adapter) for a bank of every kind: dense, grouped, biased, of unequal ranks, per head.
template <class S, class F>
void for_kinds(Index d, F&& f) {
  using Bank = LoraBank<S>;
  const SoftRouter<S> soft({.in = d, .experts = 5});
  const TopKRouter<S> top({.in = d, .experts = 5, .k = 2});
  f("LoRA", lora<S>({.in = d, .out = d, .rank = 16, .bias = true}));
  f("MoLoRA", MoeAdapter(Bank({.in = d, .out = d, .experts = 5, .rank = 4}), soft));
  f("ranks and biases",
    MoeAdapter(Bank({.in = d, .out = d, .experts = 5, .ranks = {1, 9, 2, 5, 3}, .bias = true}), soft));
  f("MoLA", MoeAdapter(Bank({.in = d, .out = d, .experts = 5, .rank = 4}), top));
  f("MoLA with biases", MoeAdapter(Bank({.in = d, .out = d, .experts = 5, .rank = 4, .bias = true}), top));
  f("IA3", ia3<S>({.features = d}));
  f("MoV of two heads", mov<S>({.features = d, .heads = 2, .experts = 5}));
  f("top-2 IA3", MoeAdapter(Ia3Bank<S>({.features = d, .experts = 5}), top));
}

template <class S>
struct Data {
  Buffer<S> theta;
  Matrix<S> x, y, dy;
  template <class Adapter>
  Data(const Adapter& adapter, Index tokens, std::uint64_t seed = 1) : theta(naive::at(adapter.size())) {
    Rng rng(seed);
    rng.fill(theta, -0.2, 0.2);
    x = rng.matrix<S>(tokens, adapter.in());
    y = rng.matrix<S>(tokens, adapter.out());
    dy = rng.matrix<S>(tokens, adapter.out());
  }
};

template <class S>
bool same(const Matrix<S>& a, const Matrix<S>& b) {
  return a.rows() == b.rows() && a.cols() == b.cols() &&
         std::memcmp(a.data(), b.data(), naive::at(a.size()) * sizeof(S)) == 0;
}

/// What `weights` (theta or prepared) makes of tokens [first, first + count).
template <class Adapter, class Weights, class S>
Matrix<S> output(const Adapter& adapter, const Weights& weights, const Data<S>& data, Index first,
                 Index count, const Run& run = {}) {
  Cache<S> cache;
  Workspace<S> workspace;
  const Matrix<S> x = data.x.middleRows(first, count);
  Matrix<S> y = data.y.middleRows(first, count);
  adapter.forward(weights, x, y, cache, workspace, run);
  return y;
}

}  // namespace

TEMPLATE_TEST_CASE("prepared weights, packing, and threads over tokens or over columns change no bit",
                   "[prepared]", float, double) {
  using S = TestType;
  constexpr Index tokens = 70;
  for (const Index d : widths)
    for_kinds<S>(d, [&](const char* kind, const auto& adapter) {
      INFO(kind << ", " << d);
      const Data<S> data(adapter, tokens);
      const auto prepared = adapter.prepare(data.theta);
      Matrix<S> alone(tokens, d);
      for (Index t = 0; t < tokens; ++t) alone.row(t) = output(adapter, data.theta, data, t, 1);
      for (const int threads : {1, 2, 5})
        for (const Index count : {Index{1}, Index{2}, Index{7}, Index{19}, tokens}) {
          INFO(threads << " threads, " << count << " tokens");
          const Run run{.threads = threads};
          const Matrix<S> wanted = alone.topRows(count);
          CHECK(same(output(adapter, data.theta, data, 0, count, run), wanted));
          CHECK(same(output(adapter, prepared, data, 0, count, run), wanted));
        }
    });
}

TEMPLATE_TEST_CASE("packing changes no bit of dx, and none of the weight gradients", "[prepared]", float,
                   double) {
  using S = TestType;
  constexpr Index tokens = 70;
  for_kinds<S>(1024, [&](const char* kind, const auto& adapter) {
    INFO(kind);
    const Data<S> data(adapter, tokens);
    Cache<S> cache;
    Workspace<S> workspace;
    const auto backward = [&](Index first, Index count, Buffer<S>& gradient, int threads) {
      const Matrix<S> x = data.x.middleRows(first, count), dy = data.dy.middleRows(first, count);
      Matrix<S> y = data.y.middleRows(first, count), dx = Matrix<S>::Zero(count, adapter.in());
      gradient.assign(data.theta.size(), S(0));
      const Run run{.threads = threads};
      adapter.forward(data.theta, x, y, cache, workspace, run);
      adapter.backward(data.theta, x, dy, cache, workspace, run, dx, gradient);
      return dx;
    };
    Buffer<S> gradient, other;
    const Matrix<S> dx = backward(0, tokens, gradient, 1);
    for (const Index t : {Index{0}, Index{33}, tokens - 1})
      CHECK(same<S>(backward(t, 1, other, 1), dx.row(t)));
    CHECK(same<S>(backward(0, tokens, other, 3), dx));
    CHECK(std::memcmp(gradient.data(), other.data(), gradient.size() * sizeof(S)) == 0);
  });
}

TEMPLATE_TEST_CASE("16-bit storage is theta rounded to it, to the bit", "[prepared]", float, double) {
  using S = TestType;
  for (const Index d : widths)
    for_kinds<S>(d, [&](const char* kind, const auto& adapter) {
      INFO(kind << ", " << d);
      Data<S> data(adapter, 9);
      const auto check = [&]<class W>(W) {
        const auto narrow = adapter.template prepare<W>(data.theta);
        Data<S> rounded = data;
        for (S& weight : rounded.theta)
          weight = static_cast<S>(static_cast<float>(static_cast<W>(static_cast<float>(weight))));
        CHECK(same(output(adapter, narrow, data, 0, 9), output(adapter, rounded.theta, rounded, 0, 9)));
        CHECK(narrow.bytes() * sizeof(S) == adapter.prepare(data.theta).bytes() * sizeof(W));
      };
      check(Eigen::bfloat16());
      check(Eigen::half());
    });
}

TEST_CASE("prepared weights do not follow theta, and are shared by sets and layers", "[prepared]") {
  AdapterSet<float> set;
  const Module q = set.add("q", molora<float>({.in = 40, .out = 24})),
               k = set.add("k", ia3<float>({.features = 40}));
  set.init(1);
  Rng rng(2);
  rng.fill(set.theta(), -1, 1);
  const auto prepared = set.prepare();
  const auto narrow = set.prepare<Eigen::half>();
  const Matrix<float> x = rng.matrix<float>(6, 40);
  Cache<float> cache;
  Workspace<float> workspace;
  Matrix<float> y = Matrix<float>::Zero(6, 24), again = y, half = y, s(6, 40), t(6, 40);
  set.forward(q, x, y, cache, workspace);
  set.forward(k, x, s, cache, workspace);
  std::fill(set.theta().begin(), set.theta().end(), 0.0f);
  set.forward(prepared, q, x, again, cache, workspace);
  set.forward(prepared, k, x, t, cache, workspace);
  set.forward(narrow, q, x, half, cache, workspace);
  CHECK(same(y, again));
  CHECK(same(s, t));
  CHECK((y - half).norm() < 1e-2f * y.norm());
  CHECK_FALSE(same(y, half));
  set.enable(q, false);
  again.setZero();
  set.forward(prepared, q, x, again, cache, workspace);
  CHECK(again.isZero(0));

  const Matrix<float> weight = rng.matrix<float>(24, 40);
  const AdaptedLinear layer(molora<float>({.in = 40, .out = 24}), weight);
  Buffer<float> theta = make_theta(layer.adapter(), 3);
  rng.fill(theta, -1, 1);
  LinearCache<float> linear_cache;
  layer.forward(theta, x, y, linear_cache, workspace);
  layer.forward(layer.adapter().prepare(theta), x, again, linear_cache, workspace);
  CHECK(same(y, again));
}

TEST_CASE("what was prepared is refused elsewhere, and weights beyond 16 bits at once", "[prepared]") {
  const auto adapter = molora<float>({.in = 40, .out = 24}), other = molora<float>({.in = 40, .out = 25});
  Data<float> data(adapter, 3);
  const auto prepared = adapter.prepare(data.theta);
  Matrix<float> y = Matrix<float>::Ones(3, 25);
  Cache<float> cache;
  Workspace<float> workspace;
  refused([&] { other.forward(prepared, data.x, y, cache, workspace); }, Code::shape_mismatch,
          {"prepared", "shape"});
  CHECK((y.array() == 1).all());
  refused([&] { adapter.prepare(std::span<const float>(data.theta).first(7)); }, Code::shape_mismatch,
          {"theta", "7"});
  data.theta[5] = 1e6f;
  CHECK(adapter.prepare<Eigen::bfloat16>(data.theta).bytes() > 0);
  refused([&] { adapter.prepare<Eigen::half>(data.theta); }, Code::non_finite, {"1e+06", "16-bit"});
  AdapterSet<float> set, longer;
  const Module m = set.add("m", adapter);
  refused([&] { set.prepare(); }, Code::state_error, {"init"});
  set.init(1);
  longer.add("m", adapter);
  longer.add("n", adapter);
  longer.init(1);
  Matrix<float> z = Matrix<float>::Zero(3, 24);
  refused([&] { set.forward(longer.prepare(), m, data.x, z, cache, workspace); }, Code::shape_mismatch,
          {"prepared"});
}
