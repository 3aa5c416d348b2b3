// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/cases.hpp"
#include "support/refusal.hpp"

#include <moxie/adapter_set.hpp>

using namespace moxie;
using namespace moxie::test;

namespace {

constexpr Index in = 12, out = 10, tokens = 9;

/// One module of every kind.
template <class S>
struct Model {
  AdapterSet<S> set;
  std::vector<Module> modules;
  Matrix<S> x = Rng(1).matrix<S>(tokens, in), dy = Rng(2).matrix<S>(tokens, in),
            y0 = Rng(3).matrix<S>(tokens, in);

  Model() {
    const auto add = [&](const std::string& name, const auto& adapter) {
      modules.push_back(set.add(name, adapter));
    };
    add("lora", lora<S>({.in = in, .out = out, .rank = 3}));
    add("ia3", ia3<S>({.features = in}));
    add("mov", mov<S>({.features = in, .heads = 3}));
    add("molora", molora<S>({.in = in, .out = out}));
    add("loramoe", loramoe<S>({.in = in, .out = out}));
    add("mola", mola<S>({.in = in, .out = out, .experts = 4}));
    add("again", mola<S>({.in = in, .out = out, .experts = 4}));
    add("given",
        MoeAdapter(LoraBank<S>({.in = in, .out = out, .experts = 3}), GivenRouter<S>({.experts = 3})));
    set.init(7);
    Rng rng(4);
    for (const Module m : modules) {
      const bool vectors = set.entry(m).method == Method::ia3 || set.entry(m).method == Method::mov;
      rng.fill(set.theta(m), vectors ? 0.5 : -0.8, vectors ? 1.5 : 0.8);
    }
  }
  bool multiplicative(Module m) const {
    return set.entry(m).method == Method::ia3 || set.entry(m).method == Method::mov;
  }
  Outputs<S> run(Module m, const Run& run = {}) {
    Outputs<S> o;
    Cache<S> cache;
    Workspace<S> workspace;
    if (set.entry(m).name == "given")
      give_gates<S>(cache.routing, Matrix<S>(Matrix<S>::Constant(tokens, 3, S(0.5))));
    const Index cols = multiplicative(m) ? in : out;
    o.y = y0.leftCols(cols);
    set.forward(m, x, o.y, cache, workspace, run);
    o.dx = Matrix<S>::Zero(tokens, in);
    o.dtheta.assign(naive::at(set.size()), S(0));
    set.backward(m, x, dy.leftCols(cols), cache, workspace, run, o.dx, o.dtheta);
    o.routing = cache.routing;
    return o;
  }
};

template <class S>
bool zero(std::span<const S> values) {
  return std::all_of(values.begin(), values.end(), [](S v) { return v == 0; });
}

}  // namespace

TEMPLATE_TEST_CASE("a module of a set equals its adapter by itself, on its own slice", "[set]", float,
                   double) {
  using S = TestType;
  Model<S> model;
  const auto& set = model.set;
  for (const Module m : model.modules)
    for (const bool training : {false, true}) {
      INFO(set.entry(m).name);
      Run run = training ? training_run() : Run{};
      const Outputs<S> got = model.run(m, run);
      run.module = static_cast<std::uint64_t>(m.index);
      std::visit(
          [&](const auto& adapter) {
            Cache<S> cache;
            Workspace<S> workspace;
            cache.routing = got.routing;
            Matrix<S> y = model.y0.leftCols(adapter.out()), dx = Matrix<S>::Zero(tokens, in);
            Buffer<S> dtheta(naive::at(adapter.size()), S(0));
            adapter.forward(set.theta(m), model.x, y, cache, workspace, run);
            adapter.backward(set.theta(m), model.x, model.dy.leftCols(adapter.out()), cache, workspace, run,
                             dx, dtheta);
            CHECK(same_bits(y, got.y));
            CHECK(same_bits(dx, got.dx));
            const auto offset = naive::at(set.entry(m).offset);
            const std::span<const S> all(got.dtheta);
            CHECK(same_bits(all.subspan(offset, dtheta.size()), std::span<const S>(dtheta)));
            CHECK(!zero(std::span<const S>(dtheta)));
            CHECK((zero(all.first(offset)) && zero(all.subspan(offset + dtheta.size()))));
          },
          set.entry(m).adapter);
    }
}

TEMPLATE_TEST_CASE("a module that is off is the base to the bit, and its scale is Run::scale", "[set]", float,
                   double) {
  using S = TestType;
  Model<S> model;
  for (const Module m : model.modules) {
    INFO(model.set.entry(m).name);
    const bool vectors = model.multiplicative(m);
    const Outputs<S> on = model.run(m), half = model.run(m, {.scale = 0.5}),
                     sixth = model.run(m, {.scale = 1.5 * 0.25});
    const auto off = [&](const Outputs<S>& o) {
      CHECK(same_bits(o.y, vectors ? model.x : Matrix<S>(model.y0.leftCols(out))));
      CHECK(same_values(o.dx, vectors ? model.dy : Matrix<S>(Matrix<S>::Zero(tokens, in))));
      CHECK(zero(std::span<const S>(o.dtheta)));
    };
    CHECK(!same_values(on.y, vectors ? model.x : Matrix<S>(model.y0.leftCols(out))));
    model.set.enable(m, false);
    off(model.run(m));
    off(model.run(m, training_run()));
    model.set.enable(m, true);
    CHECK(same_bits(model.run(m).y, on.y));
    off(model.run(m, {.scale = 0}));
    model.set.set_scale(m, 0);
    off(model.run(m));
    model.set.set_scale(m, 0.5);
    CHECK(same_bits(model.run(m).y, half.y));
    CHECK(same_bits(model.run(m).dtheta, half.dtheta));
    model.set.set_scale(m, 1.5);
    CHECK(same_bits(model.run(m, {.scale = 0.25}).y, sixth.y));
  }
}

TEST_CASE("a module that is off leaves NaN of its weights out", "[set]") {
  Model<float> model;
  for (float& v : model.set.theta()) v = std::nanf("");
  for (const Module m : model.modules) {
    model.set.enable(m, false);
    CHECK(model.run(m).y.allFinite());
  }
}

TEST_CASE("modules of one kind differ in their start and in their randomness", "[set]") {
  Model<double> model;
  const Module a = model.set.find("mola"), b = model.set.find("again");
  model.set.init(7);
  const auto first = model.set.theta(a), second = model.set.theta(b);
  CHECK(!std::equal(first.begin(), first.end(), second.begin()));
  Rng(5).fill(first, -1, 1);
  std::copy(first.begin(), first.end(), second.begin());
  CHECK(same_bits(model.run(a).y, model.run(b).y));
  CHECK(!same_bits(model.run(a, {.training = true}).y, model.run(b, {.training = true}).y));
  const Buffer<double> kept(first.begin(), first.end());
  model.set.init(7);
  const Buffer<double> start(first.begin(), first.end());
  model.set.init(8);
  CHECK(!same_values(start, Buffer<double>(first.begin(), first.end())));
  model.set.init(7);
  CHECK(same_bits(start, Buffer<double>(first.begin(), first.end())));
}

TEST_CASE("groups cover theta by module and field, and say what decays", "[set]") {
  Model<float> model;
  Index next = 0;
  for (const ParameterGroup& group : model.set.groups()) {
    CHECK(group.offset == next);
    next += group.size;
    const bool decays =
        group.name.find(".lora_A") != std::string::npos || group.name.find(".lora_B") != std::string::npos;
    INFO(group.name);
    CHECK(group.decay == decays);
    CHECK(group.trainable);
  }
  CHECK(next == model.set.size());
  CHECK(model.set.groups().front().name == "lora.lora_A");
  model.set.set_learning_rate_factor(model.set.find("mov"), 0.1);
  for (const ParameterGroup& group : model.set.groups())
    CHECK(group.learning_rate_factor == (group.name.find("mov.") == 0 ? 0.1 : 1.0));
  for (const double bad : {-1.0, std::nan("")})
    refused([&] { model.set.set_learning_rate_factor(model.modules[0], bad); }, Code::config_range,
            {"factor"});
}

TEST_CASE("a set refuses what does not fit", "[set]") {
  AdapterSet<double> set;
  const Module m = set.add("a", ia3<double>({.features = in}));
  refused([&] { set.add("a", ia3<double>({.features = in})); }, Code::name_taken, {"a"});
  CHECK(set.modules() == 1);
  Matrix<double> x = Matrix<double>::Ones(4, in), y = Matrix<double>::Constant(4, in, 5);
  Cache<double> cache;
  Workspace<double> workspace;
  refused([&] { set.forward(m, x, y, cache, workspace); }, Code::state_error, {"init"});
  refused([&] { (void)set.theta(m); }, Code::state_error, {"init"});
  set.init(1);
  refused([&] { set.add("b", ia3<double>({.features = in})); }, Code::state_error, {"b", "init"});
  refused([&] { (void)set.find("c"); }, Code::unknown_name, {"c", "1"});
  refused([&] { set.forward(Module{3}, x, y, cache, workspace); }, Code::unknown_name, {"3", "1"});
  refused([&] { set.forward(Module{}, x, y, cache, workspace); }, Code::unknown_name, {"-1"});
  for (const double bad : {std::nan(""), HUGE_VAL})
    refused([&] { set.set_scale(m, bad); }, Code::config_range, {"scale", "finite"});
  Matrix<double> narrow = Matrix<double>::Ones(4, in - 1), dx = Matrix<double>::Zero(4, in);
  Buffer<double> dtheta(naive::at(set.size() + 1), 0.0);
  for (const bool on : {true, false}) {
    set.enable(m, on);
    INFO((on ? "on" : "off"));
    const Code shape = Code::shape_mismatch;
    refused([&] { set.forward(m, narrow, y, cache, workspace); }, shape, {"x", "[4, 11]"});
    refused([&] { set.forward(m, x, narrow, cache, workspace); }, shape, {"y", "[4, 11]"});
    refused([&] { set.forward(m, x, Out<double>(x.data() + 1, 4, in), cache, workspace); }, Code::aliased,
            {"y", "x"});
    refused([&] { set.forward(m, x, y, cache, workspace, {.threads = 0}); }, Code::config_range, {"threads"});
    CHECK((y.array() == 5).all());
    Cache<double> empty;
    const auto d = std::span<double>(dtheta).first(naive::at(set.size()));
    refused([&] { set.backward(m, x, y, empty, workspace, {}, dx, d); }, Code::state_error);
    Matrix<double> into = y;
    set.forward(m, x, into, cache, workspace);
    refused([&] { set.backward(m, x, y, cache, workspace, {}, dx, dtheta); }, shape, {"dtheta", "13", "12"});
    refused([&] { set.backward(m, narrow, y, cache, workspace, {}, dx, d); }, shape, {"x", "[4, 11]"});
    refused([&] { set.backward(m, x, narrow, cache, workspace, {}, dx, d); }, shape, {"dy", "[4, 11]"});
    refused([&] { set.backward(m, x, y, cache, workspace, {}, narrow, d); }, shape, {"dx", "[4, 11]"});
    refused([&] { set.backward(m, x, y, cache, workspace, {}, Out<double>(y.data() + 1, 4, in), d); },
            Code::aliased, {"dx", "dy"});
    refused([&] { set.backward(m, x.topRows(2), y.topRows(2), cache, workspace, {}, dx.topRows(2), d); },
            Code::state_error);
    set.enable(m, !on);
    refused([&] { set.backward(m, x, y, cache, workspace, {}, dx, d); }, Code::state_error);
    CHECK(dx.isZero(0));
    CHECK(zero(std::span<const double>(dtheta)));
  }
}

TEMPLATE_TEST_CASE("a module that is off may write in place, and steps over no tokens", "[set]", float,
                   double) {
  using S = TestType;
  Model<S> model;
  const Module m = model.set.find("ia3");
  model.set.enable(m, false);
  Cache<S> cache;
  Workspace<S> workspace;
  Matrix<S> x = model.x;
  model.set.forward(m, x, x, cache, workspace);
  CHECK(same_bits(x, model.x));
  CHECK_NOTHROW(model.set.forward(m, x.topRows(0), x.topRows(0), cache, workspace));
  const auto theta = model.set.theta();
  test::refused(
      [&] { model.set.forward(m, x.topRows(1), Out<S>(theta.data(), 1, x.cols()), cache, workspace); },
      Code::aliased, {"y overlaps theta"});
  const Index n = x.cols();
  test::refused(
      [&] { model.set.forward(m, In<S>(x.data(), 2, n), Out<S>(x.data(), 2, n, n + 1), cache, workspace); },
      Code::aliased, {"y overlaps x"});
  CHECK(same_bits(x, model.x));
}

TEST_CASE("a set takes weights from elsewhere in place of a start", "[adapter_set]") {
  AdapterSet<float> set;
  set.add("a", lora<float>({.in = 4, .out = 3, .rank = 2}));
  set.add("b", ia3<float>({.features = 5}));
  refused([&] { set.init(Buffer<float>(18)); }, Code::shape_mismatch, {"18", "19"});
  refused(
      [&] {
        set.forward(set.find("a"), In<float>(), Out<float>(), *std::make_unique<Cache<float>>(),
                    *std::make_unique<Workspace<float>>());
      },
      Code::state_error);
  Buffer<float> theta(19);
  for (std::size_t i = 0; i < theta.size(); ++i) theta[i] = static_cast<float>(i);
  set.init(theta);
  CHECK(std::equal(theta.begin(), theta.end(), set.theta().begin()));
  CHECK(set.theta(set.find("b"))[0] == 14);
  refused([&] { set.add("c", ia3<float>({.features = 5})); }, Code::state_error);
}
