// SPDX-License-Identifier: MIT
// One forward of a soft mixture of 8 LoRAs of rank 8, d = 768, for valgrind to count its instructions:
// instructions TOKENS. Only what `measured` does counts; a call before it has made the room.
#include <moxie/presets.hpp>

#include <cstdio>
#include <cstdlib>
#include <functional>

namespace {

constexpr moxie::Index d = 768;

/// By this name callgrind knows when to count.
extern "C" [[gnu::noinline]] void measured(const std::function<void()>& call) { call(); }

int run(moxie::Index tokens) {
  const auto adapter = moxie::molora<float>({.in = d, .out = d, .experts = 8, .rank = 8});
  moxie::Buffer<float> theta = moxie::make_theta(adapter, 1);
  for (std::size_t i = 0; i < theta.size(); ++i)
    theta[i] = 0.02f * static_cast<float>(moxie::random::uniform(1, i) - 0.5);
  moxie::Matrix<float> x(tokens, d), y = moxie::Matrix<float>::Zero(tokens, d);
  for (moxie::Index i = 0; i < x.size(); ++i)
    x.data()[i] = static_cast<float>(moxie::random::uniform(2, static_cast<std::uint64_t>(i)) - 0.5);
  moxie::Cache<float> cache;
  moxie::Workspace<float> workspace;
  const auto call = [&] { adapter.forward(theta, x, y, cache, workspace); };
  call();
  measured(call);
  std::printf("%g\n", static_cast<double>(y.squaredNorm()));
  return y.squaredNorm() > 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
#if defined(__AVX2__)
  if (__builtin_cpu_supports("avx2") == 0 || __builtin_cpu_supports("fma") == 0) return 77;
#endif
  return argc == 2 ? run(std::atol(argv[1])) : 2;
}
