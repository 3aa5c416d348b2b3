// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/adapter_holds.hpp>

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
  explicit PatternNames(const std::vector<Described>& all) {
    for (const Described& d : all) names_.insert(d.name);
    for (const std::string& name : names_)
      for (std::size_t dot = name.find('.'); dot != std::string::npos; dot = name.find('.', dot + 1))
        if (const auto found = names_.find(name.substr(dot + 1)); found != names_.end()) ends_.insert(*found);
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
                const std::vector<Described>& all, const std::vector<std::vector<T>>& values) {
  const std::vector<T> most = most_common(values);
  const PatternNames names(all);
  json[std::string(key)] = one_or_list(most);
  json[std::string(pattern_key)] = nlohmann::json::object();
  for (std::size_t m = 0; m < all.size(); ++m)
    if (values[m] != most) json[std::string(pattern_key)][names(all[m].name)] = one_or_list(values[m]);
}

/// MoLA lists its numbers per layer, for layers without adapters too.
template <class F>
nlohmann::json per_layer(const std::vector<Described>& all, F&& value_of) {
  std::map<Index, Index> values;
  for (const Described& d : all) values[layer_in(d.name)] = value_of(d);
  nlohmann::json list = nlohmann::json::array();
  for (const auto& [layer, value] : values)
    while (std::ssize(list) <= layer) list.push_back(value);
  return list;
}

/// The keys of the LoRA experts.
inline void set_lora(nlohmann::json& json, Format format, const std::vector<Described>& all) {
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
  json["lora_dropout"] = first.dropout;  // 0.0, never 0: MoE-PEFT wants a float
  set_values(json, "r", "rank_pattern", all, ranks);
  set_values(json, "lora_alpha", "alpha_pattern", all, alphas);
  if (!json.contains("bias")) json["bias"] = "none";
  if (format == Format::peft || ours) {
    if (!json.contains("fan_in_fan_out")) json["fan_in_fan_out"] = false;
    json["lora_bias"] = first.bias;
    json["use_rslora"] = first.rslora;
    if (first.mask_per_expert) json["lora_dropout_per_expert"] = true;
    return;
  }
  if (format == Format::moe_peft) json["use_rslora"] = first.rslora;
  if (format == Format::mola) json["r"] = per_layer(all, [](const Described& d) { return d.rank.front(); });
  json.erase("rank_pattern");
  json.erase("alpha_pattern");
}

/// The keys of the routers and the experts' numbers.
inline void set_mixture(nlohmann::json& json, Format format, const std::vector<Described>& all) {
  std::vector<Index> experts, top_k;
  RouterKind kind = RouterKind::uniform;
  for (const Described& d : all) {
    if (format == Format::moe_peft && is_plain(d)) continue;  // its plain LoRA of attention
    experts.push_back(d.experts);
    top_k.push_back(d.router.top_k);
    kind = d.router.kind;
  }
  const bool chooses = kind == RouterKind::top_k;
  if (format == Format::mixture) {
    if (alike(experts)) json["num_experts"] = experts.front();
    all.front().router.write(json);
  } else if (format == Format::mola) {  // MoLA itself neither writes nor reads top_k
    json["top_k"] = alike(top_k) ? nlohmann::json(top_k.front())
                                 : per_layer(all, [](const Described& d) { return d.router.top_k; });
  } else if (format == Format::moe_peft) {
    json["num_experts"] = experts.front();
    json["routing_strategy"] = chooses ? "mola" : "loramoe";
    if (chooses) json["top_k"] = top_k.front();
  } else {
    json["lora_nums"] = experts.front();
  }
}

/// MoE-PEFT's way to say which modules: projections, of every layer. Throws UnsupportedOption where a config
/// says more.
inline void set_projections(nlohmann::json& json, const std::vector<Described>& all) {
  std::set<std::string> projections, listed;
  for (const Described& d : all) projections.insert(std::string(projection_of(d.name)));
  if (const auto found = json.find("target_modules"); found != json.end() && found->is_array())
    for (const auto& name : *found) listed.insert(name.is_string() ? name.get<std::string>() : "");
  if (listed != projections) json["target_modules"] = projections;
  for (const char* key : {"exclude_modules", "layers_to_transform", "layers_pattern"}) {
    const auto found = json.find(key);
    if (found != json.end() && !found->empty())
      fail(Code::unsupported_option, join("the format moe-peft cannot hold ", key));
    json.erase(key);
  }
}

/// What every format says of the base; all else is the set's, or another program's way to train.
inline nlohmann::json base_of(const nlohmann::json& config) {
  nlohmann::json base = nlohmann::json::object();
  for (const char* key : {"base_model_name_or_path", "task_type", "target_modules", "exclude_modules",
                          "feedforward_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
                          "bias", "fan_in_fan_out", "inference_mode"})
    if (const auto found = config.find(key); found != config.end()) base[key] = *found;
  return base;
}

/// The config of a set: what is in `base`, with everything that the set decides set anew.
inline nlohmann::json config_of(const std::vector<Described>& all, Format format,
                                const nlohmann::json& base) {
  nlohmann::json json = base.is_object() ? base : nlohmann::json::object();
  for (const char* key : {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_bias",
                          "lora_dropout", "lora_dropout_per_expert", "num_experts", "lora_nums", "top_k",
                          "router_type", "router_temperature", "router_jitter", "router_weights",
                          "router_noise", "router_noise_scale", "routing_strategy", "peft_type"})
    json.erase(key);
  const auto parameters = json.find("target_parameters");
  expect_held(format, all, parameters != json.end() && !parameters->empty());
  const auto keep = [&](const char* key, nlohmann::json value) {
    if (!json.contains(key)) json[key] = std::move(value);
  };
  for (const char* key : {"base_model_name_or_path", "task_type", "modules_to_save"}) keep(key, nullptr);
  keep("inference_mode", true);
  if (format == Format::moe_peft) set_projections(json, all);
  if (const auto targets = json.find("target_modules"); targets == json.end() || targets->empty()) {
    json["target_modules"] = nlohmann::json::array();
    for (const Described& d : all) json["target_modules"].push_back(d.name);
  }
  const bool vectors = all.front().vectors;
  if (vectors && format == Format::peft) keep("feedforward_modules", nlohmann::json::array());
  if (!vectors) set_lora(json, format, all);
  if (format != Format::peft) set_mixture(json, format, all);
  const bool top_k = std::any_of(all.begin(), all.end(),
                                 [](const Described& d) { return d.router.kind == RouterKind::top_k; });
  json["peft_type"] = format == Format::mixture    ? (vectors ? "MOV" : "MOLORA")
                      : format == Format::moe_peft ? (top_k ? "MOLA" : "LORAMOE")
                                                   : (vectors ? "IA3" : "LORA");
  return json;
}

}  // namespace moxie::inline MOXIE_ABI::io::detail
