// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/safetensors.hpp>
#include <moxie/io/safetensors_writer.hpp>

#include <charconv>
#include <filesystem>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace finetune {

using S = float;
using Texts = std::map<std::string, std::string>;

/// Held-out losses on the way, one number per role.
struct Watch {
  std::vector<double> steps;
  std::vector<double> trained, unseen, memory;
};

/// What a run needs beside its weights to go on where it stopped, and what tells that nothing else has
/// changed. Random numbers are functions of seed and step, so there is no generator's state. On disk a tensor
/// file with checksums; the texts are in its metadata.
struct TrainingState {
  Texts settings;  ///< every option that decides the run, by its name without dashes
  Texts contents;  ///< checksums of the base, the data and the weights that the state belongs to
  std::uint64_t step = 0;
  std::vector<S> first_moment, second_moment;
  std::vector<double> losses;  ///< of the batches so far
  Watch watch;

  /// Throws what TensorFile::read throws, and std::runtime_error where the file is no training state.
  static TrainingState read(const std::filesystem::path& path) {
    const auto file = moxie::io::TensorFile::read(path);
    const auto refuse = [&](const std::string& what) {
      throw std::runtime_error(path.string() + ": " + what + ", wanted a training state that finetune wrote");
    };
    TrainingState state;
    const auto step = file.metadata().find("step");
    if (!file.checksummed() || step == file.metadata().end()) refuse("has no checksums or no step");
    const char *const begin = step->second.data(), *const end = begin + step->second.size();
    if (const auto [rest, error] = std::from_chars(begin, end, state.step);
        error != std::errc() || rest != end)
      refuse("its step is no number");
    for (const auto& [key, value] : file.metadata()) {
      if (key.starts_with(setting)) state.settings[key.substr(setting.size())] = value;
      if (key.starts_with(content)) state.contents[key.substr(content.size())] = value;
    }
    each(state, [&](const char* tensor, auto& numbers) {
      using Number = typename std::remove_cvref_t<decltype(numbers)>::value_type;
      const auto* const info = file.find(tensor);
      if (info == nullptr || info->shape.size() != 1) refuse(std::string("no tensor ") + tensor);
      numbers.resize(static_cast<std::size_t>(info->shape.front()));
      file.load(*info, std::span<Number>(numbers));
    });
    if (state.losses.size() != state.step) refuse("as many losses as steps are not in it");
    return state;
  }

  /// Replaces the file at once. Throws what TensorWriter does.
  void write(const std::filesystem::path& path) const {
    moxie::io::TensorWriter file;
    file.metadata["step"] = std::to_string(step);
    for (const auto& [key, value] : settings) file.metadata[std::string(setting) + key] = value;
    for (const auto& [key, value] : contents) file.metadata[std::string(content) + key] = value;
    each(*this, [&](const char* tensor, const auto& numbers) {
      using Number = typename std::remove_cvref_t<decltype(numbers)>::value_type;
      file.add(tensor, {std::ssize(numbers)}, std::span<const Number>(numbers),
               std::is_same_v<Number, double> ? moxie::io::Dtype::f64 : moxie::io::Dtype::f32);
    });
    file.save(path);
  }

 private:
  static constexpr std::string_view setting = "setting.", content = "content.";

  template <class State, class F>
  static void each(State& state, F&& f) {
    f("first_moment", state.first_moment);
    f("second_moment", state.second_moment);
    f("losses", state.losses);
    f("watch.steps", state.watch.steps);
    f("watch.trained", state.watch.trained);
    f("watch.unseen", state.watch.unseen);
    f("watch.memory", state.watch.memory);
  }
};

/// The state's file, and its name while the weights that belong to it are being written.
inline constexpr const char *state_name = "training_state.safetensors",
                            *next_state_name = "training_state.next.safetensors";

/// The states of a folder, the one that counts first; more than one after an interrupted save.
inline std::vector<TrainingState> read_states(const std::filesystem::path& folder) {
  std::vector<TrainingState> states;
  for (const char* const name : {state_name, next_state_name})
    if (std::filesystem::exists(folder / name)) states.push_back(TrainingState::read(folder / name));
  return states;
}

}  // namespace finetune
