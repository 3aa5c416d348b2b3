// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/losses/pool.hpp>

namespace moxie::inline MOXIE_ABI {

/// What the shares f_e of a load-balance loss sum to.
enum class ShareSum {
  one,  ///< f_e = c_e / sum of c
  k,    ///< f_e = c_e / rows, which sums to the experts per row
};

/// What a load-balance loss counts for an expert.
enum class ShareCount {
  chosen,       ///< rows that chose it
  most_likely,  ///< rows where it has the largest probability, whatever was chosen (Switch)
};

/// N sum over e of f_e P_e: f_e the share of rows that expert e serves (a constant to the gradient), P_e the
/// mean over rows of its probability among all N experts. arXiv:2101.03961, eq. 4 to 6. It is 1 (or k) at
/// uniform routing, which is not a lower bound. The published codes differ in what f sums to and in what they
/// pool.
template <Scalar S>
class LoadBalance {
 public:
  using Scalar = S;
  struct Config {
    ShareSum sum = ShareSum::one;
    ShareCount count = ShareCount::chosen;
    Pool pool = Pool::concatenate;
    bool mask_padding = false;
  };

  /// A call's pool is the projections of one layer; the layers' losses are added. Coefficient 0.001.
  /// (MoLA, `mola_modeling_llama_hacked.py`)
  static LoadBalance mola() { return LoadBalance(Config{}); }
  /// A call's pool is all layers. Coefficient 0.001. (HF Transformers' Mixtral; MoE-PEFT)
  static LoadBalance mixtral() { return LoadBalance({.sum = ShareSum::k, .mask_padding = true}); }
  /// A call's pool is all layers. Coefficient 0.01 (Switch), 0.001 (MoE-PEFT).
  static LoadBalance switch_transformer() { return LoadBalance({.count = ShareCount::most_likely}); }
  /// A loss per module, added. Coefficient 0.01. (AdaMoLE, GOAT)
  static LoadBalance adamole() { return LoadBalance({.sum = ShareSum::k, .pool = Pool::sum}); }
  /// A loss per module, averaged. (LD-MoLE)
  static LoadBalance ld_mole() { return LoadBalance({.pool = Pool::mean, .mask_padding = true}); }
  /// A loss per module, added. Coefficient 0.01. (HMoRA)
  static LoadBalance hmora() { return LoadBalance({.pool = Pool::sum, .mask_padding = true}); }

  explicit LoadBalance(const Config& config) : config_(config) {}
  const Config& config() const { return config_; }

  /// Throws ShapeMismatch where the mask does not fit, or pooled routings differ in their number of experts.
  double value(RoutingSpan<S> routings, const Batch& batch) const {
    check(routings, batch);
    double loss = 0;
    detail::for_groups(routings, config_.pool, [&](RoutingSpan<S> group, std::size_t) {
      const Statistics s = statistics(group, batch);
      const auto experts = static_cast<double>(s.f.size());
      for (std::size_t e = 0; e < s.f.size(); ++e) loss += experts * s.f[e] * s.p[e];
    });
    return loss * detail::share(routings, config_.pool);
  }

  /// dL/dp_{t,e} = N f_e / rows. Adds weight times it to the gradients' `probs`.
  void backward(RoutingSpan<S> routings, const Batch& batch, double weight,
                RoutingGradientSpan<S> gradients) const {
    check(routings, batch);
    detail::expect_gradients(routings, gradients);
    const double share = weight * detail::share(routings, config_.pool);
    detail::for_groups(routings, config_.pool, [&](RoutingSpan<S> group, std::size_t first) {
      const Statistics s = statistics(group, batch);
      const std::size_t experts = s.f.size();
      for (std::size_t i = 0; i < group.size(); ++i) {
        Buffer<S>& dp = gradients[first + i]->part(&Routing<S>::probs);
        for (Index row = 0; row < group[i]->rows; ++row) {
          if (!detail::counts(*group[i], batch, config_.mask_padding, row)) continue;
          for (std::size_t e = 0; e < experts; ++e)
            dp[static_cast<std::size_t>(row) * experts + e] +=
                static_cast<S>(share * static_cast<double>(experts) * s.f[e] / s.rows);
        }
      }
    });
  }

 private:
  struct Statistics {
    std::vector<double> f, p;
    double rows = 0;
  };

  void check(RoutingSpan<S> routings, const Batch& batch) const {
    detail::expect_routings<S>(routings);
    for (const Routing<S>* routing : routings) {
      detail::expect_batch(*routing, batch, config_.mask_padding, false);
      if (config_.pool == Pool::concatenate && routing->experts != routings.front()->experts)
        fail(Code::shape_mismatch,
             "load balance pools routings of " + detail::text(routings.front()->experts) + " and " +
                 detail::text(routing->experts) + " experts; wanted one number, or Pool::sum");
    }
  }

  Statistics statistics(RoutingSpan<S> group, const Batch& batch) const {
    Statistics s;
    if (group.empty()) return s;
    s.f.resize(static_cast<std::size_t>(group.front()->experts));
    s.p.resize(s.f.size());
    for (const Routing<S>* routing : group) {
      for (Index row = 0; row < routing->rows; ++row) {
        if (!detail::counts(*routing, batch, config_.mask_padding, row)) continue;
        s.rows += 1;
        const S* const p = routing->probs.data() + row * routing->experts;
        for (std::size_t e = 0; e < s.p.size(); ++e) s.p[e] += static_cast<double>(p[e]);
        if (config_.count == ShareCount::most_likely)
          s.f[static_cast<std::size_t>(std::max_element(p, p + routing->experts) - p)] += 1;
        else
          for (int j = 0; j < routing->count[static_cast<std::size_t>(row)]; ++j)
            s.f[static_cast<std::size_t>(routing->chosen_row(row)[j])] += 1;
      }
    }
    double choices = 0;
    for (const double c : s.f) choices += c;
    const double total = config_.sum == ShareSum::one ? choices : s.rows;
    for (double& f : s.f) f = total > 0 ? f / total : 0;
    for (double& p : s.p) p = s.rows > 0 ? p / s.rows : 0;
    return s;
  }

  Config config_;
};

}  // namespace moxie::inline MOXIE_ABI
