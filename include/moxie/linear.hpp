// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/adapter.hpp>
#include <moxie/kernels/combine.hpp>
#include <moxie/kernels/dot.hpp>
#include <moxie/routers/uniform.hpp>

namespace moxie::inline MOXIE_ABI {

/// Where an adapter meets its linear layer. LoRA kinds add to the output; IA3 kinds scale either.
enum class Site { output, input };

/// What a forward of AdaptedLinear leaves for its backward.
template <Scalar S>
struct LinearCache {
  Cache<S> adapter;
  Buffer<S> activation;  ///< IA3 kinds: what was scaled (output) or the scaled input, [T, out] or [T, in]
};

/// A frozen linear layer y = x W^T + b with an adapter at its output or input. The weights stay the caller's:
/// W is [out, in], b [1, out] or empty, and both must outlive this object. The base product has the adapters'
/// promise too: a token's row does not depend on its batch or on threads.
template <Adapter Adapter_>
class AdaptedLinear {
 public:
  using Adapter = Adapter_;
  using S = typename Adapter::Scalar;

  /// Throws ShapeMismatch where the adapter does not fit W, ConfigRange for a LoRA kind at the input.
  AdaptedLinear(Adapter adapter, In<S> weight, In<S> bias = {}, Site site = Site::output)
      : adapter_(std::move(adapter)), weight_(weight), bias_(bias), site_(site) {
    detail::expect_shape("the linear layer's weight", weight, -1, -1);
    if (bias.data != nullptr) detail::expect_shape("the linear layer's bias", bias, 1, weight.rows);
    if constexpr (Adapter::multiplicative) {
      if (site == Site::output)
        detail::expect_shape("the linear layer's weight", weight, adapter_.in(), -1);
      else
        detail::expect_shape("the linear layer's weight", weight, -1, adapter_.in());
    } else {
      if (site != Site::output)
        fail(Code::config_range,
             "a LoRA adapter at the input of a linear layer, wanted Site::output (it reads the input there)");
      detail::expect_shape("the linear layer's weight", weight, adapter_.out(), adapter_.in());
    }
  }

  const Adapter& adapter() const { return adapter_; }
  Index in() const { return weight_.cols; }
  Index out() const { return weight_.rows; }

  /// y [T, out] is written from x [T, in]. Throws ShapeMismatch, Aliased.
  void forward(std::span<const S> theta, In<S> x, Out<S> y, LinearCache<S>& cache, Workspace<S>& workspace,
               const Run& run = {}) const {
    detail::expect_size("theta", theta.size(), adapter_.size());
    detail::expect_apart("y", y, "theta", detail::as_view(theta));
    run_forward(theta, x, y, cache, workspace, run);
  }
  /// The same from weights that the adapter's `prepare` packed.
  template <class W>
  void forward(const Prepared<S, W>& weights, In<S> x, Out<S> y, LinearCache<S>& cache,
               Workspace<S>& workspace, const Run& run = {}) const {
    weights.expect_of(adapter_.experts(), adapter_.router());
    run_forward(weights, x, y, cache, workspace, run);
  }

  /// Adds to dx [T, in] (empty: not wanted) and dtheta; W and b are frozen. The base's part of dx is dy W.
  void backward(std::span<const S> theta, In<S> x, In<S> dy, const LinearCache<S>& cache,
                Workspace<S>& workspace, const Run& run, Out<S> dx, std::span<S> dtheta,
                const Routing<S>& drouting = {}) const {
    detail::expect_run<S>(run);
    detail::expect_shape("x", x, -1, in());
    detail::expect_shape("dy", dy, x.rows, out());
    if (dx.data != nullptr) detail::expect_shape("dx", dx, x.rows, in());
    const In<S> d = detail::as_view(dtheta);
    detail::expect_apart("dx", dx, "x", x, "dy", dy, "theta", detail::as_view(theta), "the layer's weight",
                         weight_);
    detail::expect_apart("dtheta", d, "dx", dx, "x", x, "the layer's weight", weight_);
    if (cache.adapter.tokens >= 0 && cache.adapter.tokens != x.rows)
      fail(Code::state_error, "backward of " + detail::text(x.rows) + " tokens with the cache of " +
                                  detail::text(cache.adapter.tokens));
    if constexpr (!Adapter::multiplicative) {
      adapter_.backward(theta, x, dy, cache.adapter, workspace, run, dx, dtheta, drouting);
      base_backward(dy, dx, run);
    } else {
      // The gradient of what lies between adapter and product.
      workspace.between.assign(static_cast<std::size_t>(x.rows * adapter_.in()), S(0));
      const Out<S> between(workspace.between.data(), x.rows, adapter_.in());
      if (site_ == Site::input) {
        base_backward(dy, between, run);
        adapter_.backward(theta, x, between, cache.adapter, workspace, run, dx, dtheta, drouting);
      } else {
        const In<S> activation(cache.activation.data(),
                               static_cast<Index>(cache.activation.size()) / adapter_.in(), adapter_.in());
        adapter_.backward(theta, activation, dy, cache.adapter, workspace, run, between, dtheta, drouting);
        base_backward(between, dx, run);
      }
    }
  }

  /// Writes the weight, and the bias where there is one, of the plain layer that equals this one: W + sum
  /// over e of s_e B_e A_e / E, or rows (output) or columns (input) of W times the vectors. Unmerging is
  /// copying W back. Throws NotMergeable where the router makes the update depend on the token, and
  /// ShapeMismatch, Aliased.
  void merge(std::span<const S> theta, Out<S> weight, Out<S> bias = {}) const {
    if constexpr (!std::same_as<typename Adapter::Router, UniformRouter<S>>) {
      fail(Code::not_mergeable,
           "a router weighs the experts token by token, so no single weight equals the layer; "
           "wanted a uniform router (plain LoRA or IA3)");
    } else {
      detail::expect_size("theta", theta.size(), adapter_.size());
      detail::expect_shape("the merged weight", weight, out(), in());
      const bool with_bias = bias_.data != nullptr || (!Adapter::multiplicative && has_bias());
      if (with_bias) detail::expect_shape("the merged bias", bias, 1, out());
      if (!detail::same_place(weight, weight_))
        detail::expect_apart("the merged weight", weight, "the layer's weight", weight_);
      detail::expect_apart("the merged weight", weight, "theta", detail::as_view(theta));
      detail::expect_apart("the merged weight", weight, "the layer's bias", bias_);
      if (with_bias) {
        detail::expect_apart("the merged bias", bias, "the merged weight", weight);
        detail::expect_apart("the merged bias", bias, "theta", detail::as_view(theta));
        detail::expect_apart("the merged bias", bias, "the layer's weight", weight_);
      }
      for (Index o = 0; o < out(); ++o) std::copy_n(weight_.row(o), in(), weight.row(o));
      for (Index o = 0; with_bias && o < out(); ++o)
        bias.data[o] = bias_.data == nullptr ? S(0) : bias_.data[o];
      if constexpr (Adapter::multiplicative)
        merge_vectors(theta, weight, with_bias ? bias : Out<S>());
      else
        merge_lora(theta, weight, bias);
    }
  }

 private:
  bool has_bias() const {
    if constexpr (Adapter::multiplicative)
      return false;
    else
      return adapter_.experts().config().bias;
  }

  template <class Weights>
  void run_forward(const Weights& weights, In<S> x, Out<S> y, LinearCache<S>& cache, Workspace<S>& workspace,
                   const Run& run) const {
    detail::expect_run<S>(run);
    detail::expect_shape("x", x, -1, in());
    detail::expect_shape("y", y, x.rows, out());
    detail::expect_apart("y", y, "x", x, "the layer's weight", weight_, "the layer's bias", bias_);
    // A bad given routing is refused before y is written.
    adapter_.router().prepare(cache.adapter.routing, x.rows, run);
    if constexpr (!Adapter::multiplicative) {
      base(x, y, run);
      adapter_.forward(weights, x, y, cache.adapter, workspace, run);
    } else {
      const Out<S> activation = activation_of(cache, x.rows);
      if (site_ == Site::input) {
        adapter_.forward(weights, x, activation, cache.adapter, workspace, run);
        base(activation, y, run);
      } else {
        base(x, activation, run);
        adapter_.forward(weights, activation, y, cache.adapter, workspace, run);
      }
    }
  }

  Out<S> activation_of(LinearCache<S>& cache, Index tokens) const {
    cache.activation.resize(static_cast<std::size_t>(tokens * adapter_.in()));
    return {cache.activation.data(), tokens, adapter_.in()};
  }

  /// y = x W^T + b
  void base(In<S> x, Out<S> y, const Run& run) const {
    for_tiles(x.rows, most_tile<S>(in() + out(), in() * out()), team(x.rows, in() * out(), run.threads),
              [&](Index first, Index rows, int) {
                kernels::dot(x.middle_rows(first, rows), kernels::Panels<S>(weight_),
                             y.middle_rows(first, rows));
                for (Index t = first; bias_.data != nullptr && t < first + rows; ++t)
                  for (Index o = 0; o < out(); ++o) y.row(t)[o] += bias_.data[o];
              });
  }

  /// dx += dy W
  void base_backward(In<S> dy, Out<S> dx, const Run& run) const {
    if (dx.empty()) return;
    for_tiles(dy.rows, most_tile<S>(in() + out(), in() * out()), team(dy.rows, in() * out(), run.threads),
              [&](Index first, Index rows, int) {
                kernels::combine(kernels::Into::add, {dy.row(first), dy.stride, 1},
                                 kernels::Panels<S>(weight_), dx.middle_rows(first, rows));
              });
  }

  void merge_lora(std::span<const S> theta, Out<S> weight, Out<S> bias) const {
    const auto& bank = adapter_.experts();
    const S* const a = theta.data();
    const S* const b = a + bank.total_rank() * bank.in();
    const S* const biases = b + bank.total_rank() * bank.out();
    const S gate = S(1) / static_cast<S>(bank.experts());
    Buffer<S> c(static_cast<std::size_t>(bank.total_rank() * out()));  // (scale gate) B, [R, out]
    for (Index e = 0; e < bank.experts(); ++e)
      for (Index j = bank.begin(e); j < bank.begin(e + 1); ++j)
        for (Index o = 0; o < out(); ++o)
          c[static_cast<std::size_t>(j * out() + o)] = (bank.scale(e) * gate) * b[j * out() + o];
    kernels::combine(kernels::Into::add, {c.data(), 1, out()},
                     kernels::Panels<S>(a, bank.total_rank(), in(), in()), weight);
    if (!has_bias()) return;
    Buffer<S> gates;
    for (Index e = 0; e < bank.experts(); ++e) gates.push_back(bank.scale(e) * gate);
    kernels::combine(kernels::Into::add, {gates.data(), bank.experts(), 1},
                     kernels::Panels<S>(biases, bank.experts(), out(), out()), Out<S>(bias.data, 1, out()));
  }

  void merge_vectors(std::span<const S> theta, Out<S> weight, Out<S> bias) const {
    const auto& bank = adapter_.experts();
    const Index heads = bank.rows_per_token(), d = bank.in() / heads, experts = bank.experts();
    Buffer<S> s(static_cast<std::size_t>(bank.in())),
        gates(static_cast<std::size_t>(experts), S(1) / static_cast<S>(experts));
    for (Index h = 0; h < heads; ++h)
      kernels::combine(kernels::Into::set, {gates.data(), experts, 1},
                       kernels::Panels<S>(theta.data() + h * experts * d, experts, d, d),
                       Out<S>(s.data() + h * d, 1, d));
    for (Index o = 0; o < out(); ++o)
      for (Index i = 0; i < in(); ++i)
        weight.row(o)[i] *= s[static_cast<std::size_t>(site_ == Site::output ? o : i)];
    if (site_ == Site::input || bias.data == nullptr) return;
    for (Index o = 0; o < out(); ++o) bias.data[o] *= s[static_cast<std::size_t>(o)];
  }

  Adapter adapter_;
  In<S> weight_, bias_;
  Site site_;
};

}  // namespace moxie::inline MOXIE_ABI
