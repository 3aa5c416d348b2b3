// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/config_reader.hpp>
#include <moxie/routers/given.hpp>
#include <moxie/routers/soft.hpp>
#include <moxie/routers/top_k.hpp>
#include <moxie/routers/uniform.hpp>

#include <array>

namespace moxie::inline MOXIE_ABI::io {

/// What weighs the experts.
enum class RouterKind {
  uniform,  ///< nothing, 1 / E each: a plain adapter, or the mean of several
  soft,     ///< a router that weighs all
  top_k,    ///< a router that chooses
  given,    ///< gates from outside, call by call
};

namespace detail {

/// The words of a config for an enumeration, in its order.
template <class Enum>
inline constexpr int words = 0;
template <>
inline constexpr std::array<std::string_view, 4> words<RouterKind> = {"uniform", "soft", "top_k", "given"};
template <>
inline constexpr std::array<std::string_view, 3> words<TopKWeights> = {"renormalised", "masked",
                                                                       "softmax_of_chosen"};
template <>
inline constexpr std::array<std::string_view, 3> words<RouterNoise> = {"none", "fixed", "learned"};

template <class Enum>
std::string_view word(Enum value) {
  return words<Enum>[static_cast<std::size_t>(value)];
}
template <class Enum>
Enum read_word(ConfigReader& in, std::string_view key, Enum otherwise) {
  const std::string got = in.text(key, std::string(word(otherwise)));
  const auto& all = words<Enum>;
  const auto found = std::find(all.begin(), all.end(), got);
  std::string list;
  for (const std::string_view one : all) list.append(list.empty() ? "" : ", ").append(one);
  if (found == all.end()) in.refuse(Code::config_range, key, "is ", shown(got), ", wanted one of ", list);
  return static_cast<Enum>(found - all.begin());
}

/// A router of any kind, as our own config tells it (include/moxie/io/README.md).
struct RouterSettings {
  RouterKind kind = RouterKind::uniform;
  Index top_k = 0;  ///< of that kind alone
  double temperature = 1, jitter = 0;
  TopKWeights weights = TopKWeights::renormalised;
  RouterNoise noise = RouterNoise::none;
  double noise_scale = 1;
  bool scheduled = false;  ///< frozen, or its k grows: no config tells it

  bool operator==(const RouterSettings&) const = default;
  /// No other than the kind and k: all that the formats of others can say.
  bool has_defaults() const { return *this == RouterSettings{.kind = kind, .top_k = top_k}; }

  /// All but k, which may be a list and has a key in other formats too; `has_k`: it is there.
  static RouterSettings read(ConfigReader& in, bool has_k) {
    constexpr double least = std::numeric_limits<double>::min(),
                     most = std::numeric_limits<double>::infinity();
    const RouterSettings plain;
    RouterSettings r{.kind = read_word(in, "router_type", RouterKind::soft)};
    r.temperature = in.number("router_temperature", least, most, plain.temperature);
    r.jitter = in.number("router_jitter", 0, 1, plain.jitter);
    r.weights = read_word(in, "router_weights", plain.weights);
    r.noise = read_word(in, "router_noise", plain.noise);
    r.noise_scale = in.number("router_noise_scale", least, most, plain.noise_scale);
    // What a router of this kind would pass over.
    const bool chooses = r.kind == RouterKind::top_k, learned = chooses || r.kind == RouterKind::soft;
    const auto expect = [&](bool holds, std::string_view key) {
      if (!holds) in.refuse(Code::config_mismatch, key, "does nothing under router_type ", word(r.kind));
    };
    if (r.noise != RouterNoise::fixed && r.noise_scale != plain.noise_scale)
      in.refuse(Code::config_mismatch, "router_noise_scale", "does nothing under router_noise ",
                word(r.noise));
    expect(chooses || !has_k, "top_k");
    expect(chooses || r.weights == plain.weights, "router_weights");
    expect(chooses || r.noise == plain.noise, "router_noise");
    expect(learned || r.temperature == plain.temperature, "router_temperature");
    expect(learned || r.jitter == plain.jitter, "router_jitter");
    if (chooses && !has_k) in.refuse(Code::missing_field, "top_k", "is missing");
    return r;
  }

  void write(nlohmann::json& json) const {
    json["router_type"] = word(kind);
    if (top_k > 0) json["top_k"] = top_k;
    if (temperature != 1) json["router_temperature"] = temperature;
    if (jitter != 0) json["router_jitter"] = jitter;
    if (weights != TopKWeights::renormalised) json["router_weights"] = word(weights);
    if (noise != RouterNoise::none) json["router_noise"] = word(noise);
    if (noise == RouterNoise::fixed) json["router_noise_scale"] = noise_scale;
  }
};

template <class S>
RouterSettings settings_of(const UniformRouter<S>&) {
  return {};
}
template <class S>
RouterSettings settings_of(const GivenRouter<S>&) {
  return {.kind = RouterKind::given};
}
template <class S>
RouterSettings settings_of(const SoftRouter<S>& router) {
  const auto& c = router.config();
  return {.kind = RouterKind::soft, .temperature = c.temperature, .jitter = c.jitter};
}
template <class S>
RouterSettings settings_of(const TopKRouter<S>& router) {
  const auto& c = router.config();
  return {.kind = RouterKind::top_k,
          .top_k = c.k,
          .temperature = c.temperature,
          .jitter = c.jitter,
          .weights = c.weights,
          .noise = c.noise,
          .noise_scale = c.noise == RouterNoise::fixed ? c.noise_scale : 1,
          .scheduled = c.frozen || c.k_steps > 0};
}

/// f(router), the router with these settings over a bank.
template <class Bank, class F>
auto with_router(const Bank& bank, const RouterSettings& r, F&& f) {
  using S = typename Bank::Scalar;
  const Index in = bank.in(), experts = bank.experts(), heads = bank.rows_per_token();
  if (r.kind == RouterKind::uniform) return f(UniformRouter<S>({.experts = experts, .heads = heads}));
  if (r.kind == RouterKind::given) return f(GivenRouter<S>({.experts = experts, .heads = heads}));
  if (r.kind == RouterKind::soft)
    return f(SoftRouter<S>(
        {.in = in, .experts = experts, .heads = heads, .temperature = r.temperature, .jitter = r.jitter}));
  return f(TopKRouter<S>({.in = in,
                          .experts = experts,
                          .k = r.top_k,
                          .heads = heads,
                          .weights = r.weights,
                          .temperature = r.temperature,
                          .jitter = r.jitter,
                          .noise = r.noise,
                          .noise_scale = r.noise_scale}));
}

}  // namespace detail
}  // namespace moxie::inline MOXIE_ABI::io
