// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/adapter_config.hpp>
#include <moxie/io/adapter_layout.hpp>
#include <moxie/io/safetensors_header.hpp>

namespace moxie::inline MOXIE_ABI::io::detail {

/// The tensors that were found of a module.
using Parts = std::map<std::pair<Part, Index>, const TensorInfo*>;

/// A module of a file: its tensors, and what the config says of it.
struct FoundModule {
  std::string name;
  Parts parts;
  bool wanted = true;  ///< among the modules that the config means
  bool feedforward = false;
  bool parameter = false;        ///< of target_parameters: the experts are the base's own
  std::vector<Index> rank = {};  ///< one for all experts, or one each
  std::vector<double> alpha = {};
  Index top_k = 0;  ///< 0: nobody says
};

/// Looks up what the config says of every module.
inline void apply_config(std::vector<FoundModule>& found, const AdapterConfig& c, Format format,
                         const LoadOptions& options, Report& report) {
  std::vector<std::string> modules;
  for (const FoundModule& module : found) modules.push_back(module.name);
  const Source source{c.path};
  Matcher matcher(source);
  std::vector<bool> used;
  const std::vector<bool> meant = matcher.apply(c.target, modules, &used),
                          out = matcher.apply(c.exclude, modules);
  if (c.target_parameters.empty() && std::find(meant.begin(), meant.end(), true) == meant.end())
    source.refuse(Code::nothing_matched, "target_modules (",
                  shown(c.target.names.empty() ? c.target.expression : c.target.names.front()),
                  c.target.names.size() > 1 ? ", ..." : "", ") means no module that has tensors, such as ",
                  shown(modules.front()));
  for (std::size_t i = 0; i < used.size(); ++i) {
    if (used[i]) continue;
    const std::string& name = c.target.names[i];
    if (name.find('.') != std::string::npos)
      report.miss(name, "is in target_modules, but no tensor is its");
    else  // lists for several kinds of base are common, and the file cannot tell which of them this one has
      report.note(name, "is in target_modules, but no tensor is its");
  }
  const auto overrides = [&](const auto& patterns, std::string_view key) {
    std::vector<std::string> texts;
    for (const auto& entry : patterns) texts.push_back(entry.pattern);
    const std::vector<Index> first = matcher.first_pattern(texts, modules, used);
    for (std::size_t p = 0; p < used.size(); ++p)
      if (!used[p])
        report.unexpect(Code::pattern_unused, texts[p], "in ", key, " means no module of the file");
    return first;
  };
  const std::vector<Index> rank = overrides(c.rank_pattern, "rank_pattern"),
                           alpha = overrides(c.alpha_pattern, "alpha_pattern");
  const bool by_layer = !c.layers.empty() && !c.target.names.empty();
  const std::vector<Index> layer_of =
      by_layer ? matcher.layers(c.layers_pattern, modules) : std::vector<Index>{};
  const std::vector<bool> feedforward = matcher.apply_feedforward(c.feedforward, modules);
  const bool per_layer = format == Format::mola && c.rank.size() > 1;
  Index layers = 0;
  const std::vector<Index>& k = c.top_k.empty() ? options.top_k : c.top_k;
  const std::set<std::string_view> paths(c.target.names.begin(), c.target.names.end());
  std::vector<bool> has_tensors(c.target_parameters.size());
  std::map<std::string_view, std::pair<Index, Index>> wrapped;  // parameters that are meant, and are there
  for (std::size_t m = 0; m < modules.size(); ++m) {
    const std::string& module = modules[m];
    FoundModule& s = found[m];
    s.wanted = meant[m] && !out[m];
    s.feedforward = feedforward[m];
    s.rank = c.rank;
    s.alpha = c.alpha;
    // A module whose whole path is listed is meant in whatever layer, as in PEFT.
    if (by_layer && !paths.contains(module)) {
      s.wanted = s.wanted && std::find(c.layers.begin(), c.layers.end(), layer_of[m]) != c.layers.end();
      matcher.spend(c.layers.size());
    }
    Index named = 0;
    for (std::size_t t = 0; t < has_tensors.size(); ++t) {
      const std::string& target = c.target_parameters[t];
      const std::size_t dot = target.rfind('.');  // a bare name means that parameter of any module
      const bool bare = dot == std::string::npos;
      if (bare ? meant[m] : !names_module(unwrapped(module), std::string_view(target).substr(0, dot)))
        continue;
      has_tensors[t] = s.parameter = true;
      named += !bare;
    }
    if (named > 0) {
      wrapped[unwrapped(module)].first = named;
      ++wrapped[unwrapped(module)].second;
    }
    matcher.spend(c.target_parameters.size());
    s.wanted = s.wanted || s.parameter;
    if (rank[m] >= 0) s.rank = c.rank_pattern[static_cast<std::size_t>(rank[m])].values;
    if (alpha[m] >= 0) s.alpha = c.alpha_pattern[static_cast<std::size_t>(alpha[m])].values;
    if (per_layer || k.size() > 1) {
      const Index layer = mola_layer(module);
      layers = std::max(layers, layer + 1);
      const auto of_layer = [&](const std::vector<Index>& list, std::string_view key) {
        if (layer >= 0 && layer < std::ssize(list)) return list[static_cast<std::size_t>(layer)];
        report.mismatch(Code::config_range, module, "is in layer ", layer, ", but ", key, " lists ",
                        list.size());
        return list.front();
      };
      if (per_layer && rank[m] < 0) s.rank = {of_layer(c.rank, "r")};
      if (k.size() > 1) s.top_k = of_layer(k, "top_k");
    }
    if (k.size() == 1) s.top_k = k.front();
  }
  for (std::size_t t = 0; t < has_tensors.size(); ++t)
    if (!has_tensors[t]) report.miss(c.target_parameters[t], "is in target_parameters, but no tensor is its");
  for (const auto& [module, counts] : wrapped)
    if (counts.first > counts.second)
      report.miss(std::string(module), "has the tensors of ", counts.second, " of its ", counts.first,
                  " target_parameters");
  const auto expect_layers = [&](const std::vector<Index>& list, std::string_view key) {
    if (std::ssize(list) != layers)
      report.mismatch(Code::config_range, std::string(key), "lists ", list.size(),
                      " layers, the tensors are of ", layers);
  };
  const bool chooses = format == Format::mola || c.peft_type == "MOLA";
  if (chooses && k.empty()) report.note("top_k", "is not in the file: 2 is assumed, as MoLA has it");
  if (per_layer) expect_layers(c.rank, "r");
  if (k.size() > 1) expect_layers(k, "top_k");
}

}  // namespace moxie::inline MOXIE_ABI::io::detail
