// SPDX-License-Identifier: MIT
// Writes adapters, data, outputs and gradients as text, for compare.py to recompute with PyTorch: one line
// per array, its name, its shape and its numbers in hexadecimal.
#include "support/random.hpp"

#include <moxie/losses/importance.hpp>
#include <moxie/losses/load_balance.hpp>
#include <moxie/losses/localized.hpp>
#include <moxie/losses/z.hpp>
#include <moxie/presets.hpp>

#include <cstdio>
#include <string>

using namespace moxie;
using S = double;

namespace {

constexpr Index tokens = 12;

void print(const std::string& name, const std::vector<Index>& shape, const S* values) {
  std::printf("%s", name.c_str());
  Index n = 1;
  for (const Index extent : shape) {
    std::printf(" %ld", static_cast<long>(extent));
    n *= extent;
  }
  std::printf(" :");
  for (Index i = 0; i < n; ++i) std::printf(" %a", values[i]);
  std::printf("\n");
}

struct Losses {
  double balance = 0, localized = 0, importance = 0, load = 0, z = 0;  ///< weights
};

template <class Adapter>
void write(const std::string& kind, const Adapter& adapter, const Losses& weights, const Run& run = {}) {
  test::Rng rng(7);
  std::vector<S> theta(static_cast<std::size_t>(adapter.size())), dtheta(theta.size(), 0.0);
  rng.fill(theta, -0.8, 0.8);
  const Matrix<S> x = rng.matrix<S>(tokens, adapter.in()), dy = rng.matrix<S>(tokens, adapter.out()),
                  y0 = rng.matrix<S>(tokens, adapter.out());
  Matrix<S> y = y0, dx = Matrix<S>::Zero(tokens, adapter.in());
  Cache<S> cache;
  Workspace<S> workspace;
  adapter.forward(theta, x, y, cache, workspace, run);

  const Batch batch{.samples = {0, 5, tokens}, .types = {1, 0}};
  Routing<S> gradient;
  gradient.zero_gradient_of(cache.routing);
  const std::vector<const Routing<S>*> routings{&cache.routing};
  const std::vector<Routing<S>*> gradients{&gradient};
  std::printf("case %s\n", kind.c_str());
  const auto loss = [&](const char* name, double weight, const auto& of) {
    if (weight == 0) return;
    of.backward(routings, batch, weight, gradients);
    const S values[] = {weight, of.value(routings, batch)};
    print(name, {2}, values);
  };
  loss("balance", weights.balance, LoadBalance<S>::mola());
  loss("localized", weights.localized, LocalizedBalance<S>());
  loss("importance", weights.importance, ImportanceLoss<S>());
  loss("load", weights.load, LoadLoss<S>());
  loss("z", weights.z, ZLoss<S>());
  adapter.backward(theta, x, dy, cache, workspace, run, dx, dtheta, gradient);

  print("x", {tokens, adapter.in()}, x.data());
  print("y0", {tokens, adapter.out()}, y0.data());
  print("dy", {tokens, adapter.out()}, dy.data());
  print("y", {tokens, adapter.out()}, y.data());
  print("dx", {tokens, adapter.in()}, dx.data());
  Index begin = 0;
  for (const Field& field : adapter.fields()) {
    print("theta." + field.name, field.shape, theta.data() + begin);
    print("dtheta." + field.name, field.shape, dtheta.data() + begin);
    begin += field.size();
  }
  const Routing<S>& r = cache.routing;
  if (!r.noisy.empty()) {
    std::vector<S> epsilon;
    for (std::size_t i = 0; i < r.noisy.size(); ++i)
      epsilon.push_back((r.noisy[i] - r.logits[i]) / r.noise_scale[i]);
    print("epsilon", {r.rows, r.experts}, epsilon.data());
  }
  std::printf("end\n");
}

}  // namespace

int main() {
  write("molora", molora<S>({.in = 9, .out = 7, .experts = 4, .rank = 3}), {.z = 0.3});
  write("mola", mola<S>({.in = 9, .out = 7, .experts = 5, .rank = 2}), {.balance = 0.7, .importance = 0.4});
  write("loramoe", loramoe<S>({.in = 9, .out = 7, .experts = 6, .rank = 2}), {.localized = 0.9});
  write("mov", mov<S>({.features = 12, .heads = 3, .experts = 4}), {.z = 0.1});
  write("noisy",
        MoLA<S>(LoraBank<S>({.in = 9, .out = 7, .experts = 5, .rank = 2, .alpha = 2}),
                TopKRouter<S>({.in = 9,
                               .experts = 5,
                               .k = 2,
                               .weights = TopKWeights::softmax_of_chosen,
                               .noise = RouterNoise::learned})),
        {.importance = 0.2, .load = 0.5}, {.training = true, .seed = 3});
}
