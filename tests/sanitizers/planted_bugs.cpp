// SPDX-License-Identifier: MIT
// One planted bug by name, or none; see CMakeLists.txt.
#include <moxie/core/parallel.hpp>
#include <moxie/core/types.hpp>

#include <atomic>
#include <cstdio>
#include <limits>
#include <string_view>
#include <thread>

int main(int argc, char** argv) {
  const std::string_view bug = argc > 1 ? argv[1] : "none";
  const volatile int one = argc > 1 ? 1 : 0;
  moxie::Buffer<int> numbers(2);

  // Without the bug each block has its own element; with it both add to the first. They wait for each other,
  // so that no thread does both.
  std::atomic<int> arrived{0};
  moxie::for_blocks(2, 2, [&](moxie::Index block, int) {
    arrived.fetch_add(1, std::memory_order_relaxed);
    for (int i = 0; i < 1'000'000 && arrived.load(std::memory_order_relaxed) < 2; ++i)
      std::this_thread::yield();
    numbers[bug == "race" ? 0 : static_cast<std::size_t>(block)] += 1;
  });
  if (bug == "overrun") numbers.data()[numbers.size()] = one;
  if (bug == "leak") numbers.data()[0] += *new int(one);
  if (bug == "overflow") numbers[0] = std::numeric_limits<int>::max() + one;
  std::printf("%d\n", numbers[0]);
}
