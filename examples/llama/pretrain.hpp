// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/optim/adamw.hpp>
#include <moxie/optim/schedule.hpp>

#include "../languages/rows.hpp"
#include "backward.hpp"

namespace llama {

struct Pretraining {
  std::uint64_t steps = 1800, seed = 0;
  double learning_rate = 4e-3;  ///< after 50 steps of warm-up; it falls with the cosine to a twentieth
  std::size_t rows = 32;        ///< in a step
  int threads = 2;
};

/// Trains a model from its start on one task. `done(step, loss)` is called after each step. Throws
/// std::runtime_error where a step cannot be taken.
template <class Done>
void pretrain(Model<float>& model, const std::vector<languages::Task>& tasks, std::size_t task,
              const Pretraining& options, Done&& done) {
  std::vector<moxie::ParameterGroup> groups;
  for (const Tensor& t : tensors(model.config))
    groups.push_back({.name = t.name, .offset = t.offset, .size = t.rows * t.cols, .decay = !t.norm});
  moxie::AdamW<float> adamw(groups, {.beta1 = 0.9, .beta2 = 0.95, .weight_decay = 0.01});
  const moxie::Schedule schedule{.peak = options.learning_rate,
                                 .warmup = std::min<std::uint64_t>(50, options.steps),
                                 .steps = options.steps,
                                 .decay = moxie::Decay::cosine,
                                 .floor = 0.05};
  const Pass pass{.rows = static_cast<Index>(options.rows),
                  .seq = model.config.context,
                  .training = true,
                  .threads = options.threads};
  const languages::Mix mix{
      .trained = {task}, .rows = options.rows, .context = static_cast<std::size_t>(model.config.context)};
  State<float> state;
  Gradients<float> scratch;
  Matrix<float> dlogits;
  NoHooks none;
  languages::Rows rows;
  std::vector<float> gradient(model.size());
  for (std::uint64_t step = 0; step < options.steps; ++step) {
    languages::sample(tasks, mix, options.seed, step, rows);
    forward(model, rows.inputs, pass, state, none);
    const double loss = total(cross_entropy(state, rows.targets, &dlogits)).mean();
    std::fill(gradient.begin(), gradient.end(), 0.0f);
    backward(model, state, dlogits, scratch, none, std::span<float>(gradient));
    const moxie::StepResult result = adamw.step(
        model.weights, gradient, {.learning_rate = schedule.at(step), .clip_norm = 1, .loss = loss});
    if (!result.applied) throw std::runtime_error("step " + std::to_string(step) + ": " + result.reason);
    done(step + 1, loss);
  }
}

}  // namespace llama
