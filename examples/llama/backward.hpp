// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <vector>

#include "forward.hpp"

namespace llama {

/// Negative log likelihood in nats over the counted targets.
struct Loss {
  double sum = 0;
  Index count = 0;

  double mean() const { return count > 0 ? sum / double(count) : 0; }
  Loss& operator+=(const Loss& other) {
    sum += other.sum;
    count += other.count;
    return *this;
  }
};

/// The loss of each sequence (target -1: not counted), and in `dlogits`, if given, the gradient of the mean
/// over the counted targets of the whole batch: (softmax - onehot) / count.
template <class S>
std::vector<Loss> cross_entropy(const State<S>& state, std::span<const int> targets,
                                Matrix<S>* dlogits = nullptr) {
  const Index n = state.pass.seq, vocab = state.logits.cols();
  detail::wants(static_cast<Index>(targets.size()) == state.logits.rows(), "targets",
                static_cast<Index>(targets.size()), std::to_string(state.logits.rows()));
  Index count = 0;
  for (const int target : targets) {
    detail::wants(target >= -1 && target < vocab, "target", target, "-1 to " + std::to_string(vocab - 1));
    count += target >= 0;
  }
  if (dlogits) dlogits->resize(state.logits.rows(), vocab);
  std::vector<Loss> losses(static_cast<std::size_t>(state.pass.rows));
  for_blocks(state.pass.rows, state.pass.threads, [&](Index s, int) {
    std::vector<S> p(static_cast<std::size_t>(vocab));
    for (Index t = s * n; t < (s + 1) * n; ++t) {
      const int target = targets[static_cast<std::size_t>(t)];
      if (target >= 0) {
        const S* z = state.logits.data() + t * vocab;
        std::copy_n(z, vocab, p.data());
        const double total = softmax(p.data(), vocab, vocab);
        losses[static_cast<std::size_t>(s)] += {total - double(z[target]), 1};
      }
      if (!dlogits) continue;
      S* d = dlogits->data() + t * vocab;
      const S weight = target >= 0 ? S(1) / S(count) : S(0);
      for (Index j = 0; j < vocab; ++j) d[j] = target >= 0 ? p[static_cast<std::size_t>(j)] * weight : S(0);
      if (target >= 0) d[target] -= weight;
    }
  });
  return losses;
}

inline Loss total(const std::vector<Loss>& losses) {
  Loss sum;
  for (const Loss& loss : losses) sum += loss;
  return sum;
}

/// Scratch of backward; the caller keeps it, so that nothing is allocated twice.
template <class S>
struct Gradients {
  Matrix<S> above, middle, below, norm, q, k, v, att, h, gate, up, swap, norm_weights;
  std::vector<Matrix<S>> scratch;  ///< one for each thread
};

namespace detail {

/// dw += dyᵀ x for every linear, in blocks of rows of dw that depend on shapes alone: one sum over all tokens
/// each.
template <class S>
struct WeightGradients {
  struct Part {
    const Matrix<S>*x, *dy;
    Index first, count;
    Out<S> dw;
  };
  std::vector<Part> parts;

  void plan(const Matrix<S>& x, const Matrix<S>& dy, S* dw) {
    constexpr Index block = 64;
    for (Index first = 0; first < dy.cols(); first += block) {
      const Index count = std::min(block, dy.cols() - first);
      parts.push_back({&x, &dy, first, count, view(dw + first * x.cols(), count, x.cols())});
    }
  }
  void run(int threads) {
    for_blocks(static_cast<Index>(parts.size()), threads, [&](Index i, int) {
      const Part& p = parts[static_cast<std::size_t>(i)];
      multiply_transposed<S>(part(*p.dy, 0, p.dy->rows(), p.first, p.count), view(*p.x), p.dw, Put::add);
    });
    parts.clear();
  }
};

}  // namespace detail

/// From the gradient of the logits to that of every hook and, where `dweights` is not empty, of the weights
/// (Layout's order, accumulated). `state` is what forward left with `Pass::training`.
template <class S, HooksFor<S> H>
void backward(const Model<S>& model, const State<S>& state, const Matrix<S>& dlogits, Gradients<S>& g,
              H& hooks, std::span<S> dweights = {}) {
  const Config& c = model.config;
  const Pass& pass = state.pass;
  const Index n = pass.seq, T = pass.rows * n, d = c.dim;
  const bool wanted = !dweights.empty();
  detail::wants(pass.training && static_cast<Index>(state.layers.size()) == c.layers, "layers of the state",
                static_cast<Index>(state.layers.size()), "a forward pass for training");
  detail::wants(dlogits.rows() == T && dlogits.cols() == c.vocab, "rows of dlogits", dlogits.rows(),
                std::to_string(T));
  detail::wants(!wanted || dweights.size() == model.size(), "dweights", static_cast<Index>(dweights.size()),
                std::to_string(model.size()));

  const Hooked<S, H> hook{hooks, pass};
  const auto each = [&](auto&& f) { for_blocks(pass.rows, pass.threads, f); };
  const auto rows = [n](Matrix<S>& m, Index s) { return part(m, s * n, n); };
  const auto seen = [n](const Matrix<S>& m, Index s) { return part(m, s * n, n); };
  const auto gradient = [&](Weight w, Index layer) {
    return dweights.data() + model.layout.offset(w, layer);
  };
  detail::WeightGradients<S> weights;

  g.scratch.resize(static_cast<std::size_t>(std::max(1, pass.threads)));
  for (Matrix<S>* m : {&g.above, &g.middle, &g.below, &g.norm, &g.q, &g.att}) m->resize(T, d);
  for (Matrix<S>* m : {&g.k, &g.v}) m->resize(T, c.kv_dim());
  for (Matrix<S>* m : {&g.h, &g.gate, &g.up}) m->resize(T, c.hidden);

  // Through a norm into the residual stream: out = residual + dnorm/dx(g.norm).
  const auto through_norm = [&](Weight w, Index layer, const Matrix<S>& x, const std::vector<S>& r,
                                const Matrix<S>* residual, Matrix<S>& out) {
    if (wanted) g.norm_weights.setZero(pass.rows, d);
    each([&](Index s, int) {
      rms_norm_backward<S>(seen(x, s), model.weight(w, layer).data(), &r[static_cast<std::size_t>(s * n)],
                           seen(g.norm, s), residual ? seen(*residual, s) : read_only(nothing<S>()),
                           rows(out, s), wanted ? row<S>(view(g.norm_weights), s) : nullptr);
    });
    if (wanted)
      for (Index s = 0; s < pass.rows; ++s) view(gradient(w, layer), 1, d) += g.norm_weights.row(s);
  };

  each([&](Index s, int) { multiply<S>(seen(dlogits, s), model.weight(Weight::head), rows(g.norm, s)); });
  through_norm(Weight::norm_out, 0, state.x, state.r, nullptr, g.above);
  if (wanted) weights.plan(state.norm, dlogits, gradient(Weight::head, 0));

  for (Index l = c.layers - 1; l >= 0; --l) {
    const LayerState<S>& a = state.layers[static_cast<std::size_t>(l)];
    const Matrix<S>& gated = hook.has(l, Site::gated) ? a.gated_scaled : a.gated;
    const Matrix<S>& h = hook.has(l, Site::down_input) ? a.h_scaled : a.h;

    each([&](Index s, int) { multiply<S>(seen(g.above, s), model.weight(Weight::down, l), rows(g.h, s)); });
    hook.add_backward(l, Site::down, h, g.above, view(g.h));
    hook.scale_backward(l, Site::down_input, a.h, g.h, g.swap);
    // h = gated * up, gated = x sigma:  dx = dgated (sigma + gated (1 - sigma)).
    each([&](Index s, int) {
      rows(g.gate, s) = seen(g.h, s).cwiseProduct(seen(a.up, s));
      rows(g.up, s) = seen(g.h, s).cwiseProduct(seen(gated, s));
    });
    hook.scale_backward(l, Site::gated, a.gated, g.gate, g.swap);
    each([&](Index s, int) {
      const In<S> sigma = seen(a.sigma, s);
      rows(g.gate, s).array() *= sigma.array() + seen(a.gated, s).array() * (S(1) - sigma.array());
      multiply<S>(seen(g.gate, s), model.weight(Weight::gate, l), rows(g.norm, s));
      multiply<S>(seen(g.up, s), model.weight(Weight::up, l), rows(g.norm, s), Put::add);
    });
    hook.add_backward(l, Site::gate, a.norm_ffn, g.gate, view(g.norm));
    hook.add_backward(l, Site::up, a.norm_ffn, g.up, view(g.norm));
    through_norm(Weight::norm_ffn, l, a.mid, a.r_ffn, &g.above, g.middle);

    each([&](Index s, int) { multiply<S>(seen(g.middle, s), model.weight(Weight::o, l), rows(g.att, s)); });
    hook.add_backward(l, Site::o, a.att, g.middle, view(g.att));
    const Matrix<S>& key = hook.has(l, Site::key) ? a.key : a.k;
    const Matrix<S>& value = hook.has(l, Site::value) ? a.value : a.v;
    each([&](Index s, int thread) {
      attention_backward<S>(c, seen(a.q, s), seen(key, s), seen(value, s), seen(a.att, s), seen(g.att, s),
                            rows(g.q, s), rows(g.k, s), rows(g.v, s),
                            g.scratch[static_cast<std::size_t>(thread)]);
      rotate<S>(rows(g.q, s), state.rotary, -1);
      rotate<S>(rows(g.k, s), state.rotary, -1);
    });
    hook.scale_backward(l, Site::key, a.k, g.k, g.swap);
    hook.scale_backward(l, Site::value, a.v, g.v, g.swap);

    const bool further = l > 0 || wanted;
    if (further)
      each([&](Index s, int) {
        multiply<S>(seen(g.q, s), model.weight(Weight::q, l), rows(g.norm, s));
        multiply<S>(seen(g.k, s), model.weight(Weight::k, l), rows(g.norm, s), Put::add);
        multiply<S>(seen(g.v, s), model.weight(Weight::v, l), rows(g.norm, s), Put::add);
      });
    const Out<S> dx = further ? view(g.norm) : nothing<S>();
    hook.add_backward(l, Site::q, a.norm_att, g.q, dx);
    hook.add_backward(l, Site::k, a.norm_att, g.k, dx);
    hook.add_backward(l, Site::v, a.norm_att, g.v, dx);
    if (!further) break;
    through_norm(Weight::norm_att, l, a.x, a.r_att, &g.middle, g.below);

    if (wanted) {
      weights.plan(h, g.above, gradient(Weight::down, l));
      weights.plan(a.norm_ffn, g.gate, gradient(Weight::gate, l));
      weights.plan(a.norm_ffn, g.up, gradient(Weight::up, l));
      weights.plan(a.att, g.middle, gradient(Weight::o, l));
      weights.plan(a.norm_att, g.q, gradient(Weight::q, l));
      weights.plan(a.norm_att, g.k, gradient(Weight::k, l));
      weights.plan(a.norm_att, g.v, gradient(Weight::v, l));
      weights.run(pass.threads);
    }
    g.above.swap(g.below);
  }
  if (wanted)
    for (Index t = 0; t < T; ++t)
      view(gradient(Weight::embed, 0) + state.tokens[static_cast<std::size_t>(t)] * d, 1, d) +=
          g.above.row(t);
}

}  // namespace llama
