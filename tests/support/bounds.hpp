// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

/// Error bounds of the tests, as numbers that carry their own: a formula evaluated in Bounded gives its
/// value, nearly exact, and its twin with |.| on every operand.
namespace moxie::test {

/// u, the unit round-off.
template <class S>
constexpr double unit = static_cast<double>(std::numeric_limits<S>::epsilon()) / 2;

/// A computed result may be off by this many u of its bar. Measured worst 3.2 on sums of up to 4096 products;
/// never to be raised without a reason beside it.
constexpr double forward_gate = 16, gradient_gate = 32;

/// A value, and its bar: the same formula on absolute values; where a function is not linear, the error that
/// its argument's bar causes to first order is part of the bar. So a softmax row with logits z of bar Z has
/// p (1 + Z_e + max Z + ...) for bar, which is the bound |dp| <= p (2 C u Z + (E + 8) u).
struct Bounded {
  long double value = 0, bar = 0;

  Bounded() = default;
  Bounded(long double v) : value(v), bar(std::abs(v)) {}
  Bounded(double v) : Bounded(static_cast<long double>(v)) {}
  Bounded(float v) : Bounded(static_cast<long double>(v)) {}
  Bounded(int v) : Bounded(static_cast<long double>(v)) {}
  Bounded(long double v, long double b) : value(v), bar(b) {}

  friend Bounded operator+(Bounded a, Bounded b) { return {a.value + b.value, a.bar + b.bar}; }
  friend Bounded operator-(Bounded a, Bounded b) { return {a.value - b.value, a.bar + b.bar}; }
  friend Bounded operator-(Bounded a) { return {-a.value, a.bar}; }
  friend Bounded operator*(Bounded a, Bounded b) { return {a.value * b.value, a.bar * b.bar}; }
  friend Bounded operator/(Bounded a, Bounded b) {
    const long double v = a.value / b.value;
    return {v, a.bar / std::abs(b.value) + std::abs(v) * b.bar / std::abs(b.value)};
  }
  Bounded& operator+=(Bounded b) { return *this = *this + b; }
  friend Bounded exp(Bounded a) {
    const long double v = std::exp(a.value);
    return {v, v * (1 + a.bar)};
  }
  friend Bounded log(Bounded a) {
    const long double v = std::log(a.value);
    return {v, std::abs(v) + a.bar / std::abs(a.value)};
  }
};

/// A number with its derivative along one direction: exact gradients without a step size.
template <class R>
struct Dual {
  R value = R(0), slope = R(0);

  Dual() = default;
  template <class T>
  requires std::is_arithmetic_v<T> Dual(T v) : value(v) {}
  Dual(R v, R s) : value(v), slope(s) {}

  friend Dual operator+(Dual a, Dual b) { return {a.value + b.value, a.slope + b.slope}; }
  friend Dual operator-(Dual a, Dual b) { return {a.value - b.value, a.slope - b.slope}; }
  friend Dual operator-(Dual a) { return {-a.value, -a.slope}; }
  friend Dual operator*(Dual a, Dual b) { return {a.value * b.value, a.slope * b.value + a.value * b.slope}; }
  friend Dual operator/(Dual a, Dual b) {
    const R quotient = a.value / b.value;
    return {quotient, (a.slope - quotient * b.slope) / b.value};
  }
  Dual& operator+=(Dual b) { return *this = *this + b; }
  friend Dual exp(Dual a) {
    using std::exp;
    const R v = exp(a.value);
    return {v, v * a.slope};
  }
  friend Dual log(Dual a) {
    using std::log;
    return {log(a.value), a.slope / a.value};
  }
};

/// The plain number behind a scalar of the references.
inline long double plain(long double a) { return a; }
inline long double plain(const Bounded& a) { return a.value; }
template <class R>
long double plain(const Dual<R>& a) {
  return plain(a.value);
}

/// Largest error in units of what is allowed: a test passes at 1 or less. Counts what it sees, so that a
/// comparison of zeros with zeros does not pass for one. NaN counts as infinitely wrong.
class Worst {
 public:
  template <class S>
  void see(S got, const Bounded& wanted, double gate = forward_gate) {
    const long double allowed =
        gate * unit<S> * wanted.bar + 1000 * static_cast<long double>(std::numeric_limits<S>::denorm_min());
    const long double ratio = std::abs(static_cast<long double>(got) - wanted.value) / allowed;
    ratio_ = ratio <= 1e30L ? std::max(ratio_, static_cast<double>(ratio)) : 1e30;
    ++seen_;
    if (got != 0) ++nonzero_;
  }
  double ratio() const { return ratio_; }
  /// At least 70 % of the results are not zero: the test was able to fail.
  bool trusted() const { return seen_ > 0 && 10 * nonzero_ >= 7 * seen_; }
  bool nothing_but_zeros() const { return nonzero_ == 0; }

 private:
  double ratio_ = 0;
  long seen_ = 0, nonzero_ = 0;
};

}  // namespace moxie::test
