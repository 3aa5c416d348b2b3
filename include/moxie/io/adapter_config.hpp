// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/adapter_router.hpp>
#include <moxie/io/module_rule.hpp>

namespace moxie::inline MOXIE_ABI::io {

/// Whose names and keys a folder uses. What each looks like: include/moxie/io/README.md.
enum class Format {
  peft,       ///< PEFT's LoRA and IA3
  mixture,    ///< our own, in the manner of PEFT: mixtures that have no public format, MoV and MoLoRA first
  mola,       ///< the released code of MoLA
  loramoe,    ///< the released code of LoRAMoE
  hydralora,  ///< the released code of HydraLoRA
  moe_peft,   ///< MoE-PEFT's mola, loramoe and lora
};
inline std::string_view name(Format format) {
  constexpr std::string_view names[] = {"peft", "mixture", "mola", "loramoe", "hydralora", "moe-peft"};
  return names[static_cast<std::size_t>(format)];
}

namespace detail {

/// The part of `adapter_config.json` that decides what the tensors mean, checked.
struct AdapterConfig {
  Path path;  ///< for messages
  nlohmann::json json;
  std::string peft_type;
  bool vectors = false;  ///< IA3 and MoV: multiplies, where LoRA adds
  // LoRA
  std::vector<Index> rank = {};  ///< one, or one per layer (MoLA), or one per expert (ours)
  std::vector<double> alpha = {};
  template <class T>
  struct Override {
    std::string pattern;
    std::vector<T> values;
  };
  std::vector<Override<Index>> rank_pattern = {};
  std::vector<Override<double>> alpha_pattern = {};
  bool rslora = false, bias_of_b = false, mask_per_expert = false;
  double dropout = 0;
  // IA3
  ModuleRule feedforward = {};
  // Which modules
  ModuleRule target = {}, exclude = {};
  std::vector<Index> layers = {};
  std::vector<std::string> layers_pattern = {}, modules_to_save = {};
  std::string base_bias = "none";
  std::vector<std::string> target_parameters =
      {};  ///< three-dimensional ones, [E, ., .], of the base's experts
  // Mixtures
  Index experts = 0;  ///< 0: the file's tensors say
  std::vector<Index> top_k = {};
  bool loramoe_keys = false;   ///< lora_nums: LoRAMoE or HydraLoRA, which the tensors tell apart
  RouterSettings router = {};  ///< ours, all but k; MoE-PEFT's kind, from routing_strategy
};

constexpr Index most_rank = 1 << 24, most_experts = 1 << 20;
constexpr double unbounded = std::numeric_limits<double>::infinity();

/// What all formats have in common.
inline void read_common(ConfigReader& in, AdapterConfig& c) {
  in.text("base_model_name_or_path");
  const std::string task = in.text("task_type");
  in.known({"auto_mapping", "inference_mode", "peft_version", "revision", "init_lora_weights",
            "init_ia3_weights", "fan_in_fan_out"});
  in.boolean("fan_in_fan_out");
  c.target = ModuleRule::read(in, "target_modules");
  c.exclude = ModuleRule::read(in, "exclude_modules");
  c.modules_to_save = in.texts("modules_to_save");
  // PEFT trains the heads of these tasks whole, and older versions do not write it down (peft_model.py).
  const auto trained_whole = [&](const char* head) { c.modules_to_save.emplace_back(head); };
  if (task == "SEQ_CLS" || task == "TOKEN_CLS") trained_whole("classifier"), trained_whole("score");
  if (task == "QUESTION_ANS") trained_whole("qa_outputs");
  if (c.peft_type == "LORA") c.target_parameters = in.texts("target_parameters");
  if (c.target.empty() && c.target_parameters.empty())
    in.refuse(Code::nothing_matched, "target_modules", "means no module");
}

inline void read_lora(ConfigReader& in, AdapterConfig& c) {
  c.rank = in.wholes("r", in.expect("r"), 1, most_rank);
  c.alpha = in.numbers("lora_alpha", in.expect("lora_alpha"), 0, unbounded);
  in.patterns("rank_pattern", [&](const std::string& pattern, const nlohmann::json& value) {
    c.rank_pattern.push_back({pattern, in.wholes("rank_pattern", value, 1, most_rank)});
  });
  in.patterns("alpha_pattern", [&](const std::string& pattern, const nlohmann::json& value) {
    c.alpha_pattern.push_back({pattern, in.numbers("alpha_pattern", value, 0, unbounded)});
  });
  c.rslora = in.boolean("use_rslora");
  c.bias_of_b = in.boolean("lora_bias");
  if (!c.target_parameters.empty() && (!c.rank_pattern.empty() || !c.alpha_pattern.empty() || c.bias_of_b))
    in.refuse(Code::unsupported_option, "target_parameters",
              "stands beside a rank_pattern, an alpha_pattern or lora_bias, which are by parameters here");
  c.dropout = in.number("lora_dropout", 0, 1, 0);
  c.base_bias = in.text("bias", "none");
  if (c.base_bias != "none" && c.base_bias != "all" && c.base_bias != "lora_only")
    in.refuse(Code::config_range, "bias", "is " + shown(c.base_bias) + ", wanted none, all or lora_only");
  if (const nlohmann::json* layers = in.find("layers_to_transform"); layers != nullptr && !layers->empty())
    c.layers = in.wholes("layers_to_transform", *layers, 0, 1 << 24);
  if (const nlohmann::json* pattern = in.find("layers_pattern"))
    c.layers_pattern =
        pattern->is_string() ? std::vector{in.text("layers_pattern")} : in.texts("layers_pattern");
  // Starts that change the base weight with the adapter: their A and B belong to that weight, not the base's.
  if (const nlohmann::json* init = in.find("init_lora_weights"); init != nullptr && !init->is_boolean()) {
    std::string start = init->is_string() ? init->get<std::string>() : std::string();
    for (char& letter : start)  // as PEFT compares some of them
      if (letter >= 'A' && letter <= 'Z') letter = static_cast<char>(letter - 'A' + 'a');
    if (start != "gaussian" && start != "eva" && start != "orthogonal" && start != "mica")
      in.refuse_value(Code::unsupported_option, "init_lora_weights", *init,
                      "a start that leaves the base weights as they are (PEFT can convert such adapters)");
  }
  in.unsupported({"use_dora", "use_qalora", "layer_replication", "trainable_token_indices",
                  "alora_invocation_tokens", "arrow_config", "use_bdlora", "velora_config",
                  "monteclora_config", "kasa_config", "megatron_config", "ensure_weight_tying", "enable_lora",
                  "use_mora", "use_lora_ga"});
  in.known({"corda_config", "eva_config", "loftq_config", "lora_ga_config", "megatron_core",
            "qalora_group_size", "runtime_config", "merge_weights"});
}

/// Reads a config. Throws what reading JSON throws, ConfigType, ConfigRange, ConfigMismatch, MissingField,
/// AdapterKind, ExpertIndex, UnsupportedOption, NothingMatched; keys that nobody knows go to the report.
inline AdapterConfig read_config(std::string_view text, const Path& path, Report& report) {
  ConfigReader in(text, Source{path});
  AdapterConfig c{.path = path, .json = in.json(), .peft_type = {}};
  if (!in.expect("peft_type").is_string()) in.refuse(Code::config_type, "peft_type", "is no text");
  c.peft_type = in.text("peft_type");
  const bool moe_peft = c.peft_type == "MOLA" || c.peft_type == "LORAMOE",
             ours = c.peft_type == "MOLORA" || c.peft_type == "MOV";
  for (const std::string_view other : {"MIXLORA",
                                       "XLORA",
                                       "ADALORA",
                                       "LOHA",
                                       "LOKR",
                                       "OFT",
                                       "BOFT",
                                       "VERA",
                                       "POLY",
                                       "LN_TUNING",
                                       "FOURIERFT",
                                       "HRA",
                                       "VBLORA",
                                       "BONE",
                                       "MISS",
                                       "RANDLORA",
                                       "SHIRA",
                                       "C3A",
                                       "ROAD",
                                       "PROMPT_TUNING",
                                       "P_TUNING",
                                       "PREFIX_TUNING",
                                       "MULTITASK_PROMPT_TUNING",
                                       "ADAPTION_PROMPT",
                                       "CPT",
                                       "TRAINABLE_TOKENS"})
    if (c.peft_type == other)
      in.refuse(Code::unsupported_option, "peft_type", "is ", other,
                ", a method that this library does not have");
  if (!moe_peft && !ours && c.peft_type != "LORA" && c.peft_type != "IA3")
    in.refuse(Code::adapter_kind, "peft_type", "is ", shown(c.peft_type),
              ", wanted LORA, IA3, MOLA, LORAMOE, or our own MOLORA, MOV");
  c.vectors = c.peft_type == "IA3" || c.peft_type == "MOV";
  read_common(in, c);
  if (c.vectors) {
    c.feedforward = ModuleRule::read(in, "feedforward_modules");
  } else {
    read_lora(in, c);
  }
  const auto count = [&](std::string_view key) {
    const nlohmann::json* const value = in.find(key);
    return value == nullptr ? Index{0} : in.whole(key, *value, 1, most_experts);
  };
  if (c.peft_type != "IA3") {
    if (const nlohmann::json* k = in.find("top_k")) c.top_k = in.wholes("top_k", *k, 1, most_experts);
    c.experts = count("num_experts");
  }
  if (ours) c.router = RouterSettings::read(in, !c.top_k.empty());
  if (ours && !c.vectors) c.mask_per_expert = in.boolean("lora_dropout_per_expert");
  if (c.peft_type == "LORA" || c.peft_type == "LORAMOE") {
    in.number("blc_alpha", 0, unbounded, 0);
    in.number("blc_weight", 0, unbounded, 0);
  }
  if (c.peft_type == "LORA") {
    const Index nums = count("lora_nums");
    c.loramoe_keys = nums > 0;
    if (c.loramoe_keys && c.experts > 0 && nums != c.experts)
      in.refuse(Code::expert_index, "lora_nums", "is ", nums, ", but num_experts ", c.experts);
    if (c.loramoe_keys) c.experts = nums;
    if (const nlohmann::json* route = in.find("routing_strategy"))
      in.refuse_value(Code::adapter_kind, "routing_strategy", *route, "none in a plain LoRA");
  }
  if (moe_peft) {
    const bool mola = c.peft_type == "MOLA";
    const std::string strategy = in.text("routing_strategy", mola ? "mola" : "loramoe");
    if (strategy != (mola ? "mola" : "loramoe"))
      in.refuse(Code::config_mismatch, "routing_strategy", "is ", shown(strategy), " with peft_type ",
                c.peft_type);
    c.router.kind = mola ? RouterKind::top_k : RouterKind::soft;
    in.unsupported({"expert_lora", "top_p", "expert_capacity", "sparse_step"});
    if (in.number("temperature", std::numeric_limits<double>::min(), unbounded, 1) != 1)
      in.refuse(Code::unsupported_option, "temperature", "is not 1");
    in.known({"act_fn"});
    in.number("router_aux_loss_coef", 0, unbounded, 0);
    in.number("router_init_range", 0, unbounded, 0);
    in.number("jitter_noise", 0, 1, 0);
    in.number("router_z_loss_coef", 0, unbounded, 0);
    in.boolean("router_loss");
  }
  in.finish(report);
  return c;
}

}  // namespace detail
}  // namespace moxie::inline MOXIE_ABI::io
