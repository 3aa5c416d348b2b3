// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/types.hpp>

#include <nlohmann/json.hpp>

#include <map>
#include <string>
#include <vector>

namespace compare {

using moxie::Index;
using Matrix = moxie::Matrix<float>;
using Json = nlohmann::ordered_json;

/// soft and top2 are LoRA experts under a soft and a renormalised top-2 router.
enum class Op { lora, ia3, mov, soft, top2 };
inline constexpr Op all_ops[] = {Op::lora, Op::ia3, Op::mov, Op::soft, Op::top2};
std::string name(Op op);

/// One comparison: an operation on a d x d layer, at a shape, by some threads.
struct Cell {
  Op op = Op::lora;
  bool backward = false;  ///< forward+backward with every gradient; else forward alone
  Index d = 0, tokens = 0;
  Index experts = 1;  ///< 1 for lora and ia3
  Index rank = 0;     ///< 0 for ia3 and mov
  Index chosen = 1;   ///< experts that a token uses
  int threads = 1;
  bool cold = false;  ///< every call finds its weights outside L2

  bool lora_kind() const { return rank > 0; }
  bool routed() const { return op != Op::lora && op != Op::ia3; }
  Index ranks() const { return experts * rank; }
  /// Scalars of the weights: A and B, or the vectors; and the router.
  Index weights() const { return d * ((lora_kind() ? 2 * ranks() : experts) + (routed() ? experts : 0)); }
  std::string pass() const { return backward ? "forward+backward" : "forward"; }
  std::string text() const;
};

/// What was measured of a cell, in microseconds per call.
struct Result {
  Cell cell;
  double ours_us = 0, bound_us = 0;
  double ours_one_thread_us = 0;  ///< of the same rounds, where the cell has more threads
  double peak_gflops = 0;         ///< of fused multiply-adds, in the same rounds
  double pack_us = 0;             ///< of prepared weights, once
  double workspace_bytes = 0;     ///< cache and workspace after the call
  int rounds = 0;
  std::map<std::string, double> peers;
  std::map<std::string, std::string> variants;  ///< of peers that have several: the fastest, which is timed
  std::map<std::string, std::string> skipped;   ///< peers that were not timed, and why

  double share() const { return bound_us / ours_us; }
};

Json to_json(const Result& result);
Result result_from(const Json& line);

/// A file of results: a header of each run that wrote to it, and the results, in their order.
struct Results {
  std::vector<Json> headers;
  std::vector<Result> results;
};
/// Lines of JSON; a last line that was cut off is passed over. A file that is not there is empty.
Results read_results(const std::string& file);

/// What the sweep is made of, filtered; empty lists stand for everything.
struct Selection {
  std::vector<std::string> ops, passes;
  std::vector<Index> d, tokens, experts, ranks;
  std::vector<int> threads;
  bool quick = false;
};
/// The cells of a selection, those of the summary first, each once.
std::vector<Cell> cells(const Selection& selection);

}  // namespace compare
