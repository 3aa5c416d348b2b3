// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/adapter_load.hpp>

namespace moxie::inline MOXIE_ABI::io {

struct ExpertsOptions {
  RouterKind router = RouterKind::given;
  Index top_k = 2;         ///< of a router that chooses
  double dropout = 0;      ///< of the bank; the adapters' own may differ
  std::uint64_t seed = 0;  ///< of a new router
};

namespace detail {

/// The bank of module m of all adapters, expert e from adapter e, and its numbers.
template <Scalar S>
std::pair<LoraBank<S>, std::vector<S>> stack(const std::vector<Loaded<S>>& adapters,
                                             std::span<const Path> folders, const std::string& module,
                                             double dropout) {
  std::vector<const LoraBank<S>*> banks;
  std::vector<std::span<const S>> thetas;
  LoraConfig config{.experts = std::ssize(adapters), .scaling = LoraScaling::fixed, .dropout = dropout};
  for (std::size_t e = 0; e < adapters.size(); ++e) {
    const Module at = adapters[e].set.find(module);
    const auto* const plain = std::get_if<Lora<S>>(&adapters[e].set.entry(at).adapter);
    if (plain == nullptr || plain->experts().experts() != 1)
      refuse(Code::adapter_kind, folders[e], "module " + shown(module) + " is no plain LoRA");
    const LoraBank<S>& bank = plain->experts();
    const auto expect = [&](Code code, std::string_view what, Index got, Index wanted) {
      if (got != wanted)
        refuse(code, folders[e], "module ", shown(module), " has ", what, " ", got, ", wanted ", wanted,
               ", the first adapter's");
    };
    if (e > 0) {
      expect(Code::shape_mismatch, "in", bank.in(), config.in);
      expect(Code::shape_mismatch, "out", bank.out(), config.out);
      expect(Code::config_mismatch, "lora_bias", Index{bank.config().bias}, Index{config.bias});
    }
    config.in = bank.in();
    config.out = bank.out();
    config.bias = bank.config().bias;
    config.ranks.push_back(bank.rank(0));
    config.scales.push_back(static_cast<double>(bank.scale(0)));
    banks.push_back(&bank);
    thetas.push_back(adapters[e].set.theta(at));
  }
  std::vector<S> theta;
  const auto append = [&](std::size_t e, Index from, Index count) {
    const auto part = thetas[e].subspan(static_cast<std::size_t>(from), static_cast<std::size_t>(count));
    theta.insert(theta.end(), part.begin(), part.end());
  };
  for (std::size_t e = 0; e < banks.size(); ++e) append(e, 0, config.ranks[e] * config.in);
  for (std::size_t e = 0; e < banks.size(); ++e)
    append(e, config.ranks[e] * config.in, config.ranks[e] * config.out);
  for (std::size_t e = 0; config.bias && e < banks.size(); ++e)
    append(e, config.ranks[e] * (config.in + config.out), config.out);
  return {LoraBank<S>(config), std::move(theta)};
}

}  // namespace detail

/// Several folders of plain LoRAs as one set: expert e of every module is that module of folder e, with its
/// own rank and scale. All must have the same modules over the same base. The report has all folders' lines.
/// Throws what `load` throws, ConfigRange for no folder, AdapterKind for mixtures and IA3, MissingTensor for
/// modules that not all have, ShapeMismatch, ConfigMismatch for another base or lora_bias, UnsupportedOption
/// for tensors beside the adapters (modules_to_save), of which a mixture could keep only one.
template <Scalar S>
Loaded<S> load_experts(std::span<const Path> folders, const ExpertsOptions& experts = {},
                       const LoadOptions& options = {}) {
  moxie::detail::expect_range(!folders.empty(), "the number of adapters", 0, "1 or more");
  std::vector<Loaded<S>> adapters;
  Loaded<S> loaded;
  const auto base = [](const Loaded<S>& adapter) {
    return adapter.info.config.value("base_model_name_or_path", nlohmann::json());
  };
  for (const Path& folder : folders) {
    adapters.push_back(load<S>(folder, options));
    Loaded<S>& adapter = adapters.back();
    if (!adapter.info.kept.empty())
      detail::refuse(Code::unsupported_option, folder,
                     "keeps " + detail::shown(adapter.info.kept.front().name) + " beside its adapter");
    if (base(adapter) != base(adapters.front()))
      detail::refuse(Code::config_mismatch, folder, "is over the base ",
                     detail::shown(base(adapter).dump(-1, ' ', true)), ", wanted ",
                     detail::shown(base(adapters.front()).dump(-1, ' ', true)), ", the first adapter's");
    loaded.report.append(adapter.report);
  }
  std::set<std::string> names;
  for (const auto& entry : adapters.front().set.entries()) names.insert(entry.name);
  for (std::size_t e = 1; e < adapters.size(); ++e) {
    std::set<std::string> own;
    for (const auto& entry : adapters[e].set.entries()) own.insert(entry.name);
    for (const auto* const other : {&names, &own})
      for (const std::string& name : *other)
        if (!names.contains(name) || !own.contains(name))
          detail::refuse(Code::missing_tensor, own.contains(name) ? folders.front() : folders[e],
                         "lacks module " + detail::shown(name) + ", which another adapter has");
  }
  std::vector<std::vector<S>> numbers;
  for (const auto& entry : adapters.front().set.entries()) {
    auto stacked = detail::stack(adapters, folders, entry.name, experts.dropout);
    detail::with_router(stacked.first, {.kind = experts.router, .top_k = experts.top_k}, [&](auto router) {
      loaded.set.add(entry.name, MoeAdapter(stacked.first, std::move(router)));
    });
    numbers.push_back(std::move(stacked.second));
  }
  loaded.set.init(experts.seed);  // the new routers; the experts' numbers follow
  for (std::size_t m = 0; m < numbers.size(); ++m)
    std::copy(numbers[m].begin(), numbers[m].end(), loaded.set.theta(Module{static_cast<Index>(m)}).begin());
  loaded.info.format = Format::mixture;
  if (const nlohmann::json of = base(adapters.front()); !of.is_null())
    loaded.info.config["base_model_name_or_path"] = of;
  return loaded;
}

}  // namespace moxie::inline MOXIE_ABI::io
