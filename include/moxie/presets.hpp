// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/adapter.hpp>
#include <moxie/experts/hydra.hpp>
#include <moxie/experts/ia3.hpp>
#include <moxie/experts/lora.hpp>
#include <moxie/losses/load_balance.hpp>
#include <moxie/losses/localized.hpp>
#include <moxie/routers/given.hpp>
#include <moxie/routers/soft.hpp>
#include <moxie/routers/top_k.hpp>
#include <moxie/routers/uniform.hpp>

#include <utility>
#include <variant>

namespace moxie::inline MOXIE_ABI {

template <Scalar S>
using Lora = MoeAdapter<LoraBank<S>, UniformRouter<S>>;  ///< arXiv:2106.09685
template <Scalar S>
using Ia3 = MoeAdapter<Ia3Bank<S>, UniformRouter<S>>;  ///< arXiv:2205.05638
template <Scalar S>
using MoV = MoeAdapter<Ia3Bank<S>, SoftRouter<S>>;  ///< arXiv:2309.05444
template <Scalar S>
using MoLoRA = MoeAdapter<LoraBank<S>, SoftRouter<S>>;  ///< arXiv:2309.05444
template <Scalar S>
using LoRAMoE = MoLoRA<S>;  ///< arXiv:2312.09979: the same form, with LocalizedBalance
template <Scalar S>
using MoLA = MoeAdapter<LoraBank<S>, TopKRouter<S>>;  ///< arXiv:2402.08562, with LoadBalance
template <Scalar S>
using HydraLora = MoeAdapter<HydraBank<S>, SoftRouter<S>>;  ///< arXiv:2404.19245: LoRAMoE's form with one A

/// The list of kinds that an AdapterSet can hold; a new one is added here.
template <Scalar S>
using AnyAdapter =
    std::variant<Lora<S>, Ia3<S>, MoV<S>, MoLoRA<S>, MoLA<S>, MoeAdapter<Ia3Bank<S>, TopKRouter<S>>,
                 MoeAdapter<LoraBank<S>, GivenRouter<S>>, MoeAdapter<Ia3Bank<S>, GivenRouter<S>>,
                 HydraLora<S>>;

/// The published method a module stands for; two methods may share a type.
enum class Method { lora, ia3, mov, molora, loramoe, mola, hydralora, other };

inline std::string_view name(Method method) {
  constexpr std::string_view names[] = {"LoRA",    "IA3",  "MoV",       "MoLoRA",
                                        "LoRAMoE", "MoLA", "HydraLoRA", "other"};
  return names[static_cast<std::size_t>(method)];
}

/// An adapter that remembers its method.
template <class Adapter>
struct Preset : Adapter {
  Method method;
  Preset(Adapter adapter, Method m) : Adapter(std::move(adapter)), method(m) {}
};

/// LoRA as PEFT has it: r 8, alpha 8, no dropout. (PEFT `LoraConfig`)
struct LoraOptions {
  Index in = 0, out = 0;
  Index rank = 8;
  double alpha = 8;
  LoraScaling scaling = LoraScaling::alpha_over_rank;
  double dropout = 0;
  bool bias = false;
  Init init = Init::kaiming_uniform;
};
template <Scalar S>
Preset<Lora<S>> lora(const LoraOptions& o) {
  return {Lora<S>(LoraBank<S>({.in = o.in,
                               .out = o.out,
                               .rank = o.rank,
                               .alpha = o.alpha,
                               .scaling = o.scaling,
                               .bias = o.bias,
                               .dropout = o.dropout,
                               .init = o.init}),
                  UniformRouter<S>({.experts = 1})),
          Method::lora};
}

/// One vector on keys, on values, and on the input of the down projection. (PEFT `IA3Config`)
struct Ia3Options {
  Index features = 0;
  Index heads = 1;
};
template <Scalar S>
Preset<Ia3<S>> ia3(const Ia3Options& o) {
  return {
      Ia3<S>(Ia3Bank<S>({.features = o.features, .heads = o.heads}), UniformRouter<S>({.heads = o.heads})),
      Method::ia3};
}

/// Mixture of vectors: 10 experts on keys and values, per head as released, and on the gated activation,
/// before its product with the up projection. The router starts at N(0, 0.02^2) and reads the activation
/// itself, so the mixture is the identity at the start. (`mov.py`, `configs/mov.gin`; the config's default is
/// 30 experts)
struct MovOptions {
  Index features = 0;
  Index heads = 1;
  Index experts = 10;
  Init router_init = Init::normal_002;
};
template <Scalar S>
Preset<MoV<S>> mov(const MovOptions& o) {
  return {MoV<S>(Ia3Bank<S>({.features = o.features, .heads = o.heads, .experts = o.experts}),
                 SoftRouter<S>(
                     {.in = o.features, .experts = o.experts, .heads = o.heads, .init = o.router_init})),
          Method::mov};
}

/// Mixture of LoRAs: 10 experts of rank 4, alpha 16, A and router from N(0, 0.02^2), no dropout.
/// (`molora.py`)
struct MoloraOptions {
  Index in = 0, out = 0;
  Index experts = 10;
  Index rank = 4;
  double alpha = 16;
  double dropout = 0;
  Init init = Init::normal_002;
};
template <Scalar S>
Preset<MoLoRA<S>> molora(const MoloraOptions& o) {
  return {MoLoRA<S>(LoraBank<S>({.in = o.in,
                                 .out = o.out,
                                 .experts = o.experts,
                                 .rank = o.rank,
                                 .alpha = o.alpha,
                                 .dropout = o.dropout,
                                 .init = o.init}),
                    SoftRouter<S>({.in = o.in, .experts = o.experts, .init = o.init})),
          Method::molora};
}

/// 8 experts of rank 4, alpha 32, dropout 0.05 with a mask per expert, on gate, up and down. Train it with
/// `loramoe_balance` at `loramoe_balance_weight`: the released script has both delta and weight at 0, which
/// turns the paper's constraint off. (`peft/tuners/lora.py`, `run_loramoe.sh`)
struct LoramoeOptions {
  Index in = 0, out = 0;
  Index experts = 8;
  Index rank = 4;
  double alpha = 32;
  double dropout = 0.05;
};
template <Scalar S>
Preset<LoRAMoE<S>> loramoe(const LoramoeOptions& o) {
  return {LoRAMoE<S>(LoraBank<S>({.in = o.in,
                                  .out = o.out,
                                  .experts = o.experts,
                                  .rank = o.rank,
                                  .alpha = o.alpha,
                                  .dropout = o.dropout,
                                  .mask = DropoutMask::per_expert}),
                     SoftRouter<S>({.in = o.in, .experts = o.experts})),
          Method::loramoe};
}
template <Scalar S>
LocalizedBalance<S> loramoe_balance() {
  return LocalizedBalance<S>({.delta = 0.1});
}
inline constexpr double loramoe_balance_weight = 0.1;

/// Top-2 renormalised of `experts` (2-4-6-8 over the layers: `experts_per_layer`), rank 8, alpha 16, dropout
/// 0.05 with one mask, on all seven projections. Train it with `mola_balance`, a pool per layer, at
/// `mola_balance_weight`. (`mola_lora_hacked.py`, `mola_training_instruction.py`)
struct MolaOptions {
  Index in = 0, out = 0;
  Index experts = 8;
  Index top_k = 2;
  Index rank = 8;
  double alpha = 16;
  double dropout = 0.05;
};
template <Scalar S>
Preset<MoLA<S>> mola(const MolaOptions& o) {
  return {MoLA<S>(LoraBank<S>({.in = o.in,
                               .out = o.out,
                               .experts = o.experts,
                               .rank = o.rank,
                               .alpha = o.alpha,
                               .dropout = o.dropout}),
                  TopKRouter<S>({.in = o.in, .experts = o.experts, .k = o.top_k})),
          Method::mola};
}
template <Scalar S>
LoadBalance<S> mola_balance() {
  return LoadBalance<S>::mola();
}
inline constexpr double mola_balance_weight = 0.001;

/// 4 experts of rank 4 with one A, alpha 32, dropout 0.05, on gate, up and down, without a balance loss.
/// (`HydraLoRA/peft/tuners/lora.py` and its script)
struct HydraloraOptions {
  Index in = 0, out = 0;
  Index experts = 4;
  Index rank = 4;
  double alpha = 32;
  double dropout = 0.05;
};
template <Scalar S>
Preset<HydraLora<S>> hydralora(const HydraloraOptions& o) {
  return {HydraLora<S>(HydraBank<S>({.in = o.in,
                                     .out = o.out,
                                     .experts = o.experts,
                                     .rank = o.rank,
                                     .alpha = o.alpha,
                                     .dropout = o.dropout}),
                       SoftRouter<S>({.in = o.in, .experts = o.experts})),
          Method::hydralora};
}

}  // namespace moxie::inline MOXIE_ABI
