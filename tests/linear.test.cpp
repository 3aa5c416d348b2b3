// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/cases.hpp"
#include "support/refusal.hpp"

#include <moxie/linear.hpp>
#include <moxie/presets.hpp>

using namespace moxie;
using namespace moxie::test;

namespace {

template <class Adapter>
struct Layer {
  using S = typename Adapter::Scalar;
  Matrix<S> weight;
  Vector<S> bias;
  AdaptedLinear<Adapter> linear;
  Buffer<S> theta;
  Matrix<S> x, dy;
  LinearCache<S> cache;
  Workspace<S> workspace;

  Layer(Adapter adapter, Index in, Index out, Site site, bool with_bias, Index tokens = 7)
      : weight(Rng(1).matrix<S>(out, in)),
        bias(Rng(2).matrix<S>(1, out)),
        linear(adapter, weight, with_bias ? In<S>(bias) : In<S>(), site),
        theta(naive::at(adapter.size())),
        x(Rng(3).matrix<S>(tokens, in)),
        dy(Rng(4).matrix<S>(tokens, out)) {
    Rng(5).fill(theta, -0.7, 0.9);
  }
  Matrix<S> forward(const Run& run = {}) {
    Matrix<S> y = Matrix<S>::Constant(x.rows(), weight.rows(), S(77));
    linear.forward(theta, x, y, cache, workspace, run);
    return y;
  }
};

/// The gradients against central differences.
template <class Adapter>
void check_gradients(Layer<Adapter> layer) {
  constexpr double h = 6e-6;
  layer.forward();
  Matrix<double> dx = Matrix<double>::Zero(layer.x.rows(), layer.x.cols());
  Buffer<double> dtheta(layer.theta.size(), 0.0);
  layer.linear.backward(layer.theta, layer.x, layer.dy, layer.cache, layer.workspace, {}, dx, dtheta);
  LinearCache<double> cache;
  const auto f = [&] {
    Matrix<double> y(layer.x.rows(), layer.weight.rows());
    layer.linear.forward(layer.theta, layer.x, y, cache, layer.workspace);
    return (y.array() * layer.dy.array()).sum();
  };
  const auto error = [&](double* values, const double* g, Index n) {
    double largest = 1, apart = 0;
    for (Index i = 0; i < n; ++i) {
      const double kept = values[i];
      values[i] = kept + h;
      const double up = f();
      values[i] = kept - h;
      const double down = f();
      values[i] = kept;
      apart = std::max(apart, std::abs((up - down) / (2 * h) - g[i]));
      largest = std::max(largest, std::abs(g[i]));
    }
    return apart / largest;
  };
  CHECK(!mostly_zero(dx));
  CHECK(error(layer.theta.data(), dtheta.data(), std::ssize(layer.theta)) <= 1e-8);
  CHECK(error(layer.x.data(), dx.data(), layer.x.size()) <= 1e-8);
}

}  // namespace

TEST_CASE("an adapted layer is the frozen layer with the adapter at its output or input", "[linear]") {
  const Index in = 11, out = 6;
  for (const bool with_bias : {false, true}) {
    Layer l(molora<double>({.in = in, .out = out, .experts = 3, .rank = 2}), in, out, Site::output,
            with_bias);
    Matrix<double> wanted = l.x * l.weight.transpose();
    if (with_bias) wanted.rowwise() += l.bias;
    Cache<double> cache;
    l.linear.adapter().forward(l.theta, l.x, wanted, cache, l.workspace);
    CHECK((l.forward() - wanted).cwiseAbs().maxCoeff() <= 1e-14 * 20);
    Layer at_output(mov<double>({.features = out, .heads = 2, .experts = 3}), in, out, Site::output,
                    with_bias);
    Matrix<double> base = at_output.x * at_output.weight.transpose(), scaled = base;
    if (with_bias) base.rowwise() += at_output.bias;
    at_output.linear.adapter().forward(at_output.theta, base, scaled, cache, at_output.workspace);
    CHECK((at_output.forward() - scaled).cwiseAbs().maxCoeff() <= 1e-14 * 20);
    Layer at_input(mov<double>({.features = in, .experts = 3}), in, out, Site::input, with_bias);
    Matrix<double> activation = at_input.x;
    at_input.linear.adapter().forward(at_input.theta, at_input.x, activation, cache, at_input.workspace);
    wanted = activation * at_input.weight.transpose();
    if (with_bias) wanted.rowwise() += at_input.bias;
    CHECK((at_input.forward() - wanted).cwiseAbs().maxCoeff() <= 1e-14 * 20);
    check_gradients(l);
    check_gradients(at_output);
    check_gradients(at_input);
  }
}

TEMPLATE_TEST_CASE("an adapted layer's rows do not depend on batch or threads", "[linear]", float, double) {
  using S = TestType;
  const auto check = [](auto layer) {
    const Matrix<S> all = layer.forward();
    CHECK(same_bits(all, layer.forward({.threads = 3})));
    const Matrix<S> x = layer.x;
    for (const Index t : {0, 50, 99}) {
      layer.x = x.row(t);
      CHECK(same_bits(layer.forward(), Matrix<S>(all.row(t))));
    }
  };
  // Tokens enough for a team, in the adapters and in the frozen product.
  check(Layer(mola<S>({.in = 33, .out = 70, .experts = 4}), 33, 70, Site::output, true, 400));
  check(Layer(mov<S>({.features = 70, .heads = 2}), 33, 70, Site::output, true, 400));
  check(Layer(mov<S>({.features = 33}), 33, 70, Site::input, false, 400));
}

TEMPLATE_TEST_CASE("a merged layer equals the adapted one within the bound", "[linear]", float, double) {
  using S = TestType;
  const auto check = [](auto layer) {
    Matrix<S> merged = layer.weight;
    Vector<S> bias = layer.bias;
    layer.linear.merge(layer.theta, merged, bias);
    const Matrix<S> y = layer.forward();
    CHECK(!same_values(merged, layer.weight));
    const Matrix<double> plain = layer.x.template cast<double>() * merged.template cast<double>().transpose();
    double apart = 0, largest = 0;
    for (Index t = 0; t < y.rows(); ++t)
      for (Index o = 0; o < y.cols(); ++o) {
        apart = std::max(apart,
                         std::abs(static_cast<double>(y(t, o)) - plain(t, o) - static_cast<double>(bias(o))));
        largest = std::max(largest, std::abs(plain(t, o)));
      }
    CHECK(apart <= 16 * unit<S> * 40 * largest);  // of at most 40 terms of |x||W| and |x||A||B|
  };
  check(Layer(lora<S>({.in = 12, .out = 7, .rank = 3, .bias = true}), 12, 7, Site::output, true));
  check(Layer(MoeAdapter(LoraBank<S>({.in = 12, .out = 7, .experts = 3, .ranks = {1, 2, 4}}),
                         UniformRouter<S>({.experts = 3})),
              12, 7, Site::output, true));
  check(Layer(ia3<S>({.features = 7}), 12, 7, Site::output, true));
  check(Layer(ia3<S>({.features = 12, .heads = 3}), 12, 7, Site::input, true));
}

TEST_CASE("merging may write over the weight, and copying the weight back restores its bits", "[linear]") {
  Layer l(lora<float>({.in = 12, .out = 7}), 12, 7, Site::output, false);
  const Matrix<float> kept = l.weight;
  Matrix<float> apart(7, 12);
  l.linear.merge(l.theta, apart);
  l.linear.merge(l.theta, l.weight);
  CHECK(same_bits(apart, l.weight));
  l.weight = kept;
  CHECK(same_bits(kept, l.weight));
}

TEST_CASE("an adapted layer refuses what does not fit", "[linear]") {
  using S = double;
  const Matrix<S> w = Matrix<S>::Ones(6, 11);
  const Vector<S> five = Vector<S>::Ones(5);
  const Code shape = Code::shape_mismatch;
  const auto plain = lora<S>({.in = 11, .out = 6});
  const auto vectors = ia3<S>({.features = 6});
  refused([&] { AdaptedLinear(plain, In<S>(w.topRows(5))); }, shape, {"weight", "[5, 11]", "[6, 11]"});
  refused([&] { AdaptedLinear(plain, In<S>(w), In<S>(five)); }, shape, {"bias", "[1, 5]", "[1, 6]"});
  refused([&] { AdaptedLinear(plain, In<S>(w), {}, Site::input); }, Code::config_range, {"LoRA", "input"});
  refused([&] { AdaptedLinear(vectors, In<S>(w), {}, Site::input); }, shape, {"weight"});
  refused([&] { AdaptedLinear(ia3<S>({.features = 11}), In<S>(w)); }, shape, {"weight"});
  Layer mixture(molora<S>({.in = 11, .out = 6}), 11, 6, Site::output, false);
  Matrix<S> merged = Matrix<S>::Constant(6, 11, 5);
  refused([&] { mixture.linear.merge(mixture.theta, merged); }, Code::not_mergeable, {"token", "uniform"});
  CHECK((merged.array() == 5).all());
  Layer single(plain, 11, 6, Site::output, true);
  Vector<S> bias = Vector<S>::Ones(6);
  refused([&] { single.linear.merge(single.theta, merged); }, shape, {"bias"});
  refused([&] { single.linear.merge(single.theta, merged.topRows(5), bias); }, shape, {"weight", "[5, 11]"});
  refused([&] { single.linear.merge(std::span<const S>(single.theta).first(3), merged, bias); }, shape,
          {"theta"});
  refused([&] { single.linear.merge(single.theta, merged, Out<S>(merged.data(), 1, 6)); }, Code::aliased,
          {"merged bias overlaps the merged weight"});
  refused([&] { single.linear.merge(single.theta, Out<S>(single.theta.data(), 6, 11), bias); }, Code::aliased,
          {"merged weight overlaps theta"});
  CHECK((merged.array() == 5).all());
}

TEST_CASE("a routing that is refused leaves an adapted layer's y alone", "[linear]") {
  using S = double;
  Layer layer(MoeAdapter(LoraBank<S>({.in = 11, .out = 6, .experts = 2}), GivenRouter<S>({.experts = 2})), 11,
              6, Site::output, true);
  Matrix<S> y = Matrix<S>::Constant(7, 6, 77);
  refused([&] { layer.linear.forward(layer.theta, layer.x, y, layer.cache, layer.workspace); },
          Code::shape_mismatch, {"routing"});
  give_gates<S>(layer.cache.adapter.routing, Matrix<S>(Matrix<S>::Ones(7, 2)));
  layer.cache.adapter.routing.chosen[3] = 9;
  refused([&] { layer.linear.forward(layer.theta, layer.x, y, layer.cache, layer.workspace); },
          Code::router_output, {"row 1", "9"});
  CHECK((y.array() == 77).all());
  for (const int threads : {0, -1}) {
    give_gates<S>(layer.cache.adapter.routing, Matrix<S>(Matrix<S>::Ones(7, 2)));
    refused([&] { layer.forward({.threads = threads}); }, Code::config_range, {"threads"});
  }
}

TEST_CASE("backward of an adapted layer refuses what does not fit and changes nothing", "[linear]") {
  using S = double;
  const auto check = [](auto layer) {
    Matrix<S> dx = Matrix<S>::Constant(7, 11, 3);
    Buffer<S> dtheta(layer.theta.size(), 4.0);
    const auto backward = [&](In<S> x, In<S> dy, Out<S> to, std::span<S> d, const Run& run = {}) {
      layer.linear.backward(layer.theta, x, dy, layer.cache, layer.workspace, run, to, d);
    };
    refused([&] { backward(layer.x, layer.dy, dx, dtheta); }, Code::state_error);
    layer.forward();
    refused([&] { backward(layer.x.topRows(5), layer.dy.topRows(5), dx.topRows(5), dtheta); },
            Code::state_error);
    refused([&] { backward(layer.x.leftCols(9), layer.dy, dx, dtheta); }, Code::shape_mismatch, {"x"});
    refused([&] { backward(layer.x, layer.dy.leftCols(5), dx, dtheta); }, Code::shape_mismatch, {"dy"});
    refused([&] { backward(layer.x, layer.dy, dx.leftCols(9), dtheta); }, Code::shape_mismatch, {"dx"});
    refused([&] { backward(layer.x, layer.dy, dx, std::span<S>(dtheta).first(3)); }, Code::shape_mismatch,
            {"dtheta"});
    refused([&] { backward(layer.x, layer.dy, layer.x, dtheta); }, Code::aliased, {"dx overlaps x"});
    refused([&] { backward(layer.x, layer.dy, dx, dtheta, {.seed = 4}); }, Code::state_error, {"run"});
    refused([&] { backward(layer.x, layer.dy, dx, dtheta, {.threads = 5000}); }, Code::config_range,
            {"threads", "5000"});
    const auto over = [&](S* p) { return std::span<S>(p, layer.theta.size()); };
    refused([&] { backward(layer.x, layer.dy, dx, over(dx.data())); }, Code::aliased, {"dtheta overlaps dx"});
    refused([&] { backward(layer.x, layer.dy, dx, over(layer.x.data())); }, Code::aliased,
            {"dtheta overlaps"});
    refused(
        [&] {
          backward(layer.x, layer.dy, {layer.weight.data(), 7, 11}, dtheta);
        },
        Code::aliased, {"dx overlaps the layer's weight"});
    CHECK((dx.array() == 3).all());
    CHECK(same_values(dtheta, Buffer<S>(dtheta.size(), 4.0)));
  };
  check(Layer(molora<S>({.in = 11, .out = 6}), 11, 6, Site::output, true));
  check(Layer(mov<S>({.features = 6}), 11, 6, Site::output, true));
  check(Layer(mov<S>({.features = 11}), 11, 6, Site::input, true));
}
