// SPDX-License-Identifier: MIT
#pragma once

#include "config.hpp"
#include "ops.hpp"

/// Causal grouped-query attention of one sequence: q [n, heads * head_dim] at the positions [m - n, m),
/// k and v [m, kv_heads * head_dim], one head after the other.
namespace llama {

/// p [n, m] = softmax of the causal scores of one head, zero after the diagonal.
template <class S>
void attention_weights(In<S> q, In<S> k, Out<S> p) {
  const Index n = q.rows(), m = k.rows();
  linear<S>(q, k, p);
  const S scale = S(1) / std::sqrt(S(q.cols()));
  for (Index i = 0; i < n; ++i) softmax(row<S>(p, i), m - n + i + 1, m, scale);
}

/// y = p v for every head. `scratch` grows to hold p.
template <class S>
void attention(const Config& c, In<S> q, In<S> k, In<S> v, Out<S> y, Matrix<S>& scratch) {
  const Index n = q.rows(), m = k.rows(), hd = c.head_dim(), group = c.heads / c.kv_heads;
  if (scratch.size() < n * m) scratch.resize(2 * n, m);
  const Out<S> p = view(scratch.data(), n, m);
  for (Index h = 0; h < c.heads; ++h) {
    const Index qc = h * hd, kc = h / group * hd;
    attention_weights<S>(part(q, 0, n, qc, hd), part(k, 0, m, kc, hd), p);
    multiply<S>(read_only(p), part(v, 0, m, kc, hd), part(y, 0, n, qc, hd));
  }
}

/// ds = p (dy vᵀ - y·dy) scale;  dq = ds k, dk = dsᵀ q, dv = pᵀ dy, summed over the query heads of a group.
/// The weights p are computed again: that is cheaper than keeping them.
template <class S>
void attention_backward(const Config& c, In<S> q, In<S> k, In<S> v, In<S> y, In<S> dy, Out<S> dq, Out<S> dk,
                        Out<S> dv, Matrix<S>& scratch) {
  const Index n = q.rows(), hd = c.head_dim(), group = c.heads / c.kv_heads;
  if (scratch.size() < 2 * n * n) scratch.resize(2 * n, n);
  const Out<S> p = view(scratch.data(), n, n), ds = view(scratch.data() + n * n, n, n);
  const S scale = S(1) / std::sqrt(S(hd));
  for (Index h = 0; h < c.heads; ++h) {
    const Index qc = h * hd, kc = h / group * hd;
    const Put put = h % group == 0 ? Put::set : Put::add;
    const In<S> qh = part(q, 0, n, qc, hd), kh = part(k, 0, n, kc, hd), dyh = part(dy, 0, n, qc, hd);
    attention_weights<S>(qh, kh, p);
    multiply_transposed<S>(read_only(p), dyh, part(dv, 0, n, kc, hd), put);
    linear<S>(dyh, part(v, 0, n, kc, hd), ds);
    for (Index i = 0; i < n; ++i) {
      const S mean = dot(row<S>(y, i) + qc, row<S>(dy, i) + qc, hd);
      S* d = row<S>(ds, i);
      for (Index j = 0; j < n; ++j) d[j] = p(i, j) * (d[j] - mean) * scale;
    }
    multiply<S>(read_only(ds), kh, part(dq, 0, n, qc, hd));
    multiply_transposed<S>(read_only(ds), qh, part(dk, 0, n, kc, hd), put);
  }
}

}  // namespace llama
