// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/adapter_describe.hpp>
#include <moxie/io/adapter_layout.hpp>

/// From a set to the config that describes it. Whether it does is checked by reading it back.
namespace moxie::inline MOXIE_ABI::io::detail {

/// The value that most have, the smaller one of equals.
template <class T>
T most_common(const std::vector<T>& values) {
  std::map<T, std::size_t> count;
  for (const T& value : values) ++count[value];
  const auto less = [](const auto& a, const auto& b) { return a.second < b.second; };
  return std::max_element(count.begin(), count.end(), less)->first;
}

/// A whole number as one, as others write it.
inline nlohmann::json number(double value) {
  const auto whole = static_cast<std::int64_t>(std::abs(value) < 1e15 ? value : 0.5);
  if (static_cast<double>(whole) == value) return whole;
  return value;
}
inline nlohmann::json number(Index value) { return value; }

/// One number where all are equal.
template <class T>
nlohmann::json one_or_list(const std::vector<T>& values) {
  if (std::adjacent_find(values.begin(), values.end(), std::not_equal_to<>()) == values.end())
    return number(values.front());
  nlohmann::json list = nlohmann::json::array();
  for (const T& value : values) list.push_back(number(value));
  return list;
}

/// Names of modules as patterns of PEFT's: a name that is also the end of another's is tied to the start.
class PatternNames {
 public:
  explicit PatternNames(const std::vector<std::string>& modules) : names_(modules.begin(), modules.end()) {
    for (const std::string& module : modules)
      for (std::size_t dot = module.find('.'); dot != std::string::npos; dot = module.find('.', dot + 1))
        if (const auto found = names_.find(module.substr(dot + 1)); found != names_.end())
          ends_.insert(*found);
  }
  std::string operator()(const std::string& module) const {
    std::string pattern = ends_.contains(module) ? "^" : "";
    for (const char c : module) {
      if (std::string_view("\\^$*+?()[]{}|").find(c) != std::string_view::npos) pattern += '\\';
      pattern += c;
    }
    return pattern;
  }

 private:
  std::set<std::string> names_, ends_;
};

/// r or lora_alpha of most, and a pattern for each of the others.
template <class T>
void set_values(nlohmann::json& json, std::string_view key, std::string_view pattern_key,
                const std::vector<std::string>& modules, const std::vector<std::vector<T>>& values) {
  const std::vector<T> most = most_common(values);
  const PatternNames names(modules);
  json[std::string(key)] = one_or_list(most);
  json[std::string(pattern_key)] = nlohmann::json::object();
  for (std::size_t m = 0; m < modules.size(); ++m)
    if (values[m] != most) json[std::string(pattern_key)][names(modules[m])] = one_or_list(values[m]);
}

/// What stands before a module's tail, and its path there. Throws UnsupportedOption for a name that MoE-PEFT
/// cannot write.
inline std::pair<std::string_view, std::string_view> with_prefix(Format format, const AdapterConfig& c,
                                                                 const std::string& module) {
  if (format != Format::moe_peft) return {peft_prefix, module};
  if (module.rfind(moe_peft_root, 0) != 0)
    cannot_hold(format, module, "a name that does not begin with \"model.\"");
  return {c.peft_type == "MOLA" ? "mola." : "loramoe.",
          std::string_view(module).substr(moe_peft_root.size())};
}

/// MoLA lists its numbers per layer, for layers without adapters too.
template <class F>
nlohmann::json per_layer(const std::vector<std::string>& modules, std::string_view what, F&& value_of) {
  std::map<Index, Index> values;
  for (std::size_t m = 0; m < modules.size(); ++m) {
    constexpr Index most_layers = 1 << 16;
    const Index layer = mola_layer(modules[m]);
    const auto [at, fresh] = values.try_emplace(layer, value_of(m));
    if (layer < 0 || layer > most_layers)
      cannot_hold(Format::mola, modules[m], "a module outside of the layers");
    if (!fresh && at->second != value_of(m))
      cannot_hold(Format::mola, modules[m], moxie::detail::join({what, " that differ in a layer"}));
  }
  nlohmann::json list = nlohmann::json::array();
  for (const auto& [layer, value] : values)
    while (std::ssize(list) <= layer) list.push_back(value);
  return list;
}

template <class T>
bool alike(const std::vector<T>& values) {
  return std::adjacent_find(values.begin(), values.end(), std::not_equal_to<>()) == values.end();
}

/// Refuses what a format has no words for.
inline void expect_holds(Format format, const std::vector<std::string>& modules,
                         const std::vector<Described>& all, bool parameters) {
  const Described& first = all.front();
  const bool ours = format == Format::mixture, plain = format == Format::peft;
  for (std::size_t m = 0; m < all.size(); ++m) {
    const Described& d = all[m];
    const auto expect = [&](bool holds, std::string_view what) {
      if (!holds) cannot_hold(format, modules[m], what);
    };
    const bool single = d.router == "uniform" && d.experts == 1;
    expect(d.vectors == first.vectors, "IA3 beside LoRA");
    expect(ours || plain || !d.vectors, "IA3 or MoV");
    expect(!d.frozen, "a frozen router or a k that grows");
    expect(!plain || single || (parameters && d.router == "given" && !d.vectors),
           "several experts or a router");
    expect(d.dropout == first.dropout && d.rslora == first.rslora && d.bias == first.bias,
           "dropout, use_rslora or lora_bias that differ between modules");
    expect(ours || (alike(d.rank) && alike(d.alpha)), "experts of different ranks or scales");
    if (ours) {
      expect(d.same_router(first) && d.top_k == first.top_k, "routers that differ between modules");
      expect(d.mask_per_expert == first.mask_per_expert, "dropout masks that differ between modules");
    } else if (!plain) {
      expect(!d.bias, "biases of B");
      expect(d.temperature == 1 && d.jitter == 0 && d.noise == "none" && d.weights == "renormalised",
             "a router's temperature, jitter, noise or weights of its own");
      expect(format == Format::moe_peft || !d.rslora, "use_rslora");
    }
    expect(d.shared_a == (format == Format::hydralora),
           d.shared_a ? "an A that the experts share" : "an A for every expert");
    if (format == Format::mola) expect(d.router == "top_k", "other routers than top-k");
    if (format == Format::loramoe || format == Format::hydralora)
      expect(d.router == "soft" && d.experts == first.experts,
             "other routers than soft ones over equally many experts");
    if (format == Format::moe_peft)
      expect(single || d.router == "soft" || d.router == "top_k", "such a router");
  }
}

/// The keys of the LoRA experts.
inline void set_lora(nlohmann::json& json, Format format, const std::vector<std::string>& modules,
                     const std::vector<Described>& all) {
  const Described& first = all.front();
  const bool ours = format == Format::mixture;
  std::vector<std::vector<Index>> ranks;
  std::vector<std::vector<double>> alphas;
  for (const Described& d : all) {
    ranks.push_back(d.rank);
    alphas.push_back(d.alpha);
    if (!ours || alike(d.rank)) ranks.back().resize(1);
    if (!ours || alike(d.alpha)) alphas.back().resize(1);
  }
  json["lora_dropout"] = number(first.dropout);
  set_values(json, "r", "rank_pattern", modules, ranks);
  set_values(json, "lora_alpha", "alpha_pattern", modules, alphas);
  if (!json.contains("bias")) json["bias"] = "none";
  if (format == Format::peft || ours) {
    if (!json.contains("fan_in_fan_out")) json["fan_in_fan_out"] = false;
    json["lora_bias"] = first.bias;
    json["use_rslora"] = first.rslora;
    if (first.mask_per_expert) json["lora_dropout_per_expert"] = true;
    return;
  }
  if (format == Format::moe_peft) json["use_rslora"] = first.rslora;
  if (format == Format::mola)
    json["r"] = per_layer(modules, "ranks", [&](std::size_t m) { return all[m].rank.front(); });
  for (std::size_t m = 0; m < all.size(); ++m)
    if (alphas[m] != alphas[0] || (format != Format::mola && ranks[m] != ranks[0]))
      cannot_hold(format, modules[m], "ranks or alphas that differ between modules");
  json.erase("rank_pattern");
  json.erase("alpha_pattern");
}

/// The keys of the routers and the experts' numbers.
inline void set_mixture(nlohmann::json& json, Format format, const std::vector<std::string>& modules,
                        const std::vector<Described>& all) {
  std::vector<Index> experts, top_k;
  std::string router;
  for (const Described& d : all) {
    if (format == Format::moe_peft && d.router == "uniform") continue;  // its plain LoRA of attention
    experts.push_back(d.experts);
    top_k.push_back(d.top_k);
    if (!router.empty() && d.router != router) cannot_hold(format, modules.front(), "routers that differ");
    router = d.router;
  }
  if (experts.empty()) cannot_hold(format, modules.front(), "no mixture at all; plain LoRA is PEFT's");
  const Described& first = all.front();
  if (format == Format::mixture) {
    if (alike(experts)) json["num_experts"] = first.experts;
    json["router_type"] = first.router;
    if (first.top_k > 0) json["top_k"] = first.top_k;
    if (first.temperature != 1) json["router_temperature"] = first.temperature;
    if (first.jitter != 0) json["router_jitter"] = first.jitter;
    if (first.weights != "renormalised") json["router_weights"] = first.weights;
    if (first.noise != "none") json["router_noise"] = first.noise;
    if (first.noise == "fixed") json["router_noise_scale"] = first.noise_scale;
  } else if (format == Format::mola) {  // MoLA itself neither writes nor reads top_k
    json["top_k"] = alike(top_k) ? nlohmann::json(top_k.front())
                                 : per_layer(modules, "top_k", [&](std::size_t m) { return all[m].top_k; });
  } else if (format == Format::moe_peft) {
    if (!alike(experts) || !alike(top_k))
      cannot_hold(format, modules.front(), "experts or top_k that differ");
    json["num_experts"] = experts.front();
    json["routing_strategy"] = router == "top_k" ? "mola" : "loramoe";
    if (router == "top_k") json["top_k"] = top_k.front();
  } else {
    json["lora_nums"] = experts.front();
  }
}

/// The config of a set: what is in `base`, with everything that the set decides set anew.
template <Scalar S>
nlohmann::json config_of(const AdapterSet<S>& set, Format format, const nlohmann::json& base) {
  nlohmann::json json = base.is_object() ? base : nlohmann::json::object();
  const nlohmann::json before = json.value("peft_type", nlohmann::json());
  for (const char* key : {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_bias",
                          "lora_dropout", "lora_dropout_per_expert", "num_experts", "lora_nums", "top_k",
                          "router_type", "router_temperature", "router_jitter", "router_weights",
                          "router_noise", "router_noise_scale", "routing_strategy", "peft_type"})
    json.erase(key);
  const std::vector<Described> all = describe(set);
  std::vector<std::string> modules;
  for (const auto& entry : set.entries()) modules.push_back(entry.name);
  const auto parameters = json.find("target_parameters");
  expect_holds(format, modules, all, parameters != json.end() && !parameters->empty());
  const auto keep = [&](const char* key, nlohmann::json value) {
    if (!json.contains(key)) json[key] = std::move(value);
  };
  for (const char* key : {"base_model_name_or_path", "task_type", "modules_to_save"}) keep(key, nullptr);
  keep("inference_mode", true);
  if (format == Format::moe_peft && !json.contains("target_modules")) {
    std::set<std::string> projections;
    for (const std::string& module : modules) projections.insert(module.substr(module.rfind('.') + 1));
    json["target_modules"] = projections;
  }
  keep("target_modules", modules);
  const bool vectors = all.front().vectors;
  if (vectors && format == Format::peft) keep("feedforward_modules", nlohmann::json::array());
  if (!vectors) set_lora(json, format, modules, all);
  if (format != Format::peft) set_mixture(json, format, modules, all);
  const bool top_k = json.value("routing_strategy", "") == "mola";
  json["peft_type"] = format == Format::mixture    ? (vectors ? "MOV" : "MOLORA")
                      : format == Format::moe_peft ? (top_k ? "MOLA" : "LORAMOE")
                                                   : (vectors ? "IA3" : "LORA");
  if (json["peft_type"] != before)  // what another program trains with
    for (const char* key :
         {"blc_alpha", "blc_weight", "merge_weights", "enable_lora", "act_fn", "router_loss",
          "router_aux_loss_coef", "router_init_range", "router_z_loss_coef", "jitter_noise"})
      json.erase(key);
  return json;
}

}  // namespace moxie::inline MOXIE_ABI::io::detail
