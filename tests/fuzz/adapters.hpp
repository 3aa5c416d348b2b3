// SPDX-License-Identifier: MIT
#pragma once

#include "fuzz/must.hpp"

#include <moxie/io/adapter_save.hpp>

#include <cstring>

/// Adapters for the fuzzers as two texts: a config, and a line "name dtype extent ..." for each tensor.
namespace moxie::fuzz {

struct Sample {
  const char *config, *tensors;
};

/// One of every format that is read.
inline constexpr Sample samples[] = {
    {R"({"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "use_rslora": true,
         "rank_pattern": {"1.*v_proj": 2}, "alpha_pattern": {"v_proj": 4.5}, "modules_to_save": ["head"]})",
     "base_model.model.layers.0.q_proj.lora_A.weight F32 3 4\n"
     "base_model.model.layers.0.q_proj.lora_B.weight F32 5 3\n"
     "base_model.model.layers.1.v_proj.lora_A.weight BF16 2 4\n"
     "base_model.model.layers.1.v_proj.lora_B.weight F16 6 2\n"
     "base_model.model.head.weight F32 2 2\n"},
    {R"({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "lora_bias": true, "layers_to_transform": [1],
         "target_modules": "layers\\.[0-9]+\\.(q|v)_proj", "exclude_modules": ["k_proj"]})",
     "base_model.model.layers.1.q_proj.lora_A.weight F32 2 4\n"
     "base_model.model.layers.1.q_proj.lora_B.weight F32 3 2\n"
     "base_model.model.layers.1.q_proj.lora_B.bias F32 3\n"},
    {R"({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": [], "target_parameters": ["experts.up"]})",
     "base_model.model.layers.0.experts.lora_A.weight F32 6 4\n"
     "base_model.model.layers.0.experts.lora_B.weight F32 5 6\n"},
    {R"({"peft_type": "IA3", "target_modules": ["k", "down"], "feedforward_modules": ["down"]})",
     "base_model.model.layers.0.k.ia3_l F32 4 1\n"
     "base_model.model.layers.0.down.ia3_l F32 1 6\n"},
    {R"({"peft_type": "LORA", "r": [2, 1], "lora_alpha": 4, "target_modules": ["q_proj"]})",
     "base_model.model.model.layers.0.q_proj.lora_A_0.weight F32 2 4\n"
     "base_model.model.model.layers.0.q_proj.lora_A_1.weight F32 2 4\n"
     "base_model.model.model.layers.0.q_proj.lora_B_0.weight F32 3 2\n"
     "base_model.model.model.layers.0.q_proj.lora_B_1.weight F32 3 2\n"
     "base_model.model.model.layers.0.q_proj.router.router.weight F32 2 4\n"
     "base_model.model.model.layers.1.q_proj.lora_A_0.weight F32 1 4\n"
     "base_model.model.model.layers.1.q_proj.lora_A_1.weight F32 1 4\n"
     "base_model.model.model.layers.1.q_proj.lora_B_0.weight F32 3 1\n"
     "base_model.model.model.layers.1.q_proj.lora_B_1.weight F32 3 1\n"
     "base_model.model.model.layers.1.q_proj.router.router.weight F32 2 4\n"},
    {R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_nums": 2, "blc_alpha": 0.1, "blc_weight": 0.1,
         "target_modules": ["up_proj"]})",
     "base_model.model.layers.0.up_proj.lora_A0.weight F32 2 4\n"
     "base_model.model.layers.0.up_proj.lora_A1.weight F32 2 4\n"
     "base_model.model.layers.0.up_proj.lora_B0.weight F32 3 2\n"
     "base_model.model.layers.0.up_proj.lora_B1.weight F32 3 2\n"
     "base_model.model.layers.0.up_proj.lora_route.weight F32 2 4\n"},
    {R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_nums": 2, "target_modules": ["up_proj"]})",
     "base_model.model.layers.0.up_proj.lora_A.weight F32 2 4\n"
     "base_model.model.layers.0.up_proj.lora_B0.weight F32 3 2\n"
     "base_model.model.layers.0.up_proj.lora_B1.weight F32 3 2\n"
     "base_model.model.layers.0.up_proj.lora_route.weight F32 2 4\n"},
    {R"({"peft_type": "MOLA", "r": 2, "lora_alpha": 4, "routing_strategy": "mola", "num_experts": 2, "top_k": 1,
         "target_modules": ["q_proj"]})",
     "mola.layers.0.self_attn.q_proj.experts.0.lora_A.weight F32 2 4\n"
     "mola.layers.0.self_attn.q_proj.experts.0.lora_B.weight F32 3 2\n"
     "mola.layers.0.self_attn.q_proj.experts.1.lora_A.weight F32 2 4\n"
     "mola.layers.0.self_attn.q_proj.experts.1.lora_B.weight F32 3 2\n"
     "mola.layers.0.self_attn.q_proj.moe_gate.weight F32 2 4\n"},
    {R"({"peft_type": "MOLORA", "r": [2, 1], "lora_alpha": [2, 3], "num_experts": 2, "router_type": "top_k", "top_k": 1,
         "router_noise": "learned", "router_weights": "masked", "target_modules": ["o"]})",
     "base_model.model.o.lora_A.0.weight F32 2 4\n"
     "base_model.model.o.lora_B.0.weight F32 3 2\n"
     "base_model.model.o.lora_A.1.weight F32 1 4\n"
     "base_model.model.o.lora_B.1.weight F32 3 1\n"
     "base_model.model.o.router.weight F32 2 4\n"
     "base_model.model.o.router_noise.weight F32 2 4\n"},
    {R"({"peft_type": "MOV", "num_experts": 3, "router_temperature": 0.5, "target_modules": ["k"]})",
     "base_model.model.k.ia3_l F32 2 3 4\n"
     "base_model.model.k.router.weight F32 3 4\n"}};

/// The tensors of a listing with small numbers in them; nothing where no file could hold them.
inline std::optional<io::TensorFile> tensors(std::string_view listing) {
  constexpr std::size_t most_numbers = 1 << 14;
  io::TensorWriter writer;
  std::size_t all = 0;
  while (!listing.empty()) {
    const std::string_view line = listing.substr(0, std::min(listing.find('\n'), listing.size()));
    listing.remove_prefix(std::min(line.size() + 1, listing.size()));
    std::size_t at = std::min(line.find(' '), line.size());
    const std::string name(line.substr(0, at));
    std::string_view rest = line.substr(at);
    auto dtype = io::Dtype::f32;
    std::vector<Index> shape;
    std::size_t count = 1;
    while (!rest.empty()) {
      rest.remove_prefix(1);
      const std::string_view word = rest.substr(0, std::min(rest.find(' '), rest.size()));
      rest.remove_prefix(word.size());
      for (const auto d : {io::Dtype::f64, io::Dtype::f32, io::Dtype::f16, io::Dtype::bf16})
        if (word == io::name(d)) dtype = d;
      unsigned extent = 0;
      if (word.empty() || std::from_chars(word.data(), word.data() + word.size(), extent).ec != std::errc())
        continue;
      shape.push_back(extent);
      count *= extent;
      if (extent > most_numbers || count > most_numbers || shape.size() > 12) return std::nullopt;
    }
    all += count;
    if (all > most_numbers) return std::nullopt;
    std::vector<float> values(count);
    for (std::size_t i = 0; i < count; ++i) values[i] = (static_cast<float>((37 * (i + all)) % 64) - 31) / 32;
    try {
      writer.add<float>(name, shape, values, dtype);
    } catch (const Error&) {
      return std::nullopt;
    }
  }
  try {
    return io::TensorFile::parse(writer.bytes());
  } catch (const Error&) {
    return std::nullopt;
  }
}

/// Loads the pair, strictly and leniently. It is refused by an Error, or is a set of finite numbers that is
/// loaded into itself without a change and, where it can be written, read again as the same bits.
inline void check(const io::TensorFile& file, std::string_view config) {
  const io::AdapterFiles files{file, std::string(config), "config"};
  for (const bool lenient : {false, true}) {
    std::optional<io::Loaded<float>> loaded;
    try {
      loaded = io::load<float>(files, {.lenient = lenient});
    } catch (const Error&) {
      continue;
    }
    const std::span<const float> theta = loaded->set.theta();
    const std::vector<float> before(theta.begin(), theta.end());
    const auto same = [&](std::span<const float> other) {
      return other.size() == before.size() &&
             std::memcmp(other.data(), before.data(), before.size() * sizeof(float)) == 0;
    };
    MUST(loaded->set.modules() > 0);
    for (const float value : theta) MUST(std::isfinite(value));
    MUST(lenient || loaded->report.clean());
    io::load_into(loaded->set, files, {.lenient = lenient});
    MUST(same(loaded->set.theta()));
    if (lenient) continue;
    std::optional<io::detail::Written> written;
    try {
      written = io::detail::write(loaded->set, loaded->info, {});
    } catch (const Error&) {
      continue;  // a format may hold more than it can say again
    }
    const auto again = io::load<float>(
        io::AdapterFiles{io::TensorFile::parse(written->tensors.bytes()), written->config, "again"});
    MUST(same(again.set.theta()));
  }
}

}  // namespace moxie::fuzz
