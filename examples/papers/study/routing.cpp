// SPDX-License-Identifier: MIT
#include "routing.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "information.hpp"
#include "runs.hpp"

namespace papers {
namespace {

constexpr std::size_t most_rows = 64, permutations = 4;

/// For every permutation, the label of each row of every trained language: the languages in order and, from
/// the second on, exchanged at random.
std::vector<std::vector<std::size_t>> labellings(std::size_t languages, std::size_t rows) {
  std::vector<std::vector<std::size_t>> all(1 + permutations);
  for (std::size_t p = 0; p <= permutations; ++p) {
    all[p].resize(languages * rows);
    for (std::size_t i = 0; i < all[p].size(); ++i) all[p][i] = i / rows;
    for (std::size_t i = all[p].size(); p > 0 && i > 1; --i)
      std::swap(all[p][i - 1], all[p][languages::draw({7, p, i}, 0) % i]);
  }
  return all;
}

using Means = std::vector<std::vector<double>>;  // of a router, [language][expert]

/// Cosine between languages of their mean gates over all routers, as deviations from the mean over `centre`.
std::vector<std::vector<double>> similarity(const std::vector<Means>& routers,
                                            const std::vector<std::size_t>& centre) {
  const std::size_t languages = routers.front().size();
  std::vector<std::vector<double>> vectors(languages);
  for (const Means& gates : routers)
    for (std::size_t e = 0; e < gates.front().size(); ++e) {
      double mean = 0;
      for (const std::size_t l : centre) mean += gates[l][e] / static_cast<double>(centre.size());
      for (std::size_t l = 0; l < languages; ++l) vectors[l].push_back(gates[l][e] - mean);
    }
  std::vector<std::vector<double>> cosines(languages, std::vector<double>(languages));
  const auto dot = [&](std::size_t a, std::size_t b) {
    return std::inner_product(vectors[a].begin(), vectors[a].end(), vectors[b].begin(), 0.0);
  };
  for (std::size_t a = 0; a < languages; ++a)
    for (std::size_t b = 0; b < languages; ++b)
      cosines[a][b] = dot(a, b) / std::max(1e-30, std::sqrt(dot(a, a) * dot(b, b)));
  return cosines;
}

/// The mean gates of each label.
Means means_of(const GateSums& sums) {
  Means means(sums.labels, std::vector<double>(sums.experts));
  for (std::size_t label = 0; label < sums.labels; ++label) {
    double tokens = 0;
    for (std::size_t byte = 0; byte < GateSums::bytes; ++byte) {
      const std::size_t cell = label * GateSums::bytes + byte;
      tokens += sums.tokens[cell];
      for (std::size_t e = 0; e < sums.experts; ++e) means[label][e] += sums.gates[cell * sums.experts + e];
    }
    for (double& gate : means[label]) gate /= std::max(1.0, tokens);
  }
  return means;
}

/// Mean cosine within the two groups of a split less the mean between them.
double split_score(const std::vector<std::vector<double>>& cosines, const std::vector<std::size_t>& trained,
                   unsigned first_group) {
  double within = 0, between = 0;
  int n_within = 0, n_between = 0;
  for (std::size_t a = 0; a < trained.size(); ++a)
    for (std::size_t b = 0; b < a; ++b) {
      const bool same = ((first_group >> a) & 1) == ((first_group >> b) & 1);
      (same ? within : between) += cosines[trained[a]][trained[b]];
      ++(same ? n_within : n_between);
    }
  return within / std::max(1, n_within) - between / std::max(1, n_between);
}

/// The bits of the Romance languages among the trained.
unsigned romance(const Host& host, const std::vector<std::size_t>& trained) {
  unsigned bits = 0;
  for (std::size_t i = 0; i < trained.size(); ++i)
    for (const char* const name : {"fr", "es", "it"})
      if (trained[i] == host.task(name)) bits |= 1u << i;
  return bits;
}

}  // namespace

RoutingAnalysis analyse_routing(Learner& learner) {
  llama::Adapters<S>& adapters = learner.adapters();
  const Host& host = learner.host();
  const std::vector<std::size_t> trained = host.of_role(languages::Role::trained);
  const std::size_t tasks = host.tasks().size();
  RoutingAnalysis all;
  std::vector<std::vector<GateSums>> sums;  // [router][permutation]
  const auto each_router = [&](auto&& f) {
    std::size_t router = 0;
    for (Index layer = 0; layer < adapters.layers(); ++layer)
      for (const llama::Site site : adapters.sites()) {
        const moxie::Routing<S>& routing = adapters.routing(layer, site);
        for (Index head = 0; head < routing.rows_per_token; ++head) f(router++, layer, site, head, routing);
      }
  };
  const std::size_t rows = host.held_out(trained.front(), learner.setting().tuning, most_rows).size();
  const auto labels = labellings(trained.size(), rows);
  for (std::size_t task = 0; task < tasks; ++task) {
    const auto place = std::find(trained.begin(), trained.end(), task);
    const auto language = static_cast<std::size_t>(place - trained.begin());
    std::size_t row_of_task = 0;
    double tokens = 0;
    learner.each(task, most_rows, [&](const Rows& batch) {
      tokens += static_cast<double>(batch.inputs.size());
      each_router(
          [&](std::size_t r, Index layer, llama::Site site, Index head, const moxie::Routing<S>& routing) {
            const auto experts = static_cast<std::size_t>(routing.experts);
            if (r == all.routers.size()) {
              all.routers.push_back({layer, site, head, 0, {tasks, std::vector<double>(experts)}});
              sums.emplace_back(1 + permutations, GateSums(trained.size(), experts));
            }
            std::vector<double> shares(experts);
            for (std::size_t t = 0; t < batch.inputs.size(); ++t) {
              const S* const gates = routing.gate_row(static_cast<Index>(t) * routing.rows_per_token + head);
              double sum = 0;
              for (std::size_t e = 0; e < experts; ++e) sum += double(gates[e]);
              for (std::size_t e = 0; e < experts; ++e) {
                shares[e] = sum > 0 ? double(gates[e]) / sum : 0;
                all.routers[r].gates[task][e] += shares[e];
              }
              if (place == trained.end()) continue;
              const std::size_t row = language * rows + row_of_task + t / context;
              for (std::size_t p = 0; p < labels.size(); ++p)
                sums[r][p].add(labels[p][row], static_cast<std::size_t>(batch.inputs[t]), shares.data());
            }
          });
      row_of_task += batch.tasks.size();
    });
    for (RouterMeans& router : all.routers)
      for (double& gate : router.gates[task]) gate /= tokens;
  }

  RoutingFigures& f = all.figures;
  const auto n = static_cast<double>(all.routers.size());
  f.by_layer.resize(static_cast<std::size_t>(adapters.layers()));
  std::vector<double> routers_of_layer(f.by_layer.size());
  for (std::size_t r = 0; r < all.routers.size(); ++r) {
    const Information own = information(sums[r][0]);
    all.routers[r].language = own.label;
    f.language += own.label / n;
    f.byte += own.byte / n;
    f.language_given_byte += own.label_given_byte / n;
    f.effective_experts += std::exp(own.entropy) / n;
    for (std::size_t p = 1; p <= permutations; ++p) {
      const Information chance = information(sums[r][p]);
      f.language_permuted += chance.label / n / double(permutations);
      f.language_given_byte_permuted += chance.label_given_byte / n / double(permutations);
    }
    const auto layer = static_cast<std::size_t>(all.routers[r].layer);
    f.by_layer[layer] += own.label;
    routers_of_layer[layer] += 1;
  }
  for (std::size_t layer = 0; layer < f.by_layer.size(); ++layer)
    f.by_layer[layer] /= std::max(1.0, routers_of_layer[layer]);

  std::vector<Means> gates;
  for (const RouterMeans& router : all.routers) gates.push_back(router.gates);
  f.similarity = similarity(gates, trained);
  const unsigned family = romance(host, trained);
  f.families = split_score(f.similarity, trained, family);
  f.families_rank = 1;
  for (unsigned split = 0; split < 1u << trained.size(); ++split)
    if (std::popcount(split) == 3 && split_score(f.similarity, trained, split) > f.families)
      ++f.families_rank;
  std::vector<std::size_t> labels_in_order(trained.size());
  std::iota(labels_in_order.begin(), labels_in_order.end(), std::size_t{0});
  for (std::size_t p = 1; p <= permutations; ++p) {
    gates.clear();
    for (const auto& router : sums) gates.push_back(means_of(router[p]));
    f.families_permuted +=
        split_score(similarity(gates, labels_in_order), labels_in_order, family) / double(permutations);
  }
  return all;
}

std::vector<RouterMeans> mean_gates(Learner& learner, const std::vector<std::size_t>& tasks, std::size_t most,
                                    bool tuning) {
  llama::Adapters<S>& adapters = learner.adapters();
  std::vector<RouterMeans> all;
  for (std::size_t t = 0; t < tasks.size(); ++t) {
    double tokens = 0;
    learner.each(tasks[t], most, tuning, [&](const Rows& rows) {
      tokens += static_cast<double>(rows.inputs.size());
      std::size_t r = 0;
      for (Index layer = 0; layer < adapters.layers(); ++layer)
        for (const llama::Site site : adapters.sites()) {
          const moxie::Routing<S>& routing = adapters.routing(layer, site);
          const auto experts = static_cast<std::size_t>(routing.experts);
          for (Index head = 0; head < routing.rows_per_token; ++head, ++r) {
            if (r == all.size())
              all.push_back({layer, site, head, 0, {tasks.size(), std::vector<double>(experts)}});
            for (Index row = head; row < routing.rows; row += routing.rows_per_token)
              for (std::size_t e = 0; e < experts; ++e)
                all[r].gates[t][e] += double(routing.gate_row(row)[e]);
          }
        }
    });
    for (RouterMeans& router : all)
      for (double& gate : router.gates[t]) gate /= tokens;
  }
  return all;
}

GateSwap swap_gates(Learner& learner) {
  const Host& host = learner.host();
  const std::vector<std::size_t> trained = host.of_role(languages::Role::trained);
  const std::vector<RouterMeans> routers = mean_gates(learner, trained, most_rows, true);
  // The same experts under gates that are given.
  llama::AdapterOptions options = adapter_options(learner.setting());
  options.route = llama::RouteBy::given;
  llama::Adapters<S> given(learner.model().config, options, 0);
  given.take_experts(learner.adapters());

  constexpr std::size_t alike = static_cast<std::size_t>(-1);
  const auto give = [&](std::size_t language, Index tokens) {
    for (std::size_t r = 0; r < routers.size();) {
      const RouterMeans& first = routers[r];
      std::size_t end = r + 1;
      while (end < routers.size() && routers[end].head > 0) ++end;
      const auto heads = static_cast<Index>(end - r);
      const auto experts = static_cast<Index>(first.gates.front().size());
      llama::Matrix<S> gates(tokens * heads, experts);
      for (Index head = 0; head < heads; ++head)
        for (Index e = 0; e < experts; ++e) {
          const auto& means = routers[r + static_cast<std::size_t>(head)].gates;
          gates(head, e) = language == alike ? S(1) / static_cast<S>(experts)
                                             : static_cast<S>(means[language][static_cast<std::size_t>(e)]);
        }
      for (Index token = 1; token < tokens; ++token)
        gates.middleRows(token * heads, heads) = gates.topRows(heads);
      given.give(first.layer, first.site, gates, heads);
      r = end;
    }
  };
  llama::State<S> state;
  const auto loss = [&](std::size_t task, std::size_t language) {
    llama::Loss sum;
    languages::for_rows(host.held_out(task, learner.setting().tuning, most_rows), task, rows_per_step,
                        [&](const Rows& rows) {
                          give(language, std::ssize(rows.inputs));
                          llama::forward<S>(learner.model(), rows.inputs,
                                            {.rows = std::ssize(rows.tasks), .seq = context}, state, given);
                          sum += llama::total(llama::cross_entropy<S>(state, rows.targets));
                        });
    return sum.mean();
  };
  GateSwap swap;
  const auto n = static_cast<double>(trained.size());
  for (std::size_t t = 0; t < trained.size(); ++t) {
    swap.own += learner.loss(trained[t], most_rows) / n;
    swap.uniform += loss(trained[t], alike) / n;
    for (std::size_t language = 0; language < trained.size(); ++language)
      (language == t ? swap.mean : swap.other) +=
          loss(trained[t], language) / (language == t ? n : n * (n - 1));
  }
  return swap;
}

Json RoutingFigures::json() const {
  Json json = {{"language", rounded(language)},
               {"language_permuted", rounded(language_permuted)},
               {"byte", rounded(byte)},
               {"language_given_byte", rounded(language_given_byte)},
               {"language_given_byte_permuted", rounded(language_given_byte_permuted)},
               {"effective_experts", rounded(effective_experts)},
               {"families", rounded(families)},
               {"families_permuted", rounded(families_permuted)},
               {"families_rank", families_rank}};
  for (const double value : by_layer) json["by_layer"].push_back(rounded(value));
  for (const auto& row : similarity) {
    Json values;
    for (const double value : row) values.push_back(std::round(value * 100) / 100);
    json["similarity"].push_back(values);
  }
  return json;
}

Json GateSwap::json() const {
  return {{"own", rounded(own)},
          {"mean", rounded(mean)},
          {"other", rounded(other)},
          {"uniform", rounded(uniform)}};
}

}  // namespace papers
