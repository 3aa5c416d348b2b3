// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/adapter_save.hpp>

#include <filesystem>
#include <sstream>

#include "report.hpp"

namespace finetune {

/// The folder of --save, --resume and --load: the weights in a form that others read (an adapter as
/// moxie::io::save writes it; of method full model.bin, a llama2.c checkpoint), and beside them the training
/// state. A state names the weights that it belongs to by their checksum and is written first, under a name
/// of its own; so a kill at any moment leaves weights and the state that belongs to them, both old or both
/// new.
class Checkpoint {
 public:
  /// `adapters` is null where the model's own weights are trained. Refuses at once what could not be gone on
  /// with, or would be lost.
  Checkpoint(const Options& o, Job& job, llama::Adapters<S>* adapters)
      : o_(o), job_(job), adapters_(adapters), folder_(o.load.empty() ? o.save : o.load) {
    if (folder_.empty()) return;
    contents_ = {{"base", checksum(0, job.model.weights)}, {"data", data_checksum()}};
    if (o.load.empty() && !o.resume) {
      for (const char* const name : {state_name, "model.bin", "adapter_model.safetensors"})
        if (std::filesystem::exists(folder_ / name))
          throw std::runtime_error("--save: " + (folder_ / name).string() +
                                   " is there already, wanted a folder without, or --resume");
      make_folder("--save", folder_);
      return;
    }
    const std::vector<TrainingState> states = read_states(folder_);
    if (states.empty() && o.resume)
      throw std::runtime_error("--resume: no " + std::string(state_name) + " in " + folder_.string());
    if (states.empty()) return;  // an adapter that somebody else has trained
    for (const auto& [key, value] : settings(o))
      if (o.resume || shapes_model(key)) expect_same(key, value, states.front().settings);
    for (const auto& [key, value] : contents_)
      if (o.resume || key == "base") expect_same(key, value, states.front().contents);
  }

  std::span<S> theta() { return adapters_ != nullptr ? adapters_->set().theta() : job_.model.weights; }

  /// Takes the weights of the folder. Throws, and changes none, where they are not of this model.
  void load() {
    if (adapters_ != nullptr) {
      moxie::io::LoadOptions options;
      if (o_.how == How::mola) options.top_k = {o_.top_k};  // MoLA's own files leave it out
      moxie::io::load_into(adapters_->set(), folder_, options);
      return;
    }
    const std::string path = (folder_ / "model.bin").string();
    const llama::Checkpoint file = llama::read_checkpoint(path);
    if (file.config != job_.model.config) throw std::runtime_error(path + ": is a model of another shape");
    job_.model.weights = file.weights;
  }

  /// Takes weights, optimiser and history; the number of steps that these have seen.
  Index resume(moxie::AdamW<S>& optimiser, Findings& f) {
    load();
    const std::string weights = checksum(0, theta());
    for (TrainingState& state : read_states(folder_)) {
      if (state.contents["weights"] != weights) continue;
      if (state.step > static_cast<std::uint64_t>(o_.steps))
        throw std::runtime_error("--resume: " + std::to_string(state.step) +
                                 " steps are done, wanted at most " + std::to_string(o_.steps));
      optimiser.restore(state.first_moment, state.second_moment, state.step);
      f.losses = std::move(state.losses);
      f.watch = std::move(state.watch);
      return static_cast<Index>(state.step);
    }
    throw std::runtime_error("--resume: the weights in " + folder_.string() +
                             " are not those that its training state belongs to (changed since?)");
  }

  /// Saves what `resume` takes, and by it what `load` does.
  void save(const moxie::AdamW<S>& optimiser, const Findings& f) {
    TrainingState state{.settings = settings(o_),
                        .contents = contents_,
                        .step = optimiser.steps(),
                        .first_moment = {optimiser.first_moment().begin(), optimiser.first_moment().end()},
                        .second_moment = {optimiser.second_moment().begin(), optimiser.second_moment().end()},
                        .losses = f.losses,
                        .watch = f.watch};
    state.contents["weights"] = checksum(0, theta());
    state.write(folder_ / next_state_name);
    save_weights();
    std::filesystem::rename(folder_ / next_state_name, folder_ / state_name);
  }

 private:
  void save_weights() const {
    if (adapters_ != nullptr) {
      moxie::io::save(adapters_->set(), folder_, info());
      return;
    }
    std::ostringstream out;
    llama::put_checkpoint(out, job_.model.config, job_.model.weights);
    moxie::io::save_file(folder_ / "model.bin", out.str());
  }

  /// What the adapter's config says that the set does not know.
  moxie::io::AdapterInfo info() const {
    moxie::io::AdapterInfo info;
    auto& config = info.config;
    config["base_model_name_or_path"] = base_name(o_);
    config["task_type"] = "CAUSAL_LM";
    config["target_modules"] = config["feedforward_modules"] = nlohmann::json::array();
    for (const llama::Site site : adapters_->sites()) {
      const std::string module(llama::module_name(site));
      config["target_modules"].push_back(module);
      if (site == llama::Site::down_input) config["feedforward_modules"].push_back(module);
    }
    if (!o_.vectors()) config.erase("feedforward_modules");
    return info;
  }

  void expect_same(const std::string& key, const std::string& value, const Texts& saved) const {
    const auto found = saved.find(key);
    if (found != saved.end() && found->second == value) return;
    const std::string run = " of the run that is saved in " + folder_.string();
    if (contents_.contains(key)) throw std::runtime_error("--" + key + ": not the one" + run);
    throw std::runtime_error("--" + key + ": got " + value + ", wanted " +
                             (found == saved.end() ? "none" : found->second) + ", that" + run);
  }

  template <class Numbers>
  static std::string checksum(std::uint32_t before, const Numbers& numbers) {
    return moxie::io::checksum_text(crc(before, numbers));
  }
  template <class Numbers>
  static std::uint32_t crc(std::uint32_t before, const Numbers& numbers) {
    return moxie::io::crc32c(
        {reinterpret_cast<const char*>(std::data(numbers)), std::size(numbers) * sizeof *std::data(numbers)},
        before);
  }
  std::string data_checksum() const {
    std::uint32_t all = 0;
    for (std::size_t t = 0; t < job_.tasks.size(); ++t) {
      const languages::Task& task = job_.tasks[t];
      all = crc(all, task.source.name);
      for (const languages::Text* const text : {&task.train, &task.held_out})
        all = crc(crc(all, text->tokens), text->starts);
    }
    return moxie::io::checksum_text(all);
  }

  const Options& o_;
  Job& job_;
  llama::Adapters<S>* adapters_;
  std::filesystem::path folder_;
  Texts contents_;
};

}  // namespace finetune
