// SPDX-License-Identifier: MIT
#pragma once

#include "io/disk.hpp"

namespace moxie::test {

using Numbers = std::vector<double>;

/// Before the modules of a base that PEFT has wrapped.
inline const std::string prefix = "base_model.model.";

/// What every config has; targets are the last parts of paths.
inline nlohmann::json common(const char* type, const std::vector<std::string>& paths) {
  nlohmann::json targets = nlohmann::json::array();
  for (const std::string& path : paths) targets.push_back(path.substr(path.rfind('.') + 1));
  return {{"peft_type", type},          {"base_model_name_or_path", "some/base"},
          {"task_type", "CAUSAL_LM"},   {"inference_mode", true},
          {"modules_to_save", nullptr}, {"target_modules", targets}};
}

inline Disk ia3_disk() {
  Disk disk;
  disk.config = common("IA3", {"k_proj", "v_proj", "down_proj"});
  disk.config["feedforward_modules"] = {"down_proj"};
  disk.config["fan_in_fan_out"] = false;
  disk.config["init_ia3_weights"] = true;
  for (const std::string layer : {"0", "1"}) {
    disk.add(prefix + "model.layers." + layer + ".self_attn.k_proj.ia3_l", {6, 1});
    disk.add(prefix + "model.layers." + layer + ".self_attn.v_proj.ia3_l", {8, 1});
    disk.add(prefix + "model.layers." + layer + ".mlp.down_proj.ia3_l", {1, 12});
  }
  return disk;
}

/// How an official code names the tensors of a module of LoRA experts; '%' stands for an expert's number.
struct Names {
  std::string root, a, b, router;
  std::string module(Index layer, const std::string& projection) const {
    return root + "layers." + std::to_string(layer) + "." + projection;
  }
};
inline const Names mola_names{prefix + "model.", ".lora_A_%.weight", ".lora_B_%.weight",
                              ".router.router.weight"},
    loramoe_names{prefix + "model.", ".lora_A%.weight", ".lora_B%.weight", ".lora_route.weight"},
    hydralora_names{prefix + "model.", ".lora_A.weight", ".lora_B%.weight", ".lora_route.weight"},
    moe_peft_mola_names{"mola.", ".experts.%.lora_A.weight", ".experts.%.lora_B.weight", ".moe_gate.weight"},
    moe_peft_loramoe_names{"loramoe.", ".experts.%.lora_A.weight", ".experts.%.lora_B.weight",
                           ".moe_gate.weight"},
    molora_names{prefix, ".lora_A.%.weight", ".lora_B.%.weight", ".router.weight"};

inline std::string of_expert(std::string name, std::size_t e) {
  if (const std::size_t at = name.find('%'); at != std::string::npos) name.replace(at, 1, std::to_string(e));
  return name;
}

/// A module of 12 inputs and 10 outputs with one rank for each expert.
inline void add_experts(Disk& disk, const Names& names, const std::string& module,
                        const std::vector<Index>& ranks) {
  for (std::size_t e = 0; e < ranks.size(); ++e) {
    if (e == 0 || names.a.find('%') != std::string::npos)
      disk.add(module + of_expert(names.a, e), {ranks[e], 12});
    disk.add(module + of_expert(names.b, e), {10, ranks[e]});
  }
  disk.add(module + names.router, {std::ssize(ranks), 12});
}

/// As MoLA's fork saves them: a number of experts and a rank for each layer.
inline Disk mola_disk(const std::vector<Index>& experts = {2, 4}, const std::vector<Index>& rank = {3, 2},
                      const std::vector<std::string>& projections = {"self_attn.q_proj", "mlp.down_proj"}) {
  Disk disk;
  disk.config = common("LORA", projections);
  disk.config.update(
      {{"r", rank}, {"lora_alpha", 6}, {"lora_dropout", 0.05}, {"bias", "none"}, {"fan_in_fan_out", false}});
  for (std::size_t l = 0; l < experts.size(); ++l)
    for (const std::string& projection : projections)
      add_experts(disk, mola_names, mola_names.module(static_cast<Index>(l), projection),
                  std::vector<Index>(static_cast<std::size_t>(experts[l]), rank[l]));
  return disk;
}

/// LoRAMoE's fork, or HydraLoRA's, which has one A.
inline Disk loramoe_disk(bool hydra) {
  Disk disk;
  disk.config = common("LORA", {"gate_proj", "up_proj"});
  disk.config.update({{"r", 4},
                      {"lora_alpha", 32},
                      {"lora_dropout", 0.05},
                      {"lora_nums", 3},
                      {"bias", "none"},
                      {"enable_lora", nullptr},
                      {"fan_in_fan_out", false},
                      {"merge_weights", false}});
  if (!hydra) disk.config.update({{"blc_alpha", 0.1}, {"blc_weight", 0.1}});
  const Names& names = hydra ? hydralora_names : loramoe_names;
  for (const char* projection : {"mlp.gate_proj", "mlp.up_proj"})
    add_experts(disk, names, names.module(0, projection), {4, 4, 4});
  return disk;
}

/// MoE-PEFT's export of `mola`, or of `loramoe`, whose attention has plain LoRA.
inline Disk moe_peft_disk(bool mola,
                          const std::vector<std::string>& projections = {"self_attn.q_proj", "mlp.up_proj"},
                          Index layers = 1, Index experts = 4) {
  Disk disk;
  const Names& names = mola ? moe_peft_mola_names : moe_peft_loramoe_names;
  disk.config = common(mola ? "MOLA" : "LORAMOE", projections);
  disk.config.update({{"r", 3},
                      {"lora_alpha", 6},
                      {"lora_dropout", 0.05},
                      {"bias", "none"},
                      {"use_rslora", false},
                      {"use_dora", false},
                      {"routing_strategy", mola ? "mola" : "loramoe"},
                      {"num_experts", experts}});
  if (mola) disk.config["top_k"] = 3;
  for (Index l = 0; l < layers; ++l)
    for (const std::string& projection : projections) {
      const std::string module = names.module(l, projection);
      if (!mola && projection.starts_with("self_attn.")) {
        disk.add(module + ".lora_A.weight", {3, 12});
        disk.add(module + ".lora_B.weight", {10, 3});
      } else {
        add_experts(disk, names, module, std::vector<Index>(static_cast<std::size_t>(experts), 3));
      }
    }
  return disk;
}

/// Our own: MoLoRA whose experts have ranks 2 and 5.
inline Disk molora_disk() {
  Disk disk;
  disk.config = common("MOLORA", {"q", "v"});
  disk.config.update({{"r", {2, 5}},
                      {"lora_alpha", {4, 7.5}},
                      {"lora_dropout", 0},
                      {"use_rslora", false},
                      {"lora_bias", false},
                      {"bias", "none"},
                      {"fan_in_fan_out", false},
                      {"num_experts", 2},
                      {"router_type", "soft"},
                      {"rank_pattern", nlohmann::json::object()},
                      {"alpha_pattern", nlohmann::json::object()}});
  for (const char* name : {"q", "v"}) add_experts(disk, molora_names, molora_names.module(0, name), {2, 5});
  return disk;
}

/// Our own: MoV over 3 heads on keys, over the whole activation in the block between.
inline Disk mov_disk() {
  Disk disk;
  disk.config = common("MOV", {"k", "mlp"});
  disk.config.update({{"num_experts", 5}, {"router_type", "soft"}});
  disk.add(prefix + "layers.0.k.ia3_l", {3, 5, 4});
  disk.add(prefix + "layers.0.k.router.weight", {5, 4});
  disk.add(prefix + "layers.0.mlp.ia3_l", {5, 12});
  disk.add(prefix + "layers.0.mlp.router.weight", {5, 12});
  return disk;
}

/// What a module adds to y for one token: sum over e of w_e scale_e B_e A_e x, where w is the softmax of the
/// router's logits; of its k largest, over their sum. One scale for all experts, or one each.
inline Numbers mixture(const Disk& disk, const Names& names, const std::string& module, std::size_t k,
                       const Numbers& scales, std::span<const double> x) {
  Numbers w = softmax(logits(disk[module + names.router], x));
  Numbers sorted = w;
  std::sort(sorted.rbegin(), sorted.rend());
  double sum = 0;
  for (double& v : w) sum += v = v >= sorted[k - 1] ? v : 0;
  Numbers y(10, 0);
  for (std::size_t e = 0; e < w.size(); ++e) {
    const Numbers delta =
        lora_delta(disk[module + of_expert(names.a, e)], disk[module + of_expert(names.b, e)], x);
    for (std::size_t o = 0; o < y.size(); ++o)
      y[o] += w[e] / sum * scales[scales.size() == 1 ? 0 : e] * delta[o];
  }
  return y;
}

}  // namespace moxie::test
