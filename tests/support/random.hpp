// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/types.hpp>

#include <cstdint>

namespace moxie::test {

/// The tests' own source of data (xorshift64*, Vigna 2016); shares nothing with the library's.
class Rng {
 public:
  explicit Rng(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 0x632be59bd9b4e019u) {
    for (int i = 0; i < 4; ++i) next();
  }
  std::uint64_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1du;
  }
  /// On [0, 1).
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  /// Of low ... high.
  Index integer(Index low, Index high) {
    return low + static_cast<Index>(next() % static_cast<std::uint64_t>(high - low + 1));
  }
  template <class Range>
  void fill(Range&& values, double low, double high) {
    for (auto& v : values) v = static_cast<std::remove_reference_t<decltype(v)>>(uniform(low, high));
  }
  template <class S>
  Matrix<S> matrix(Index rows, Index cols, double low = -1, double high = 1) {
    Matrix<S> m(rows, cols);
    for (Index i = 0; i < m.size(); ++i) m.data()[i] = static_cast<S>(uniform(low, high));
    return m;
  }

 private:
  std::uint64_t state_;
};

}  // namespace moxie::test
