// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/math.hpp>
#include <moxie/core/parallel.hpp>
#include <moxie/core/random.hpp>
#include <moxie/core/routing.hpp>
#include <moxie/kernels/panels.hpp>

#include <concepts>
#include <cstdint>
#include <span>
#include <vector>

namespace moxie::inline MOXIE_ABI {

/// A tile of tokens on its way forward. An adapter hands it first to the router, which fills the routing's
/// rows, then to the experts, which read them. W is how the weights are stored.
template <Scalar S, class W = S>
struct ForwardTile {
  std::span<const S> theta;                     ///< of this part alone; empty where it was prepared
  const kernels::Panels<W>* weights = nullptr;  ///< this part's matrices(), where it has them
  In<S> x;                                      ///< [tile, in] what this part reads
  Out<S> y = {};        ///< [tile, out] experts only: added to (LoRA) or written (IA3)
  Out<S> h = {};        ///< [tile, cached()] experts only: kept for backward
  Routing<S>& routing;  ///< of the whole call
  Index first;          ///< number of the tile's first token in the call
  S* scratch;           ///< scratch(tile) scalars of this thread
  int* lists;           ///< lists(tile) integers of this thread, where the part asks for them
  const Run& run;
};

/// The same tile on its way back: first to the experts, which set `drouting.gates`, then to the
/// router, which turns the gradient of the routing into that of its logits.
template <Scalar S>
struct BackwardTile {
  std::span<const S> theta;
  const kernels::Panels<S>* weights = nullptr;
  In<S> x;                    ///< as forward
  In<S> dy = {};              ///< [tile, out] experts only
  Out<S> dx = {};             ///< [tile, in] added to once; empty: not wanted
  In<S> h = {};               ///< [tile, cached()] experts only: what forward kept
  Out<S> factors = {};        ///< [tile, factors()] experts only: written for backward_block
  const Routing<S>& routing;  ///< of the whole call
  Routing<S>& drouting;       ///< of the whole call, all parts present
  bool gates_wanted = true;   ///< false: nothing asks for `drouting.gates`, and zeros will do
  Index first;
  S* scratch;
  int* lists;
  const Run& run;
};

namespace detail {

/// Columns of a weight gradient in one block of a stock part: few enough to share out and to keep the chunk
/// of tokens that passes all rows together in the first cache; with few tokens more, so that memory is
/// written in long runs.
inline constexpr Index chunk_tokens = 64, least_block_columns = 2 * kernels::panel_columns,
                       most_block_columns = 8 * least_block_columns;
constexpr Index block_columns(Index tokens) {
  if (tokens > chunk_tokens / 2) return least_block_columns;
  const Index fitting = chunk_tokens * least_block_columns / std::max<Index>(tokens, 1);
  return std::min(fitting / least_block_columns * least_block_columns, most_block_columns);
}
constexpr Index column_blocks(Index columns, Index tokens) {
  return (columns + block_columns(tokens) - 1) / block_columns(tokens);
}

}  // namespace detail

/// One of the blocks that a part cuts its weight gradients into (columns in the stock parts), over all tokens
/// in ascending order. A block is one thread's.
template <Scalar S>
struct BackwardBlock {
  Index block;         ///< of blocks(T)
  In<S> x;             ///< [T, in]
  In<S> dy = {};       ///< [T, out] experts only
  In<S> factors = {};  ///< [T, factors()] experts only: what backward_rows wrote
  const Routing<S>& routing;
  const Routing<S>& drouting;
  std::span<S> dtheta;  ///< of this part alone; added to once
  S* scratch;
  const int* by_expert;  ///< tokens of each expert, where the part is `grouped`
  const Run& run;
};

/// A shape with rules: it knows the tensors of its flat parameter vector but holds none.
template <class P>
concept Parametric = std::copyable<P> &&
    requires(const P& part, std::span<typename P::Scalar> theta, std::uint64_t seed) {
  { part.size() } -> std::convertible_to<Index>;
  { part.fields() } -> std::same_as<std::vector<Field>>;
  part.init(theta, seed);
};

/// A new theta of a part, started from the seed.
template <Parametric P>
Buffer<typename P::Scalar> make_theta(const P& part, std::uint64_t seed) {
  Buffer<typename P::Scalar> theta(static_cast<std::size_t>(part.size()));
  part.init(theta, seed);
  return theta;
}

/// A stack of experts that weighs its members by a routing; `multiplicative` banks scale an activation, the
/// others add to an output. It knows no router. Per token it keeps `cached()` scalars from forward to
/// backward and `factors()` from backward_rows to backward_block; `scratch(tile)` scalars serve any one of
/// the calls.
template <class B>
concept ExpertBank = Parametric<B> &&
    requires(const B& bank, Index tile, const ForwardTile<typename B::Scalar>& forward,
             const BackwardTile<typename B::Scalar>& backward,
             const BackwardBlock<typename B::Scalar>& block) {
  { B::multiplicative } -> std::convertible_to<bool>;
  { bank.experts() } -> std::convertible_to<Index>;
  { bank.in() } -> std::convertible_to<Index>;
  { bank.out() } -> std::convertible_to<Index>;
  { bank.rows_per_token() } -> std::convertible_to<Index>;
  { bank.cached() } -> std::convertible_to<Index>;
  { bank.factors() } -> std::convertible_to<Index>;
  { bank.blocks(tile) } -> std::convertible_to<Index>;
  { bank.scratch(tile) } -> std::convertible_to<Index>;
  bank.forward_rows(forward);
  bank.backward_rows(backward);
  bank.backward_block(block);
};

/// Fills a routing from an input of its own; it knows no experts. `prepare` sizes the routing before the
/// tiles are spread over threads, and refuses what it cannot route. `in()` 0: it reads nothing. Its sizes are
/// as a bank's. It may have an `expect_routed(routing, run)`, which refuses a routing that its backward
/// cannot read.
template <class R>
concept Router = Parametric<R> &&
    requires(const R& router, Routing<typename R::Scalar>& routing, Index n, const Run& run,
             const ForwardTile<typename R::Scalar>& forward, const BackwardTile<typename R::Scalar>& backward,
             const BackwardBlock<typename R::Scalar>& block) {
  { router.experts() } -> std::convertible_to<Index>;
  { router.in() } -> std::convertible_to<Index>;
  { router.rows_per_token() } -> std::convertible_to<Index>;
  { router.blocks(n) } -> std::convertible_to<Index>;
  { router.scratch(n) } -> std::convertible_to<Index>;
  router.prepare(routing, n, run);
  router.route_rows(forward);
  router.backward_rows(backward);
  router.backward_block(block);
};

/// A router whose gates are numbers without a gradient says so by a member `constant`.
template <class R>
concept ConstantRouter = Router<R> && requires {
  R::constant;
};

/// A loss of one pool of routings (the published ones pool projections or layers before they multiply).
/// `backward` adds `weight` times its gradient to the routings' gradients.
template <class L>
concept BalanceLoss = requires(const L& loss, std::span<const Routing<typename L::Scalar>* const> routings,
                               std::span<Routing<typename L::Scalar>* const> gradients, const Batch& batch,
                               double weight) {
  { loss.value(routings, batch) } -> std::same_as<double>;
  loss.backward(routings, batch, weight, gradients);
};

}  // namespace moxie::inline MOXIE_ABI
