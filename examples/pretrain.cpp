// SPDX-License-Identifier: MIT

// Trains a byte-level Llama on a list of words, from nothing, and writes it as a llama2.c checkpoint: the
// base model of the other examples.
//
//   pretrain --words /usr/share/dict/american-english --out base.bin

#include <moxie/optim/adamw.hpp>
#include <moxie/optim/schedule.hpp>

#include <CLI/CLI.hpp>

#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

#include "languages/words.hpp"
#include "llama/backward.hpp"
#include "progress.hpp"

namespace {

struct Options {
  std::string words, out;
  std::vector<std::string> without;
  llama::Config model;
  std::uint64_t steps = 1800, seed = 0;
  double lr = 4e-3;
  int threads = 2;
  std::size_t rows = 32, evaluate = 128;
};

/// One of Debian's lists where the path is that of one, else a text of the user's own.
languages::Source source(const std::string& path) {
  for (const languages::Source& list : languages::debian_lists())
    if (list.path == path) return list;
  return {path, path, "", path};
}

std::vector<languages::Task> load(const Options& options) {
  std::vector<languages::Source> sources = {source(options.words)};
  for (const std::string& path : options.without) sources.push_back(source(path));
  return languages::load_words(sources);
}

/// Inputs and targets of rows of context + 1 tokens.
struct Batch {
  std::vector<int> tokens, targets;

  explicit Batch(const std::vector<std::vector<int>>& rows) {
    for (const std::vector<int>& row : rows) {
      tokens.insert(tokens.end(), row.begin(), row.end() - 1);
      targets.insert(targets.end(), row.begin() + 1, row.end());
    }
  }
};

/// Nats per byte on held-out words.
double evaluate(const llama::Model<float>& model, const std::vector<std::vector<int>>& rows, int threads) {
  const Batch batch(rows);
  llama::State<float> state;
  forward(model, batch.tokens,
          {.rows = std::ssize(rows), .seq = model.config.context, .training = false, .threads = threads},
          state);
  return total(cross_entropy(state, batch.targets)).mean();
}

/// Before hours of training rather than after.
void expect_writable(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!folder.empty() && !std::filesystem::is_directory(folder))
    throw std::runtime_error(path + ": got no folder " + folder.string() + ", wanted one to write to");
}

void run(const Options& options) {
  check(options.model, "pretrain");
  expect_writable(options.out);
  const std::vector<languages::Task> tasks = load(options);
  const languages::Task& task = tasks.front();
  std::printf("%zu words to train on, %zu held out, %zu left out as other lists have them too\n",
              task.train.starts.size(), task.held_out.starts.size(), task.shared);
  const auto context = static_cast<std::size_t>(options.model.context);
  const std::vector<std::vector<int>> held_out = evaluation_rows(task, context, options.evaluate);

  llama::Model<float> model(options.model);
  init(model, options.seed);
  std::vector<moxie::ParameterGroup> groups;
  for (const llama::Tensor& t : tensors(model.config))
    groups.push_back({.name = t.name, .offset = t.offset, .size = t.rows * t.cols, .decay = !t.norm});
  moxie::AdamW<float> adamw(groups, {.beta1 = 0.9, .beta2 = 0.95, .weight_decay = 0.01});
  const moxie::Schedule schedule{.peak = options.lr,
                                 .warmup = std::min<std::uint64_t>(50, options.steps),
                                 .steps = options.steps,
                                 .decay = moxie::Decay::cosine,
                                 .floor = 0.05};
  const llama::Pass pass{.rows = static_cast<llama::Index>(options.rows),
                         .seq = options.model.context,
                         .training = true,
                         .threads = options.threads};
  std::printf("%zu weights; held out before: %.3f nats per byte\n", model.size(),
              evaluate(model, held_out, options.threads));

  llama::State<float> state;
  llama::Gradients<float> scratch;
  llama::Matrix<float> dlogits;
  llama::NoHooks none;
  std::vector<float> gradient(model.size());
  examples::Progress progress(static_cast<long>(options.steps));
  for (std::uint64_t step = 0; step < options.steps; ++step) {
    std::vector<std::vector<int>> rows(options.rows, std::vector<int>(context + 1));
    for (std::size_t r = 0; r < rows.size(); ++r) sample_row(task, {options.seed, step, r}, rows[r]);
    const Batch batch(rows);
    forward(model, batch.tokens, pass, state, none);
    const double loss = total(cross_entropy(state, batch.targets, &dlogits)).mean();
    std::fill(gradient.begin(), gradient.end(), 0.0f);
    backward(model, state, dlogits, scratch, none, std::span<float>(gradient));
    const moxie::StepResult result = adamw.step(
        model.weights, gradient, {.learning_rate = schedule.at(step), .clip_norm = 1, .loss = loss});
    if (!result.applied) throw std::runtime_error("step " + std::to_string(step) + ": " + result.reason);
    progress.update(static_cast<long>(step) + 1, loss, double(step + 1) * double(batch.tokens.size()));
  }
  progress.finish();
  std::printf("held out after: %.3f nats per byte\n", evaluate(model, held_out, options.threads));
  llama::write_checkpoint(options.out, model.config, model.single());
  std::printf("wrote %s\n", options.out.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Trains a byte-level Llama on a list of words, from nothing");
  app.add_option("--words", options.words, "the list: one word a line, or any text")->required();
  app.add_option("--without", options.without, "leave out words that these lists have too");
  app.add_option("--out", options.out, "the checkpoint to write")->required();
  app.add_option("--dim", options.model.dim, "width")->capture_default_str();
  app.add_option("--layers", options.model.layers)->capture_default_str();
  app.add_option("--heads", options.model.heads)->capture_default_str();
  CLI::Option* kv =
      app.add_option("--kv-heads", options.model.kv_heads, "heads of keys and values; default: --heads");
  app.add_option("--hidden", options.model.hidden, "width of the feed-forward part")->capture_default_str();
  app.add_option("--context", options.model.context, "bytes in a row")->capture_default_str();
  app.add_option("--steps", options.steps)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--lr", options.lr, "learning rate after 50 steps of warm-up")->capture_default_str();
  app.add_option("--rows", options.rows, "rows in a step")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--seed", options.seed)->capture_default_str();
  app.add_option("--threads", options.threads)->check(CLI::Range(1, 1024))->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (kv->count() == 0) options.model.kv_heads = options.model.heads;
  try {
    run(options);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
