// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/moxie.hpp>

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "../languages/rows.hpp"
#include "hooks.hpp"
#include "model.hpp"

namespace llama {

/// What the routers read: the token, or the mean of its sequence's positions so far; or there are none, and
/// the gates are given.
enum class RouteBy { token, mean, given };

/// How a model is adapted. Sites are LoRA kinds' linears or IA3 kinds' activations.
struct AdapterOptions {
  moxie::Method method = moxie::Method::molora;
  std::vector<Site> sites;
  std::vector<Index> experts;  ///< one number for all layers, one per layer, or one per group of layers
  Index rank = 4, top_k = 2;
  double alpha = 16, dropout = 0;
  moxie::TopKWeights weights = moxie::TopKWeights::renormalised;
  std::optional<moxie::Init> init = {};  ///< of LoRA, MoLoRA and MoV's router; none: the preset's own
  RouteBy route = RouteBy::token;
};

inline constexpr std::array<std::string_view, 11> site_names = {"q_proj",    "k_proj",  "v_proj",    "o_proj",
                                                                "gate_proj", "up_proj", "down_proj", "key",
                                                                "value",     "gated",   "down_input"};

inline std::string_view name(Site site) { return site_names[static_cast<std::size_t>(site)]; }

/// The module of a layer that a site belongs to, as Hugging Face models name it: an activation belongs to the
/// linear that it leaves, or with down_input enters, as PEFT's IA3 has it; gated leaves the activation
/// function.
inline constexpr std::array<std::string_view, 11> site_modules = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj",    "self_attn.k_proj",
    "self_attn.v_proj", "mlp.act_fn",       "mlp.down_proj"};

inline std::string_view module_path(Site site) { return site_modules[static_cast<std::size_t>(site)]; }
/// The last part of it.
inline std::string_view module_name(Site site) {
  return module_path(site).substr(module_path(site).rfind('.') + 1);
}

/// Borders of the sequences, and of what type each is: all that balance losses need of a batch.
inline moxie::Batch batch_of(const languages::Rows& rows, std::span<const int> type_of_task) {
  moxie::Batch batch;
  const Index n = std::ssize(rows.tasks), seq = n > 0 ? std::ssize(rows.inputs) / n : 0;
  for (Index row = 0; row <= n; ++row) batch.samples.push_back(row * seq);
  for (const std::size_t task : rows.tasks) batch.types.push_back(type_of_task[task]);
  return batch;
}

/// The hooks of a model: one moxie::AdapterSet with a module per layer and site, and what their calls keep.
template <class S>
class Adapters {
 public:
  Adapters(const Config& model, const AdapterOptions& options, std::uint64_t seed)
      : options_(options),
        per_layer_(moxie::experts_per_layer(std::span<const Index>(options.experts), model.layers)),
        slots_(static_cast<std::size_t>(model.layers)) {
    if (options.method == moxie::Method::mola) moxie::expect_top_k(per_layer_, options.top_k);
    for (Index layer = 0; layer < model.layers; ++layer)
      for (const Site site : options.sites) add_module(model, layer, site);
    set_.init(seed);
    run.seed = seed;
  }

  moxie::AdapterSet<S>& set() { return set_; }
  const moxie::AdapterSet<S>& set() const { return set_; }
  Index layers() const { return static_cast<Index>(slots_.size()); }
  const std::vector<Site>& sites() const { return options_.sites; }
  Index experts(Index layer) const { return per_layer_[static_cast<std::size_t>(layer)]; }

  moxie::Module module(Index layer, Site site) const { return slot(layer, site)->module; }

  /// The routing of the last forward.
  const moxie::Routing<S>& routing(Index layer, Site site) const { return slot(layer, site)->cache.routing; }

  /// The method's balance loss over the last forward, a pool per layer, times `weight`; its gradient goes
  /// into the next backward. 0 for methods without one.
  double balance(const moxie::Batch& batch, double weight) {
    if (options_.method == moxie::Method::mola) return balance(moxie::mola_balance<S>(), batch, weight);
    if (options_.method == moxie::Method::loramoe) return balance(moxie::loramoe_balance<S>(), batch, weight);
    return 0;
  }
  template <moxie::BalanceLoss Loss>
  double balance(const Loss& loss, const moxie::Batch& batch, double weight) {
    double sum = 0;
    for (auto& layer : slots_) {
      std::vector<const moxie::Routing<S>*> routings;
      std::vector<moxie::Routing<S>*> gradients;
      for (auto& slot : layer) {
        if (!slot) continue;
        slot->gradient.zero_gradient_of(slot->cache.routing);
        routings.push_back(&slot->cache.routing);
        gradients.push_back(&slot->gradient);
      }
      sum += weight * loss.value(routings, batch);
      loss.backward(routings, batch, weight, gradients);
    }
    return sum;
  }

  /// RouteBy::given: the gates of the next forward, [tokens * rows per token, experts].
  void give(Index layer, Site site, const Matrix<S>& gates, Index rows_per_token = 1) {
    moxie::give_gates<S>(slot(layer, site)->cache.routing, gates, rows_per_token);
  }
  /// RouteBy::given: the experts of a set of the same experts under routers.
  void take_experts(const Adapters& other) {
    for (Index m = 0; m < set_.modules(); ++m) {
      const std::span<S> own = set_.theta(moxie::Module{m});
      std::copy_n(other.set_.theta(moxie::Module{m}).begin(), own.size(), own.begin());
    }
  }

  // The hooks.
  bool has(Index layer, Site site) const { return slot(layer, site).has_value(); }

  void add(Index layer, Site site, In<S> x, Out<S> y, const Pass& pass) { forward(layer, site, x, y, pass); }
  void scale(Index layer, Site site, In<S> x, Out<S> y, const Pass& pass) {
    forward(layer, site, x, y, pass);
  }

  void add_backward(Index layer, Site site, In<S> x, In<S> dy, Out<S> dx, const Pass& pass) {
    backward(layer, site, x, dy, dx, pass);
  }
  void scale_backward(Index layer, Site site, In<S> x, In<S> dy, Out<S> dx, const Pass& pass) {
    backward(layer, site, x, dy, dx, pass);
  }

  moxie::Run run;         ///< of the training step: seed and step
  std::span<S> gradient;  ///< of the whole set's theta, for backward

 private:
  struct Slot {
    moxie::Module module;
    moxie::Cache<S> cache;
    moxie::Routing<S> gradient;  ///< of the balance loss
    Matrix<S> mean, dmean, sum;  ///< RouteBy::mean: the routers' input, its gradient, and the sum so far
  };
  using Layer = std::array<std::optional<Slot>, site_names.size()>;

  std::optional<Slot>& slot(Index layer, Site site) {
    return slots_[static_cast<std::size_t>(layer)][static_cast<std::size_t>(site)];
  }
  const std::optional<Slot>& slot(Index layer, Site site) const {
    return slots_[static_cast<std::size_t>(layer)][static_cast<std::size_t>(site)];
  }

  void add_module(const Config& c, Index layer, Site site) {
    using moxie::Method;
    const Index d = c.dim, kv = c.kv_dim(), h = c.hidden, heads = c.kv_heads;
    const AdapterOptions& o = options_;
    const Index experts = per_layer_[static_cast<std::size_t>(layer)];
    std::string name = "model.layers." + std::to_string(layer) + "." + std::string(module_path(site));
    const Index in = site == Site::down ? h : d;
    const Index out = site == Site::gate || site == Site::up ? h
                      : site == Site::k || site == Site::v   ? kv
                                                             : d;
    const bool per_head = site == Site::key || site == Site::value;
    const Index features = per_head ? kv : h;
    const auto filled = [&](auto preset) {  // what the LoRA kinds' options have in common
      preset.in = in;
      preset.out = out;
      preset.rank = o.rank;
      preset.alpha = o.alpha;
      preset.dropout = o.dropout;
      if constexpr (requires { preset.experts; }) preset.experts = experts;
      if constexpr (requires { preset.top_k; }) preset.top_k = o.top_k;
      if constexpr (requires { preset.init; }) preset.init = o.init.value_or(preset.init);
      return preset;
    };
    const auto put = [&](const auto& preset) {
      using Experts = typename std::remove_cvref_t<decltype(preset)>::Experts;
      if constexpr (!std::same_as<Experts, moxie::HydraBank<S>>)
        if (o.route == RouteBy::given)
          return set_.add(name,
                          moxie::MoeAdapter(preset.experts(),
                                            moxie::GivenRouter<S>({.experts = preset.experts().experts(),
                                                                   .heads = per_head ? heads : 1})));
      return set_.add(name, preset);
    };
    moxie::Module module;
    switch (o.method) {
      case Method::lora:
        module = put(moxie::lora<S>(filled(moxie::LoraOptions{})));
        break;
      case Method::molora:
        module = put(moxie::molora<S>(filled(moxie::MoloraOptions{})));
        break;
      case Method::loramoe:
        module = put(moxie::loramoe<S>(filled(moxie::LoramoeOptions{})));
        break;
      case Method::mola: {
        const moxie::MoLA<S> preset = moxie::mola<S>(filled(moxie::MolaOptions{}));
        auto router = preset.router().config();
        router.weights = o.weights;
        module = put(moxie::Preset<moxie::MoLA<S>>(
            moxie::MoLA<S>(preset.experts(), moxie::TopKRouter<S>(router)), Method::mola));
        break;
      }
      case Method::hydralora:
        module = put(moxie::hydralora<S>(filled(moxie::HydraloraOptions{})));
        break;
      case Method::ia3:
        module = put(moxie::ia3<S>({.features = features, .heads = per_head ? heads : 1}));
        break;
      case Method::mov:
        module = put(moxie::mov<S>({.features = features,
                                    .heads = per_head ? heads : 1,
                                    .experts = experts,
                                    .router_init = o.init.value_or(moxie::MovOptions{}.router_init)}));
        break;
      case Method::other:
        break;
    }
    slot(layer, site).emplace().module = module;
  }

  moxie::Run run_of(const Pass& pass) const {
    moxie::Run own = run;
    own.training = pass.training;
    own.threads = pass.threads;
    return own;
  }

  void forward(Index layer, Site site, In<S> x, Out<S> y, const Pass& pass) {
    Slot& s = *slot(layer, site);
    if (options_.route == RouteBy::mean) read_mean(s, x, pass);
    set_.forward(s.module, x, y, s.cache, workspace_, run_of(pass), router_input(s));
  }

  void backward(Index layer, Site site, In<S> x, In<S> dy, Out<S> dx, const Pass& pass) {
    Slot& s = *slot(layer, site);
    const bool mean = options_.route == RouteBy::mean, wanted = dx.data() != nullptr;
    const moxie::Out<S> to = wanted ? moxie::Out<S>(dx) : moxie::Out<S>();
    if (mean) s.dmean.setZero(s.mean.rows(), s.mean.cols());
    set_.backward(s.module, x, dy, s.cache, workspace_, run_of(pass), to, gradient, s.gradient,
                  router_input(s), mean && wanted ? moxie::Out<S>(s.dmean) : moxie::Out<S>());
    if (mean && wanted) mean_backward(s, dx, pass);
  }

  moxie::In<S> router_input(const Slot& s) const {
    return options_.route == RouteBy::mean ? moxie::In<S>(s.mean) : moxie::In<S>();
  }

  /// mean_t = (x_0 + ... + x_t) / (t + 1) within each sequence; decoding goes on from the sum so far.
  void read_mean(Slot& s, In<S> x, const Pass& pass) {
    s.mean.resize(x.rows(), x.cols());
    if (pass.first == 0) s.sum.setZero(pass.rows, x.cols());
    for (Index row = 0; row < pass.rows; ++row)
      for (Index t = 0; t < pass.seq; ++t) {
        s.sum.row(row) += x.row(row * pass.seq + t);
        s.mean.row(row * pass.seq + t) = s.sum.row(row) / static_cast<S>(pass.first + t + 1);
      }
  }

  /// dx_t += sum over later positions u >= t of dmean_u / (u + 1).
  void mean_backward(Slot& s, Out<S> dx, const Pass& pass) {
    for (Index row = 0; row < pass.rows; ++row) {
      s.sum.row(row).setZero();
      for (Index t = pass.seq - 1; t >= 0; --t) {
        s.sum.row(row) += s.dmean.row(row * pass.seq + t) / static_cast<S>(t + 1);
        dx.row(row * pass.seq + t) += s.sum.row(row);
      }
    }
  }

  AdapterOptions options_;
  std::vector<Index> per_layer_;
  std::vector<Layer> slots_;
  moxie::AdapterSet<S> set_;
  moxie::Workspace<S> workspace_;
};

}  // namespace llama
