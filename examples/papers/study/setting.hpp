// SPDX-License-Identifier: MIT
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace papers {

using Index = std::ptrdiff_t;
using Json = nlohmann::ordered_json;

/// One way to change a base and to train it: all that decides the figures of a run.
struct Setting {
  std::string method = "lora";  ///< lora, ia3, mov, molora, mola (top-k of LoRAs), loramoe, hydralora, full
  Index layers = 4;             ///< of the base
  int base = 0, seed = 0;       ///< of the base; of the adapters and the order of the data
  std::vector<Index> experts = {};  ///< of all layers, or of each
  Index rank = 0, top_k = 0;
  bool feedforward = false;     ///< LoRA of gate, up and down alone, where LoRAMoE's experts are
  std::string route = "token";  ///< token, mean (of the positions so far), oracle (one expert a language)
  bool masked = false;          ///< top-k weights as the softmax gave them, not renormalised
  bool released_start = false;  ///< A and routers from N(0, 0.02^2), as MoLoRA's code, not from Kaiming's
  double learning_rate = 0;
  std::vector<double> layer_rates = {};  ///< factors of it; none: 1
  double balance = 0;                    ///< weight of the method's balance loss
  double delta = 0.1;                    ///< of LoRAMoE's
  bool variance_over_mean = false;       ///< LoRAMoE's as printed; else CV^2, as released
  bool matching_less = false;            ///< LoRAMoE's with I = 1 - delta for pairs that match
  double replay = 0;                     ///< share of the rows that are English
  Index mixed_steps = 0;                 ///< of a first round on the seven languages
  Index steps = 0;                       ///< of the round that is measured
  std::vector<std::string> tasks = {};   ///< that it trains on; none: the seven
  bool schedule = true;                  ///< warm-up and cosine; else a constant learning rate
  bool tuning = false;                   ///< measured on the words that learning rates are chosen by

  /// What is not at its default: the run's name in the results, and what it is found by.
  Json json() const {
    const Setting plain;
    Json all = {{"method", method}};
    const auto put = [&](const char* name, auto member) {
      if (this->*member != plain.*member) all[name] = this->*member;
    };
    put("layers", &Setting::layers);
    all["base"] = base;
    all["seed"] = seed;
    put("experts", &Setting::experts);
    put("rank", &Setting::rank);
    put("top_k", &Setting::top_k);
    put("feedforward", &Setting::feedforward);
    put("route", &Setting::route);
    put("masked", &Setting::masked);
    put("released_start", &Setting::released_start);
    put("learning_rate", &Setting::learning_rate);
    put("layer_rates", &Setting::layer_rates);
    put("balance", &Setting::balance);
    if (method == "loramoe" && balance > 0) all["delta"] = delta;
    put("variance_over_mean", &Setting::variance_over_mean);
    put("matching_less", &Setting::matching_less);
    put("replay", &Setting::replay);
    put("mixed_steps", &Setting::mixed_steps);
    put("steps", &Setting::steps);
    put("tasks", &Setting::tasks);
    put("schedule", &Setting::schedule);
    put("tuning", &Setting::tuning);
    return all;
  }
};

}  // namespace papers
