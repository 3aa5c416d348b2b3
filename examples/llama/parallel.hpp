// SPDX-License-Identifier: MIT
#pragma once

#include <exception>
#ifdef _OPENMP
#  include <omp.h>
#endif

#include "types.hpp"

namespace llama {

/// Runs `f(block, thread)` for every block in `[0, blocks)`. The blocks do not depend on the number of
/// threads and nothing is summed across them here, so neither do results. The exception of the lowest block
/// is rethrown.
template <class F>
void for_blocks(Index blocks, [[maybe_unused]] int threads, F&& f) {
#ifdef _OPENMP
  if (threads > 1 && blocks > 1) {
    std::exception_ptr error;
    Index failed = blocks;
#  pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (Index block = 0; block < blocks; ++block) {
      try {
        f(block, omp_get_thread_num());
      } catch (...) {
#  pragma omp critical(llama_for_blocks)
        if (block < failed) {
          failed = block;
          error = std::current_exception();
        }
      }
    }
    if (error) std::rethrow_exception(error);
    return;
  }
#endif
  for (Index block = 0; block < blocks; ++block) f(block, 0);
}

}  // namespace llama
