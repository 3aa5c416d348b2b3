// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <memory>

#include "../llama/evaluate.hpp"
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

using languages::Rows;

/// What a step trains on.
inline languages::Mix mix(const Job& job, const Options& o) {
  languages::Mix mix{.trained = job.of_role(languages::Role::trained),
                     .memory = job.of_role(languages::Role::memory),
                     .rows = static_cast<std::size_t>(o.rows),
                     .context = static_cast<std::size_t>(o.context)};
  if (!mix.memory.empty()) mix.replayed = static_cast<std::size_t>(o.replay * static_cast<double>(o.rows));
  return mix;
}

/// The first `limit` held-out sequences of a task.
inline std::span<const std::vector<int>> held_out(const Job& job, std::size_t task, std::size_t limit) {
  const std::span<const std::vector<int>> all(job.held_out[task]);
  return all.first(std::min(limit, all.size()));
}

/// Held-out loss of a task in nats per token, the newline counted.
template <class Hooks>
double evaluate(const Job& job, const Options& o, std::size_t task, std::size_t limit, llama::State<S>& state,
                Hooks& hooks) {
  return llama::evaluate(job.model, held_out(job, task, limit), static_cast<std::size_t>(o.rows), o.threads,
                         state, hooks)
      .mean();
}

}  // namespace finetune
