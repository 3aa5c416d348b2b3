// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention.hpp"
#include "hooks.hpp"
#include "model.hpp"
#include "parallel.hpp"

namespace llama {

/// What forward leaves of one layer, each [T, features]. `key`, `value`, `gated_scaled`, `h_scaled` are
/// filled where a multiplicative hook is; the rotated keys are in `key` then, else in `k`.
template <class S>
struct LayerState {
  Matrix<S> x, norm_att, q, k, v, key, value, att, mid, norm_ffn, sigma, gated, gated_scaled, up, h, h_scaled;
  std::vector<S> r_att, r_ffn;
};

/// What forward leaves for backward and for the next call; the caller keeps it, so that nothing is allocated
/// twice. Without `Pass::training` one layer's room serves all.
template <class S>
struct State {
  Pass pass;
  std::vector<int> tokens;
  std::vector<LayerState<S>> layers;
  Matrix<S> rotary, branch, x, norm, logits;
  std::vector<S> r;
  std::vector<Matrix<S>> scratch;  ///< one for each thread
};

/// Keys and values of the positions so far: for each layer [rows * capacity, kv_dim].
template <class S>
struct KeyValues {
  Index rows = 0, capacity = 0, length = 0;
  std::vector<Matrix<S>> keys, values;

  KeyValues(const Config& c, Index rows_, Index capacity_)
      : rows(rows_), capacity(capacity_), keys(static_cast<std::size_t>(c.layers)), values(keys.size()) {
    for (Matrix<S>& m : keys) m.resize(rows * capacity, c.kv_dim());
    for (Matrix<S>& m : values) m.resize(rows * capacity, c.kv_dim());
  }
};

namespace detail {

inline void wants(bool ok, const char* what, Index got, const std::string& wanted) {
  if (!ok)
    throw std::runtime_error(std::string("llama: ") + what + ": got " + std::to_string(got) + ", wanted " +
                             wanted);
}

template <class S>
void prepare(const Config& c, std::span<const int> tokens, const Pass& pass, State<S>& state,
             const KeyValues<S>* past) {
  const Index T = pass.rows * pass.seq, d = c.dim, kv = c.kv_dim();
  const Index end = past ? std::min(past->capacity, c.context) : c.context;
  wants(pass.rows > 0, "rows", pass.rows, "at least 1");
  wants(pass.seq > 0 && pass.first >= 0 && pass.first <= end - pass.seq, "positions", pass.first + pass.seq,
        "1 to " + std::to_string(end));
  wants(static_cast<Index>(tokens.size()) == T, "tokens", static_cast<Index>(tokens.size()),
        std::to_string(T));
  wants(pass.first == (past ? past->length : 0), "first", pass.first, "the number of positions before");
  wants(!past || (past->rows == pass.rows && !pass.training), "rows of the cache", past ? past->rows : 0,
        "as in the pass, for inference");
  for (const int token : tokens)
    wants(token >= 0 && token < c.vocab, "token", token, "0 to " + std::to_string(c.vocab - 1));

  state.tokens.assign(tokens.begin(), tokens.end());
  state.layers.resize(pass.training ? static_cast<std::size_t>(c.layers) : 1);
  for (LayerState<S>& a : state.layers) {
    for (Matrix<S>* m : {&a.x, &a.norm_att, &a.q, &a.att, &a.mid, &a.norm_ffn}) m->resize(T, d);
    for (Matrix<S>* m : {&a.k, &a.v}) m->resize(T, kv);
    for (Matrix<S>* m : {&a.sigma, &a.gated, &a.up, &a.h}) m->resize(T, c.hidden);
    for (std::vector<S>* r : {&a.r_att, &a.r_ffn}) r->resize(static_cast<std::size_t>(T));
  }
  for (Matrix<S>* m : {&state.branch, &state.x, &state.norm}) m->resize(T, d);
  state.logits.resize(T, c.vocab);
  state.r.resize(static_cast<std::size_t>(T));
  state.scratch.resize(static_cast<std::size_t>(std::max(1, pass.threads)));
  if (state.rotary.rows() != pass.seq || state.rotary.cols() != c.head_dim() ||
      state.pass.first != pass.first) {
    state.rotary.resize(pass.seq, c.head_dim());
    rotary_table(pass.first, state.rotary);
  }
  state.pass = pass;
}

}  // namespace detail

/// Logits [rows * seq, vocab] of `tokens` [rows * seq], which stand at the positions from `pass.first`; with
/// `past` the positions before are read from there and these are added. Throws std::runtime_error for sizes
/// that do not fit.
template <class S, HooksFor<S> H>
const Matrix<S>& forward(const Model<S>& model, std::span<const int> tokens, const Pass& pass,
                         State<S>& state, H& hooks, KeyValues<S>* past = nullptr) {
  const Config& c = model.config;
  detail::prepare(c, tokens, pass, state, past);
  const Hooked<S, H> hook{hooks, pass};
  const Index n = pass.seq;
  const auto each = [&](auto&& f) { for_blocks(pass.rows, pass.threads, f); };
  const auto rows = [n](Matrix<S>& m, Index s) { return part(m, s * n, n); };
  const auto seen = [n](const Matrix<S>& m, Index s) { return part(m, s * n, n); };
  Matrix<S>& branch = state.branch;

  for (Index l = 0; l < c.layers; ++l) {
    const std::size_t room = pass.training ? static_cast<std::size_t>(l) : 0;
    LayerState<S>& a = state.layers[room];
    const LayerState<S>& below = state.layers[room > 0 ? room - 1 : 0];
    each([&](Index s, int) {
      Out<S> x = rows(a.x, s);
      if (l == 0)
        for (Index t = 0; t < n; ++t)
          x.row(t) = model.weight(Weight::embed).row(state.tokens[static_cast<std::size_t>(s * n + t)]);
      else
        x = seen(below.mid, s) + seen(branch, s);
      rms_norm<S>(seen(a.x, s), model.weight(Weight::norm_att, l).data(), rows(a.norm_att, s),
                  &a.r_att[static_cast<std::size_t>(s * n)]);
      linear<S>(seen(a.norm_att, s), model.weight(Weight::q, l), rows(a.q, s));
      linear<S>(seen(a.norm_att, s), model.weight(Weight::k, l), rows(a.k, s));
      linear<S>(seen(a.norm_att, s), model.weight(Weight::v, l), rows(a.v, s));
    });
    hook.add(l, Site::q, a.norm_att, a.q);
    hook.add(l, Site::k, a.norm_att, a.k);
    hook.add(l, Site::v, a.norm_att, a.v);
    Matrix<S>& key = hook.scale(l, Site::key, a.k, a.key);
    Matrix<S>& value = hook.scale(l, Site::value, a.v, a.value);

    each([&](Index s, int thread) {
      rotate<S>(rows(a.q, s), state.rotary, 1);
      rotate<S>(rows(key, s), state.rotary, 1);
      In<S> k = seen(key, s), v = seen(value, s);
      if (past) {
        const std::size_t layer = static_cast<std::size_t>(l);
        const Index start = s * past->capacity;
        part(past->keys[layer], start + pass.first, n) = k;
        part(past->values[layer], start + pass.first, n) = v;
        attention<S>(c, seen(a.q, s), part(std::as_const(past->keys[layer]), start, pass.first + n),
                     part(std::as_const(past->values[layer]), start, pass.first + n), rows(a.att, s),
                     state.scratch[static_cast<std::size_t>(thread)]);
      } else {
        attention<S>(c, seen(a.q, s), k, v, rows(a.att, s), state.scratch[static_cast<std::size_t>(thread)]);
      }
      linear<S>(seen(a.att, s), model.weight(Weight::o, l), rows(branch, s));
    });
    hook.add(l, Site::o, a.att, branch);

    each([&](Index s, int) {
      rows(a.mid, s) = seen(a.x, s) + seen(branch, s);
      rms_norm<S>(seen(a.mid, s), model.weight(Weight::norm_ffn, l).data(), rows(a.norm_ffn, s),
                  &a.r_ffn[static_cast<std::size_t>(s * n)]);
      linear<S>(seen(a.norm_ffn, s), model.weight(Weight::gate, l), rows(a.sigma, s));
      linear<S>(seen(a.norm_ffn, s), model.weight(Weight::up, l), rows(a.up, s));
    });
    hook.add(l, Site::gate, a.norm_ffn, a.sigma);
    hook.add(l, Site::up, a.norm_ffn, a.up);
    each([&](Index s, int) { silu(row<S>(rows(a.sigma, s), 0), row<S>(rows(a.gated, s), 0), n * c.hidden); });
    Matrix<S>& gated = hook.scale(l, Site::gated, a.gated, a.gated_scaled);
    each([&](Index s, int) { rows(a.h, s) = seen(gated, s).cwiseProduct(seen(a.up, s)); });
    Matrix<S>& h = hook.scale(l, Site::down_input, a.h, a.h_scaled);
    each([&](Index s, int) { linear<S>(seen(h, s), model.weight(Weight::down, l), rows(branch, s)); });
    hook.add(l, Site::down, h, branch);
  }

  each([&](Index s, int) {
    rows(state.x, s) = seen(state.layers.back().mid, s) + seen(branch, s);
    rms_norm<S>(seen(state.x, s), model.weight(Weight::norm_out).data(), rows(state.norm, s),
                &state.r[static_cast<std::size_t>(s * n)]);
    linear<S>(seen(state.norm, s), model.weight(Weight::head), rows(state.logits, s));
  });
  if (past) past->length += n;
  return state.logits;
}

template <class S>
const Matrix<S>& forward(const Model<S>& model, std::span<const int> tokens, const Pass& pass,
                         State<S>& state) {
  NoHooks none;
  return forward(model, tokens, pass, state, none);
}

}  // namespace llama
