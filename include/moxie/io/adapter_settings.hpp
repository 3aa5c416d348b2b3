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

/// Looks up what a config says of every module of the file, and what it says that no module takes up.
class ConfigLookup {
 public:
  ConfigLookup(std::vector<FoundModule>& found, const AdapterConfig& config, Report& report)
      : found_(found), config_(config), report_(report) {
    for (const FoundModule& module : found) names_.push_back(module.name);
  }
  ConfigLookup(const ConfigLookup&) = delete;  // the matcher refers to the source

  /// Which modules are wanted, by target_modules and exclude_modules, and which are feed-forward.
  void targets() {
    const ModuleRule& target = config_.target;
    std::vector<bool> used;
    meant_ = matcher_.apply(target, names_, &used);
    if (config_.target_parameters.empty() && std::find(meant_.begin(), meant_.end(), true) == meant_.end())
      source_.refuse(Code::nothing_matched, "target_modules (",
                     shown(target.names.empty() ? target.expression : target.names.front()),
                     target.names.size() > 1 ? ", ..." : "", ") means no module that has tensors, such as ",
                     shown(names_.front()));
    for (std::size_t i = 0; i < used.size(); ++i) {
      if (used[i]) continue;
      if (target.names[i].find('.') != std::string::npos)
        report_.miss(target.names[i], "is in target_modules, but no tensor is its");
      else  // lists for several kinds of base are common, and the file cannot tell which this one has
        report_.note(target.names[i], "is in target_modules, but no tensor is its");
    }
    const std::vector<bool> excluded = matcher_.apply(config_.exclude, names_),
                            feedforward = matcher_.apply_feedforward(config_.feedforward, names_);
    for (std::size_t m = 0; m < names_.size(); ++m) {
      found_[m].wanted = meant_[m] && !excluded[m];
      found_[m].feedforward = feedforward[m];
    }
  }

  /// layers_to_transform: modules of other layers are not wanted, but where their whole path is a target, as
  /// in PEFT.
  void layers_to_transform() {
    if (config_.layers.empty() || config_.target.names.empty()) return;
    const std::set<std::string_view> paths(config_.target.names.begin(), config_.target.names.end());
    const std::vector<Index> layer = matcher_.layers(config_.layers_pattern, names_);
    for (std::size_t m = 0; m < names_.size(); ++m) {
      if (paths.contains(names_[m])) continue;
      matcher_.spend(config_.layers.size());
      if (std::find(config_.layers.begin(), config_.layers.end(), layer[m]) == config_.layers.end())
        found_[m].wanted = false;
    }
  }

  /// target_parameters: which modules are parameters, and that each parameter has its tensors.
  void target_parameters() {
    const std::vector<std::string>& targets = config_.target_parameters;
    std::vector<bool> has_tensors(targets.size());
    std::map<std::string_view, std::pair<Index, Index>> named;  // by module: parameters meant, and found
    for (std::size_t m = 0; m < names_.size(); ++m) {
      matcher_.spend(targets.size());
      Index whole_paths = 0;
      for (std::size_t t = 0; t < targets.size(); ++t) {
        const std::size_t dot = targets[t].rfind('.');
        const bool bare = dot == std::string::npos;  // that parameter of any module that is no target itself
        const std::string_view module = std::string_view(targets[t]).substr(0, bare ? 0 : dot);
        if (bare ? meant_[m] : !names_module(unwrapped(names_[m]), module)) continue;
        has_tensors[t] = found_[m].parameter = found_[m].wanted = true;
        whole_paths += !bare;
      }
      if (whole_paths == 0) continue;
      auto& [meant, present] = named[unwrapped(names_[m])];
      meant = whole_paths;
      ++present;
    }
    for (std::size_t t = 0; t < targets.size(); ++t)
      if (!has_tensors[t]) report_.miss(targets[t], "is in target_parameters, but no tensor is its");
    for (const auto& [module, counts] : named)
      if (counts.first > counts.second)
        report_.miss(std::string(module), "has the tensors of ", counts.second, " of its ", counts.first,
                     " target_parameters");
  }

  /// Ranks, alphas and top-k: of the whole file, of a layer, of the patterns that mean a module.
  void ranks(Format format, const std::vector<Index>& top_k) {
    const bool rank_by_layer = format == Format::mola && config_.rank.size() > 1;
    for (std::size_t m = 0; m < names_.size(); ++m) {
      found_[m].rank = config_.rank;
      found_[m].alpha = config_.alpha;
      if (top_k.size() == 1) found_[m].top_k = top_k.front();
    }
    if (rank_by_layer)
      of_layers(config_.rank, "r", [](FoundModule& module, Index rank) { module.rank = {rank}; });
    if (top_k.size() > 1) of_layers(top_k, "top_k", [](FoundModule& module, Index k) { module.top_k = k; });
    overrides(config_.rank_pattern, "rank_pattern", &FoundModule::rank);
    overrides(config_.alpha_pattern, "alpha_pattern", &FoundModule::alpha);
    if (top_k.empty() && (format == Format::mola || config_.peft_type == "MOLA"))
      report_.note("top_k", "is not in the file: 2 is assumed, as MoLA has it");
  }

 private:
  /// Gives every module the list's entry of its layer.
  template <class Set>
  void of_layers(const std::vector<Index>& list, std::string_view key, const Set& set) {
    Index layers = 0;
    for (FoundModule& module : found_) {
      const Index layer = mola_layer(module.name);
      layers = std::max(layers, layer + 1);
      const bool listed = layer >= 0 && layer < std::ssize(list);
      set(module, list[listed ? static_cast<std::size_t>(layer) : 0]);
      if (!listed)
        report_.mismatch(Code::config_range, module.name, "is in layer ", layer, ", but ", key, " lists ",
                         list.size());
    }
    if (std::ssize(list) != layers)
      report_.mismatch(Code::config_range, std::string(key), "lists ", list.size(),
                       " layers, the tensors are of ", layers);
  }

  /// Gives every module the values of the first pattern that means it.
  template <class Entry, class Values>
  void overrides(const std::vector<Entry>& patterns, std::string_view key, Values FoundModule::*values) {
    std::vector<std::string> texts;
    for (const Entry& entry : patterns) texts.push_back(entry.pattern);
    std::vector<bool> used;
    const std::vector<Index> first = matcher_.first_pattern(texts, names_, used);
    for (std::size_t m = 0; m < names_.size(); ++m)
      if (first[m] >= 0) found_[m].*values = patterns[static_cast<std::size_t>(first[m])].values;
    for (std::size_t p = 0; p < used.size(); ++p)
      if (!used[p])
        report_.unexpect(Code::pattern_unused, texts[p], "in ", key, " means no module of the file");
  }

  std::vector<FoundModule>& found_;
  const AdapterConfig& config_;
  Report& report_;
  std::vector<std::string> names_;
  std::vector<bool> meant_;  ///< by target_modules
  Source source_{config_.path};
  Matcher matcher_{source_};
};

/// Looks up what the config says of every module.
inline void apply_config(std::vector<FoundModule>& found, const AdapterConfig& config, Format format,
                         const LoadOptions& options, Report& report) {
  ConfigLookup lookup(found, config, report);
  lookup.targets();
  lookup.layers_to_transform();
  lookup.target_parameters();
  lookup.ranks(format, config.top_k.empty() ? options.top_k : config.top_k);
}

}  // namespace moxie::inline MOXIE_ABI::io::detail
