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

/// MoLA lists a rank per layer, for layers without adapters too.
inline nlohmann::json rank_per_layer(const std::vector<std::string>& modules,
                                     const std::vector<Described>& all) {
  const Path nowhere;
  const Source source{nowhere};
  Matcher matcher(source);
  std::map<Index, Index> rank;
  for (std::size_t m = 0; m < modules.size(); ++m) {
    const Index layer = layer_of(modules[m], {}, matcher);
    const auto [at, fresh] = rank.try_emplace(layer, all[m].rank.front());
    if (layer < 0 || layer > 1 << 20) cannot_hold(Format::mola, modules[m], "a module outside of the layers");
    if (!fresh && at->second != all[m].rank.front())
      cannot_hold(Format::mola, modules[m], "ranks that differ in a layer");
  }
  nlohmann::json list = nlohmann::json::array();
  for (const auto& [layer, r] : rank)
    while (std::ssize(list) <= layer) list.push_back(r);
  return list;
}

/// The config of a set: what is in `base`, with everything that the set decides set anew.
template <Scalar S>
nlohmann::json config_of(const AdapterSet<S>& set, Format format, const nlohmann::json& base) {
  nlohmann::json json = base.is_object() ? base : nlohmann::json::object();
  for (const char* key :
       {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_bias", "lora_dropout",
        "num_experts", "lora_nums", "top_k", "router_type", "router_temperature", "router_jitter",
        "router_weights", "router_noise", "router_noise_scale", "routing_strategy", "peft_type"})
    json.erase(key);
  const std::vector<Described> all = describe(set);
  std::vector<std::string> modules;
  for (const auto& entry : set.entries()) modules.push_back(entry.name);
  const Described& first = all.front();
  const bool has_router = format != Format::peft, ours = format == Format::mixture;
  for (std::size_t m = 0; m < all.size(); ++m) {
    const Described& d = all[m];
    if (d.vectors != first.vectors) cannot_hold(format, modules[m], "IA3 beside LoRA");
    if (d.frozen) cannot_hold(format, modules[m], "a frozen router or a k that grows");
    if (!has_router && (d.router != "uniform" || d.experts != 1))
      cannot_hold(format, modules[m], "several experts or a router");
    if (ours && (!d.same_router(first) || (d.top_k != first.top_k)))
      cannot_hold(format, modules[m], "routers that differ");
    if (d.dropout != first.dropout || d.rslora != first.rslora || d.bias != first.bias)
      cannot_hold(format, modules[m], "dropout, use_rslora or lora_bias that differ between modules");
  }
  const auto keep = [&](const char* key, nlohmann::json value) {
    if (!json.contains(key)) json[key] = std::move(value);
  };
  for (const char* key : {"base_model_name_or_path", "task_type", "modules_to_save"}) keep(key, nullptr);
  keep("inference_mode", true);
  keep("target_modules", modules);
  if (first.vectors) {
    json["peft_type"] = ours ? "MOV" : "IA3";
    if (!ours) keep("feedforward_modules", nlohmann::json::array());
  } else {
    std::vector<std::vector<Index>> ranks;
    std::vector<std::vector<double>> alphas;
    for (const Described& d : all) {
      ranks.push_back(d.rank);
      alphas.push_back(d.alpha);
      if (ours) continue;
      const auto differ = [](const auto& v) {
        return std::adjacent_find(v.begin(), v.end(), std::not_equal_to<>()) != v.end();
      };
      if (differ(d.rank) || differ(d.alpha))
        cannot_hold(format, modules[ranks.size() - 1], "experts of different ranks or scales");
    }
    if (!ours)
      for (std::size_t m = 0; m < all.size(); ++m) {
        ranks[m].resize(1);
        alphas[m].resize(1);
      }
    keep("bias", "none");
    json["peft_type"] = ours ? "MOLORA" : "LORA";
    json["lora_dropout"] = number(first.dropout);
    json["use_rslora"] = first.rslora;
    set_values(json, "r", "rank_pattern", modules, ranks);
    set_values(json, "lora_alpha", "alpha_pattern", modules, alphas);
    if (format == Format::peft || ours) {
      keep("fan_in_fan_out", false);
      json["lora_bias"] = first.bias;
    }
    if (format == Format::mola) {
      json["r"] = rank_per_layer(modules, all);
      json.erase("rank_pattern");
    }
  }
  std::vector<Index> experts;
  for (const Described& d : all) experts.push_back(d.experts);
  const bool alike =
      std::adjacent_find(experts.begin(), experts.end(), std::not_equal_to<>()) == experts.end();
  if (ours) {
    if (alike) json["num_experts"] = first.experts;
    json["router_type"] = first.router;
    if (first.top_k > 0) json["top_k"] = first.top_k;
    if (first.temperature != 1) json["router_temperature"] = first.temperature;
    if (first.jitter != 0) json["router_jitter"] = first.jitter;
    if (first.weights != "renormalised") json["router_weights"] = first.weights;
    if (first.noise != "none") json["router_noise"] = first.noise;
    if (first.noise == "fixed") json["router_noise_scale"] = first.noise_scale;
  }
  return json;
}

}  // namespace moxie::inline MOXIE_ABI::io::detail
