// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "types.hpp"

/// The arithmetic of one sequence. Results depend on shapes and values alone, never on where a buffer lies:
/// Eigen's reductions, transcendental functions and tiny products treat the elements before the first aligned
/// one apart, so they are used on small aligned arrays only.
namespace llama {

inline constexpr int lanes = 32;
template <class S>
using Lanes = Eigen::Array<S, lanes, 1>;

/// Calls `f(i, count)` for the first element of every group of `lanes`; `count` is a constant for whole
/// groups.
template <class F>
void in_lanes(Index n, F&& f) {
  Index i = 0;
  for (; i + lanes <= n; i += lanes) f(i, std::integral_constant<Index, lanes>{});
  if (i < n) f(i, n - i);
}

/// `count` numbers from memory, the rest of the group `fill`.
template <class S>
Lanes<S> load(const S* x, Index count, S fill = 0) {
  Lanes<S> r = Lanes<S>::Constant(fill);
  std::copy_n(x, count, r.data());
  return r;
}
template <class S>
Eigen::Map<const Lanes<S>> load(const S* x, std::integral_constant<Index, lanes>, S = 0) {
  return Eigen::Map<const Lanes<S>>(x);
}
template <class S>
void store(const Lanes<S>& r, S* x, Index count) {
  std::copy_n(r.data(), count, x);
}

template <class S>
S dot(const S* a, const S* b, Index n) {
  Lanes<S> sum = Lanes<S>::Zero();
  in_lanes(n, [&](Index i, auto count) { sum += load(a + i, count) * load(b + i, count); });
  return sum.sum();
}

enum class Put { set, add };

namespace detail {

/// Eigen takes another, address-dependent way below this sum of the three sizes
/// (EIGEN_GEMM_TO_COEFFBASED_THRESHOLD).
inline constexpr Index tiny = 20;

template <class S, class A, class B>
void product(const A& a, const B& b, Out<S>& c, Put put) {
  const bool inner = c.rows() == 1 && c.cols() == 1;
  if (inner || c.rows() + c.cols() + a.cols() < tiny) {
    for (Index i = 0; i < c.rows(); ++i)
      for (Index j = 0; j < c.cols(); ++j) {
        S sum = 0;
        for (Index k = 0; k < a.cols(); ++k) sum += a(i, k) * b(k, j);
        c(i, j) = put == Put::add ? c(i, j) + sum : sum;
      }
  } else if (put == Put::add) {
    c.noalias() += a * b;
  } else {
    c.noalias() = a * b;
  }
}

}  // namespace detail

/// c = x wᵀ: a linear with weights [out, in].
template <class S>
void linear(In<S> x, In<S> w, Out<S> c, Put put = Put::set) {
  detail::product<S>(x, w.transpose(), c, put);
}
/// c = a b.
template <class S>
void multiply(In<S> a, In<S> b, Out<S> c, Put put = Put::set) {
  detail::product<S>(a, b, c, put);
}
/// c = aᵀ b, where both have one row for each token.
template <class S>
void multiply_transposed(In<S> a, In<S> b, Out<S> c, Put put = Put::set) {
  detail::product<S>(a.transpose(), b, c, put);
}

/// y = x r w, r = 1 / sqrt(mean(x²) + 1e-5), row by row; `r` is kept for backward.
template <class S>
void rms_norm(In<S> x, const S* w, Out<S> y, S* r) {
  for (Index t = 0; t < x.rows(); ++t) {
    const S* xt = row<S>(x, t);
    S* yt = row<S>(y, t);
    r[t] = S(1) / std::sqrt(dot(xt, xt, x.cols()) / S(x.cols()) + S(1e-5));
    for (Index i = 0; i < x.cols(); ++i) yt[i] = w[i] * (r[t] * xt[i]);
  }
}

/// dx = r w dy - x r³/d Σ(w dy x) + residual (may be empty);  dw += Σ_t dy x r  (dw null: not wanted).
template <class S>
void rms_norm_backward(In<S> x, const S* w, const S* r, In<S> dy, In<S> residual, Out<S> dx, S* dw) {
  const Index d = x.cols();
  for (Index t = 0; t < x.rows(); ++t) {
    const S *xt = row<S>(x, t), *dyt = row<S>(dy, t);
    S* dxt = row<S>(dx, t);
    Lanes<S> sum = Lanes<S>::Zero();
    in_lanes(d, [&](Index i, auto count) {
      sum += load(xt + i, count) * load(dyt + i, count) * load(w + i, count);
    });
    const S c = sum.sum() * r[t] * r[t] * r[t] / S(d);
    for (Index i = 0; i < d; ++i) dxt[i] = r[t] * (w[i] * dyt[i]) - c * xt[i];
    if (residual.data()) {
      const S* rest = row<S>(residual, t);
      for (Index i = 0; i < d; ++i) dxt[i] += rest[i];
    }
    if (dw)
      for (Index i = 0; i < d; ++i) dw[i] += dyt[i] * (r[t] * xt[i]);
  }
}

/// sigma = 1 / (1 + exp(-x)) in place, y = x sigma.
template <class S>
void silu(S* x, S* y, Index n) {
  in_lanes(n, [&](Index i, auto count) {
    const Lanes<S> v = load(x + i, count);
    const Lanes<S> sigma = (S(1) + (-v).exp()).inverse();
    store<S>(sigma, x + i, count);
    store<S>(v * sigma, y + i, count);
  });
}

/// Cosines and sines of the positions `[first, first + seq)`: rows of head_dim numbers, each pair (cos, sin).
template <class S>
void rotary_table(Index first, Matrix<S>& table) {
  for (Index t = 0; t < table.rows(); ++t)
    for (Index i = 0; i < table.cols(); i += 2) {
      const S angle = S(first + t) * (S(1) / std::pow(S(10000), S(i) / S(table.cols())));
      table(t, i) = std::cos(angle);
      table(t, i + 1) = std::sin(angle);
    }
}

/// Turns the pairs (2i, 2i+1) of every head; `direction` -1 turns back, which is the backward pass.
template <class S>
void rotate(Out<S> x, const Matrix<S>& table, S direction) {
  for (Index t = 0; t < x.rows(); ++t)
    for (Index head = 0; head < x.cols(); head += table.cols()) {
      S* v = row<S>(x, t) + head;
      const S* turn = &table(t, 0);
      for (Index i = 0; i < table.cols(); i += 2) {
        const S c = turn[i], s = direction * turn[i + 1], a = v[i], b = v[i + 1];
        v[i] = a * c - b * s;
        v[i + 1] = a * s + b * c;
      }
    }
}

/// x[0..n) becomes exp(scale (x - max)) / sum, x[n..width) zero. Returns log sum exp(scale x).
template <class S>
S softmax(S* x, Index n, Index width, S scale = 1) {
  const Index whole = std::min(width, (n + lanes - 1) / lanes * lanes);  // whole groups are faster
  std::fill(x + n, x + whole, std::numeric_limits<S>::lowest());
  Lanes<S> most = Lanes<S>::Constant(x[0]), sum = Lanes<S>::Zero();
  in_lanes(whole, [&](Index i, auto count) { most = most.max(load(x + i, count, x[0])); });
  const S top = most.maxCoeff();
  in_lanes(whole, [&](Index i, auto count) {
    const Lanes<S> e = ((load(x + i, count, std::numeric_limits<S>::lowest()) - top) * scale).exp();
    store<S>(e, x + i, count);
    sum += e;
  });
  const S total = sum.sum(), inverse = S(1) / total;
  for (Index i = 0; i < n; ++i) x[i] *= inverse;
  std::fill(x + n, x + width, S(0));
  return top * scale + std::log(total);
}

}  // namespace llama
