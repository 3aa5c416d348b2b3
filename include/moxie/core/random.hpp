// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/error.hpp>

#include <cmath>
#include <cstdint>
#include <initializer_list>

/// Counter-based randomness: every number is a hash of where it is used, and nothing is stored.
namespace moxie::inline MOXIE_ABI::random {

/// What a number is used for, so that equal counters in different places stay independent.
enum class Use : std::uint64_t { init = 1, dropout = 2, jitter = 3, noise = 4 };

/// A bijective mix of 64 bits (the finaliser of splitmix64, Steele et al. 2014).
constexpr std::uint64_t mix(std::uint64_t z) {
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// Folds a list of counters into one key; the order matters.
constexpr std::uint64_t key(std::initializer_list<std::uint64_t> counters) {
  std::uint64_t k = 0;
  for (const std::uint64_t c : counters) k = mix(k ^ c);
  return k;
}
constexpr std::uint64_t key(Use use, std::initializer_list<std::uint64_t> counters) {
  return mix(static_cast<std::uint64_t>(use) ^ key(counters));
}

/// Number i of the stream `k`: 32 uniform bits, cheap enough for every feature of every token.
constexpr std::uint32_t bits(std::uint64_t k, std::uint64_t i) {
  return static_cast<std::uint32_t>(mix(k ^ (i * 0xd1342543de82ef95u)) >> 32);
}

/// Uniform on [0, 1), with 53 random bits.
constexpr double uniform(std::uint64_t k, std::uint64_t i) {
  return static_cast<double>(mix(k ^ (i * 0xd1342543de82ef95u)) >> 11) * 0x1p-53;
}

/// Standard normal (Box and Muller); number i of the stream `k`.
inline double normal(std::uint64_t k, std::uint64_t i) {
  const double radius = std::sqrt(-2 * std::log(1 - uniform(k, 2 * i)));
  return radius * std::cos(6.283185307179586476925 * uniform(k, 2 * i + 1));
}

/// Threshold for `bits(...) < threshold`, true with probability p in [0, 1).
inline std::uint32_t threshold(double p) { return static_cast<std::uint32_t>(p * 4294967296.0); }

}  // namespace moxie::inline MOXIE_ABI::random
