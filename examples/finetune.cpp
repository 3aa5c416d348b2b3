// SPDX-License-Identifier: MIT
// The main job: a frozen pretrained language model, mixture-of-experts adapters on its projections, several
// real tasks to train them on, and a look at what each expert has learned.

#include "finetune/checkpoint.hpp"
#include "finetune/report.hpp"
#include "finetune/trace.hpp"

namespace finetune {

/// Progress on the way: a mean per role over a few held-out rows of each task.
template <class Hooks>
void watch(const Job& job, const Options& o, Index step, llama::State<S>& state, Hooks& hooks, Watch& watch) {
  constexpr std::size_t rows = 16;
  watch.steps.push_back(static_cast<double>(step));
  for (const auto& [role, list] : {std::pair{languages::Role::trained, &watch.trained},
                                   {languages::Role::unseen, &watch.unseen},
                                   {languages::Role::memory, &watch.memory}}) {
    const auto tasks = job.of_role(role);
    double mean = 0;
    for (const std::size_t t : tasks)
      mean += evaluate(job, o, t, rows, state, hooks) / static_cast<double>(tasks.size());
    if (!tasks.empty()) list->push_back(mean);
  }
}

/// Trains theta, which is the adapters' parameters or, without adapters, the model's weights.
template <class Hooks>
void train(Job& job, const Options& o, Hooks& hooks, moxie::AdamW<S> optimiser, Checkpoint& checkpoint,
           Findings& f) {
  constexpr bool adapted = !std::same_as<Hooks, llama::NoHooks>;
  const moxie::Schedule schedule{
      .peak = o.learning_rate,
      .warmup = std::min<std::uint64_t>(20, static_cast<std::uint64_t>(o.steps) / 4),
      .steps = static_cast<std::uint64_t>(o.steps),
      .decay = moxie::Decay::cosine,
      .floor = 0.05};
  const std::span<S> theta = checkpoint.theta();
  const Index first = o.resume ? checkpoint.resume(optimiser, f) : 0;
  if (!o.save.empty() && !o.resume) checkpoint.save(optimiser, f);  // shows at once whether that can be done
  std::vector<S> gradient(theta.size());
  llama::State<S> state;
  llama::Gradients<S> scratch;
  llama::Matrix<S> dlogits;
  Rows rows;
  const languages::Mix mix = finetune::mix(job, o);
  std::vector<int> types;  // for LoRAMoE: 1 is a task, 0 the base's own data
  for (const languages::Task& task : job.tasks)
    types.push_back(task.source.role == languages::Role::memory ? 0 : 1);
  Trace trace(theta);
  examples::Progress progress(static_cast<long>(o.steps), stderr, static_cast<long>(first));
  // Nine looks in all, closer together at the start, where most happens.
  Index looked = 0;
  while (first > o.steps * looked * looked / 64) ++looked;
  for (Index step = first; step < o.steps; ++step) {
    if (o.report && step >= o.steps * looked * looked / 64) {
      watch(job, o, step, state, hooks, f.watch);
      while (step >= o.steps * looked * looked / 64) ++looked;
    }
    const auto begin = std::chrono::steady_clock::now();
    const auto number = static_cast<std::uint64_t>(step);
    languages::sample(job.tasks, mix, o.seed, number, rows);
    const llama::Pass pass{.rows = o.rows, .seq = o.context, .training = true, .threads = o.threads};
    if constexpr (adapted) hooks.run.step = number;
    llama::forward<S>(job.model, rows.inputs, pass, state, hooks);
    const llama::Loss loss = llama::total(llama::cross_entropy<S>(state, rows.targets, &dlogits));
    std::fill(gradient.begin(), gradient.end(), S(0));
    double balance = 0;
    if constexpr (adapted) {
      hooks.gradient = gradient;
      if (o.balance > 0) balance = hooks.balance(llama::batch_of(rows, types), o.balance);
      llama::backward<S>(job.model, state, dlogits, scratch, hooks);
    } else {
      llama::backward<S>(job.model, state, dlogits, scratch, hooks, gradient);
    }
    const moxie::StepResult result =
        optimiser.step(theta, gradient,
                       {.learning_rate = schedule.at(number), .clip_norm = 1, .loss = loss.mean() + balance});
    if (!result.applied)
      throw std::runtime_error("step " + std::to_string(step) + " cannot be taken: " + result.reason +
                               "; try a smaller --lr");
    f.losses.push_back(loss.mean());
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    f.seconds += seconds;
    progress.update(static_cast<long>(step) + 1, loss.mean(),
                    static_cast<double>(++f.steps * o.rows * o.context), f.seconds);
    if (!o.trace.empty()) trace.add(rows, loss.mean(), result.gradient_norm, schedule.at(number), seconds);
    const bool due = step + 1 == o.steps || (o.save_every > 0 && (step + 1) % o.save_every == 0);
    if (due && !o.save.empty()) checkpoint.save(optimiser, f);
  }
  progress.finish();
  if (o.report) watch(job, o, o.steps, state, hooks, f.watch);
  if (!o.trace.empty()) trace.write(o, optimiser.groups());
}

/// Every router's statistics over the held-out rows of all tasks: [layer][site].
std::vector<std::vector<moxie::RoutingStatistics>> routing_statistics(const Job& job, const Options& o,
                                                                      llama::Adapters<S>& adapters) {
  std::vector<std::vector<moxie::RoutingStatistics>> statistics(static_cast<std::size_t>(adapters.layers()));
  for (Index layer = 0; layer < adapters.layers(); ++layer)
    for (std::size_t site = 0; site < adapters.sites().size(); ++site)
      statistics[static_cast<std::size_t>(layer)].emplace_back(std::ssize(job.tasks),
                                                               adapters.experts(layer));
  llama::State<S> state;
  for (std::size_t task = 0; task < job.tasks.size(); ++task)
    languages::for_rows(
        held_out(job, task, 64), task, static_cast<std::size_t>(o.rows), [&](const Rows& rows) {
          const llama::Pass pass{.rows = std::ssize(rows.tasks), .seq = o.context, .threads = o.threads};
          llama::forward<S>(job.model, rows.inputs, pass, state, adapters);
          const std::vector<int> labels(rows.inputs.size(), static_cast<int>(task));
          for (Index layer = 0; layer < adapters.layers(); ++layer)
            for (std::size_t site = 0; site < adapters.sites().size(); ++site)
              statistics[static_cast<std::size_t>(layer)][site].add(
                  adapters.routing(layer, adapters.sites()[site]), labels);
        });
  return statistics;
}

template <class Hooks>
std::vector<double> evaluate_all(const Job& job, const Options& o, Hooks& hooks) {
  llama::State<S> state;
  std::vector<double> losses;
  for (std::size_t t = 0; t < job.tasks.size(); ++t)
    losses.push_back(evaluate(job, o, t, static_cast<std::size_t>(o.evaluation_rows), state, hooks));
  return losses;
}

void run(Options o) {
  const std::vector<llama::Site> adapted = sites(o);
  Job job = load(o, FINETUNE_BASE);
  std::optional<llama::Adapters<S>> adapters;
  std::vector<Index> experts;
  Findings f;
  llama::NoHooks none;
  f.parameters = {job.model.layout.size(), job.model.layout.size()};
  if (!o.full()) {
    if (adapted.empty()) throw std::runtime_error("--targets: none given");
    adapters.emplace(job.model.config,
                     llama::AdapterOptions{.method = method(o.how),
                                           .sites = adapted,
                                           .experts = o.experts,
                                           .rank = o.rank,
                                           .top_k = o.top_k,
                                           .alpha = o.alpha,
                                           .dropout = o.dropout,
                                           .route = o.route},
                     o.seed);
    for (Index layer = 0; layer < adapters->layers(); ++layer) experts.push_back(adapters->experts(layer));
    f.parameters = moxie::count_parameters(adapters->set(), job.model.layout.size());
  }
  Checkpoint checkpoint(o, job, adapters ? &*adapters : nullptr);
  if (o.report) make_folder("--out", o.out);
  if (!o.trace.empty()) make_folder("--trace", o.trace);

  std::printf("%s\n%s\n", heading(o, experts).c_str(), moxie::parameter_line(f.parameters).c_str());
  std::fflush(stdout);
  if (o.report) f.before = evaluate_all(job, o, none);
  const moxie::AdamW<S>::Config adamw{.beta2 = 0.95, .weight_decay = 0};
  if (!o.load.empty()) checkpoint.load();
  if (adapters) {
    if (o.load.empty())
      train(job, o, *adapters, moxie::AdamW<S>(adapters->set().groups(), adamw), checkpoint, f);
    if (o.report) f.after = evaluate_all(job, o, *adapters);
  } else {
    if (o.load.empty())
      train(job, o, none, moxie::AdamW<S>({{.name = "weights", .size = job.model.layout.size()}}, adamw),
            checkpoint, f);
    if (o.report) f.after = evaluate_all(job, o, none);
  }
  const double rate = static_cast<double>(f.steps * o.rows * o.context) / std::max(f.seconds, 1e-9);
  if (!o.report) {
    std::printf("%.1f s of training, %.0f tokens/s\n", f.seconds, rate);
    return;
  }
  std::printf("\n%s\n", table(job, o, f).c_str());

  const std::filesystem::path out = o.out;
  if (!f.losses.empty()) write_file(out / "loss.svg", loss_picture(o, f, experts));
  if (o.routed())
    write_file(out / "routing.svg",
               routing_picture(job, o, *adapters, routing_statistics(job, o, *adapters), experts));
  write_file(out / "results.json", results(job, o, f, experts).dump(2) + "\n");
  if (o.load.empty())
    std::printf("%.1f s of training, %.0f tokens/s; ", f.seconds, rate);
  else
    std::printf("evaluated %s; ", o.load.c_str());
  std::printf("wrote %s%sresults.json to %s%s%s\n", !f.losses.empty() ? "loss.svg, " : "",
              o.routed() ? "routing.svg, " : "", o.out.c_str(), o.save.empty() ? "" : ", the adapter to ",
              o.save.c_str());
}

}  // namespace finetune

int main(int argc, char** argv) {
  try {
    finetune::run(finetune::parse(argc, argv));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "finetune: %s\n", error.what());
    return 1;
  }
}
