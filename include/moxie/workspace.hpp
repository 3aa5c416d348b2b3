// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/concepts.hpp>

namespace moxie::inline MOXIE_ABI {

/// What one module's forward leaves for its backward. The caller owns it; it may be used again for later
/// calls and then allocates nothing for as many tokens or fewer.
template <Scalar S>
struct Cache {
  Routing<S> routing;
  Buffer<S> h;            ///< what the experts keep, [tokens, cached()]
  Index tokens = -1;      ///< of the last forward; -1: none yet
  Index in = 0, out = 0;  ///< of the adapter that filled it
  bool in_place = false;  ///< y was written over x: no backward from here
  bool router_x = false;  ///< the router read an input of its own
  Run run;                ///< of the last forward

  std::size_t bytes() const { return routing.bytes() + h.size() * sizeof(S); }
};

/// Scratch of a call. One per group of threads; any number of modules may share it, one call at a time.
template <Scalar S>
struct Workspace {
  Routing<S> drouting;  ///< after backward: the gradient of the routing (gates: of the chosen experts)
  Buffer<S> between;    ///< AdaptedLinear: the gradient of what lies between adapter and product
  Buffer<S> factors;    ///< what the weight gradients need per token
  Buffer<S> scratch;    ///< `stride` scalars per thread
  Index stride = 0;
  Buffer<S> packed;   ///< weights in panels, for one pass
  Buffer<int> lists;  ///< `lists_stride` integers per thread, then the tokens by expert of a whole call
  Index lists_stride = 0;

  std::size_t bytes() const {
    return drouting.bytes() + lists.size() * sizeof(int) +
           (between.size() + factors.size() + scratch.size() + packed.size()) * sizeof(S);
  }

  S* of_thread(int thread) { return scratch.data() + thread * stride; }

  int* lists_of_thread(int thread) { return lists.data() + thread * lists_stride; }

  /// Space for `threads` times `scalars` and `integers`, each on cache lines of its own, and `whole` integers
  /// behind them.
  void reserve(int threads, Index scalars, Index integers = 0, Index whole = 0) {
    stride = (scalars + 31) / 16 * 16;
    lists_stride = integers == 0 ? 0 : (integers + 31) / 16 * 16;
    grow(scratch, detail::checked_product("workspace", stride, threads));
    grow(lists, detail::checked_product("workspace", lists_stride, threads) + whole);
  }
  template <class T>
  static void grow(Buffer<T>& buffer, Index size) {
    if (std::ssize(buffer) < size) buffer.resize(static_cast<std::size_t>(size));
  }
};

}  // namespace moxie::inline MOXIE_ABI
