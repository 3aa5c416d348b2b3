// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/workspace.hpp>

#include <utility>

namespace moxie::inline MOXIE_ABI {

/// What composes as an adapter: sizes and fields, forward into y, backward into dx and dtheta.
template <class A>
concept Adapter = Parametric<A> &&
    requires(const A& adapter, std::span<const typename A::Scalar> theta, In<typename A::Scalar> in,
             Out<typename A::Scalar> out, Cache<typename A::Scalar>& cache,
             Workspace<typename A::Scalar>& workspace, const Run& run, std::span<typename A::Scalar> dtheta) {
  { A::multiplicative } -> std::convertible_to<bool>;
  { adapter.in() } -> std::convertible_to<Index>;
  { adapter.out() } -> std::convertible_to<Index>;
  adapter.forward(theta, in, out, cache, workspace, run);
  adapter.backward(theta, in, in, cache, workspace, run, out, dtheta);
};

/// A bank of experts under a router: the composition of the library. An immutable value without weights;
/// theta is the experts' parameters followed by the router's. `forward` adds to y (LoRA) or writes y (IA3, y
/// = x s). Outputs of a token depend on that token alone: not on the batch around it, its split, or the
/// threads.
template <ExpertBank Experts_, Router Router_>
requires std::same_as<typename Experts_::Scalar, typename Router_::Scalar>
class MoeAdapter {
 public:
  using Experts = Experts_;
  using Router = Router_;
  using Scalar = typename Experts::Scalar;
  using S = Scalar;
  static constexpr bool multiplicative = Experts::multiplicative;

  /// Throws ConfigRange where the two disagree about experts or heads.
  MoeAdapter(Experts experts, Router router) : experts_(std::move(experts)), router_(std::move(router)) {
    const auto agree = [](std::string_view what, Index got, Index wanted) {
      detail::expect_range(got == wanted, "the router's number of " + std::string(what),
                           static_cast<double>(got), detail::text(wanted) + ", as many as the bank has");
    };
    agree("experts", router_.experts(), experts_.experts());
    agree("rows per token", router_.rows_per_token(), experts_.rows_per_token());
  }

  const Experts& experts() const { return experts_; }
  const Router& router() const { return router_; }
  Index in() const { return experts_.in(); }
  Index out() const { return experts_.out(); }
  Index size() const { return experts_.size() + router_.size(); }
  std::vector<Field> fields() const {
    std::vector<Field> fields = experts_.fields();
    for (Field& field : router_.fields()) fields.push_back(std::move(field));
    return fields;
  }
  void init(std::span<S> theta, std::uint64_t seed) const {
    detail::expect_size("theta", theta.size(), size());
    experts_.init(theta.first(experts_size()), seed);
    router_.init(theta.subspan(experts_size()), seed);
  }

  /// x [T, in], y [T, out]. `router_x` [T, router().in()]: what the router reads in place of x. For IA3 kinds
  /// y may be x itself, for inference. Throws ShapeMismatch, Aliased, RouterOutput; y is then unchanged.
  void forward(std::span<const S> theta, In<S> x, Out<S> y, Cache<S>& cache, Workspace<S>& workspace,
               const Run& run = {}, In<S> router_x = {}) const {
    detail::expect_run<S>(run);
    detail::expect_size("theta", theta.size(), size());
    detail::expect_shape("x", x, -1, in());
    detail::expect_shape("y", y, x.rows, out());
    const bool in_place = multiplicative && detail::same_place(y, x);
    if (!in_place) detail::expect_apart("y", y, "x", x);
    detail::expect_apart("y", y, "theta", detail::as_view(theta));
    const In<S> seen = routed_by(x, router_x);
    detail::expect_shape("router_x", seen, x.rows, router_.in() > 0 ? router_.in() : Index{-1});
    if (!in_place || router_x.data != nullptr) detail::expect_apart("y", y, "router_x", router_x);

    const std::span<const S> of_experts = theta.first(experts_size()),
                             of_router = theta.subspan(experts_size());
    cache.tokens = -1;
    router_.prepare(cache.routing, x.rows, run);
    cache.h.resize(static_cast<std::size_t>(detail::checked_product("cache", x.rows, experts_.cached())));
    workspace.reserve(run.threads, scratch_size());
    const Out<S> h(cache.h.data(), x.rows, experts_.cached());
    for_tiles(x.rows, run.threads, [&](Index first, Index rows, int thread) {
      S* const scratch = workspace.of_thread(thread);
      router_.route_rows({.theta = of_router,
                          .x = seen.middle_rows(first, rows),
                          .routing = cache.routing,
                          .first = first,
                          .scratch = scratch,
                          .run = run});
      experts_.forward_rows({.theta = of_experts,
                             .x = x.middle_rows(first, rows),
                             .y = y.middle_rows(first, rows),
                             .h = h.middle_rows(first, rows),
                             .routing = cache.routing,
                             .first = first,
                             .scratch = scratch,
                             .run = run});
    });
    cache.tokens = x.rows;
    cache.in = in();
    cache.out = out();
    cache.in_place = in_place;
    cache.router_x = router_x.data != nullptr;
    cache.run = run;
  }

  /// Adds the gradients of `forward` to dx [T, in], drouter_x [T, router().in()] and dtheta; an empty one is
  /// not wanted. `drouting` brings the gradients of losses of the routing. Without router_x the router's part
  /// joins dx, after the experts'. Throws StateError where the cache is of another call, and ShapeMismatch,
  /// Aliased.
  void backward(std::span<const S> theta, In<S> x, In<S> dy, const Cache<S>& cache, Workspace<S>& workspace,
                const Run& run, Out<S> dx, std::span<S> dtheta, const Routing<S>& drouting = {},
                In<S> router_x = {}, Out<S> drouter_x = {}) const {
    check_backward(theta, x, dy, cache, run, dx, dtheta, drouting, router_x, drouter_x);
    if (&drouting == &workspace.drouting)
      fail(Code::aliased, "drouting is the workspace's own, where backward writes, wanted a copy of it");
    const In<S> seen = routed_by(x, router_x);
    const Out<S> dseen = router_x.data == nullptr ? dx : drouter_x;
    const std::span<const S> of_experts = theta.first(experts_size()),
                             of_router = theta.subspan(experts_size());
    const Routing<S>& routing = cache.routing;
    Routing<S>& gradient = workspace.drouting;
    gradient.resize(routing.tokens(), routing.experts, routing.rows_per_token, 0, !routing.noisy.empty());
    workspace.factors.resize(
        static_cast<std::size_t>(detail::checked_product("workspace", x.rows, experts_.factors())));
    workspace.reserve(run.threads, scratch_size());
    const Out<S> factors(workspace.factors.data(), x.rows, experts_.factors());
    const In<S> h(cache.h.data(), x.rows, experts_.cached());

    for_tiles(x.rows, run.threads, [&](Index first, Index rows, int thread) {
      S* const scratch = workspace.of_thread(thread);
      copy_rows(drouting, gradient, first, rows);
      experts_.backward_rows({.theta = of_experts,
                              .x = x.middle_rows(first, rows),
                              .dy = dy.middle_rows(first, rows),
                              .dx = part(dx, first, rows),
                              .h = h.middle_rows(first, rows),
                              .factors = factors.middle_rows(first, rows),
                              .routing = routing,
                              .drouting = gradient,
                              .first = first,
                              .scratch = scratch,
                              .run = run});
      for_rows(first, rows, [&](std::size_t at) {
        if (!drouting.gates.empty()) gradient.gates[at] += drouting.gates[at];
      });
      router_.backward_rows({.theta = of_router,
                             .x = seen.middle_rows(first, rows),
                             .dx = part(dseen, first, rows),
                             .routing = routing,
                             .drouting = gradient,
                             .first = first,
                             .scratch = scratch,
                             .run = run});
    });
    if (dtheta.empty() || x.rows == 0) return;
    for_blocks(experts_.blocks() + router_.blocks(), run.threads, [&](Index block, int thread) {
      S* const scratch = workspace.of_thread(thread);
      if (block < experts_.blocks())
        experts_.backward_block({.block = block,
                                 .x = x,
                                 .dy = dy,
                                 .factors = factors,
                                 .routing = routing,
                                 .drouting = gradient,
                                 .dtheta = dtheta.first(experts_size()),
                                 .scratch = scratch,
                                 .run = run});
      else
        router_.backward_block({.block = block - experts_.blocks(),
                                .x = seen,
                                .routing = routing,
                                .drouting = gradient,
                                .dtheta = dtheta.subspan(experts_size()),
                                .scratch = scratch,
                                .run = run});
    });
  }

 private:
  std::size_t experts_size() const { return static_cast<std::size_t>(experts_.size()); }
  Index scratch_size() const { return std::max(experts_.scratch(tile_tokens), router_.scratch(tile_tokens)); }
  static In<S> routed_by(In<S> x, In<S> router_x) { return router_x.data == nullptr ? x : router_x; }
  static Out<S> part(Out<S> whole, Index first, Index rows) {
    return whole.empty() ? Out<S>() : whole.middle_rows(first, rows);
  }

  /// f(position in a [rows, experts] buffer) over a tile's rows.
  template <class F>
  void for_rows(Index first, Index rows, F&& f) const {
    const Index width = experts_.rows_per_token() * experts_.experts();
    for (Index at = first * width; at < (first + rows) * width; ++at) f(static_cast<std::size_t>(at));
  }
  /// The losses' part of a tile, zero where absent; the gates' is added after the experts have written
  /// theirs.
  void copy_rows(const Routing<S>& from, Routing<S>& to, Index first, Index rows) const {
    for (const auto which :
         {&Routing<S>::logits, &Routing<S>::probs, &Routing<S>::noisy, &Routing<S>::noise_scale}) {
      const Buffer<S>& source = from.*which;
      Buffer<S>& target = to.*which;
      if (target.empty()) continue;
      for_rows(first, rows, [&](std::size_t at) { target[at] = source.empty() ? S(0) : source[at]; });
    }
  }

  void check_backward(std::span<const S> theta, In<S> x, In<S> dy, const Cache<S>& cache, const Run& run,
                      Out<S> dx, std::span<S> dtheta, const Routing<S>& drouting, In<S> router_x,
                      Out<S> drouter_x) const {
    detail::expect_run<S>(run);
    const auto refuse = [](const std::string& what) { fail(Code::state_error, "backward " + what); };
    if (cache.tokens < 0) refuse("before forward: the cache is empty");
    if (cache.in != in() || cache.out != out() || cache.run.module != run.module ||
        cache.h.size() != static_cast<std::size_t>(cache.tokens * experts_.cached()) ||
        cache.routing.experts != experts_.experts() ||
        cache.routing.rows_per_token != experts_.rows_per_token())
      refuse("with another module's cache");
    if (cache.tokens != x.rows)
      refuse("of " + detail::text(x.rows) + " tokens with the cache of " + detail::text(cache.tokens));
    if (router_.in() > 0 && x.rows > 0 && cache.router_x != (router_x.data != nullptr))
      refuse(cache.router_x ? "without the router_x that forward had"
                            : "with a router_x that forward did not have");
    if (cache.in_place) refuse("after a forward that wrote y over x: keep x when training");
    if (cache.run.training != run.training || cache.run.seed != run.seed || cache.run.step != run.step ||
        cache.run.first_token != run.first_token || cache.run.scale != run.scale)
      refuse(
          "with another run than forward's (training, seed, step, first_token and scale must be the same)");
    const Routing<S>& routing = cache.routing;
    detail::expect_routing("the cache's routing", routing, x.rows * experts_.rows_per_token(),
                           experts_.experts(), experts_.rows_per_token());
    if (router_.in() > 0) detail::expect_size("the cache's probs", routing.probs.size(), routing.size());
    if constexpr (requires { router_.expect_routed(routing, run); }) router_.expect_routed(routing, run);
    detail::expect_size("theta", theta.size(), size());
    if (!dtheta.empty()) detail::expect_size("dtheta", dtheta.size(), size());
    detail::expect_shape("x", x, -1, in());
    detail::expect_shape("dy", dy, x.rows, out());
    if (dx.data != nullptr) detail::expect_shape("dx", dx, x.rows, in());
    const In<S> seen = routed_by(x, router_x);
    detail::expect_shape("router_x", seen, x.rows, router_.in() > 0 ? router_.in() : Index{-1});
    if (drouter_x.data != nullptr) detail::expect_shape("drouter_x", drouter_x, seen.rows, seen.cols);
    for (const Buffer<S>* buffer :
         {&drouting.logits, &drouting.probs, &drouting.gates, &drouting.noisy, &drouting.noise_scale})
      if (!buffer->empty()) detail::expect_size("a part of drouting", buffer->size(), cache.routing.size());
    const In<S> weights = detail::as_view(theta);
    detail::expect_apart("dx", dx, "x", x, "dy", dy, "router_x", router_x, "drouter_x", drouter_x);
    detail::expect_apart("drouter_x", drouter_x, "router_x", router_x, "x", x, "dy", dy);
    detail::expect_apart("dtheta", detail::as_view(dtheta), "theta", weights, "x", x, "dy", dy, "dx", dx,
                         "router_x", router_x, "drouter_x", drouter_x);
    detail::expect_apart("dx", dx, "theta", weights);
    detail::expect_apart("drouter_x", drouter_x, "theta", weights);
  }

  Experts experts_;
  Router router_;
};

}  // namespace moxie::inline MOXIE_ABI
