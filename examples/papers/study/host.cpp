// SPDX-License-Identifier: MIT
#include "host.hpp"

#include "../../llama/pretrain.hpp"

namespace papers {

Host::Host(std::filesystem::path folder, bool quick)
    : folder_(std::move(folder)), quick_(quick), tasks_(languages::load_words(languages::debian_lists())) {
  constexpr std::size_t of_tables = 128, of_tuning = 64;
  for (const languages::Task& task : tasks_) {
    auto rows = languages::evaluation_rows(task, context, of_tables + of_tuning);
    if (rows.size() < of_tables + of_tuning)
      throw languages::DataError(task.source.path + " has " + std::to_string(rows.size()) +
                                 " held-out rows, wanted " + std::to_string(of_tables + of_tuning));
    tuning_.emplace_back(rows.begin() + of_tables, rows.end());
    rows.resize(of_tables);
    tables_.push_back(std::move(rows));
  }
}

std::size_t Host::task(const std::string& name) const {
  for (std::size_t t = 0; t < tasks_.size(); ++t)
    if (tasks_[t].source.name == name) return t;
  throw std::runtime_error("no language " + name);
}

std::vector<std::size_t> Host::of_role(languages::Role role) const {
  std::vector<std::size_t> list;
  for (std::size_t t = 0; t < tasks_.size(); ++t)
    if (tasks_[t].source.role == role) list.push_back(t);
  return list;
}

Sequences Host::held_out(std::size_t task, bool tuning, std::size_t most) const {
  const Sequences all((tuning ? tuning_ : tables_)[task]);
  return all.first(std::min(all.size(), quick_ ? std::min<std::size_t>(most, 2) : most));
}

const llama::Model<S>& Host::base(Index layers, int number) const {
  const std::lock_guard lock(mutex_);
  const auto found = bases_.find({layers, number});
  if (found != bases_.end()) return found->second;
  // As many steps as the other figures' base has; of the deeper one fewer, which cost twice as much each.
  const std::uint64_t steps = quick_ ? 1 : layers > 4 ? 900 : 1800;
  const auto path = folder_ / ("english-64x" + std::to_string(layers) + "-" + std::to_string(number) +
                               (quick_ ? "-quick" : "") + ".bin");
  llama::Model<S> model(llama::Config{.layers = layers});
  if (std::filesystem::exists(path)) {
    model = llama::Model<S>(llama::read_checkpoint(path.string()));
    if (model.config != llama::Config{.layers = layers})
      throw std::runtime_error(path.string() + ": got another shape, wanted a base of this study");
  } else {
    std::fprintf(stderr, "training a base of %td layers, number %d\n", layers, number);
    const auto seed = static_cast<std::uint64_t>(number);
    llama::init(model, seed);
    llama::pretrain(model, tasks_, of_role(languages::Role::memory).front(),
                    {.steps = steps, .seed = seed, .threads = 2}, [](std::uint64_t, double) {});
    llama::write_checkpoint(path.string(), model.config, model.single());
  }
  return bases_.emplace(std::pair(layers, number), std::move(model)).first->second;
}

}  // namespace papers
