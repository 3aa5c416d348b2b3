// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/optim/adamw.hpp>
#include <moxie/optim/schedule.hpp>

#include <optional>

#include "host.hpp"

namespace papers {

/// A base under one setting, from its start to its last step. One thread; the same setting gives the same
/// bits.
class Learner {
 public:
  Learner(const Host& host, const Setting& setting);

  /// Takes the steps up to number `step`, first round and measured round counted together.
  void train(Index step);
  void train() { train(setting_.mixed_steps + setting_.steps); }

  /// Nats per byte of a language, the newline counted.
  double loss(std::size_t task, std::size_t most = 128);
  /// The mean over some languages.
  double loss(const std::vector<std::size_t>& tasks, std::size_t most = 128);
  /// Runs over held-out rows of a language, so that the routings can be read; calls f(rows).
  template <class F>
  void each(std::size_t task, std::size_t most, F&& f) {
    each(task, most, setting_.tuning, f);
  }
  template <class F>
  void each(std::size_t task, std::size_t most, bool tuning, F&& f) {
    languages::for_rows(host_->held_out(task, tuning, most), task, rows_per_step, [&](const Rows& rows) {
      forward(rows, {.rows = std::ssize(rows.tasks), .seq = context});
      f(rows);
    });
  }

  /// Whether the model with its adapters switched off gives the base's logits to the bit. They stay off.
  bool off_is_base(std::size_t task);

  const Setting& setting() const { return setting_; }
  const Host& host() const { return *host_; }
  const llama::Model<S>& model() const { return own_ ? *own_ : *base_; }
  bool adapted() const { return adapters_.has_value(); }
  llama::Adapters<S>& adapters() { return *adapters_; }
  Index trainable() const;
  /// The languages that the measured round trains on.
  const std::vector<std::size_t>& trained() const { return trained_; }

 private:
  void forward(const Rows& rows, const llama::Pass& pass);
  void step(Index number);
  void start_round();

  const Host* host_;
  Setting setting_;
  const llama::Model<S>* base_;
  std::optional<llama::Model<S>> own_;  ///< full fine-tuning: the model's own weights
  std::optional<llama::Adapters<S>> adapters_;
  std::optional<moxie::AdamW<S>> optimiser_;
  std::vector<std::size_t> trained_, mixed_;
  std::vector<int> type_of_task_;  ///< 0 the base's own language, 1 a new one
  Index done_ = 0;
  llama::State<S> state_;
  llama::Gradients<S> scratch_;
  llama::Matrix<S> dlogits_;
  std::vector<S> gradient_;
};

/// How the adapters of a setting are made.
llama::AdapterOptions adapter_options(const Setting& setting);

}  // namespace papers
