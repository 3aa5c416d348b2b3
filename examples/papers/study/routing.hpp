// SPDX-License-Identifier: MIT
#pragma once

#include "learner.hpp"

namespace papers {

/// What the routers of a model tell about the languages, each a mean over the routers (a layer's projection,
/// or a head of it), in nats. `permuted`: the same of rows whose languages were exchanged at random, for what
/// chance alone gives.
struct RoutingFigures {
  double language = 0, language_permuted = 0;  ///< mutual information of expert and language
  double byte = 0;                             ///< of expert and the current byte
  double language_given_byte = 0, language_given_byte_permuted = 0;
  double effective_experts = 0;  ///< exp of the entropy of the mean gates
  double families = 0;           ///< mean cosine within Romance and Germanic less that between them
  double families_permuted = 0;
  int families_rank = 0;  ///< of the true split among the 35 of three and four languages, 1 the best
  /// Cosine between all ten of their mean gates, as deviations from the mean over the seven trained.
  std::vector<std::vector<double>> similarity = {};
  std::vector<double> by_layer = {};  ///< mutual information with language, per layer

  Json json() const;
};

/// A router and what it gives: mean gates of languages, [task][expert].
struct RouterMeans {
  Index layer = 0;
  llama::Site site{};
  Index head = 0;
  double language = 0;  ///< mutual information of expert and language, nats
  std::vector<std::vector<double>> gates;
};

struct RoutingAnalysis {
  RoutingFigures figures;
  std::vector<RouterMeans> routers;
};

/// Reads the routers over 64 held-out rows of every language. Gates count as shares of their sum, so soft and
/// top-k routers are measured alike.
RoutingAnalysis analyse_routing(Learner& learner);

/// Mean gates of every router over held-out rows of some languages, at most `most` of each, of the tables or
/// of those for tuning. Each router's gates are [position in tasks][expert].
std::vector<RouterMeans> mean_gates(Learner& learner, const std::vector<std::size_t>& tasks, std::size_t most,
                                    bool tuning);

/// Held-out loss over 64 rows, mean over the trained languages, where gates are taken away from the routers.
/// Mean gates are those of other rows.
struct GateSwap {
  double own = 0;      ///< as routed
  double mean = 0;     ///< every token gets its language's mean gates
  double other = 0;    ///< another language's, mean over the six others
  double uniform = 0;  ///< all gates alike

  Json json() const;
};
GateSwap swap_gates(Learner& learner);

}  // namespace papers
