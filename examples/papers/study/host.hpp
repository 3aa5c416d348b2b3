// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <map>
#include <mutex>

#include "../../llama/adapters.hpp"
#include "../../llama/evaluate.hpp"
#include "setting.hpp"

namespace papers {

using S = float;
using Rows = languages::Rows;
using Sequences = std::span<const std::vector<int>>;

/// The ten languages, and the models that know English. Every study reads the same words: `tables` holds
/// those of its figures, `tuning` others, by which learning rates are chosen.
class Host {
 public:
  /// Bases are read from `folder`, or trained and written there. Throws languages::DataError.
  explicit Host(std::filesystem::path folder, bool quick);

  const std::vector<languages::Task>& tasks() const { return tasks_; }
  std::size_t task(const std::string& name) const;
  std::vector<std::size_t> of_role(languages::Role role) const;
  /// Held-out sequences of 64 bytes, at most `most`.
  Sequences held_out(std::size_t task, bool tuning, std::size_t most = 128) const;
  /// A model of 64 features that was trained on English, from a start of its own for each number. May be
  /// called by several threads.
  const llama::Model<S>& base(Index layers, int number) const;

 private:
  std::filesystem::path folder_;
  bool quick_;
  std::vector<languages::Task> tasks_;
  std::vector<std::vector<std::vector<int>>> tables_, tuning_;
  mutable std::mutex mutex_;
  mutable std::map<std::pair<Index, int>, llama::Model<S>> bases_;
};

inline constexpr std::size_t rows_per_step = 32, context = 64;

}  // namespace papers
