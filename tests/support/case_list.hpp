// SPDX-License-Identifier: MIT
#pragma once

#include "support/cases.hpp"

#include <moxie/experts/hydra.hpp>
#include <moxie/experts/ia3.hpp>
#include <moxie/experts/lora.hpp>
#include <moxie/route.hpp>
#include <moxie/routers/soft.hpp>
#include <moxie/routers/top_k.hpp>
#include <moxie/routers/uniform.hpp>

/// The one list of adapters that every law is checked on. A new expert or router is one line in `cases`, and
/// one `describe` that tells the references what it is.
namespace moxie::test {

template <class S, class Adapter>
class Erased final : public ErasedAdapter<S> {
 public:
  explicit Erased(Adapter adapter) : adapter_(std::move(adapter)) {}
  Index in() const override { return adapter_.in(); }
  Index out() const override { return adapter_.out(); }
  Index size() const override { return adapter_.size(); }
  Index experts_size() const override { return adapter_.experts().size(); }
  Index router_in() const override { return adapter_.router().in(); }
  bool multiplicative() const override { return Adapter::multiplicative; }
  std::vector<Field> fields() const override { return adapter_.fields(); }
  void init(std::span<S> theta, std::uint64_t seed) const override { adapter_.init(theta, seed); }
  void forward(std::span<const S> theta, In<S> x, Out<S> y, Cache<S>& cache, Workspace<S>& workspace,
               const Run& run, In<S> router_x) const override {
    adapter_.forward(theta, x, y, cache, workspace, run, router_x);
  }
  void backward(std::span<const S> theta, In<S> x, In<S> dy, const Cache<S>& cache, Workspace<S>& workspace,
                const Run& run, Out<S> dx, std::span<S> dtheta, const Routing<S>& drouting, In<S> router_x,
                Out<S> drouter_x) const override {
    adapter_.backward(theta, x, dy, cache, workspace, run, dx, dtheta, drouting, router_x, drouter_x);
  }
  void route(std::span<const S> theta, In<S> x, Routing<S>& routing, Workspace<S>& workspace,
             const Run& run) const override {
    moxie::route(adapter_.router(), theta, x, routing, workspace, run);
  }
  void route_backward(std::span<const S> theta, In<S> x, const Routing<S>& routing, Routing<S>& gradient,
                      Workspace<S>& workspace, const Run& run, Out<S> dx,
                      std::span<S> dtheta) const override {
    moxie::route_backward(adapter_.router(), theta, x, routing, gradient, workspace, run, dx, dtheta);
  }

 private:
  Adapter adapter_;
};

template <class Bank, class Router>
auto erase(const Bank& bank, const Router& router) {
  using S = typename Bank::Scalar;
  return std::shared_ptr<const ErasedAdapter<S>>(
      std::make_shared<Erased<S, MoeAdapter<Bank, Router>>>(MoeAdapter<Bank, Router>(bank, router)));
}

template <class S>
naive::Bank describe(const LoraBank<S>& bank) {
  const auto& c = bank.config();
  naive::Bank d{.in = c.in,
                .out = c.out,
                .experts = c.experts,
                .bias = c.bias,
                .dropout = c.dropout,
                .mask_per_expert = c.mask == DropoutMask::per_expert};
  for (Index e = 0; e < c.experts; ++e) {
    d.ranks.push_back(c.ranks.empty() ? c.rank : c.ranks[naive::at(e)]);
    const auto r = static_cast<double>(d.ranks.back());
    d.scales.push_back(c.scaling == LoraScaling::alpha_over_rank        ? c.alpha / r
                       : c.scaling == LoraScaling::alpha_over_sqrt_rank ? c.alpha / std::sqrt(r)
                                                                        : c.scales[naive::at(e)]);
  }
  return d;
}
template <class S>
naive::Bank describe(const Ia3Bank<S>& bank) {
  const auto& c = bank.config();
  return {.kind = naive::Bank::Kind::ia3,
          .in = c.features,
          .out = c.features,
          .experts = c.experts,
          .heads = c.heads};
}
template <class S>
naive::Bank describe(const HydraBank<S>& bank) {
  const auto& c = bank.config();
  const auto r = static_cast<double>(c.rank);
  const double scale = c.alpha / (c.scaling == LoraScaling::alpha_over_rank ? r : std::sqrt(r));
  return {.in = c.in,
          .out = c.out,
          .experts = c.experts,
          .ranks = std::vector<Index>(naive::at(c.experts), c.rank),
          .scales = std::vector<double>(naive::at(c.experts), scale),
          .dropout = c.dropout,
          .shared_a = true};
}
template <class S>
naive::Router describe(const UniformRouter<S>& router) {
  return {.experts = router.config().experts, .heads = router.config().heads};
}
template <class S>
naive::Router describe(const GivenRouter<S>& router) {
  return {
      .kind = naive::Router::Kind::given, .experts = router.config().experts, .heads = router.config().heads};
}
template <class S>
naive::Router describe(const SoftRouter<S>& router) {
  const auto& c = router.config();
  return {.kind = naive::Router::Kind::soft,
          .in = c.in,
          .experts = c.experts,
          .heads = c.heads,
          .temperature = c.temperature,
          .jitter = c.jitter};
}
template <class S>
naive::Router describe(const TopKRouter<S>& router) {
  const auto& c = router.config();
  return {.kind = naive::Router::Kind::top_k,
          .in = c.in,
          .experts = c.experts,
          .heads = c.heads,
          .temperature = c.temperature,
          .jitter = c.jitter,
          .k = c.k,
          .weights = c.weights,
          .noise = c.noise,
          .noise_scale = c.noise_scale,
          .k_start = c.k_start,
          .k_steps = c.k_steps};
}

/// The bank whose expert e is the given one's expert order[e].
template <class S>
LoraBank<S> permute(const LoraBank<S>& bank, const std::vector<Index>& order) {
  auto c = bank.config();
  for (std::size_t e = 0; e < order.size(); ++e) {
    if (!c.ranks.empty()) c.ranks[e] = bank.config().ranks[naive::at(order[e])];
    if (!c.scales.empty()) c.scales[e] = bank.config().scales[naive::at(order[e])];
  }
  return LoraBank<S>(c);
}
template <class S>
Ia3Bank<S> permute(const Ia3Bank<S>& bank, const std::vector<Index>&) {
  return bank;
}
template <class S>
HydraBank<S> permute(const HydraBank<S>& bank, const std::vector<Index>&) {
  return bank;
}

template <class Bank, class Router>
Case<typename Bank::Scalar> entry(const std::string& bank_name, const Bank& bank,
                                  const std::string& router_name, const Router& router) {
  using S = typename Bank::Scalar;
  const auto on_path = [&](ExpertPath path) {
    auto config = bank.config();
    config.path = path;
    return erase(Bank(config), router);
  };
  const naive::Router described = describe(router);
  return {
      .name = bank_name + ", " + router_name + (std::is_same_v<S, float> ? " (float)" : " (double)"),
      .bank_name = bank_name,
      .router_name = router_name,
      .bank = describe(bank),
      .router = described,
      .adapter = erase(bank, router),
      .dense = on_path(ExpertPath::dense),
      .grouped = on_path(ExpertPath::grouped),
      .under_given = erase(bank, GivenRouter<S>({.experts = described.experts, .heads = described.heads})),
      .permuted = [=](const std::vector<Index>& order) { return erase(permute(bank, order), router); }};
}

template <class S>
std::vector<Case<S>> cases(const Sizes& n) {
  using Lora = LoraBank<S>;
  using Ia3 = Ia3Bank<S>;
  using Hydra = HydraBank<S>;
  using Uniform = UniformRouter<S>;
  using Given = GivenRouter<S>;
  using Soft = SoftRouter<S>;
  using TopK = TopKRouter<S>;
  constexpr auto masked = TopKWeights::masked, of_chosen = TopKWeights::softmax_of_chosen;
  const Index E = n.experts;
  const auto per_expert = [&](auto values) {
    values.resize(naive::at(E), values.back());
    return values;
  };
  const auto times = [&](std::vector<Index> ranks) {
    for (Index& rank : ranks) rank *= n.ranks;
    return ranks;
  };
  std::vector<Case<S>> list;
  const auto add = [&](const std::string& bank_name, const auto& bank, const std::string& router_name,
                       const auto& router) { list.push_back(entry(bank_name, bank, router_name, router)); };
  const auto with_every_router = [&](const std::string& name, const auto& bank, Index heads) {
    const Index in = bank.in();
    add(name, bank, "uniform", Uniform({.experts = E, .heads = heads}));
    add(name, bank, "given", Given({.experts = E, .heads = heads}));
    add(name, bank, "soft", Soft({.in = in, .experts = E, .heads = heads}));
    add(name, bank, "soft temperature", Soft({.in = in, .experts = E, .heads = heads, .temperature = 0.6}));
    add(name, bank, "soft jitter", Soft({.in = in, .experts = E, .heads = heads, .jitter = 0.2}));
    const auto top = [&](const std::string& router_name, typename TopK::Config config) {
      config.in = in;
      config.experts = E;
      config.heads = heads;
      config.k = std::min(config.k, E);
      add(name, bank, router_name, TopK(config));
    };
    top("top-1 renormalised", {.k = 1});
    top("top-1 masked", {.k = 1, .weights = masked});
    top("top-2 renormalised", {.k = 2});
    top("top-2 masked", {.k = 2, .weights = masked});
    top("top-2 softmax of chosen", {.k = 2, .weights = of_chosen});
    top("top-3 renormalised", {.k = 3});
    top("top-3 softmax of chosen", {.k = 3, .weights = of_chosen});
    top("top-4 renormalised", {.k = 4});
    top("top-4 masked", {.k = 4, .weights = masked});
    top("top-4 softmax of chosen", {.k = 4, .weights = of_chosen});
    top("top-2 temperature", {.k = 2, .temperature = 1.7});
    top("top-2 jitter", {.k = 2, .jitter = 0.1});
    top("top-2 fixed noise", {.k = 2, .weights = of_chosen, .noise = RouterNoise::fixed, .noise_scale = 0.5});
    top("top-2 learned noise", {.k = 2, .weights = of_chosen, .noise = RouterNoise::learned});
    top("top-3 learned noise and jitter",
        {.k = 3, .weights = masked, .temperature = 0.8, .jitter = 0.1, .noise = RouterNoise::learned});
    top("growing k", {.k = 2, .weights = of_chosen, .frozen = true, .k_start = 1, .k_steps = 6});
  };
  const auto with_two_routers = [&](const std::string& name, const auto& bank) {
    add(name, bank, "soft", Soft({.in = bank.in(), .experts = E}));
    add(name, bank, "top-2 renormalised", TopK({.in = bank.in(), .experts = E, .k = std::min<Index>(2, E)}));
    add(name, bank, "top-3 masked",
        TopK({.in = bank.in(), .experts = E, .k = std::min<Index>(3, E), .weights = masked}));
  };
  with_every_router("LoRA", Lora({.in = n.in, .out = n.out, .experts = E, .rank = 3 * n.ranks, .alpha = 2}),
                    1);
  with_every_router("LoRA with all options",
                    Lora({.in = n.in,
                          .out = n.out,
                          .experts = E,
                          .ranks = times(per_expert(std::vector<Index>{1, 4, 2, 3})),
                          .alpha = 3,
                          .scaling = LoraScaling::alpha_over_sqrt_rank,
                          .bias = true,
                          .dropout = 0.25,
                          .mask = DropoutMask::per_expert}),
                    1);
  with_two_routers("LoRA ranks", Lora({.in = n.in,
                                       .out = n.out,
                                       .experts = E,
                                       .ranks = times(per_expert(std::vector<Index>{2, 1, 4, 3}))}));
  with_two_routers(
      "LoRA bias",
      Lora({.in = n.in, .out = n.out, .experts = E, .rank = 2 * n.ranks, .alpha = 3, .bias = true}));
  with_two_routers(
      "LoRA dropout",
      Lora({.in = n.in, .out = n.out, .experts = E, .rank = 2 * n.ranks, .alpha = 4, .dropout = 0.3}));
  with_two_routers("LoRA dropout per expert", Lora({.in = n.in,
                                                    .out = n.out,
                                                    .experts = E,
                                                    .rank = 2 * n.ranks,
                                                    .alpha = 4,
                                                    .dropout = 0.3,
                                                    .mask = DropoutMask::per_expert}));
  with_two_routers("rsLoRA", Lora({.in = n.in,
                                   .out = n.out,
                                   .experts = E,
                                   .rank = 3 * n.ranks,
                                   .alpha = 2,
                                   .scaling = LoraScaling::alpha_over_sqrt_rank}));
  with_two_routers("LoRA fixed scales", Lora({.in = n.in,
                                              .out = n.out,
                                              .experts = E,
                                              .rank = 2 * n.ranks,
                                              .scaling = LoraScaling::fixed,
                                              .scales = per_expert(std::vector<double>{0.5, -1, 2, 0.7})}));
  with_every_router("shared A",
                    Hydra({.in = n.in, .out = n.out, .experts = E, .rank = 3 * n.ranks, .alpha = 2}), 1);
  with_two_routers("LoRA shared A, dropout, rsLoRA", Hydra({.in = n.in,
                                                            .out = n.out,
                                                            .experts = E,
                                                            .rank = 2 * n.ranks,
                                                            .alpha = 3,
                                                            .scaling = LoraScaling::alpha_over_sqrt_rank,
                                                            .dropout = 0.3}));
  with_every_router("IA3", Ia3({.features = n.head * n.heads, .experts = E}), 1);
  with_every_router("IA3 per head", Ia3({.features = n.head * n.heads, .heads = n.heads, .experts = E}),
                    n.heads);
  return list;
}

}  // namespace moxie::test
