// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/config_reader.hpp>
#include <moxie/io/pattern.hpp>

namespace moxie::inline MOXIE_ABI::io::detail {

/// Steps that the matching of one load may take; far above what adapters need, about a second.
inline constexpr std::uint64_t most_steps = std::uint64_t{1} << 26;

/// The modules that a config means by a list of names or by one regular expression.
struct ModuleRule {
  std::vector<std::string> names;
  std::string expression;  ///< in place of names; "all-linear" is PEFT's word for all

  bool empty() const { return names.empty() && expression.empty(); }

  static ModuleRule read(ConfigReader& config, std::string_view key) {
    const nlohmann::json* const value = config.find(key);
    if (value != nullptr && value->is_string()) return {{}, config.text(key)};
    return {config.texts(key), {}};
  }
};

/// `name` is the whole module path or its end from a dot on, as PEFT compares a listed name.
inline bool names_module(std::string_view module, std::string_view name) {
  if (module.size() < name.size() || module.substr(module.size() - name.size()) != name) return false;
  return module.size() == name.size() || module[module.size() - name.size() - 1] == '.';
}

/// The module that a wrapper of PEFT's stands for: every further parameter of one module puts a wrapper
/// around the others, whose path then ends in ".base_layer".
inline std::string_view unwrapped(std::string_view module) {
  constexpr std::string_view wrapper = ".base_layer";
  while (module.size() > wrapper.size() && module.substr(module.size() - wrapper.size()) == wrapper)
    module.remove_suffix(wrapper.size());
  return module;
}

/// The number that a part of a path is, -1 where it is none or far above all layers.
inline Index layer_number(std::string_view part) {
  constexpr Index most_layers = 1 << 24;
  Index layer = -1;
  const auto [stop, error] = std::from_chars(part.data(), part.data() + part.size(), layer);
  const bool number = error == std::errc() && stop == part.data() + part.size() && part[0] != '-';
  return number && layer < most_layers ? layer : -1;
}

/// The layer whose numbers of MoLA's lists are a module's: the third part of its path (MoLA
/// `_find_and_replace`), -1 where that is no number.
inline Index mola_layer(std::string_view module) {
  for (int part = 0; part < 2; ++part) {
    const std::size_t dot = module.find('.');
    if (dot == std::string_view::npos) return -1;
    module.remove_prefix(dot + 1);
  }
  return layer_number(module.substr(0, module.find('.')));
}

/// Asks rules about modules, with one budget of steps for all.
class Matcher {
 public:
  explicit Matcher(const Source& source) : source_(source) {}

  Pattern compile(std::string_view expression) {
    auto pattern = Pattern::parse(expression);
    if (!pattern)
      source_.refuse(Code::pattern_syntax, shown(expression),
                     ", wanted an expression of literals, '.', classes, groups and "
                     "quantities of at most 4,096 bytes and 65,536 states");
    spend(pattern->size());
    return *std::move(pattern);
  }
  bool matches(const Pattern& pattern, std::string_view module) {
    return checked(pattern.matches(module, run_), module);
  }
  void spend(std::uint64_t steps) {
    run_.budget -= std::min(steps, run_.budget);
    if (run_.budget == 0)
      source_.refuse(Code::too_large, "its patterns take too many steps on these modules");
  }

  /// For every module whether the rule means it; `used[i]` whether name i means any.
  std::vector<bool> apply(const ModuleRule& rule, const std::vector<std::string>& modules,
                          std::vector<bool>* used = nullptr) {
    std::vector<bool> meant(modules.size(), false);
    if (used != nullptr) used->assign(rule.names.size(), false);
    if (rule.expression == "all-linear") meant.assign(modules.size(), true);
    if (!rule.expression.empty() && rule.expression != "all-linear") {
      const Pattern pattern = compile(rule.expression);
      for (std::size_t m = 0; m < modules.size(); ++m) meant[m] = matches(pattern, modules[m]);
    }
    for (std::size_t i = 0; i < rule.names.size(); ++i) {
      spend(modules.size());
      for (std::size_t m = 0; m < modules.size(); ++m) {
        if (!names_module(modules[m], rule.names[i])) continue;
        meant[m] = true;
        if (used != nullptr) (*used)[i] = true;
      }
    }
    return meant;
  }

  /// For every module the first pattern that means it, -1 where none does, by PEFT's rule: the expression
  /// `(.*\.)?(pattern)$` matches the path (PEFT `get_pattern_key`). `used[p]`: pattern p means any module.
  std::vector<Index> first_pattern(const std::vector<std::string>& patterns,
                                   const std::vector<std::string>& modules, std::vector<bool>& used) {
    std::vector<Index> first(modules.size(), -1);
    used.assign(patterns.size(), false);
    std::vector<bool> plain;
    for (const std::string& module : modules)
      plain.push_back(std::all_of(module.begin(), module.end(), is_plain));
    for (std::size_t p = 0; p < patterns.size(); ++p) {
      // Adapters with a rank of its own in each of thousands of modules list as many patterns, each the name
      // of one module (we write them so, too); automata would take hundreds of steps for every pair.
      const bool literal = std::all_of(patterns[p].begin(), patterns[p].end(), is_plain);
      std::optional<Pattern> pattern;
      for (std::size_t m = 0; m < modules.size(); ++m) {
        if (first[m] >= 0 && used[p]) continue;
        bool means = false;
        if (literal && plain[m]) {
          means = ends_with(modules[m], patterns[p]);
        } else {
          if (!pattern) pattern = compile(join("(.*\\.)?(", patterns[p], ")$"));
          means = checked(pattern->matches_beginning(modules[m], run_), modules[m]);
        }
        if (!means) continue;
        used[p] = true;
        if (first[m] < 0) first[m] = static_cast<Index>(p);
      }
    }
    return first;
  }

  /// For every module the number of the layer that it lies in, -1 where it lies in none, by PEFT's rule
  /// (`check_target_module_exists`): the first number between dots with a dot and a name before it; with
  /// `layers_pattern`, the number of the first `.*?\.{pattern}\.(\d+)\.` that matches.
  std::vector<Index> layers(const std::vector<std::string>& layers_pattern,
                            const std::vector<std::string>& modules) {
    std::vector<Index> layers(modules.size(), -1);
    std::vector<bool> found(modules.size(), false);
    for (std::size_t p = 0; p < std::max<std::size_t>(layers_pattern.size(), 1); ++p) {
      const std::string_view before = layers_pattern.empty() ? "[^.]*" : std::string_view(layers_pattern[p]);
      const std::string front = join(".*?\\.", before, "\\.");
      const Pattern pattern = compile(join(front, "(\\d+)\\."));
      const auto refuse = [&](std::string_view what) {
        source_.refuse(Code::pattern_syntax, "the layers_pattern ", shown(before), what,
                       ", wanted what stands before a layer's number; (?:...|...) "
                       "groups alternatives");
      };
      // PEFT would take it for the layer's number.
      if (pattern.first_group() != front.size()) refuse(" has a group of its own");
      for (std::size_t m = 0; m < modules.size(); ++m) {
        if (found[m] || !checked(pattern.matches_beginning(modules[m], run_), modules[m])) continue;
        found[m] = true;
        if (!run_.group) refuse(" matches without a number");
        layers[m] = layer_number(*run_.group);
      }
    }
    return layers;
  }

  /// IA3's feedforward_modules, whose names PEFT compares with the end of the path, dot or not.
  std::vector<bool> apply_feedforward(const ModuleRule& rule, const std::vector<std::string>& modules) {
    if (!rule.expression.empty()) return apply(rule, modules);
    std::vector<bool> meant(modules.size(), false);
    for (std::size_t m = 0; m < modules.size(); ++m)
      for (const std::string& name : rule.names) {
        spend(1);
        const std::string& module = modules[m];
        meant[m] = meant[m] || (module.size() >= name.size() &&
                                module.compare(module.size() - name.size(), name.size(), name) == 0);
      }
    return meant;
  }

 private:
  /// Of a path or pattern without anything to interpret but '.'.
  static bool is_plain(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  }
  /// The pattern, whose '.' stands for any character, is the module or its end from a dot on.
  bool ends_with(std::string_view module, std::string_view pattern) {
    spend(1);
    if (module.size() < pattern.size()) return false;
    const std::size_t from = module.size() - pattern.size();
    for (std::size_t i = pattern.size(); i-- > 0;)
      if (pattern[i] != '.' && pattern[i] != module[from + i]) return false;
    return from == 0 || module[from - 1] == '.';
  }
  /// What a pattern said of a module, where it could say.
  bool checked(bool yes, std::string_view module) {
    spend(0);
    if (run_.unknown)
      source_.refuse(Code::pattern_syntax,
                     "an expression compares \\d, \\w, \\s or their opposites with a "
                     "character outside of ASCII in ",
                     shown(module), ", wanted characters or classes of characters");
    return yes;
  }

  const Source& source_;
  Pattern::Run run_{most_steps};
};

}  // namespace moxie::inline MOXIE_ABI::io::detail
