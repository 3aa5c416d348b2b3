// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/adapter_router.hpp>

/// From the tensors that were found of a module, and the config, to the adapter that they are.
namespace moxie::inline MOXIE_ABI::io::detail {

inline std::string extents(const std::vector<Index>& shape) {
  std::string text = "[";
  for (const Index n : shape) text.append(text.size() > 1 ? ", " : "").append(moxie::detail::text(n));
  return text + "]";
}

/// Every piece its tensor, every tensor its piece, of the same shape.
inline void match_pieces(const std::string& module, const Parts& parts, std::vector<Piece> pieces,
                         std::vector<std::pair<Piece, const TensorInfo*>>& matched, Report& report) {
  constexpr std::string_view words[] = {"its A",      "its B",      "its bias",
                                        "its vector", "its router", "the noise of its router"};
  std::set<std::pair<Part, Index>> taken;
  for (Piece& piece : pieces) {
    taken.insert({piece.part, piece.expert});
    const auto found = parts.find({piece.part, piece.expert});
    if (found == parts.end()) {
      std::string what = moxie::detail::join({"lacks ", words[static_cast<std::size_t>(piece.part)]});
      if (piece.expert >= 0) what += moxie::detail::join({" of expert ", moxie::detail::text(piece.expert)});
      report.missing.push_back({Code::missing_tensor, module, what});
      continue;
    }
    const TensorInfo& t = *found->second;
    if (t.shape == piece.shape) {
      matched.emplace_back(std::move(piece), &t);
      continue;
    }
    const bool two = t.shape.size() == 2 && piece.shape.size() == 2;
    const bool turned = two && t.shape[0] == piece.shape[1] && t.shape[1] == piece.shape[0];
    const bool rank = two && !turned &&
                      ((piece.part == Part::a && t.shape[1] == piece.shape[1]) ||
                       (piece.part == Part::b && t.shape[0] == piece.shape[0]));
    report.mismatched.push_back(
        {rank ? Code::rank_mismatch : Code::shape_mismatch, t.name,
         moxie::detail::join({"is ", extents(t.shape), ", wanted ", extents(piece.shape),
                              turned ? " (is it stored transposed?)" : ""})});
  }
  for (const auto& [key, t] : parts)
    if (!taken.contains(key))
      report.unexpected.push_back({Code::unexpected_tensor, t->name, "is no part of this module"});
}

/// The numbers of the experts that some part names: 0 to E - 1, or a fault.
inline Index experts_of(const std::string& module, const Parts& parts, const AdapterConfig& c, Format format,
                        Report& report) {
  std::set<Index> ids;
  for (const auto& [key, t] : parts)
    if (key.second >= 0) ids.insert(key.second);
  // MoE-PEFT's loramoe leaves attention its plain LoRA.
  const bool plain = format == Format::peft || (c.peft_type == "LORAMOE" && !is_in_mlp(module));
  if (ids.empty() && (plain || format != Format::moe_peft)) return 1;
  if (ids.empty()) {
    report.mismatched.push_back({Code::expert_index, module, "has no experts, wanted a mixture"});
    return 0;
  }
  const Index experts = std::ssize(ids);
  if (*ids.rbegin() != experts - 1) {
    std::string all;
    for (const Index id : ids)
      if (all.size() < 60) all.append(all.empty() ? "" : ", ").append(moxie::detail::text(id));
    report.mismatched.push_back(
        {Code::expert_index, module, "has experts " + all + ", wanted 0 to E - 1 without a gap"});
    return 0;
  }
  if (c.experts > 0 && experts != c.experts) {
    report.mismatched.push_back(
        {Code::expert_index, module,
         moxie::detail::join({"has ", moxie::detail::text(experts), " experts, the config says ",
                              moxie::detail::text(c.experts)})});
    return 0;
  }
  return experts;
}

inline bool matrix(const TensorInfo& t, Report& report) {
  if (t.shape.size() == 2 && t.shape[0] >= 1 && t.shape[1] >= 1) return true;
  report.mismatched.push_back(
      {Code::shape_mismatch, t.name, moxie::detail::join({"is ", extents(t.shape), ", wanted a matrix"})});
  return false;
}

/// LoRA of a parameter of the base's experts, weighed by the base's own router: one A and one B of all
/// experts, whose number is the rows of A over the rank. (PEFT `ParamWrapper`)
template <Scalar S>
std::optional<Shape<S>> parameter_shape(const std::string& module, const Parts& parts, const AdapterConfig& c,
                                        const Settings& s, Format format, Report& report) {
  const auto a = parts.find({Part::a, -1}), b = parts.find({Part::b, -1});
  if (a == parts.end() || b == parts.end()) {
    report.missing.push_back(
        {Code::missing_tensor, module, a == parts.end() ? "lacks its A" : "lacks its B"});
    return std::nullopt;
  }
  if (!matrix(*a->second, report) || !matrix(*b->second, report)) return std::nullopt;
  const Index rank = s.rank.front(), rows = a->second->shape[0];
  const double scale =
      s.alpha.front() / (c.rslora ? std::sqrt(static_cast<double>(rank)) : static_cast<double>(rank));
  if (s.rank.size() > 1 || s.alpha.size() > 1 || rows % rank != 0 || rows / rank > most_experts ||
      !moxie::detail::finite_as<S>(scale)) {
    report.mismatched.push_back(
        {Code::rank_mismatch, a->second->name,
         moxie::detail::join({"is ", extents(a->second->shape), ", wanted a multiple of the rank ",
                              moxie::detail::text(rank), " as rows"})});
    return std::nullopt;
  }
  return with_router(
      LoraBank<S>({.in = a->second->shape[1],
                   .out = b->second->shape[0],
                   .experts = rows / rank,
                   .rank = rank,
                   .alpha = s.alpha.front(),
                   .scaling = c.rslora ? LoraScaling::alpha_over_sqrt_rank : LoraScaling::alpha_over_rank,
                   .dropout = c.dropout}),
      module, c, s, format, false, report);
}

/// A bank of LoRAs: the experts' number, ranks and widths as the tensors have them, the ranks also as the
/// config says; the scales as the config says.
template <Scalar S>
std::optional<Shape<S>> lora_shape(const std::string& module, const Parts& parts, const AdapterConfig& c,
                                   const Settings& s, Format format, Report& report) {
  const Index experts = experts_of(module, parts, c, format, report);
  if (experts == 0) return std::nullopt;
  if (s.parameter) return parameter_shape<S>(module, parts, c, s, format, report);
  const auto each = [&](const auto& list) {
    return list.size() == 1 || (format == Format::mixture && std::ssize(list) == experts);
  };
  if (!each(s.rank) || !each(s.alpha)) {
    report.mismatched.push_back({format == Format::mixture ? Code::config_range : Code::config_type, module,
                                 "has a list of ranks or alphas, wanted one number" +
                                     std::string(format == Format::mixture ? ", or one per expert" : "")});
    return std::nullopt;
  }
  const bool numbered =
      std::any_of(parts.begin(), parts.end(), [](const auto& p) { return p.first.second >= 0; });
  const bool shared = format == Format::hydralora;  // one A
  LoraConfig config{.experts = experts, .bias = c.bias_of_b, .dropout = c.dropout};
  for (Index e = 0; e < experts; ++e)
    config.ranks.push_back(s.rank.size() == 1 ? s.rank.front() : s.rank[static_cast<std::size_t>(e)]);
  // The widths, of the first A and B that are there; whether all fit each other match_pieces will say. One
  // that lies transposed is known by its rank.
  bool matrices = true;
  for (const auto& [key, t] : parts) {
    if (key.first != Part::a && key.first != Part::b) continue;
    matrices = matrix(*t, report) && matrices;
    if (!matrices) continue;
    const Index rank = config.ranks[static_cast<std::size_t>(std::max<Index>(key.second, 0))];
    const std::size_t at = key.first == Part::a ? 0 : 1;  // where the rank stands
    Index& width = key.first == Part::a ? config.in : config.out;
    if (width == 0) width = t->shape[t->shape[at] != rank && t->shape[1 - at] == rank ? at : 1 - at];
  }
  if (!matrices) return std::nullopt;
  if (config.in == 0 || config.out == 0) {
    const bool one = !numbered || (shared && config.in == 0);
    report.missing.push_back(
        {Code::missing_tensor, module,
         moxie::detail::join({"lacks its ", config.in == 0 ? "A" : "B", one ? "" : " of expert 0"})});
    return std::nullopt;
  }
  // A rank that no tensor has is not bounded by the file: its sizes must be numbers before they are compared.
  constexpr Index most = std::numeric_limits<Index>::max() / 4;
  Index sizes = 0;
  if (__builtin_mul_overflow(std::accumulate(config.ranks.begin(), config.ranks.end(), experts),
                             config.in + config.out, &sizes) ||
      sizes > most) {
    report.mismatched.push_back({Code::rank_mismatch, module, "would have ranks far above its tensors'"});
    return std::nullopt;
  }
  config.scaling = c.rslora ? LoraScaling::alpha_over_sqrt_rank : LoraScaling::alpha_over_rank;
  config.alpha = s.alpha.front();
  for (Index e = 0; e < experts; ++e) {
    const auto i = static_cast<std::size_t>(e);
    const double alpha = s.alpha.size() == 1 ? s.alpha.front() : s.alpha[i];
    const auto r = static_cast<double>(config.ranks[i]);
    const double scale = alpha / (c.rslora ? std::sqrt(r) : r);
    if (s.alpha.size() > 1) config.scales.push_back(scale);
    if (alpha == 0) report.notes.push_back({module, "has the scale 0: it changes nothing"});
    if (moxie::detail::finite_as<S>(scale)) continue;
    report.mismatched.push_back({Code::config_range, module,
                                 moxie::detail::join({"has the scale ", moxie::detail::text(scale),
                                                      ", wanted one that its numbers can hold"})});
    return std::nullopt;
  }
  if (!config.scales.empty()) config.scaling = LoraScaling::fixed;
  if (std::all_of(config.ranks.begin(), config.ranks.end(), [&](Index r) { return r == config.ranks[0]; })) {
    config.rank = config.ranks.front();
    config.ranks.clear();
  }
  if (format == Format::mixture ? c.mask_per_expert : format != Format::mola)
    config.mask = DropoutMask::per_expert;
  if (experts == 1) config.mask = DropoutMask::shared;
  if (shared)
    return with_router(HydraBank<S>({.in = config.in,
                                     .out = config.out,
                                     .experts = experts,
                                     .rank = config.rank,
                                     .alpha = config.alpha,
                                     .scaling = config.scaling,
                                     .dropout = config.dropout}),
                       module, c, s, format, false, report);
  return with_router(LoraBank<S>(config), module, c, s, format, !numbered, report);
}

/// IA3's vector, or the vectors of MoV.
template <Scalar S>
std::optional<Shape<S>> vector_shape(const std::string& module, const Parts& parts, const AdapterConfig& c,
                                     const Settings& s, Format format, Report& report) {
  const auto found = parts.find({Part::vector, -1});
  if (found == parts.end()) {
    report.missing.push_back({Code::missing_tensor, module, "lacks its vector"});
    return std::nullopt;
  }
  const TensorInfo& t = *found->second;
  const auto refuse = [&](Code code, std::string_view wanted) {
    report.mismatched.push_back(
        {code, t.name, moxie::detail::join({"is ", extents(t.shape), ", wanted ", wanted})});
    return std::nullopt;
  };
  const std::size_t dims = t.shape.size();
  const bool positive = std::all_of(t.shape.begin(), t.shape.end(), [](Index n) { return n >= 1; });
  if (format == Format::peft) {
    if (dims != 2 || !positive || (t.shape[0] != 1 && t.shape[1] != 1))
      return refuse(Code::shape_mismatch, "[d, 1] or, for a feedforward module, [1, d]");
    if ((s.feedforward ? t.shape[0] : t.shape[1]) != 1)
      return refuse(Code::config_mismatch, s.feedforward
                                               ? "[1, d]: feedforward_modules means this module"
                                               : "[d, 1]: feedforward_modules does not mean this module");
    return with_router(Ia3Bank<S>({.features = t.shape[0] * t.shape[1]}), module, c, s, format, true, report);
  }
  if ((dims != 2 && dims != 3) || !positive)
    return refuse(Code::shape_mismatch, "[E, d] or [heads, E, d / heads]");
  const Index heads = dims == 3 ? t.shape[0] : 1, experts = t.shape[dims - 2];
  if (c.experts > 0 && experts != c.experts)
    return refuse(Code::expert_index, moxie::detail::text(c.experts) + " experts, as the config says");
  return with_router(Ia3Bank<S>({.features = heads * t.shape[dims - 1], .heads = heads, .experts = experts}),
                     module, c, s, format, false, report);
}

template <Scalar S>
std::optional<Shape<S>> shape_of(const std::string& module, const Parts& parts, const AdapterConfig& c,
                                 const Settings& s, Format format, Report& report) {
  return c.vectors ? vector_shape<S>(module, parts, c, s, format, report)
                   : lora_shape<S>(module, parts, c, s, format, report);
}

}  // namespace moxie::inline MOXIE_ABI::io::detail
