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

/// Multiply-adds from which a call wakes its team; below, it is a matter of microseconds.
inline constexpr Index team_work = Index{1} << 18;

/// The team for a call that multiplies each of `tokens` with `weights` scalars.
constexpr int team(Index tokens, Index weights, int threads) {
  return threads > 1 && tokens > 0 && weights > (team_work - 1) / tokens ? threads : 1;
}

/// The most tokens that pass through a call together, few enough to stay in cache: as many rows of `features`
/// scalars in all as fit a small second cache, 32 to 64. Weights that leave that cache several times over are
/// read again by every tile, so then a tile is large (4096 wide, 32 experts of rank 64, 2,048 tokens, tiles
/// of 32 and 256: top-2 250 and 81 ms, soft 802 and 685).
inline constexpr Index tile_tokens = 64, large_tile_tokens = 256;
template <class S>
constexpr Index most_tile(Index features, Index weights) {
  constexpr Index fitting = (1 << 20) / static_cast<Index>(sizeof(S)), step = 4;  // whole register blocks
  if (weights > 4 * fitting) return large_tile_tokens;
  return std::clamp(fitting / std::max<Index>(features, 1), tile_tokens / 2, tile_tokens) / step * step;
}

/// Tokens of a tile: up to `most`, and as many tiles for each thread (three tiles for two threads would let
/// one wait). No output depends on it.
constexpr Index tile_size(Index tokens, Index most, int threads) {
  constexpr Index step = 4;
  if (tokens <= step) return step;
  const Index rounds = (tokens + most * threads - 1) / (most * threads);
  const Index tiles = std::max<Index>(rounds * threads, 1);
  return std::clamp(((tokens + tiles - 1) / tiles + step - 1) / step * step, step, most);
}

/// Calls f(first, tokens, thread) for every tile of a call's tokens, on a team of `threads`.
template <class F>
void for_tiles(Index tokens, Index most, int threads, F&& f) {
  const Index size = tile_size(tokens, most, threads);
  for_blocks((tokens + size - 1) / size, threads, [&](Index tile, int thread) {
    const Index first = tile * size;
    f(first, std::min(size, tokens - first), thread);
  });
}

}  // namespace moxie::inline MOXIE_ABI
