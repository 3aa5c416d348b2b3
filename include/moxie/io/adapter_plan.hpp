// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/adapter_layout.hpp>
#include <moxie/io/adapter_shape.hpp>

namespace moxie::inline MOXIE_ABI::io::detail {

/// A module of a file: what it is, and which tensor holds which of its numbers.
template <Scalar S>
struct PlannedModule {
  std::string name;
  Shape<S> shape;
  std::vector<std::pair<Piece, const TensorInfo*>> pieces = {};
};

/// What a folder holds, before any number is read.
template <Scalar S>
struct Plan {
  Format format;
  std::vector<PlannedModule<S>> modules = {};
  std::vector<const TensorInfo*> kept = {};  ///< of modules_to_save, and biases of the base
};

/// "layers.2" before "layers.10": digits compare as numbers.
struct NaturalLess {
  bool operator()(std::string_view a, std::string_view b) const {
    const auto digit = [](char c) { return c >= '0' && c <= '9'; };
    std::size_t i = 0, j = 0;
    while (i < a.size() && j < b.size()) {
      if (digit(a[i]) && digit(b[j])) {
        const std::size_t i0 = i, j0 = j;
        while (i < a.size() && digit(a[i])) ++i;
        while (j < b.size() && digit(b[j])) ++j;
        std::string_view m = a.substr(i0, i - i0), n = b.substr(j0, j - j0);
        m.remove_prefix(std::min(m.find_first_not_of('0'), m.size()));
        n.remove_prefix(std::min(n.find_first_not_of('0'), n.size()));
        if (m.size() != n.size()) return m.size() < n.size();
        if (m != n) return m < n;
      } else {
        if (a[i] != b[j]) return a[i] < b[j];
        ++i;
        ++j;
      }
    }
    if (a.size() - i != b.size() - j) return a.size() - i < b.size() - j;
    return a < b;  // the same but for zeros
  }
};

inline Format format_of(const AdapterConfig& c, const std::vector<TensorInfo>& tensors) {
  if (c.peft_type == "MOLA" || c.peft_type == "LORAMOE") return Format::moe_peft;
  if (c.peft_type == "MOLORA" || c.peft_type == "MOV") return Format::mixture;
  if (c.peft_type == "IA3") return Format::peft;
  bool numbered_a = false, route = c.loramoe_keys, mola = false;
  for (const TensorInfo& t : tensors) {
    const auto place = place_of(Format::loramoe, t.name);
    numbered_a |= place && place->part == Part::a;
    route |= place && place->part == Part::router;
    mola |= place_of(Format::mola, t.name).has_value();
  }
  if (route) return numbered_a ? Format::loramoe : Format::hydralora;
  return mola ? Format::mola : Format::peft;
}

/// Refuses options that a format has not, and would pass over.
inline void expect_words_of(Format format, const AdapterConfig& c) {
  const Source source{c.path};
  const bool own = format == Format::mixture, mola = format == Format::mola, peft = format == Format::peft,
             soft = format == Format::loramoe || format == Format::hydralora;
  const auto expect = [&](bool holds, Code code, std::string_view what) {
    if (!holds) source.refuse(code, what, ", wanted none in the format ", io::name(format));
  };
  const auto is_list = [&](const char* key) {
    const auto found = c.json.find(key);
    return found != c.json.end() && found->is_array();
  };
  expect(own || mola || !is_list("r"), Code::config_type, "a list of r");
  expect(own || !is_list("lora_alpha"), Code::config_type, "a list of lora_alpha");
  expect(!peft || c.experts == 0, Code::config_mismatch, "num_experts");
  expect(!(peft || soft) || c.top_k.empty(), Code::config_mismatch, "top_k");
  expect(!(mola || soft) || !c.rslora, Code::unsupported_option, "use_rslora");
}

/// Names of tensors that belong to methods that are not built, and what those are called.
inline std::string_view foreign_method(std::string_view name) {
  constexpr std::pair<std::string_view, std::string_view> methods[] = {
      {"lora_magnitude_vector", "DoRA"},
      {"lora_embedding_", "LoRA of an embedding"},
      {"internal_xlora_classifier", "X-LoRA"},
      {"mixlora.", "MixLoRA, whose experts are whole feed-forward blocks"},
      {"vera_lambda", "VeRA"},
      {"hada_", "LoHa"},
      {"lokr_", "LoKr"},
      {"oft_r", "OFT"},
      {"lora_E", "AdaLoRA"},
      {"lora_threshold", "AdaMoLE"},
      {"lora_gating", "AdaMoLE"}};
  for (const auto& [part, method] : methods)
    if (name.find(part) != std::string_view::npos) return method;
  return {};
}

/// Whether a tensor is one that the config says is kept whole: of a module in modules_to_save, or a bias of
/// the base that was trained with the adapter.
class KeptNames {
 public:
  KeptNames(const AdapterConfig& c, const Source& source) : biases_(c.base_bias != "none"), source_(source) {
    for (const std::string& saved : c.modules_to_save)
      if (!saved.empty()) saved_.insert(saved + ".");
  }
  /// PEFT looks for a name and a dot, wherever they stand: "pre_classifier" is kept for "classifier".
  bool contains(std::string_view name) {
    if (is_of_adapter(name)) return false;
    const std::size_t last = std::min(name.rfind('.'), name.size());
    return (biases_ && name.substr(last) == ".bias") ||
           std::any_of(saved_.begin(), saved_.end(), [&](const std::string& saved) {
             spend(name.size());
             return name.find(saved) != std::string_view::npos;
           });
  }

 private:
  /// "lora_A.weight", "lora_magnitude_vector": no module that was trained whole has such parts.
  static bool is_of_adapter(std::string_view name) {
    for (std::size_t begin = 0; begin < name.size();) {
      const std::size_t end = std::min(name.find('.', begin), name.size());
      const std::string_view part = name.substr(begin, end - begin);
      if (part.substr(0, 5) == "lora_" || part.substr(0, 4) == "ia3_" || !foreign_method(part).empty())
        return true;
      begin = end + 1;
    }
    return false;
  }
  void spend(std::size_t steps) {
    constexpr std::uint64_t most = 1 << 26;
    spent_ += steps;
    if (spent_ > most) source_.refuse(Code::too_large, "too many modules_to_save for its tensors");
  }

  bool biases_;
  const Source& source_;
  std::set<std::string> saved_;
  std::uint64_t spent_ = 0;
};

using FoundParts = std::map<std::string, Parts, NaturalLess>;

/// Puts a tensor to its module, or among the kept ones, or into the report. False where its name does not
/// begin as the format's do.
template <Scalar S>
bool sort_tensor(const TensorInfo& t, const AdapterConfig& c, const Source& source, Plan<S>& plan,
                 FoundParts& found, KeptNames& kept, Report& report) {
  const auto path = without_prefix(plan.format, c, t.name);
  const auto refuse = [&](Code code, const auto&... what) {
    source.refuse(code, "tensor ", shown(t.name), " ", what...);
  };
  std::optional<Place> place;
  if (path) place = place_of(plan.format, *path);
  if (!place && path && plan.format == Format::peft)
    if (const std::size_t at = path->rfind(".default"); at != std::string::npos) {
      place = place_of(Format::peft, path->substr(0, at) + path->substr(at + 8));
      // In memory it ends the name of a parameter of its own, and stands before "weight" otherwise.
      if (place && (at + 8 == path->size()) != (place->part == Part::vector)) place.reset();
      if (place) report.convert(t.name, "the adapter's name stands in it, as in memory");
    }
  if (place) {
    const bool of_router = place->part == Part::router || place->part == Part::router_noise;
    if (!of_router && (place->part == Part::vector) != c.vectors)
      refuse(Code::adapter_kind, "in an adapter whose peft_type is " + c.peft_type);
    if (c.target_parameters.empty() && unwrapped(place->module) != place->module)
      refuse(Code::unsupported_option, "is of target_parameters, of which the config has none");
    if (place->bad_expert)
      report.mismatch(Code::expert_index, t.name, "has no expert's number, wanted 0, 1, 2, ...");
    else if (!found[place->module].try_emplace({place->part, place->expert}, &t).second)
      report.unexpect(Code::unexpected_tensor, t.name, "names the same part a second time");
  } else if (path ? kept.contains(*path)
                  : (plan.format == Format::moe_peft || plan.format == Format::peft) &&
                        t.name == "classifier") {
    plan.kept.push_back(&t);
  } else {
    if (const std::string_view method = foreign_method(t.name); !method.empty())
      refuse(Code::unsupported_option, "is of ", method, ", which is not built");
    report.unexpect(
        Code::unexpected_tensor, t.name,
        path ? "is no part of this kind of adapter" : "does not begin as this format's tensors do");
  }
  return path.has_value();
}

/// Sorts the tensors of a file into modules. Throws NothingMatched, AdapterKind, UnsupportedOption,
/// ConfigRange, ConfigType, ConfigMismatch, PatternSyntax, TooLarge; all else goes to the report.
template <Scalar S>
Plan<S> make_plan(const std::vector<TensorInfo>& tensors, const AdapterConfig& c, const LoadOptions& options,
                  const Source& source, Report& report) {
  Plan<S> plan{.format = format_of(c, tensors)};
  FoundParts parts;
  std::size_t without = 0;
  expect_words_of(plan.format, c);
  for (const Index k : options.top_k)
    if (k < 1) source.refuse(Code::config_range, "LoadOptions::top_k is ", k, ", wanted 1 or more");
  KeptNames kept(c, source);
  for (const TensorInfo& t : tensors) without += !sort_tensor(t, c, source, plan, parts, kept, report);
  if (parts.empty()) {
    std::string hint = join(tensors.size(), " tensors, none of an adapter");
    if (without > 0 && !tensors.empty())
      hint.append("; ")
          .append(shown(tensors.front().name))
          .append(" does not begin with ")
          .append(shown(prefix_of(plan.format, c)));
    source.refuse(tensors.empty() ? Code::missing_tensor : Code::nothing_matched, hint);
  }

  std::vector<FoundModule> found;
  for (auto& [name, own] : parts) found.push_back({name, std::move(own)});
  apply_config(found, c, plan.format, options, report);
  for (const FoundModule& module : found) {
    const std::size_t faults = report.faults();
    if (!module.wanted) {
      for (const auto& [key, t] : module.parts)
        report.unexpect(Code::unexpected_tensor, t->name, "is of a module that the config does not mean");
      continue;
    }
    auto shape = ShapeReader<S>(module, c, plan.format, report).shape();
    if (!shape) continue;
    PlannedModule<S> planned{module.name, std::move(*shape)};
    match_pieces(module,
                 std::visit([&](const auto& a) { return pieces_of(a, plan.format, module.feedforward); },
                            planned.shape.adapter),
                 planned.pieces, report);
    if (faults == report.faults()) plan.modules.push_back(std::move(planned));
  }
  return plan;
}

}  // namespace moxie::inline MOXIE_ABI::io::detail
