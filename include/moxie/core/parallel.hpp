// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/run.hpp>

#include <algorithm>
#include <exception>

#if defined(_OPENMP)
#  include <omp.h>
#endif

namespace moxie::inline MOXIE_ABI {

/// Calls f(block, thread) for every block in [0, blocks), on a team of `threads`; a block is always computed
/// whole by one thread. The team's size never follows the number of blocks, because OpenMP runtimes allocate
/// when a team changes size. An exception does not leave the team: the lowest block's is thrown again.
template <class F>
void for_blocks(Index blocks, int threads, F&& f) {
#if defined(_OPENMP)
  if (threads > 1 && blocks > 1) {
    [[maybe_unused]] Index failed = blocks;
    std::exception_ptr error;
#  pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (Index block = 0; block < blocks; ++block) {
#  if defined(__cpp_exceptions)
      try {
        f(block, omp_get_thread_num());
      } catch (...) {
#    pragma omp critical(moxie_for_blocks)
        if (block < failed) {
          failed = block;
          error = std::current_exception();
        }
      }
#  else
      f(block, omp_get_thread_num());
#  endif
    }
    if (error) std::rethrow_exception(error);
    return;
  }
#endif
  static_cast<void>(threads);
  for (Index block = 0; block < blocks; ++block) f(block, 0);
}

/// Tokens that pass through a call together, few enough to stay in cache.
inline constexpr Index tile_tokens = 64;

/// Calls f(first, tokens, thread) for every tile of a call's tokens, on a team of `threads`.
template <class F>
void for_tiles(Index tokens, int threads, F&& f) {
  for_blocks((tokens + tile_tokens - 1) / tile_tokens, threads, [&](Index tile, int thread) {
    const Index first = tile * tile_tokens;
    f(first, std::min(tile_tokens, tokens - first), thread);
  });
}

}  // namespace moxie::inline MOXIE_ABI
