// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <memory>

#include "../languages/words.hpp"
#include "../llama/backward.hpp"
#include "../llama/tokenizer.hpp"
#include "options.hpp"

namespace finetune {

/// A base model, its tokenizer, and the tasks in the order of the tables: trained, unseen, memory.
struct Job {
  llama::Model<S> model;
  std::unique_ptr<llama::Tokenizer> tokenizer;
  std::vector<languages::Task> tasks;
  std::vector<std::vector<std::vector<int>>> held_out;  ///< per task its evaluation rows

  std::vector<std::size_t> of_role(languages::Role role) const {
    std::vector<std::size_t> list;
    for (std::size_t t = 0; t < tasks.size(); ++t)
      if (tasks[t].source.role == role) list.push_back(t);
    return list;
  }
};

inline Job load(Options& o, const std::string& default_base) {
  const std::string base = o.base.empty() ? default_base : o.base;
  Job job{llama::Model<S>(llama::read_checkpoint(base)), nullptr, {}, {}};
  if (o.tokenizer.empty())
    job.tokenizer = std::make_unique<llama::ByteTokenizer>();
  else
    job.tokenizer = std::make_unique<llama::BpeTokenizer>(o.tokenizer);
  llama::check(*job.tokenizer, job.model.config, o.tokenizer.empty() ? base : o.tokenizer);
  o.context = std::min(o.context, job.model.config.context);

  std::vector<languages::Source> sources;
  for (const std::string& argument : o.data) sources.push_back(languages::custom_source(argument));
  for (std::size_t i = 0; i < sources.size(); ++i)
    for (std::size_t j = 0; j < i; ++j)
      if (sources[i].name == sources[j].name)
        throw std::runtime_error("--data: " + sources[i].name + " given twice");
  if (sources.empty()) {
    job.tasks = languages::load_words(languages::debian_lists());
  } else if (o.tokenizer.empty()) {
    job.tasks = languages::load_words(sources);
  } else {
    for (const languages::Source& source : sources)
      job.tasks.push_back(
          languages::load_text(source, [&](std::string_view text) { return job.tokenizer->encode(text); }));
  }
  for (const languages::Task& task : job.tasks)
    job.held_out.push_back(languages::evaluation_rows(task, static_cast<std::size_t>(o.context),
                                                      static_cast<std::size_t>(o.evaluation_rows)));
  return job;
}

/// One step's rows, a function of (seed, step) alone: inputs and targets [rows * context], the task of each
/// row.
struct Rows {
  std::vector<int> inputs, targets;
  std::vector<std::size_t> tasks;

  void resize(std::size_t rows, std::size_t context) {
    inputs.resize(rows * context);
    targets.resize(rows * context);
    tasks.resize(rows);
  }
  void set(std::size_t row, std::span<const int> tokens, std::size_t task) {
    const std::size_t context = tokens.size() - 1;
    std::copy_n(tokens.begin(), context, inputs.begin() + static_cast<std::ptrdiff_t>(row * context));
    std::copy_n(tokens.begin() + 1, context, targets.begin() + static_cast<std::ptrdiff_t>(row * context));
    tasks[row] = task;
  }
};

inline void sample(const Job& job, const Options& o, std::uint64_t step, Rows& rows) {
  const auto n = static_cast<std::size_t>(o.rows), context = static_cast<std::size_t>(o.context);
  const auto trained = job.of_role(languages::Role::trained), memory = job.of_role(languages::Role::memory);
  const auto replayed = memory.empty() ? 0 : static_cast<std::size_t>(o.replay * static_cast<double>(n));
  rows.resize(n, context);
  std::vector<int> tokens(context + 1);
  for (std::size_t row = 0; row < n; ++row) {
    const languages::Key key{o.seed, step, row};
    const auto& from = row < replayed ? memory : trained;
    const std::size_t task = from[languages::draw(key, 0) % from.size()];
    languages::sample_row(job.tasks[task], key, tokens);
    rows.set(row, tokens, task);
  }
}

/// f(rows of at most `o.rows` held-out sequences of one task, their number), for the first `limit` of each
/// task.
template <class F>
void for_held_out(const Job& job, const Options& o, std::size_t task, std::size_t limit, F&& f) {
  const auto context = static_cast<std::size_t>(o.context);
  const auto& all = job.held_out[task];
  Rows rows;
  for (std::size_t at = 0; at < std::min(limit, all.size());) {
    const std::size_t n = std::min({static_cast<std::size_t>(o.rows), std::min(limit, all.size()) - at});
    rows.resize(n, context);
    for (std::size_t i = 0; i < n; ++i) rows.set(i, all[at + i], task);
    f(rows, static_cast<Index>(n));
    at += n;
  }
}

/// Held-out loss of a task in nats per token, the newline counted.
template <class Hooks>
double evaluate(const Job& job, const Options& o, std::size_t task, std::size_t limit, llama::State<S>& state,
                Hooks& hooks) {
  llama::Loss loss;
  for_held_out(job, o, task, limit, [&](const Rows& rows, Index n) {
    const llama::Pass pass{.rows = n, .seq = o.context, .threads = o.threads};
    llama::forward<S>(job.model, rows.inputs, pass, state, hooks);
    loss += llama::total(llama::cross_entropy<S>(state, rows.targets));
  });
  return loss.mean();
}

}  // namespace finetune
