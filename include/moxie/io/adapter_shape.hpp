// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/adapter_settings.hpp>
#include <moxie/presets.hpp>

/// From the tensors that were found of a module, and the config, to the adapter that they are.
namespace moxie::inline MOXIE_ABI::io::detail {

/// What a module of a file is.
template <Scalar S>
struct Shape {
  AnyAdapter<S> adapter;
  Method method = Method::other;
  bool top_k_said = true;  ///< by the file, not by a default
};

inline std::string extents(const std::vector<Index>& shape) {
  std::string text = "[";
  for (const Index n : shape) text.append(text.size() > 1 ? ", " : "").append(moxie::detail::text(n));
  return text + "]";
}

/// Every piece its tensor, every tensor its piece, of the same shape.
inline void match_pieces(const FoundModule& module, std::vector<Piece> pieces,
                         std::vector<std::pair<Piece, const TensorInfo*>>& matched, Report& report) {
  constexpr std::string_view words[] = {"its A",      "its B",      "its bias",
                                        "its vector", "its router", "the noise of its router"};
  std::set<std::pair<Part, Index>> taken;
  for (Piece& piece : pieces) {
    taken.insert({piece.part, piece.expert});
    const auto found = module.parts.find({piece.part, piece.expert});
    if (found == module.parts.end()) {
      std::string what = join("lacks ", words[static_cast<std::size_t>(piece.part)]);
      if (piece.expert >= 0) what += join(" of expert ", piece.expert);
      report.miss(module.name, what);
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
    report.mismatch(rank ? Code::rank_mismatch : Code::shape_mismatch, t.name, "is ", extents(t.shape),
                    ", wanted ", extents(piece.shape), turned ? " (is it stored transposed?)" : "");
  }
  for (const auto& [key, t] : module.parts)
    if (!taken.contains(key)) report.unexpect(Code::unexpected_tensor, t->name, "is no part of this module");
}

/// What a module is, by its tensors and the config. Every function gives nothing where it has reported why.
template <Scalar S>
class ShapeReader {
 public:
  ShapeReader(const FoundModule& module, const AdapterConfig& config, Format format, Report& report)
      : module_(module), config_(config), format_(format), report_(report) {}

  std::optional<Shape<S>> shape() const {
    if (config_.vectors) return vectors();
    const Index experts = experts_of_parts();
    if (experts == 0) return std::nullopt;
    return module_.parameter ? parameter() : loras(experts);
  }

 private:
  using Result = std::optional<Shape<S>>;

  template <class... What>
  std::nullopt_t mismatch(Code code, const What&... what) const {
    report_.mismatch(code, module_.name, what...);
    return std::nullopt;
  }
  template <class... Wanted>
  std::nullopt_t mismatch_of(Code code, const TensorInfo& t, const Wanted&... wanted) const {
    report_.mismatch(code, t.name, "is ", extents(t.shape), ", wanted ", wanted...);
    return std::nullopt;
  }
  template <class... What>
  std::nullopt_t miss(const What&... what) const {
    report_.miss(module_.name, what...);
    return std::nullopt;
  }
  const TensorInfo* find(Part part) const {
    const auto found = module_.parts.find({part, -1});
    return found == module_.parts.end() ? nullptr : found->second;
  }
  bool is_matrix(const TensorInfo& t) const {
    const bool is = t.shape.size() == 2 && t.shape[0] >= 1 && t.shape[1] >= 1;
    if (!is) mismatch_of(Code::shape_mismatch, t, "a matrix");
    return is;
  }

  /// The numbers of the experts that some part names: 0 to E - 1, or a fault.
  Index experts_of_parts() const {
    std::set<Index> ids;
    for (const auto& [key, t] : module_.parts)
      if (key.second >= 0) ids.insert(key.second);
    const auto fault = [&](const auto&... what) {
      mismatch(Code::expert_index, what...);
      return Index{0};
    };
    // MoE-PEFT's loramoe leaves attention its plain LoRA.
    const bool plain =
        format_ == Format::peft || (config_.peft_type == "LORAMOE" && !is_in_mlp(module_.name));
    if (ids.empty() && (plain || format_ != Format::moe_peft)) return 1;
    if (ids.empty()) return fault("has no experts, wanted a mixture");
    const Index experts = std::ssize(ids);
    if (*ids.rbegin() != experts - 1) {
      std::string all;
      for (const Index id : ids)
        if (all.size() < 60) all += join(all.empty() ? "" : ", ", id);
      return fault("has experts ", all, ", wanted 0 to E - 1 without a gap");
    }
    if (config_.experts > 0 && experts != config_.experts)
      return fault("has ", experts, " experts, the config says ", config_.experts);
    return experts;
  }

  /// LoRA of a parameter of the base's experts, weighed by the base's own router: one A and one B of all
  /// experts, whose number is the rows of A over the rank. (PEFT `ParamWrapper`)
  Result parameter() const {
    const TensorInfo *const a = find(Part::a), *const b = find(Part::b);
    if (a == nullptr || b == nullptr) return miss(a == nullptr ? "lacks its A" : "lacks its B");
    if (!is_matrix(*a) || !is_matrix(*b)) return std::nullopt;
    const Index rank = module_.rank.front(), rows = a->shape[0];
    const double alpha = module_.alpha.front();
    if (module_.rank.size() > 1 || module_.alpha.size() > 1 || rows % rank != 0 ||
        rows / rank > most_experts || !moxie::detail::finite_as<S>(scale(alpha, rank)))
      return mismatch_of(Code::rank_mismatch, *a, "a multiple of the rank ", rank, " as rows");
    return weighed(LoraBank<S>({.in = a->shape[1],
                                .out = b->shape[0],
                                .experts = rows / rank,
                                .rank = rank,
                                .alpha = alpha,
                                .scaling = scaling(),
                                .dropout = config_.dropout}),
                   {.kind = RouterKind::given});
  }

  /// A bank of LoRAs: the experts' number, ranks and widths as the tensors have them, the ranks also as the
  /// config says; the scales as the config says.
  Result loras(Index experts) const {
    const std::vector<Index>& rank = module_.rank;
    const std::vector<double>& alpha = module_.alpha;
    const bool ours = format_ == Format::mixture, shared = format_ == Format::hydralora;  // one A
    const auto each = [&](const auto& list) {
      return list.size() == 1 || (ours && std::ssize(list) == experts);
    };
    if (!each(rank) || !each(alpha))
      return mismatch(ours ? Code::config_range : Code::config_type,
                      "has a list of ranks or alphas, wanted one number", ours ? ", or one per expert" : "");
    const bool numbered = std::any_of(module_.parts.begin(), module_.parts.end(),
                                      [](const auto& p) { return p.first.second >= 0; });
    LoraConfig config{.experts = experts, .bias = config_.bias_of_b, .dropout = config_.dropout};
    for (Index e = 0; e < experts; ++e)
      config.ranks.push_back(rank.size() == 1 ? rank.front() : rank[static_cast<std::size_t>(e)]);
    // The widths, of the first A and B that are there; whether all fit each other match_pieces will say. One
    // that lies transposed is known by its rank.
    bool matrices = true;
    for (const auto& [key, t] : module_.parts) {
      if (key.first != Part::a && key.first != Part::b) continue;
      matrices = is_matrix(*t) && matrices;
      if (!matrices) continue;
      const Index r = config.ranks[static_cast<std::size_t>(std::max<Index>(key.second, 0))];
      const std::size_t at = key.first == Part::a ? 0 : 1;  // where the rank stands
      Index& width = key.first == Part::a ? config.in : config.out;
      if (width == 0) width = t->shape[t->shape[at] != r && t->shape[1 - at] == r ? at : 1 - at];
    }
    if (!matrices) return std::nullopt;
    if (config.in == 0 || config.out == 0) {
      const bool one = !numbered || (shared && config.in == 0);
      return miss("lacks its ", config.in == 0 ? "A" : "B", one ? "" : " of expert 0");
    }
    // A rank that no tensor has is not bounded by the file: its sizes must be numbers before they are
    // compared.
    constexpr Index most = std::numeric_limits<Index>::max() / 4;
    Index sizes = 0;
    if (__builtin_mul_overflow(std::accumulate(config.ranks.begin(), config.ranks.end(), experts),
                               config.in + config.out, &sizes) ||
        sizes > most)
      return mismatch(Code::rank_mismatch, "would have ranks far above its tensors'");
    config.scaling = scaling();
    config.alpha = alpha.front();
    for (Index e = 0; e < experts; ++e) {
      const auto i = static_cast<std::size_t>(e);
      const double own = alpha.size() == 1 ? alpha.front() : alpha[i], s = scale(own, config.ranks[i]);
      if (alpha.size() > 1) config.scales.push_back(s);
      if (own == 0) report_.note(module_.name, "has the scale 0: it changes nothing");
      if (!moxie::detail::finite_as<S>(s))
        return mismatch(Code::config_range, "has the scale ", s, ", wanted one that its numbers can hold");
    }
    if (!config.scales.empty()) config.scaling = LoraScaling::fixed;
    if (std::all_of(config.ranks.begin(), config.ranks.end(),
                    [&](Index r) { return r == config.ranks[0]; })) {
      config.rank = config.ranks.front();
      config.ranks.clear();
    }
    if (ours ? config_.mask_per_expert : format_ != Format::mola) config.mask = DropoutMask::per_expert;
    if (experts == 1) config.mask = DropoutMask::shared;
    if (!shared) return weighed(LoraBank<S>(config), router(!numbered));
    return Shape<S>{MoeAdapter(HydraBank<S>({.in = config.in,
                                             .out = config.out,
                                             .experts = experts,
                                             .rank = config.rank,
                                             .alpha = config.alpha,
                                             .scaling = config.scaling,
                                             .dropout = config.dropout}),
                               SoftRouter<S>({.in = config.in, .experts = experts})),
                    Method::hydralora};
  }

  /// IA3's vector, or the vectors of MoV.
  Result vectors() const {
    const TensorInfo* const vector = find(Part::vector);
    if (vector == nullptr) return miss("lacks its vector");
    const TensorInfo& t = *vector;
    const std::size_t dims = t.shape.size();
    const bool positive = std::all_of(t.shape.begin(), t.shape.end(), [](Index n) { return n >= 1; });
    if (format_ == Format::peft) {
      if (dims != 2 || !positive || (t.shape[0] != 1 && t.shape[1] != 1))
        return mismatch_of(Code::shape_mismatch, t, "[d, 1] or, for a feedforward module, [1, d]");
      if ((module_.feedforward ? t.shape[0] : t.shape[1]) != 1)
        return mismatch_of(Code::config_mismatch, t,
                           module_.feedforward ? "[1, d]: feedforward_modules means this module"
                                               : "[d, 1]: feedforward_modules does not mean this module");
      return weighed(Ia3Bank<S>({.features = t.shape[0] * t.shape[1]}), router(true));
    }
    if ((dims != 2 && dims != 3) || !positive)
      return mismatch_of(Code::shape_mismatch, t, "[E, d] or [heads, E, d / heads]");
    const Index heads = dims == 3 ? t.shape[0] : 1, experts = t.shape[dims - 2];
    if (config_.experts > 0 && experts != config_.experts)
      return mismatch_of(Code::expert_index, t, config_.experts, " experts, as the config says");
    return weighed(Ia3Bank<S>({.features = heads * t.shape[dims - 1], .heads = heads, .experts = experts}),
                   router(false));
  }

  LoraScaling scaling() const {
    return config_.rslora ? LoraScaling::alpha_over_sqrt_rank : LoraScaling::alpha_over_rank;
  }
  double scale(double alpha, Index rank) const {
    const auto r = static_cast<double>(rank);
    return alpha / (config_.rslora ? std::sqrt(r) : r);
  }

  /// `single`: the tensors are of one expert, without a number.
  RouterSettings router(bool single) const {
    if (single) return {};
    RouterSettings r = config_.router;
    if (format_ == Format::mola) r.kind = RouterKind::top_k;
    if (format_ == Format::loramoe) r.kind = RouterKind::soft;
    constexpr Index mola_k = 2;
    if (r.kind == RouterKind::top_k) r.top_k = module_.top_k > 0 ? module_.top_k : mola_k;
    return r;
  }

  /// The bank under its router.
  template <class Bank>
  Result weighed(Bank bank, const RouterSettings& r) const {
    const bool chooses = r.kind == RouterKind::top_k;
    const auto range = [&](std::string_view what, auto got, const auto&... wanted) {
      return mismatch(Code::config_range, "would have ", what, " ", got, ", wanted ", wanted...);
    };
    if (!moxie::detail::finite_as<S>(1 / r.temperature))
      return range("a router temperature of", r.temperature, "one whose inverse is finite");
    if (chooses && r.top_k > bank.experts())
      return range("top_k", r.top_k, "at most its ", bank.experts(), " experts");
    if (!moxie::detail::finite_as<S>(r.noise_scale))
      return range("a noise of", r.noise_scale, "a finite number");
    constexpr bool multiplies = Bank::multiplicative;
    Method method = Method::other;
    if (r.kind == RouterKind::uniform && bank.experts() == 1)
      method = multiplies ? Method::ia3 : Method::lora;
    if (r.kind == RouterKind::soft)
      method = multiplies ? Method::mov : format_ == Format::mixture ? Method::molora : Method::loramoe;
    if (chooses && !multiplies) method = Method::mola;
    return with_router(bank, r, [&](auto router) {
      return Shape<S>{MoeAdapter(std::move(bank), std::move(router)), method, !chooses || module_.top_k > 0};
    });
  }

  const FoundModule& module_;
  const AdapterConfig& config_;
  Format format_;
  Report& report_;
};

}  // namespace moxie::inline MOXIE_ABI::io::detail
