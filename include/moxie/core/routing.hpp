// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/params.hpp>

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moxie::inline MOXIE_ABI {

/// Which experts serve which token, and how strongly: all that experts, routers and losses know of each
/// other. A row is a token, or a head of a token (token-major) where `rows_per_token` > 1. The gradient of a
/// routing is a Routing too; there an empty buffer means zero, and `chosen` and `count` are unused.
template <Scalar S>
struct Routing {
  Index rows = 0, experts = 0, rows_per_token = 1;
  Index max_chosen = 0;   ///< row length of `chosen`
  Buffer<S> logits;       ///< [rows, experts] what the softmax sees, without noise
  Buffer<S> probs;        ///< [rows, experts] softmax over all experts
  Buffer<S> gates;        ///< [rows, experts] weights of the experts; exactly 0 where not chosen
  Buffer<S> noisy;        ///< [rows, experts] logits with noise, in training of a noisy router; else empty
  Buffer<S> noise_scale;  ///< [rows, experts] standard deviation of that noise; else empty
  Buffer<int> chosen;     ///< [rows, max_chosen] experts in ascending order, `count` of them per row
  Buffer<int> count;      ///< [rows]

  Index size() const { return rows * experts; }
  std::size_t bytes() const {
    return (logits.size() + probs.size() + gates.size() + noisy.size() + noise_scale.size()) * sizeof(S) +
           (chosen.size() + count.size()) * sizeof(int);
  }
  Index tokens() const { return rows / rows_per_token; }

  /// Sizes everything for a call; allocates only when larger than ever before.
  void resize(Index tokens, Index experts_, Index rows_per_token_, Index max_chosen_,
              bool with_noise = false) {
    rows = detail::checked_product("routing rows", tokens, rows_per_token_);
    experts = experts_;
    rows_per_token = rows_per_token_;
    max_chosen = max_chosen_;
    const auto n = static_cast<std::size_t>(detail::checked_product("routing", rows, experts));
    logits.resize(n);
    probs.resize(n);
    gates.resize(n);
    noisy.resize(with_noise ? n : 0);
    noise_scale.resize(with_noise ? n : 0);
    chosen.resize(static_cast<std::size_t>(detail::checked_product("routing choices", rows, max_chosen)));
    count.resize(static_cast<std::size_t>(rows));
  }

  /// Makes this a zero gradient of `forward` in the parts asked for; losses add to it.
  void zero_gradient_of(const Routing& forward) {
    rows = forward.rows;
    experts = forward.experts;
    rows_per_token = forward.rows_per_token;
    max_chosen = 0;
    for (Buffer<S>* part : {&logits, &probs, &gates, &noisy, &noise_scale}) part->clear();
  }

  /// The part of a gradient, made zero when it was absent.
  Buffer<S>& part(Buffer<S> Routing::*which) {
    Buffer<S>& buffer = this->*which;
    if (buffer.empty()) buffer.assign(static_cast<std::size_t>(size()), S(0));
    return buffer;
  }

  const S* gate_row(Index row) const { return gates.data() + row * experts; }
  S* gate_row(Index row) { return gates.data() + row * experts; }
  const int* chosen_row(Index row) const { return chosen.data() + row * max_chosen; }

  /// Chooses all experts in every row, as soft routing does.
  void choose_all(Index row) {
    for (Index e = 0; e < experts; ++e)
      chosen[static_cast<std::size_t>(row * max_chosen + e)] = static_cast<int>(e);
    count[static_cast<std::size_t>(row)] = static_cast<int>(experts);
  }
};

namespace detail {

/// Refuses a routing of another shape, or whose buffers do not have the sizes of its shape.
template <Scalar S>
void expect_routing(std::string_view what, const Routing<S>& routing, Index rows, Index experts,
                    Index rows_per_token) {
  const auto shape = [](Index r, Index e, Index heads) {
    return shape_text(r, e) + " with " + text(heads) + " rows per token";
  };
  if (routing.rows != rows || routing.experts != experts || routing.rows_per_token != rows_per_token)
    fail(Code::shape_mismatch, std::string(what) + " is " +
                                   shape(routing.rows, routing.experts, routing.rows_per_token) +
                                   ", wanted " + shape(rows, experts, rows_per_token));
  const auto part = [&](const char* name, std::size_t got, Index wanted, bool may_lack) {
    if (got != static_cast<std::size_t>(wanted) && (got != 0 || !may_lack))
      expect_size(std::string(what) + "'s " + name, got, wanted);
  };
  part("gates", routing.gates.size(), routing.size(), false);
  part("count", routing.count.size(), routing.rows, false);
  part("chosen", routing.chosen.size(), routing.rows * routing.max_chosen, false);
  part("logits", routing.logits.size(), routing.size(), true);
  part("probs", routing.probs.size(), routing.size(), true);
  part("noisy", routing.noisy.size(), routing.size(), true);
  part("noise_scale", routing.noise_scale.size(), routing.noisy.empty() ? 0 : routing.size(), false);
}

/// f(expert) for the chosen experts of a row, ascending.
template <Scalar S, class F>
void for_chosen(const Routing<S>& routing, Index row, F&& f) {
  const int* const chosen = routing.chosen_row(row);
  for (int j = 0; j < routing.count[static_cast<std::size_t>(row)]; ++j) f(static_cast<Index>(chosen[j]));
}

/// The rows of a call or of a tile sorted by expert: those of expert e are lists[lists[e]] up to
/// lists[lists[e + 1]], ascending, counted from `first`.
struct ByExpert {
  const int* lists;
  std::span<const int> operator[](Index e) const {
    return {lists + lists[e], static_cast<std::size_t>(lists[e + 1] - lists[e])};
  }
  static Index size(Index rows, Index experts, Index chosen) { return experts + 2 + rows * chosen; }
};

/// A counting sort into `lists` of ByExpert::size integers.
template <Scalar S>
ByExpert sort_by_expert(const Routing<S>& routing, Index first, Index rows, int* lists) {
  const Index experts = routing.experts;
  int* const end = lists + 1;  // while rows are dealt out, end[e] is where expert e's next row goes
  std::fill_n(lists, experts + 2, 0);
  for (Index t = 0; t < rows; ++t) for_chosen(routing, first + t, [&](Index e) { ++end[e + 1]; });
  end[0] = static_cast<int>(experts) + 2;
  for (Index e = 0; e < experts; ++e) end[e + 1] += end[e];
  for (Index t = 0; t < rows; ++t)
    for_chosen(routing, first + t, [&](Index e) { lists[end[e]++] = static_cast<int>(t); });
  lists[0] = static_cast<int>(experts) + 2;
  return {lists};
}

}  // namespace detail

/// What a balance loss needs to know of the batch beyond its routing.
struct Batch {
  std::vector<Index> samples = {};  ///< first token of each sample, and the number of tokens behind the last
  std::vector<char> mask = {};      ///< per token: 1 counts, 0 is padding; empty: all count
  std::vector<int> types = {};      ///< per sample: its group (LoRAMoE's task type); empty where no loss asks
};

}  // namespace moxie::inline MOXIE_ABI
