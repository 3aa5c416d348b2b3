// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/kernels/softmax.hpp>
#include <moxie/routers/projection.hpp>

#include <array>

namespace moxie::inline MOXIE_ABI {

/// What weights the k chosen experts get.
enum class TopKWeights {
  renormalised,       ///< softmax over all, then divided by the chosen ones' sum: MoLA, Mixtral
  masked,             ///< softmax over all, as it is: MoV and MoLoRA's discrete ablation, Switch
  softmax_of_chosen,  ///< softmax over the chosen logits alone: Shazeer et al., PESC
};

/// Noise on the logits in training (Shazeer et al., arXiv:1701.06538, eq. 4; tensor2tensor
/// `noisy_top_k_gating`).
enum class RouterNoise {
  none,
  fixed,    ///< standard deviation `noise_scale`
  learned,  ///< softplus(x W_noise) + 0.01, W_noise starting at 0
};

/// The k experts of the largest logits per row; equal logits: the lower index first. With noise, the noisy
/// logits choose and weigh; `probs` is then their softmax and `logits` stay clean. A renormalised top-1 has
/// weight 1 whatever its logit, so the task gives its router no gradient. SMoE-Dropout (arXiv:2303.01610):
/// `frozen`, and in training k grows from `k_start` to `experts` in `k_steps`.
template <Scalar S>
class TopKRouter {
 public:
  using Scalar = S;
  struct Config {
    Index in = 0;
    Index experts = 1;
    Index k = 1;
    Index heads = 1;  ///< routing rows per token, as in SoftRouter
    TopKWeights weights = TopKWeights::renormalised;
    double temperature = 1;
    double jitter = 0;  ///< in training the input is multiplied by U(1 - jitter, 1 + jitter)
    RouterNoise noise = RouterNoise::none;
    double noise_scale = 1;  ///< of fixed noise
    Init init = Init::kaiming_uniform;
    bool frozen = false;        ///< random and never trained
    Index k_start = 0;          ///< with k_steps: chosen experts at step 0 of training
    std::uint64_t k_steps = 0;  ///< steps until all experts are chosen; 0: k always
  };

  /// Throws ConfigRange naming the setting.
  explicit TopKRouter(const Config& config)
      : config_(config), projection_(config.in, config.experts, config.heads, config.jitter) {
    using detail::expect_range;
    const std::string range = "1 to " + detail::text(config.experts) + " (the experts)";
    expect_range(config.k >= 1 && config.k <= config.experts, "top-k k", static_cast<double>(config.k),
                 range);
    expect_range(config.temperature > 0 && std::isfinite(config.temperature), "router temperature",
                 config.temperature, "a finite number above 0");
    expect_range(detail::finite_as<S>(1 / config.temperature), "router temperature", config.temperature,
                 "a number whose inverse is finite");
    expect_range(config.noise != RouterNoise::fixed ||
                     (config.noise_scale > 0 && detail::finite_as<S>(config.noise_scale)),
                 "router noise_scale", config.noise_scale, "a finite number above 0");
    expect_range(config.k_steps == 0 || (config.k_start >= 1 && config.k_start <= config.experts),
                 "top-k k_start", static_cast<double>(config.k_start), range);
  }

  const Config& config() const { return config_; }
  Index experts() const { return config_.experts; }
  Index in() const { return config_.in; }
  Index rows_per_token() const { return config_.heads; }
  Index size() const { return (learned() ? 2 : 1) * projection_.size(); }
  std::vector<Field> fields() const {
    const std::vector<Index> shape{config_.experts, projection_.features()};
    std::vector<Field> fields{
        {.name = "router", .shape = shape, .trainable = !config_.frozen, .decay = false}};
    if (learned())
      fields.push_back(
          {.name = "router_noise", .shape = shape, .trainable = !config_.frozen, .decay = false});
    return fields;
  }
  void init(std::span<S> theta, std::uint64_t seed) const {
    detail::expect_size("theta", theta.size(), size());
    detail::Cursor<S> cursor(theta);
    detail::initialise(cursor.take(projection_.size()), config_.init, projection_.features(), 1,
                       random::key(random::Use::init, {seed, 2}));
    if (learned()) detail::initialise(cursor.take(projection_.size()), Init::zero, 1, 1, 0);
  }
  std::array<kernels::MatrixShape, 2> matrices() const {
    const kernels::MatrixShape g = projection_.matrix();
    return {{g, {learned() ? g.rows : 0, g.cols, false}}};
  }
  Index blocks(Index tokens) const { return (learned() ? 2 : 1) * projection_.blocks(tokens); }
  Index scratch(Index tile) const { return projection_.scratch(tile); }

  /// The number of experts chosen at a step.
  Index chosen_at(const Run& run) const {
    if (config_.k_steps == 0 || !run.training) return config_.k;
    const std::uint64_t step = std::min(run.step, config_.k_steps);
    const auto grown = static_cast<Index>(static_cast<double>(config_.experts - config_.k_start) *
                                          static_cast<double>(step) / static_cast<double>(config_.k_steps));
    return config_.k_start + grown;
  }

  void prepare(Routing<S>& routing, Index tokens, const Run& run) const {
    routing.resize(tokens, config_.experts, config_.heads, chosen_at(run), noisy(run));
  }

  /// Before backward: a noisy router needs the noise of its forward.
  void expect_routed(const Routing<S>& routing, const Run& run) const {
    if (noisy(run) && routing.noisy.empty() && routing.rows > 0)
      fail(Code::state_error, "backward of a noisy router in training with a routing without noise");
  }

  template <class W>
  void route_rows(const ForwardTile<S, W>& tile) const {
    Routing<S>& routing = tile.routing;
    const Index first = tile.first * config_.heads, rows = tile.x.rows * config_.heads,
                experts = config_.experts;
    projection_.forward(tile.weights[0], tile.x, tile.first, routing.logits.data() + first * experts,
                        tile.scratch, tile.run);
    const bool noise = noisy(tile.run);
    if (noise && learned())
      projection_.forward(tile.weights[1], tile.x, tile.first, routing.noise_scale.data() + first * experts,
                          tile.scratch, tile.run);
    const S cold = static_cast<S>(1 / config_.temperature);
    for (Index row = first; row < first + rows; ++row) {
      const Index at = row * experts;
      S* const z = routing.logits.data() + at;
      for (Index e = 0; e < experts; ++e) z[e] *= cold;
      if (noise) add_noise(z, routing.noise_scale.data() + at, routing.noisy.data() + at, row, tile.run);
      weigh(noise ? routing.noisy.data() + at : z, routing, row);
    }
  }

  /// With w the chosen weights and K the chosen set, and z what the softmax saw:
  /// renormalised and softmax_of_chosen: dz_e = w_e (dw_e - sum over K of w dw) for e in K, else 0; masked:
  /// the gates' gradient joins that of the probabilities. Then dprobs go through the full softmax.
  void backward_rows(const BackwardTile<S>& tile) const {
    Routing<S>& d = tile.drouting;
    const Index first = tile.first * config_.heads, rows = tile.x.rows * config_.heads,
                experts = config_.experts;
    const bool noise = noisy(tile.run);
    const S cold = static_cast<S>(1 / config_.temperature);
    for (Index row = first; row < first + rows; ++row) {
      const Index at = row * experts;
      S* const dz = d.logits.data() + at;
      S* const dseen = noise ? d.noisy.data() + at : dz;
      weigh_backward(tile.routing, d, row, dseen);
      if (noise)
        noise_backward(tile.routing.noise_scale.data() + at, dseen, d.noise_scale.data() + at, dz, row,
                       tile.run);
      for (Index e = 0; e < experts; ++e) dz[e] *= cold;
    }
    projection_.backward_input(tile.weights[0], tile.x, tile.first, d.logits.data() + first * experts,
                               tile.dx, tile.scratch, tile.run);
    if (noise && learned())
      projection_.backward_input(tile.weights[1], tile.x, tile.first, d.noise_scale.data() + first * experts,
                                 tile.dx, tile.scratch, tile.run);
  }

  void backward_block(const BackwardBlock<S>& b) const {
    const Index half = projection_.blocks(b.x.rows);
    if (b.block < half)
      projection_.backward_block(b.block, b.x, b.drouting.logits.data(), b.dtheta.data(), b.scratch, b.run);
    else if (noisy(b.run))
      projection_.backward_block(b.block - half, b.x, b.drouting.noise_scale.data(),
                                 b.dtheta.data() + projection_.size(), b.scratch, b.run);
  }

 private:
  static constexpr double smallest_noise = 0.01;

  bool learned() const { return config_.noise == RouterNoise::learned; }
  bool noisy(const Run& run) const { return config_.noise != RouterNoise::none && run.training; }

  static std::uint64_t noise_stream(Index row, Index rows_per_token, const Run& run) {
    return random::key(
        random::Use::noise,
        {run.seed, run.step, run.module, static_cast<std::uint64_t>(run.first_token * rows_per_token + row)});
  }

  /// noisy = z + epsilon * sigma; `sigma` holds x W_noise on entry where the noise is learned.
  void add_noise(const S* z, S* sigma, S* noisy_z, Index row, const Run& run) const {
    const std::uint64_t stream = noise_stream(row, config_.heads, run);
    for (Index e = 0; e < config_.experts; ++e) {
      // softplus without overflow: max(a, 0) + log(1 + exp(-|a|))
      if (learned())
        sigma[e] = std::max(sigma[e], S(0)) + std::log1p(std::exp(-std::abs(sigma[e]))) + S(smallest_noise);
      else
        sigma[e] = static_cast<S>(config_.noise_scale);
      noisy_z[e] =
          madd(static_cast<S>(random::normal(stream, static_cast<std::uint64_t>(e))), sigma[e], z[e]);
    }
  }

  /// dz += dnoisy; dsigma = (dsigma + epsilon dnoisy) through the softplus, whose slope is 1 -
  /// exp(-softplus).
  void noise_backward(const S* sigma, const S* dnoisy, S* dsigma, S* dz, Index row, const Run& run) const {
    const std::uint64_t stream = noise_stream(row, config_.heads, run);
    for (Index e = 0; e < config_.experts; ++e) {
      dz[e] += dnoisy[e];
      if (!learned()) continue;
      const S epsilon = static_cast<S>(random::normal(stream, static_cast<std::uint64_t>(e)));
      dsigma[e] = madd(epsilon, dnoisy[e], dsigma[e]) * -std::expm1(S(smallest_noise) - sigma[e]);
    }
  }

  /// The row's probabilities, chosen experts and their weights from what the softmax sees.
  void weigh(const S* z, Routing<S>& routing, Index row) const {
    const Index experts = config_.experts, k = routing.max_chosen;
    S* const p = routing.probs.data() + row * experts;
    S* const w = routing.gates.data() + row * experts;
    int* const chosen = routing.chosen.data() + row * k;
    kernels::softmax(z, experts, p);
    detail::top_k(z, experts, k, chosen);
    routing.count[static_cast<std::size_t>(row)] = static_cast<int>(k);
    std::fill_n(w, experts, S(0));
    if (config_.weights == TopKWeights::softmax_of_chosen) {
      S top = z[chosen[0]], sum = 0;
      for (Index j = 1; j < k; ++j) top = std::max(top, z[chosen[j]]);
      for (Index j = 0; j < k; ++j) sum += w[chosen[j]] = std::exp(z[chosen[j]] - top);
      for (Index j = 0; j < k; ++j) w[chosen[j]] /= sum;
      return;
    }
    S sum = config_.weights == TopKWeights::masked ? S(1) : S(0);
    if (config_.weights == TopKWeights::renormalised)
      for (Index j = 0; j < k; ++j) sum += p[chosen[j]];
    for (Index j = 0; j < k; ++j) w[chosen[j]] = p[chosen[j]] / sum;
  }

  /// Adds the gradient of the row's z, as backward_rows has it, to `dz`.
  void weigh_backward(const Routing<S>& routing, Routing<S>& d, Index row, S* dz) const {
    const Index experts = config_.experts;
    const S* const p = routing.probs.data() + row * experts;
    const S* const w = routing.gate_row(row);
    const S* const dw = d.gates.data() + row * experts;
    S* const dp = d.probs.data() + row * experts;
    const int* const chosen = routing.chosen_row(row);
    const Index k = routing.count[static_cast<std::size_t>(row)];
    if (config_.weights == TopKWeights::masked) {
      for (Index j = 0; j < k; ++j) dp[chosen[j]] += dw[chosen[j]];
    } else {
      S mean = 0;
      for (Index j = 0; j < k; ++j) mean = madd(w[chosen[j]], dw[chosen[j]], mean);
      for (Index j = 0; j < k; ++j) dz[chosen[j]] = madd(w[chosen[j]], dw[chosen[j]] - mean, dz[chosen[j]]);
    }
    detail::softmax_backward(p, dp, experts, dz);
  }

  Config config_;
  detail::RouterProjection<S> projection_;
};

}  // namespace moxie::inline MOXIE_ABI
