// SPDX-License-Identifier: MIT
#pragma once

#include "support/naive.hpp"
#include "support/random.hpp"

#include <moxie/adapter.hpp>
#include <moxie/routers/given.hpp>

#include <cstring>
#include <functional>
#include <memory>
#include <string>

/// What the laws are checked on: adapters behind one interface, data for them, and one call that runs them.
namespace moxie::test {

/// An adapter whose type is forgotten, so that a law compiles once for all of them.
template <class S>
class ErasedAdapter {
 public:
  virtual ~ErasedAdapter() = default;
  virtual Index in() const = 0;
  virtual Index out() const = 0;
  virtual Index size() const = 0;
  virtual Index experts_size() const = 0;
  virtual Index router_in() const = 0;
  virtual bool multiplicative() const = 0;
  virtual std::vector<Field> fields() const = 0;
  virtual void init(std::span<S> theta, std::uint64_t seed) const = 0;
  virtual void forward(std::span<const S> theta, In<S> x, Out<S> y, Cache<S>& cache, Workspace<S>& workspace,
                       const Run& run, In<S> router_x) const = 0;
  virtual void backward(std::span<const S> theta, In<S> x, In<S> dy, const Cache<S>& cache,
                        Workspace<S>& workspace, const Run& run, Out<S> dx, std::span<S> dtheta,
                        const Routing<S>& drouting, In<S> router_x, Out<S> drouter_x) const = 0;
  /// The router run by itself.
  virtual void route(std::span<const S> theta, In<S> x, Routing<S>& routing, Workspace<S>& workspace,
                     const Run& run) const = 0;
  virtual void route_backward(std::span<const S> theta, In<S> x, const Routing<S>& routing,
                              Routing<S>& gradient, Workspace<S>& workspace, const Run& run, Out<S> dx,
                              std::span<S> dtheta) const = 0;
};

/// One adapter of the list, its siblings that a law compares it with, and its description for the references.
template <class S>
struct Case {
  std::string name, bank_name, router_name;
  naive::Bank bank;
  naive::Router router;
  std::shared_ptr<const ErasedAdapter<S>> adapter, dense, grouped;
  std::shared_ptr<const ErasedAdapter<S>> under_given;  ///< the same bank under a GivenRouter
  /// The adapter whose expert e is this one's expert order[e].
  std::function<std::shared_ptr<const ErasedAdapter<S>>(const std::vector<Index>& order)> permuted;

  bool given() const { return router.kind == naive::Router::Kind::given; }
  bool routes_by_weights() const { return router.size() > 0; }
  Index rows(Index tokens) const { return tokens * router.heads; }
  /// Whether training differs from evaluation.
  bool random() const {
    return bank.dropout > 0 || router.jitter > 0 || router.noise != RouterNoise::none || router.k_steps > 0;
  }
};

/// Sizes that the list is built for.
struct Sizes {
  Index in = 10, out = 7, head = 4, heads = 3;  ///< IA3: heads * head features
  Index experts = 4;                            ///< at most; what needs more is cut to fit
  Index ranks = 1;                              ///< factor of every LoRA's rank
};

/// The list of laws' cases: support/case_list.hpp.
template <class S>
std::vector<Case<S>> cases(const Sizes& sizes = {});

/// Tokens with which a call of so many weights wakes its team.
inline Index team_tokens(Index weights) { return 1 + team_work / weights; }

/// Data of a call. Everything per token is a row, so that a part of a batch is a range of rows.
template <class S>
struct Inputs {
  Buffer<S> theta;
  Matrix<S> x, dy, y;   ///< y: what an additive adapter adds to
  Matrix<S> router_x;   ///< empty: the router reads x
  Matrix<S> gates;      ///< for given routers, [T * heads, experts]
  Routing<S> drouting;  ///< gradients of losses of the routing; empty parts: none

  Index tokens() const { return x.rows(); }
};

/// Everything that a forward and a backward leave.
template <class S>
struct Outputs {
  Matrix<S> y, dx, drouter_x;
  Buffer<S> dtheta;
  Routing<S> routing, drouting;
};

/// Random data in which every number matters: nothing is at LoRA's start, where B = 0 hides all else.
template <class S>
Inputs<S> make_inputs(const Case<S>& c, Index tokens, std::uint64_t seed, bool with_router_x = false,
                      bool with_losses = false) {
  Rng rng(seed);
  Inputs<S> in;
  in.theta.resize(naive::at(c.adapter->size()));
  const double a = 1.5 / std::sqrt(static_cast<double>(c.bank.in));
  rng.fill(in.theta, -a, a);
  if (c.bank.kind == naive::Bank::Kind::ia3)
    for (std::size_t i = 0; i < naive::at(c.bank.size()); ++i) in.theta[i] += S(1);
  const double g = 3 / std::sqrt(static_cast<double>(std::max<Index>(c.router.features(), 1)));
  rng.fill(std::span(in.theta).subspan(naive::at(c.bank.size())), -g, g);
  in.x = rng.matrix<S>(tokens, c.bank.in);
  in.dy = rng.matrix<S>(tokens, c.bank.out);
  in.y = rng.matrix<S>(tokens, c.bank.out);
  if (with_router_x && c.routes_by_weights()) in.router_x = rng.matrix<S>(tokens, c.router.in);
  if (c.given()) {
    in.gates = rng.matrix<S>(c.rows(tokens), c.router.experts);
    for (Index row = 0; row < in.gates.rows(); ++row)
      for (Index e = 0; e < c.router.experts; ++e)
        if (row % 4 == 3 || (row % 4 == 1 && e % 2 == 0)) in.gates(row, e) = 0;  // some choose nothing
  }
  if (with_losses) {
    in.drouting.rows = c.rows(tokens);
    in.drouting.experts = c.router.experts;
    in.drouting.rows_per_token = c.router.heads;
    for (const auto which : {&Routing<S>::logits, &Routing<S>::probs, &Routing<S>::gates, &Routing<S>::noisy,
                             &Routing<S>::noise_scale}) {
      auto& part = in.drouting.*which;
      part.resize(naive::at(in.drouting.size()));
      rng.fill(part, -1, 1);
    }
  }
  return in;
}

/// Tokens `order` of the data, in that order.
template <class S>
Inputs<S> pick(const Inputs<S>& all, const std::vector<Index>& order) {
  Inputs<S> in;
  in.theta = all.theta;
  const auto rows = [&](const Matrix<S>& m, Index per_token) {
    Matrix<S> part(m.size() == 0 ? 0 : std::ssize(order) * per_token, m.cols());
    for (Index t = 0; t < std::ssize(order) && m.size() > 0; ++t)
      part.middleRows(t * per_token, per_token) = m.middleRows(order[naive::at(t)] * per_token, per_token);
    return part;
  };
  const Index heads = all.tokens() > 0 ? all.gates.rows() / all.tokens() : 1;
  in.x = rows(all.x, 1);
  in.dy = rows(all.dy, 1);
  in.y = rows(all.y, 1);
  in.router_x = rows(all.router_x, 1);
  in.gates = rows(all.gates, heads);
  in.drouting = all.drouting;
  in.drouting.rows = std::ssize(order) * all.drouting.rows_per_token;
  for (const auto which : {&Routing<S>::logits, &Routing<S>::probs, &Routing<S>::gates, &Routing<S>::noisy,
                           &Routing<S>::noise_scale}) {
    const auto& from = all.drouting.*which;
    auto& to = in.drouting.*which;
    to.clear();
    const Index width = all.drouting.rows_per_token * all.drouting.experts;
    if (!from.empty())
      for (const Index t : order)
        to.insert(to.end(), from.begin() + t * width, from.begin() + (t + 1) * width);
  }
  return in;
}
inline std::vector<Index> range(Index first, Index count) {
  std::vector<Index> order;
  for (Index t = first; t < first + count; ++t) order.push_back(t);
  return order;
}

/// Forward into `cache`, and y.
template <class S>
Matrix<S> run_forward(const Case<S>& c, const ErasedAdapter<S>& adapter, const Inputs<S>& in, const Run& run,
                      Cache<S>& cache, Workspace<S>& workspace) {
  Matrix<S> y = in.y;
  if (in.gates.size() > 0 || c.given()) give_gates<S>(cache.routing, in.gates, c.router.heads);
  adapter.forward(in.theta, in.x, y, cache, workspace, run,
                  in.router_x.size() > 0 ? In<S>(in.router_x) : In<S>());
  return y;
}

/// Forward and backward from zero gradients.
template <class S>
Outputs<S> evaluate(const Case<S>& c, const ErasedAdapter<S>& adapter, const Inputs<S>& in,
                    const Run& run = {}) {
  Outputs<S> out;
  Cache<S> cache;
  Workspace<S> workspace;
  out.y = run_forward(c, adapter, in, run, cache, workspace);
  out.dx = Matrix<S>::Zero(in.x.rows(), in.x.cols());
  out.drouter_x = Matrix<S>::Zero(in.router_x.rows(), in.router_x.cols());
  out.dtheta.assign(in.theta.size(), S(0));
  const bool apart = in.router_x.size() > 0;
  adapter.backward(in.theta, in.x, in.dy, cache, workspace, run, out.dx, out.dtheta, in.drouting,
                   apart ? In<S>(in.router_x) : In<S>(), apart ? Out<S>(out.drouter_x) : Out<S>());
  out.routing = cache.routing;
  out.drouting = workspace.drouting;
  return out;
}
template <class S>
Outputs<S> evaluate(const Case<S>& c, const Inputs<S>& in, const Run& run = {}) {
  return evaluate(c, *c.adapter, in, run);
}

// --- comparisons -----------------------------------------------------------------------------------------

template <class S>
bool same_bits(std::span<const S> a, std::span<const S> b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}
template <class T>
bool same_bits(const Buffer<T>& a, const Buffer<T>& b) {
  return same_bits(std::span<const T>(a), std::span<const T>(b));
}
template <class S>
bool same_bits(const Matrix<S>& a, const Matrix<S>& b) {
  return a.rows() == b.rows() && same_bits(std::span<const S>(a.data(), naive::at(a.size())),
                                           std::span<const S>(b.data(), naive::at(b.size())));
}
/// Equal as numbers: 0 and -0 are the same, and NaN equals NaN.
template <class S>
bool same_values(std::span<const S> a, std::span<const S> b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!(a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i])))) return false;
  return true;
}
template <class S>
bool same_values(const Matrix<S>& a, const Matrix<S>& b) {
  return same_values(std::span<const S>(a.data(), naive::at(a.size())),
                     std::span<const S>(b.data(), naive::at(b.size())));
}
template <class S>
bool same_values(const Buffer<S>& a, const Buffer<S>& b) {
  return same_values(std::span<const S>(a), std::span<const S>(b));
}
/// Behind the `count` of a row, `chosen` means nothing, and given routings are as wide as their rows need.
template <class S>
bool same_chosen(const Routing<S>& a, const Routing<S>& b) {
  if (a.count != b.count) return false;
  for (Index row = 0; row < a.rows; ++row)
    if (!std::equal(a.chosen_row(row), a.chosen_row(row) + a.count[naive::at(row)], b.chosen_row(row)))
      return false;
  return true;
}
template <class S>
bool same_routing(const Routing<S>& a, const Routing<S>& b) {
  return a.rows == b.rows && a.experts == b.experts && a.rows_per_token == b.rows_per_token &&
         same_chosen(a, b) && same_bits(a.logits, b.logits) && same_bits(a.probs, b.probs) &&
         same_bits(a.gates, b.gates) && same_bits(a.noisy, b.noisy) &&
         same_bits(a.noise_scale, b.noise_scale);
}
/// The routing of tokens `order`, as if they had been routed by themselves.
template <class S>
Routing<S> pick(const Routing<S>& all, const std::vector<Index>& order) {
  Routing<S> part = all;
  part.rows = std::ssize(order) * all.rows_per_token;
  const auto rows = [&](const auto& from, auto& to, Index width) {
    to.clear();
    if (from.empty()) return;
    width *= all.rows_per_token;
    for (const Index t : order) to.insert(to.end(), from.begin() + t * width, from.begin() + (t + 1) * width);
  };
  rows(all.logits, part.logits, all.experts);
  rows(all.probs, part.probs, all.experts);
  rows(all.gates, part.gates, all.experts);
  rows(all.noisy, part.noisy, all.experts);
  rows(all.noise_scale, part.noise_scale, all.experts);
  rows(all.chosen, part.chosen, all.max_chosen);
  rows(all.count, part.count, 1);
  return part;
}
template <class S>
Matrix<S> pick(const Matrix<S>& all, const std::vector<Index>& order) {
  Matrix<S> part(std::ssize(order), all.cols());
  for (Index t = 0; t < std::ssize(order); ++t) part.row(t) = all.row(order[naive::at(t)]);
  return part;
}
/// Too many zeros for a test to have been able to fail; dropout makes some of its own.
template <class S>
bool mostly_zero(std::span<const S> values) {
  const auto zeros = std::count(values.begin(), values.end(), S(0));
  return values.empty() || 10 * zeros > 4 * std::ssize(values);
}
template <class S>
bool mostly_zero(const Matrix<S>& m) {
  return mostly_zero(std::span<const S>(m.data(), naive::at(m.size())));
}

// --- references ------------------------------------------------------------------------------------------

/// The library's documented draws for the tokens of a call, written again here.
template <class S>
naive::Draws draws(const Case<S>& c, Index tokens, const Run& run) {
  naive::Draws all;
  if (!run.training) return all;
  const auto u = [](Index i) { return static_cast<std::uint64_t>(i); };
  const auto stream = [&](random::Use use, std::initializer_list<std::uint64_t> rest) {
    std::uint64_t k = 0;
    for (const std::uint64_t counter : {run.seed, run.step, run.module}) k = random::mix(k ^ counter);
    for (const std::uint64_t counter : rest) k = random::mix(k ^ counter);
    return random::mix(static_cast<std::uint64_t>(use) ^ k);
  };
  if (c.bank.dropout > 0)
    for (Index e = 0; e < c.bank.experts; ++e)
      for (Index t = 0; t < tokens; ++t)
        for (Index i = 0; i < c.bank.in; ++i) {
          const std::uint64_t mask = c.bank.mask_per_expert ? u(e) + 1 : 0;
          const auto of_token = stream(random::Use::dropout, {mask, u(run.first_token + t)});
          const bool kept = random::bits(of_token, u(i)) * 0x1p-32 >= c.bank.dropout;
          all.dropout.push_back(kept ? static_cast<double>(S(1 / (1 - c.bank.dropout))) : 0);
        }
  if (c.router.jitter > 0)
    for (Index t = 0; t < tokens; ++t)
      for (Index i = 0; i < c.router.in; ++i)
        all.jitter.push_back(static_cast<double>(static_cast<S>(
            1 + c.router.jitter *
                    (2 * random::uniform(stream(random::Use::jitter, {u(run.first_token + t)}), u(i)) - 1))));
  if (c.router.noise != RouterNoise::none)
    for (Index row = 0; row < c.rows(tokens); ++row)
      for (Index e = 0; e < c.router.experts; ++e)
        all.noise.push_back(static_cast<double>(static_cast<S>(
            random::normal(stream(random::Use::noise, {u(run.first_token * c.router.heads + row)}), u(e)))));
  return all;
}

template <class R>
struct Reference {
  std::vector<R> y;  ///< with what an additive adapter added to
  naive::Routed<R> routed;
};

/// The whole adapter in plain loops. `point` holds theta, x, router_x (empty: x) and gates as scalars R.
template <class R>
struct Point {
  std::vector<R> theta, x, router_x, gates;
};
template <class R, class S>
Point<R> point(const Inputs<S>& in) {
  const auto copy = [](const S* p, std::size_t n) {
    std::vector<R> values;
    for (std::size_t i = 0; i < n; ++i) values.push_back(R(p[i]));
    return values;
  };
  const auto of = [&](const Matrix<S>& m) { return copy(m.data(), naive::at(m.size())); };
  return {copy(in.theta.data(), in.theta.size()), of(in.x), of(in.router_x), of(in.gates)};
}
template <class R, class S>
Reference<R> reference(const Case<S>& c, const Point<R>& p, const Inputs<S>& in, const naive::Draws& draws,
                       const Run& run) {
  const Index tokens = in.tokens();
  const std::vector<R> of_router(p.theta.begin() + c.bank.size(), p.theta.end());
  Reference<R> result;
  result.routed = naive::route(c.router, of_router, p.router_x.empty() ? p.x : p.router_x, tokens, p.gates,
                               draws, run.training, run.step);
  result.y = naive::mix(c.bank, p.theta, p.x, tokens, result.routed, draws, R(run.scale));
  if (c.bank.kind == naive::Bank::Kind::lora)
    for (std::size_t i = 0; i < result.y.size(); ++i) result.y[i] += R(in.y.data()[i]);
  return result;
}

/// <dy, y> plus <drouting, routing>: what backward is the gradient of.
template <class R, class S>
R objective(const Reference<R>& f, const Inputs<S>& in) {
  R sum(0);
  for (std::size_t i = 0; i < f.y.size(); ++i) sum += R(in.dy.data()[i]) * f.y[i];
  const auto add = [&](const std::vector<R>& values, const Buffer<S>& weights) {
    if (weights.empty()) return;
    for (std::size_t i = 0; i < values.size(); ++i) sum += R(weights[i]) * values[i];
  };
  add(f.routed.logits, in.drouting.logits);
  add(f.routed.probs, in.drouting.probs);
  add(f.routed.gates, in.drouting.gates);
  add(f.routed.noisy, in.drouting.noisy);
  add(f.routed.noise_scale, in.drouting.noise_scale);
  return sum;
}

/// Data whose choices stay the same when it moves a little: drawn again until the gap is wide.
template <class S>
Inputs<S> make_clear_inputs(const Case<S>& c, Index tokens, std::uint64_t seed, const Run& run,
                            bool with_router_x = false, bool with_losses = false, double gap = 1e-3) {
  const naive::Draws random = draws(c, tokens, run);
  for (;; ++seed) {
    Inputs<S> in = make_inputs(c, tokens, seed, with_router_x, with_losses);
    if (c.router.kind != naive::Router::Kind::top_k) return in;
    if (reference(c, point<long double>(in), in, random, run).routed.gap >= gap) return in;
  }
}

/// A run in training whose step is one of several growing k's.
inline Run training_run() { return {.training = true, .seed = 11, .step = 5, .first_token = 3, .module = 2}; }

}  // namespace moxie::test
