// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>
#include <utility>

#include "types.hpp"

namespace llama {

/// Where an adapter may change a layer. Additive: beside a linear, `y += f(x)`, x [T, in], y [T, out].
/// Multiplicative: `y = x * s(x)`: the keys before rotary, the values, silu(x W_gate) before its product with
/// x W_up (MoV), and that product, the input of down (IA3).
enum class Site { q, k, v, o, gate, up, down, key, value, gated, down_input };

/// What a call covers: token `t` is position `first + t % seq` of sequence `t / seq`.
struct Pass {
  Index rows = 0, seq = 0, first = 0;
  bool training = false;
  int threads = 1;
};

/// An adapter for every layer and site of the model; called for the whole batch, outside of parallel regions.
/// Backward accumulates into `dx`; an additive `dx` without data (layer 0, when nobody asks) is not wanted.
template <class H, class S>
concept HooksFor = requires(H& h, Index layer, Site site, In<S> in, Out<S> out, const Pass& pass) {
  { h.has(layer, site) } -> std::convertible_to<bool>;
  h.add(layer, site, in, out, pass);
  h.add_backward(layer, site, in, in, out, pass);
  h.scale(layer, site, in, out, pass);
  h.scale_backward(layer, site, in, in, out, pass);
};

/// The model as it is.
struct NoHooks {
  static constexpr bool has(Index, Site) { return false; }
  template <class... Args>
  static void add(const Args&...) {}
  template <class... Args>
  static void add_backward(const Args&...) {}
  template <class... Args>
  static void scale(const Args&...) {}
  template <class... Args>
  static void scale_backward(const Args&...) {}
};

/// The one place where the model calls its hooks: a site without an adapter costs nothing and copies nothing.
template <class S, HooksFor<S> H>
struct Hooked {
  H& hooks;
  const Pass& pass;

  bool has(Index layer, Site site) const { return hooks.has(layer, site); }

  /// y += f(x).
  void add(Index layer, Site site, const Matrix<S>& x, Matrix<S>& y) const {
    if (has(layer, site)) hooks.add(layer, site, view(x), view(y), pass);
  }
  /// dx += df/dx(dy).
  void add_backward(Index layer, Site site, const Matrix<S>& x, const Matrix<S>& dy, Out<S> dx) const {
    if (has(layer, site)) hooks.add_backward(layer, site, view(x), view(dy), dx, pass);
  }
  /// x * s in `scaled`, or x itself.
  Matrix<S>& scale(Index layer, Site site, Matrix<S>& x, Matrix<S>& scaled) const {
    if (!has(layer, site)) return x;
    scaled.resize(x.rows(), x.cols());
    hooks.scale(layer, site, view(std::as_const(x)), view(scaled), pass);
    return scaled;
  }
  /// Turns the gradient of x * s into that of x; `scratch` trades its memory with `d`.
  void scale_backward(Index layer, Site site, const Matrix<S>& x, Matrix<S>& d, Matrix<S>& scratch) const {
    if (!has(layer, site)) return;
    scratch.setZero(d.rows(), d.cols());
    hooks.scale_backward(layer, site, view(x), view(std::as_const(d)), view(scratch), pass);
    d.swap(scratch);
  }
};

}  // namespace llama
