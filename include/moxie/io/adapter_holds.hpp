// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/adapter_describe.hpp>
#include <moxie/io/adapter_layout.hpp>

/// Which format can hold a set.
namespace moxie::inline MOXIE_ABI::io::detail {

template <class T>
bool alike(const std::vector<T>& values) {
  return std::adjacent_find(values.begin(), values.end(), std::not_equal_to<>()) == values.end();
}

/// The layer that a module lies in, as MoLA counts them; -1 where it lies in none, or where MoLA's lists
/// would become too long.
inline Index layer_in(std::string_view module) {
  constexpr Index most_layers = 1 << 16;
  const Index layer = mola_layer(module);
  return layer <= most_layers ? layer : -1;
}

/// What of a set a format has no words for.
struct Unheld {
  std::string module;
  std::string_view what;
};

/// One expert that nothing weighs.
inline bool is_plain(const Described& d) { return d.router.kind == RouterKind::uniform && d.experts == 1; }

inline std::string_view projection_of(std::string_view module) {
  return module.substr(module.rfind('.') + 1);
}

/// The projections that MoE-PEFT knows; it passes over other target_modules without a word.
inline bool moe_peft_knows(std::string_view module) {
  constexpr std::string_view known[] = {
      "q_proj", "k_proj", "v_proj", "o_proj",   "gate_proj",    "down_proj",     "up_proj",
      "dense",  "fc1",    "fc2",    "qkv_proj", "gate_up_proj", "dense_h_to_4h", "dense_4h_to_h"};
  return std::find(std::begin(known), std::end(known), projection_of(module)) != std::end(known);
}

/// The first thing that a format has no words for; nothing where it holds the whole set. `parameters`: the
/// config is to have target_parameters.
inline std::optional<Unheld> unheld(Format format, const std::vector<Described>& all,
                                    bool parameters = false) {
  const bool ours = format == Format::mixture, plain = format == Format::peft, mola = format == Format::mola,
             moe_peft = format == Format::moe_peft;
  const Described& first = all.front();
  const Described* mixture = nullptr;          // the first; MoE-PEFT has plain LoRA beside them
  std::map<Index, const Described*> first_of;  // by layer
  std::map<Index, std::set<std::string_view>> projections_of;  // by layer
  bool any_plain = false, plain_in_mlp = false, any_top_k = false;
  std::optional<Unheld> found;
  for (const Described& d : all) {
    if (found) break;
    const auto expect = [&](bool holds, std::string_view what) {
      if (!holds && !found) found = {d.name, what};
    };
    const bool single = is_plain(d);
    const RouterKind kind = d.router.kind;
    expect(d.vectors == first.vectors, "IA3 beside LoRA");
    expect(ours || plain || !d.vectors, "IA3 or MoV");
    expect(!d.router.scheduled, "a frozen router or a k that grows");
    expect(!plain || single || (parameters && kind == RouterKind::given && !d.vectors),
           "several experts or a router");
    expect(d.dropout == first.dropout && d.rslora == first.rslora && d.bias == first.bias,
           "dropout, use_rslora or lora_bias that differ between modules");
    expect(ours || (alike(d.rank) && alike(d.alpha)), "experts of different ranks or scales");
    expect(d.shared_a == (format == Format::hydralora),
           d.shared_a ? "an A that the experts share" : "an A for every expert");
    if (ours) {
      expect(d.router == first.router, "routers that differ between modules");
      expect(d.mask_per_expert == first.mask_per_expert, "dropout masks that differ between modules");
    }
    if (ours || plain || found) continue;
    expect(!d.bias, "biases of B");
    expect(d.router.has_defaults(), "a router's temperature, jitter, noise or weights of its own");
    expect(moe_peft || !d.rslora, "use_rslora");
    expect(d.alpha.front() == first.alpha.front() && (mola || d.rank.front() == first.rank.front()),
           "ranks or alphas that differ between modules");
    if (mola) {
      const Index layer = layer_in(d.name);
      const Described& of_layer = *first_of.try_emplace(layer, &d).first->second;
      expect(kind == RouterKind::top_k, "other routers than top-k");
      expect(layer >= 0, "a module outside of the layers");
      expect(d.rank.front() == of_layer.rank.front(), "ranks that differ in a layer");
      expect(d.router.top_k == of_layer.router.top_k, "top_k that differ in a layer");
    } else if (moe_peft) {
      expect(d.name.rfind(moe_peft_root, 0) == 0, "a name that does not begin with \"model.\"");
      expect(moe_peft_knows(d.name), "a projection of that name");
      expect(d.alpha.front() > 0 && d.alpha.front() == std::floor(d.alpha.front()),
             "a lora_alpha that is no whole number from 1 on");
      const bool alike_layers = projections_of[layer_in(d.name)].insert(projection_of(d.name)).second;
      expect(alike_layers, "two modules of one projection in a layer");
      expect(single || kind == RouterKind::top_k || is_in_mlp(d.name),
             "a mixture outside of the feed-forward block");
      plain_in_mlp |= single && is_in_mlp(d.name);
      any_top_k |= kind == RouterKind::top_k;
      any_plain |= single;
      if (single) continue;
      if (mixture == nullptr) mixture = &d;
      expect(kind == RouterKind::soft || kind == RouterKind::top_k, "such a router");
      expect(d.router == mixture->router && d.experts == mixture->experts,
             "routers, experts or top_k that differ");
    } else {
      expect(kind == RouterKind::soft && d.experts == first.experts,
             "other routers than soft ones over equally many experts");
    }
  }
  if (found || !moe_peft) return found;
  // Its target_modules are projections, of every layer; its mola makes a mixture of each.
  if (mixture != nullptr && (any_top_k ? any_plain : plain_in_mlp))
    found = {first.name, "plain LoRA where its program has mixtures"};
  for (const auto& [layer, projections] : projections_of)
    if (!found && (layer < 0 || projections != projections_of.begin()->second))
      found = {first.name, "projections that differ between the layers"};
  return found;
}

/// Throws UnsupportedOption, and says what.
inline void expect_held(Format format, const std::vector<Described>& all, bool parameters = false) {
  if (const auto what = unheld(format, all, parameters))
    fail(Code::unsupported_option, join("module ", shown(what->module), ": the format ", io::name(format),
                                        " cannot hold ", what->what));
}

/// The format for a set that nobody has named one for: of its method, or else our own. Where that cannot hold
/// it either, the method's is the one to say what is in the way.
template <Scalar S>
Format format_for(const AdapterSet<S>& set, const std::vector<Described>& all) {
  const auto every = [&](auto&& f) { return std::all_of(all.begin(), all.end(), f); };
  const auto method = [&](Method m) {
    return std::all_of(set.entries().begin(), set.entries().end(),
                       [&](const auto& e) { return e.method == m; });
  };
  const Format own = every([](const Described& d) { return d.shared_a; }) ? Format::hydralora
                     : every(is_plain)                                    ? Format::peft
                     : method(Method::mola)                               ? Format::mola
                     : method(Method::loramoe)                            ? Format::loramoe
                                                                          : Format::mixture;
  return unheld(own, all) && !unheld(Format::mixture, all) ? Format::mixture : own;
}

}  // namespace moxie::inline MOXIE_ABI::io::detail
