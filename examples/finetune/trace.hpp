// SPDX-License-Identifier: MIT
#pragma once

#include <nlohmann/json.hpp>

#include <filesystem>

#include "tasks.hpp"

namespace finetune {

/// What another program needs to take the same steps and to compare itself (--trace): `theta.f32`, the
/// trained weights at the start; `tokens.i32`, each step's inputs and then its targets, [steps, 2, rows,
/// context]; and `trace.json`, sizes, where each tensor lies in theta, and what every step gave and took.
class Trace {
 public:
  explicit Trace(std::span<const S> theta) : theta_(theta.begin(), theta.end()) {}

  void add(const Rows& rows, double loss, double gradient_norm, double learning_rate, double seconds) {
    for (const auto* tokens : {&rows.inputs, &rows.targets})
      tokens_.insert(tokens_.end(), tokens->begin(), tokens->end());
    losses_.push_back(loss);
    gradient_norms_.push_back(gradient_norm);
    learning_rates_.push_back(learning_rate);
    seconds_.push_back(seconds);
  }

  void write(const Options& o, const std::vector<moxie::ParameterGroup>& groups) const {
    nlohmann::ordered_json json;
    json["settings"] = {{"method", name(o.how)}, {"experts", o.experts}, {"rank", o.rank},
                        {"alpha", o.alpha},      {"dropout", o.dropout}, {"steps", losses_.size()},
                        {"rows", o.rows},        {"context", o.context}, {"threads", o.threads}};
    for (const moxie::ParameterGroup& group : groups)
      json["tensors"].push_back({{"name", group.name}, {"offset", group.offset}, {"size", group.size}});
    json["losses"] = losses_;
    json["gradient_norms"] = gradient_norms_;
    json["learning_rates"] = learning_rates_;
    json["seconds"] = seconds_;
    const std::filesystem::path folder = o.trace;
    const auto raw = [&](const char* file, const auto& values) {
      llama::write_atomically((folder / file).string(), [&](std::ostream& out) {
        out.write(reinterpret_cast<const char*>(values.data()),
                  static_cast<std::streamsize>(values.size() * sizeof values[0]));
      });
    };
    raw("theta.f32", theta_);
    raw("tokens.i32", tokens_);
    llama::write_atomically((folder / "trace.json").string(),
                            [&](std::ostream& out) { out << json.dump(1) << "\n"; });
  }

 private:
  std::vector<S> theta_;
  std::vector<std::int32_t> tokens_;
  std::vector<double> losses_, gradient_norms_, learning_rates_, seconds_;
};

}  // namespace finetune
