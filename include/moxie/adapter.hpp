// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/checks.hpp>
#include <moxie/prepared.hpp>

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
    detail::check_forward(*this, x, y, run, router_x);
    detail::expect_size("theta", theta.size(), size());
    detail::expect_apart("y", y, "theta", detail::as_view(theta));
    const std::span<const S> of_experts = theta.first(experts_size()),
                             of_router = theta.subspan(experts_size());
    S* space = space_to_pack(workspace, x.rows, true);
    const int threads = team(x.rows, size(), run.threads);
    const auto expert_views = detail::views(experts_, of_experts.data(), x.rows, true, threads, space);
    const auto router_views = detail::views(router_, of_router.data(), x.rows, true, threads, space);
    run_forward(of_experts, expert_views.data(), of_router, router_views.data(), x, y, cache, workspace, run,
                router_x);
  }

  /// The same from weights that `prepare` packed. Throws also ShapeMismatch where they are of another shape.
  template <class W>
  void forward(const Prepared<S, W>& weights, In<S> x, Out<S> y, Cache<S>& cache, Workspace<S>& workspace,
               const Run& run = {}, In<S> router_x = {}) const {
    detail::check_forward(*this, x, y, run, router_x);
    weights.expect_of(experts_, router_);
    const auto expert_views = weights.views(experts_, 0);
    const auto router_views = weights.views(router_, expert_views.size());
    run_forward(std::span<const S>{}, expert_views.data(), std::span<const S>{}, router_views.data(), x, y,
                cache, workspace, run, router_x);
  }

  /// Packs theta for inference, stored as W (see Prepared).
  template <class W = S>
  requires detail::Packable<Experts> && detail::Packable<Router> Prepared<S, W> prepare(
      std::span<const S> theta)
  const {
    detail::expect_size("theta", theta.size(), size());
    return Prepared<S, W>(theta, experts_, router_);
  }

  /// Adds the gradients of `forward` to dx [T, in], drouter_x [T, router().in()] and dtheta; an empty one is
  /// not wanted. `drouting` brings the gradients of losses of the routing. Without router_x the router's part
  /// joins dx, after the experts'. Throws StateError where the cache is of another call, and ShapeMismatch,
  /// Aliased.
  void backward(std::span<const S> theta, In<S> x, In<S> dy, const Cache<S>& cache, Workspace<S>& workspace,
                const Run& run, Out<S> dx, std::span<S> dtheta, const Routing<S>& drouting = {},
                In<S> router_x = {}, Out<S> drouter_x = {}) const {
    detail::check_backward(*this, theta, x, dy, cache, run, dx, dtheta, drouting, router_x, drouter_x);
    if (&drouting == &workspace.drouting)
      fail(Code::aliased, "drouting is the workspace's own, where backward writes, wanted a copy of it");
    const In<S> seen = detail::routed_by(x, router_x);
    const Out<S> dseen = router_x.data == nullptr ? dx : drouter_x;
    const std::span<const S> of_experts = theta.first(experts_size()),
                             of_router = theta.subspan(experts_size());
    const Routing<S>& routing = cache.routing;
    Routing<S>& gradient = workspace.drouting;
    gradient.resize(routing.tokens(), routing.experts, routing.rows_per_token, 0, !routing.noisy.empty());
    workspace.factors.resize(
        static_cast<std::size_t>(detail::checked_product("workspace", x.rows, experts_.factors())));
    S* space = space_to_pack(workspace, x.rows, false);
    const int threads = team(x.rows, size(), run.threads);
    const auto expert_views = detail::views(experts_, of_experts.data(), x.rows, false, threads, space);
    const auto router_views = detail::views(router_, of_router.data(), x.rows, false, threads, space);
    const bool sorted = !dtheta.empty() && sorts_tokens(routing);
    reserve(workspace, run.threads,
            sorted ? detail::ByExpert::size(routing.rows, routing.experts, routing.max_chosen) : 0);
    const Out<S> factors(workspace.factors.data(), x.rows, experts_.factors());
    const In<S> h(cache.h.data(), x.rows, experts_.cached());

    for_tiles(x.rows, tile(), threads, [&](Index first, Index rows, int thread) {
      S* const scratch = workspace.of_thread(thread);
      copy_rows(drouting, gradient, first, rows);
      experts_.backward_rows({.theta = of_experts,
                              .weights = expert_views.data(),
                              .x = x.middle_rows(first, rows),
                              .dy = dy.middle_rows(first, rows),
                              .dx = part(dx, first, rows),
                              .h = h.middle_rows(first, rows),
                              .factors = factors.middle_rows(first, rows),
                              .routing = routing,
                              .drouting = gradient,
                              .gates_wanted = !ConstantRouter<Router>,
                              .first = first,
                              .scratch = scratch,
                              .lists = workspace.lists_of_thread(thread),
                              .run = run});
      for_rows(first, rows, [&](std::size_t at) {
        if (!drouting.gates.empty()) gradient.gates[at] += drouting.gates[at];
      });
      router_.backward_rows({.theta = of_router,
                             .weights = router_views.data(),
                             .x = seen.middle_rows(first, rows),
                             .dx = part(dseen, first, rows),
                             .routing = routing,
                             .drouting = gradient,
                             .first = first,
                             .scratch = scratch,
                             .lists = nullptr,
                             .run = run});
    });
    if (dtheta.empty() || x.rows == 0) return;
    int* const by_expert = workspace.lists_of_thread(run.threads);
    if (sorted) detail::sort_by_expert(routing, 0, routing.rows, by_expert);
    const Index of_bank = experts_.blocks(x.rows);
    for_blocks(of_bank + router_.blocks(x.rows), threads, [&](Index block, int thread) {
      S* const scratch = workspace.of_thread(thread);
      if (block < of_bank)
        experts_.backward_block({.block = block,
                                 .x = x,
                                 .dy = dy,
                                 .factors = factors,
                                 .routing = routing,
                                 .drouting = gradient,
                                 .dtheta = dtheta.first(experts_size()),
                                 .scratch = scratch,
                                 .by_expert = by_expert,
                                 .run = run});
      else
        router_.backward_block({.block = block - of_bank,
                                .x = seen,
                                .routing = routing,
                                .drouting = gradient,
                                .dtheta = dtheta.subspan(experts_size()),
                                .scratch = scratch,
                                .by_expert = nullptr,
                                .run = run});
    });
  }

 private:
  std::size_t experts_size() const { return static_cast<std::size_t>(experts_.size()); }
  Index tile() const { return most_tile<S>(in() + out(), size()); }

  /// Scratch for every thread, and `whole` integers behind their lists.
  void reserve(Workspace<S>& workspace, int threads, Index whole) const {
    Index lists = 0;
    if constexpr (requires { experts_.lists(tile()); }) lists = experts_.lists(tile());
    workspace.reserve(threads, std::max(experts_.scratch(tile()), router_.scratch(tile())), lists, whole);
  }
  S* space_to_pack(Workspace<S>& workspace, Index tokens, bool forward) const {
    workspace.grow(workspace.packed, detail::packed_size<S>(experts_, tokens, forward) +
                                         detail::packed_size<S>(router_, tokens, forward));
    return workspace.packed.data();
  }
  /// Tokens too few to share out: then the threads share the rows and columns of the weights.
  static bool shares_weights(Index tokens, int threads, const Run& run) {
    return requires { Experts::stages; }
    &&threads > 1 && tokens < std::min(4 * Index{threads}, tile_tokens) && !run.training;
  }
  bool sorts_tokens(const Routing<S>& routing) const {
    if constexpr (requires { experts_.grouped(routing); })
      return experts_.grouped(routing);
    else
      return false;
  }

  template <class W>
  void run_forward(std::span<const S> of_experts, const kernels::Panels<W>* expert_views,
                   std::span<const S> of_router, const kernels::Panels<W>* router_views, In<S> x, Out<S> y,
                   Cache<S>& cache, Workspace<S>& workspace, const Run& run, In<S> router_x) const {
    const In<S> seen = detail::routed_by(x, router_x);
    cache.tokens = -1;
    router_.prepare(cache.routing, x.rows, run);
    cache.h.resize(static_cast<std::size_t>(detail::checked_product("cache", x.rows, experts_.cached())));
    reserve(workspace, run.threads, 0);
    const Out<S> h(cache.h.data(), x.rows, experts_.cached());
    const auto route = [&](Index first, Index rows, int thread) {
      router_.route_rows(ForwardTile<S, W>{.theta = of_router,
                                           .weights = router_views,
                                           .x = seen.middle_rows(first, rows),
                                           .routing = cache.routing,
                                           .first = first,
                                           .scratch = workspace.of_thread(thread),
                                           .lists = nullptr,
                                           .run = run});
    };
    const auto expert_tile = [&](Index first, Index rows, int thread) {
      return ForwardTile<S, W>{.theta = of_experts,
                               .weights = expert_views,
                               .x = x.middle_rows(first, rows),
                               .y = y.middle_rows(first, rows),
                               .h = h.middle_rows(first, rows),
                               .routing = cache.routing,
                               .first = first,
                               .scratch = workspace.of_thread(thread),
                               .lists = workspace.lists_of_thread(thread),
                               .run = run};
    };
    const int threads = team(x.rows, size(), run.threads);
    if (shares_weights(x.rows, threads, run)) {
      route(0, x.rows, 0);
      if constexpr (requires { Experts::stages; })
        for (int stage = 0; stage < Experts::stages; ++stage)
          for_blocks(threads, threads, [&, tile = expert_tile(0, x.rows, 0)](Index part, int) {
            experts_.forward_part(tile, stage, part, threads);
          });
    } else {
      for_tiles(x.rows, tile(), threads, [&](Index first, Index rows, int thread) {
        route(first, rows, thread);
        experts_.forward_rows(expert_tile(first, rows, thread));
      });
    }
    cache.tokens = x.rows;
    cache.in = in();
    cache.out = out();
    cache.in_place = multiplicative && detail::same_place(y, x);
    cache.router_x = router_x.data != nullptr;
    cache.run = run;
  }

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

  Experts experts_;
  Router router_;
};

}  // namespace moxie::inline MOXIE_ABI
