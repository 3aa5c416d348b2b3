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

/// Asks rules about modules, with one budget of steps for all.
class Matcher {
 public:
  explicit Matcher(const Source& source) : source_(source) {}

  Pattern compile(std::string_view expression) const {
    if (auto pattern = Pattern::parse(expression)) return *pattern;
    source_.refuse(Code::pattern_syntax,
                   moxie::detail::join({shown(expression),
                                        ", wanted an expression of literals, '.', classes, "
                                        "groups and quantities of at most 4,096 bytes"}));
  }
  bool matches(const Pattern& pattern, std::string_view module) {
    const bool yes = pattern.matches(module, budget_);
    spend(0);
    return yes;
  }
  void spend(std::uint64_t steps) {
    budget_ -= std::min(steps, budget_);
    if (budget_ == 0) source_.refuse(Code::too_large, "its patterns take too many steps on these modules");
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
  /// `(.*\.)?(pattern)` matches the whole path (PEFT `get_pattern_key`). `used[p]`: pattern p means any
  /// module.
  std::vector<Index> first_pattern(const std::vector<std::string>& patterns,
                                   const std::vector<std::string>& modules, std::vector<bool>& used) {
    std::vector<Index> first(modules.size(), -1);
    used.assign(patterns.size(), false);
    for (std::size_t p = 0; p < patterns.size(); ++p) {
      const auto plain = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
               c == '-' || c == '.';
      };
      const bool literal = std::all_of(patterns[p].begin(), patterns[p].end(), plain);
      std::optional<Pattern> pattern;
      if (!literal) pattern = compile(moxie::detail::join({"(.*\\.)?(", patterns[p], ")"}));
      for (std::size_t m = 0; m < modules.size(); ++m) {
        if (first[m] >= 0 && used[p]) continue;
        if (!(literal ? ends_with(modules[m], patterns[p]) : matches(*pattern, modules[m]))) continue;
        used[p] = true;
        if (first[m] < 0) first[m] = static_cast<Index>(p);
      }
    }
    return first;
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
  /// The pattern, whose '.' stands for any character, is the module or its end from a dot on.
  bool ends_with(std::string_view module, std::string_view pattern) {
    spend(1);
    if (module.size() < pattern.size()) return false;
    const std::size_t from = module.size() - pattern.size();
    for (std::size_t i = pattern.size(); i-- > 0;)
      if (pattern[i] != '.' && pattern[i] != module[from + i]) return false;
    return from == 0 || module[from - 1] == '.';
  }

  const Source& source_;
  std::uint64_t budget_ = most_steps;
};

/// The number of the layer that a module lies in, -1 where it lies in none: as PEFT reads it, the last number
/// between dots that has two names before it and one behind; with `patterns`, one of them right before it.
inline Index layer_of(std::string_view module, const std::vector<Pattern>& patterns, Matcher& matcher,
                      bool any = true) {
  for (std::size_t end = module.rfind('.'); end != std::string_view::npos && end > 0;) {
    const std::size_t before = module.rfind('.', end - 1);
    if (before == std::string_view::npos) return -1;
    const std::string_view digits = module.substr(before + 1, end - before - 1);
    Index layer = -1;
    const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), layer);
    constexpr Index most_layers = 1 << 24;
    const bool number = error == std::errc() && stop == digits.data() + digits.size() && layer >= 0 &&
                        layer < most_layers && digits[0] != '-';
    if (number) {
      const std::string_view path = module.substr(0, before);
      if (any && path.find('.') != std::string_view::npos) return layer;
      for (const Pattern& pattern : patterns)
        if (matcher.matches(pattern, path)) return layer;
    }
    end = before;
  }
  return -1;
}

}  // namespace moxie::inline MOXIE_ABI::io::detail
