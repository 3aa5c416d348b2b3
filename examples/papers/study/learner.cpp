// SPDX-License-Identifier: MIT
#include "learner.hpp"

#include <moxie/analysis.hpp>

#include <algorithm>
#include <cstring>

namespace papers {
namespace {

moxie::Method method_of(const std::string& name) {
  for (const moxie::Method method :
       {moxie::Method::lora, moxie::Method::ia3, moxie::Method::mov, moxie::Method::molora,
        moxie::Method::loramoe, moxie::Method::mola, moxie::Method::hydralora}) {
    std::string lower(moxie::name(method));
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
    if (lower == name) return method;
  }
  throw std::runtime_error("no method " + name);
}

}  // namespace

llama::AdapterOptions adapter_options(const Setting& s) {
  // Scale 1 and one start for all A and all routers, so that methods differ in nothing but what they are.
  using llama::Site;
  llama::AdapterOptions options{
      .method = method_of(s.method),
      .sites = {Site::q, Site::k, Site::v, Site::o, Site::gate, Site::up, Site::down},
      .experts = s.experts.empty() ? std::vector<Index>{1} : s.experts,
      .rank = s.rank,
      .top_k = s.top_k,
      .alpha = static_cast<double>(s.rank)};  // scale 1
  if (s.method == "ia3") options.sites = {Site::key, Site::value, Site::down_input};
  if (s.method == "mov") options.sites = {Site::key, Site::value, Site::gated};
  if (s.method == "loramoe" || s.feedforward) options.sites = {Site::gate, Site::up, Site::down};
  if (!s.released_start) options.init = moxie::Init::kaiming_uniform;
  if (s.masked) options.weights = moxie::TopKWeights::masked;
  if (s.route == "mean") options.route = llama::RouteBy::mean;
  if (s.route == "oracle") options.route = llama::RouteBy::given;
  return options;
}

Learner::Learner(const Host& host, const Setting& setting)
    : host_(&host), setting_(setting), base_(&host.base(setting.layers, setting.base)) {
  mixed_ = host.of_role(languages::Role::trained);
  for (const std::string& name : setting.tasks) trained_.push_back(host.task(name));
  if (trained_.empty()) trained_ = mixed_;
  for (const languages::Task& task : host.tasks())
    type_of_task_.push_back(task.source.role == languages::Role::memory ? 0 : 1);
  if (setting.method == "full") {
    own_ = *base_;
  } else {
    adapters_.emplace(base_->config, adapter_options(setting), static_cast<std::uint64_t>(setting.seed));
    for (Index layer = 0; layer < std::ssize(setting.layer_rates); ++layer)
      for (const llama::Site site : adapters_->sites())
        adapters_->set().set_learning_rate_factor(adapters_->module(layer, site),
                                                  setting.layer_rates[static_cast<std::size_t>(layer)]);
  }
}

Index Learner::trainable() const {
  return own_ ? own_->layout.size() : moxie::count_parameters(adapters_->set(), 0).trainable;
}

void Learner::forward(const Rows& rows, const llama::Pass& pass) {
  if (!adapters_) {
    llama::forward<S>(model(), rows.inputs, pass, state_);
    return;
  }
  if (setting_.route == "oracle") {
    // Expert n is the n-th trained language's.
    llama::Matrix<S> gates = llama::Matrix<S>::Zero(pass.rows * pass.seq, adapters_->experts(0));
    for (Index row = 0; row < pass.rows; ++row) {
      const std::size_t task = rows.tasks[static_cast<std::size_t>(row)];
      const auto own = std::find(trained_.begin(), trained_.end(), task);
      if (own != trained_.end())
        gates.middleRows(row * pass.seq, pass.seq).col(own - trained_.begin()).setOnes();
    }
    for (Index layer = 0; layer < adapters_->layers(); ++layer)
      for (const llama::Site site : adapters_->sites()) adapters_->give(layer, site, gates);
  }
  llama::forward<S>(*base_, rows.inputs, pass, state_, *adapters_);
}

void Learner::start_round() {
  const moxie::AdamW<S>::Config config{.beta2 = 0.95, .weight_decay = 0};
  using Groups = std::vector<moxie::ParameterGroup>;
  optimiser_.emplace(
      own_ ? Groups{{.name = "weights", .size = own_->layout.size()}} : adapters_->set().groups(), config);
}

void Learner::train(Index until) {
  for (; done_ < until; ++done_) {
    if (done_ == 0 || done_ == setting_.mixed_steps) start_round();
    step(done_);
  }
}

void Learner::step(Index number) {
  const bool mixed = number < setting_.mixed_steps;
  const auto length = static_cast<std::uint64_t>(mixed ? setting_.mixed_steps : setting_.steps);
  const auto in_round = static_cast<std::uint64_t>(mixed ? number : number - setting_.mixed_steps);
  const moxie::Schedule schedule{.peak = setting_.learning_rate,
                                 .warmup = std::min<std::uint64_t>(20, length / 4),
                                 .steps = length,
                                 .decay = moxie::Decay::cosine,
                                 .floor = 0.05};
  const languages::Mix mix{.trained = mixed ? mixed_ : trained_,
                           .memory = host_->of_role(languages::Role::memory),
                           .rows = rows_per_step,
                           .context = context,
                           .replayed = static_cast<std::size_t>(setting_.replay * double(rows_per_step))};
  Rows rows;
  // The order of the data is the seed's, and apart from that of the base's own training.
  languages::sample(host_->tasks(), mix, static_cast<std::uint64_t>(setting_.seed) + 1000,
                    static_cast<std::uint64_t>(number), rows);
  const llama::Pass pass{.rows = rows_per_step, .seq = context, .training = true};
  if (adapters_) adapters_->run.step = static_cast<std::uint64_t>(number);
  forward(rows, pass);
  double loss = llama::total(llama::cross_entropy<S>(state_, rows.targets, &dlogits_)).mean();
  const std::span<S> theta = own_ ? std::span<S>(own_->weights) : adapters_->set().theta();
  gradient_.assign(theta.size(), S(0));
  if (own_) {
    llama::NoHooks none;
    llama::backward<S>(*own_, state_, dlogits_, scratch_, none, std::span<S>(gradient_));
  } else {
    adapters_->gradient = gradient_;
    if (setting_.balance > 0) {
      const moxie::Batch batch = llama::batch_of(rows, type_of_task_);
      if (setting_.method == "loramoe") {
        moxie::LocalizedBalance<S>::Config config{.delta = setting_.delta};
        if (setting_.variance_over_mean) config.dispersion = moxie::Dispersion::variance_over_mean;
        if (setting_.matching_less) config.group_of_type = {0, 1};
        loss += adapters_->balance(moxie::LocalizedBalance<S>(config), batch, setting_.balance);
      } else {
        loss += adapters_->balance(moxie::mola_balance<S>(), batch, setting_.balance);
      }
    }
    llama::backward<S>(*base_, state_, dlogits_, scratch_, *adapters_);
  }
  const moxie::StepResult result =
      optimiser_->step(theta, gradient_,
                       {.learning_rate = setting_.schedule ? schedule.at(in_round) : setting_.learning_rate,
                        .clip_norm = 1,
                        .loss = loss});
  if (!result.applied)
    throw std::runtime_error(setting_.json().dump() + ", step " + std::to_string(number) + ": " +
                             result.reason);
}

bool Learner::off_is_base(std::size_t task) {
  for (Index layer = 0; layer < adapters_->layers(); ++layer)
    for (const llama::Site site : adapters_->sites())
      adapters_->set().enable(adapters_->module(layer, site), false);
  bool same = true;
  llama::State<S> base;
  each(task, rows_per_step, [&](const Rows& rows) {
    const llama::Matrix<S>& logits =
        llama::forward<S>(*base_, rows.inputs, {.rows = std::ssize(rows.tasks), .seq = context}, base);
    same = same && std::memcmp(logits.data(), state_.logits.data(),
                               static_cast<std::size_t>(logits.size()) * sizeof(S)) == 0;
  });
  return same;
}

double Learner::loss(std::size_t task, std::size_t most) {
  llama::Loss loss;
  each(task, most,
       [&](const Rows& rows) { loss += llama::total(llama::cross_entropy<S>(state_, rows.targets)); });
  return loss.mean();
}

double Learner::loss(const std::vector<std::size_t>& tasks, std::size_t most) {
  double mean = 0;
  for (const std::size_t task : tasks) mean += loss(task, most) / static_cast<double>(tasks.size());
  return mean;
}

}  // namespace papers
