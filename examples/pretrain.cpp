// SPDX-License-Identifier: MIT

// Trains a byte-level Llama on a list of words, from nothing, and writes it as a llama2.c checkpoint: the
// base model of the other examples.
//
//   pretrain --words /usr/share/dict/american-english --out base.bin

#include <CLI/CLI.hpp>

#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

#include "llama/evaluate.hpp"
#include "llama/pretrain.hpp"
#include "progress.hpp"

namespace {

struct Options {
  std::string words, out;
  std::vector<std::string> without;
  llama::Config model;
  llama::Pretraining training;
  std::size_t evaluate = 128;
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

/// Nats per byte on held-out words.
double evaluate(const llama::Model<float>& model, const std::vector<std::vector<int>>& rows, int threads) {
  llama::State<float> state;
  llama::NoHooks none;
  return llama::evaluate(model, std::span(rows), rows.size(), threads, state, none).mean();
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
  init(model, options.training.seed);
  std::printf("%zu weights; held out before: %.3f nats per byte\n", model.size(),
              evaluate(model, held_out, options.training.threads));

  examples::Progress progress(static_cast<long>(options.training.steps));
  llama::pretrain(model, tasks, 0, options.training, [&](std::uint64_t step, double loss) {
    progress.update(static_cast<long>(step), loss,
                    static_cast<double>(step * options.training.rows * context));
  });
  progress.finish();
  std::printf("held out after: %.3f nats per byte\n", evaluate(model, held_out, options.training.threads));
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
  app.add_option("--steps", options.training.steps)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--lr", options.training.learning_rate, "learning rate after 50 steps of warm-up")
      ->capture_default_str();
  app.add_option("--rows", options.training.rows, "rows in a step")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--seed", options.training.seed)->capture_default_str();
  app.add_option("--threads", options.training.threads)->check(CLI::Range(1, 1024))->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (kv->count() == 0) options.model.kv_heads = options.model.heads;
  try {
    run(options);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
