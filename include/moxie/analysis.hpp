// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/adapter_set.hpp>

#include <Eigen/SVD>

#include <cstdio>

namespace moxie::inline MOXIE_ABI {

/// Trainable and other parameters of a model with its adapters.
struct ParameterCount {
  Index trainable = 0;
  Index all = 0;  ///< base and adapters together

  double percent() const {
    return all > 0 ? 100 * static_cast<double>(trainable) / static_cast<double>(all) : 0;
  }
};

/// Counts a set on a base of `base_parameters` frozen weights.
template <Scalar S, class Kinds>
ParameterCount count_parameters(const AdapterSet<S, Kinds>& set, Index base_parameters) {
  ParameterCount count{0, base_parameters + set.size()};
  for (const ParameterGroup& group : set.groups())
    if (group.trainable) count.trainable += group.size;
  return count;
}

/// PEFT's line: `trainable params: 282,624 || all params: 1,229,863,936 || trainable%: 0.0230`.
inline std::string parameter_line(const ParameterCount& count) {
  const auto grouped = [](Index n) {
    std::string digits = detail::text(n);
    for (Index at = std::ssize(digits) - 3; at > 0; at -= 3) digits.insert(static_cast<std::size_t>(at), ",");
    return digits;
  };
  // Fixed point by hand: printf would follow the locale's decimal separator.
  const auto scaled = static_cast<Index>(std::llround(count.percent() * 1e4));
  std::string decimals = detail::text(scaled % 10000);
  decimals.insert(0, 4 - decimals.size(), '0');
  return "trainable params: " + grouped(count.trainable) + " || all params: " + grouped(count.all) +
         " || trainable%: " + detail::text(scaled / 10000) + "." + decimals;
}

/// Whether an expert's update counts with its scale.
enum class UpdateScale { scaled, unscaled };

namespace detail {

/// The cores of the updates of a LoRA bank's experts, s_e B_e A_e in double, [total rank or less, the same]:
/// with the stacked B = Q_b R_b and A^T = Q_a R_a they are s_e R_b,e R_a,e^T, and have the norms, differences
/// and singular values of the updates. No d x d matrix is formed.
template <Scalar S>
std::vector<Eigen::MatrixXd> update_cores(const LoraBank<S>& bank, std::span<const S> theta,
                                          UpdateScale scale) {
  using Dense = Eigen::MatrixXd;
  if (theta.size() < static_cast<std::size_t>(bank.total_rank() * (bank.in() + bank.out())))
    expect_size("theta", theta.size(), bank.size());
  const Index ranks = bank.total_rank();
  const auto factor = [&](const S* rows, Index d) {
    Dense stacked(d, ranks);
    for (Index j = 0; j < ranks; ++j)
      for (Index i = 0; i < d; ++i) stacked(i, j) = static_cast<double>(rows[j * d + i]);
    const Eigen::HouseholderQR<Dense> qr(stacked);
    return Dense(qr.matrixQR().topRows(std::min(d, ranks)).template triangularView<Eigen::Upper>());
  };
  const Dense ra = factor(theta.data(), bank.in()), rb = factor(theta.data() + ranks * bank.in(), bank.out());
  std::vector<Dense> cores;
  for (Index e = 0; e < bank.experts(); ++e) {
    const double s = scale == UpdateScale::scaled ? static_cast<double>(bank.scale(e)) : 1.0;
    cores.push_back(s * rb.middleCols(bank.begin(e), bank.rank(e)) *
                    ra.middleCols(bank.begin(e), bank.rank(e)).transpose());
  }
  return cores;
}

/// Number i of the vector of expert e of a bank of vectors.
template <Scalar S>
double vector_number(const Ia3Bank<S>& bank, std::span<const S> theta, Index e, Index i) {
  const Index head = bank.in() / bank.config().heads;
  return static_cast<double>(
      theta[static_cast<std::size_t>((i / head * bank.experts() + e) * head + i % head)]);
}

template <class Difference>
Matrix<double> pairs(Index experts, Difference&& difference) {
  Matrix<double> all = Matrix<double>::Zero(experts, experts);
  for (Index i = 0; i < experts; ++i)
    for (Index j = 0; j < i; ++j) all(i, j) = all(j, i) = difference(i, j);
  return all;
}

}  // namespace detail

/// D[i, j] = Frobenius norm of the difference of the updates of experts i and j of a LoRA bank, s_i B_i A_i
/// less s_j B_j A_j, in double. It stays accurate when experts nearly agree (traces of Gram matrices cancel).
/// arXiv:2402.08562, section 4.4; whether the paper scales the updates is not known. Throws ShapeMismatch
/// where theta is too short.
template <Scalar S>
Matrix<double> expert_differences(const LoraBank<S>& bank, std::span<const S> theta,
                                  UpdateScale scale = UpdateScale::scaled) {
  const std::vector<Eigen::MatrixXd> cores = detail::update_cores(bank, theta, scale);
  return detail::pairs(bank.experts(), [&](Index i, Index j) {
    return (cores[static_cast<std::size_t>(i)] - cores[static_cast<std::size_t>(j)]).norm();
  });
}
/// The same of vectors: the norm of l_i - l_j.
template <Scalar S>
Matrix<double> expert_differences(const Ia3Bank<S>& bank, std::span<const S> theta) {
  if (std::ssize(theta) < bank.size()) detail::expect_size("theta", theta.size(), bank.size());
  return detail::pairs(bank.experts(), [&](Index i, Index j) {
    double sum = 0;
    for (Index n = 0; n < bank.in(); ++n) {
      const double d = detail::vector_number(bank, theta, i, n) - detail::vector_number(bank, theta, j, n);
      sum += d * d;
    }
    return std::sqrt(sum);
  });
}

/// How much an expert changes, and in how many directions.
struct UpdateSize {
  double norm = 0;            ///< Frobenius norm of the update
  double effective_rank = 0;  ///< 1 to the rank; 0 of an update of zeros, NaN of one that is not finite
};

/// Effective rank of a matrix by its singular values: exp of the entropy of p_i = sigma_i / sum of sigma (Roy
/// and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007).
inline double effective_rank(std::span<const double> singular_values) {
  double sum = 0, entropy = 0;
  for (const double sigma : singular_values) sum += sigma;
  if (sum == 0) return 0;
  for (const double sigma : singular_values)
    if (sigma > 0) entropy -= sigma / sum * std::log(sigma / sum);
  return std::isfinite(sum) ? std::exp(entropy) : std::numeric_limits<double>::quiet_NaN();
}

/// Size of every expert's update s_e B_e A_e, in double, by the singular values of its small core. Throws
/// ShapeMismatch where theta is too short.
template <Scalar S>
std::vector<UpdateSize> update_sizes(const LoraBank<S>& bank, std::span<const S> theta,
                                     UpdateScale scale = UpdateScale::scaled) {
  std::vector<UpdateSize> sizes;
  for (Index e = 0; e < bank.experts(); ++e) {
    // A bank of this expert alone: its core is rank x rank, and a number of another that is not finite does
    // not reach it.
    const Index r = bank.rank(e), all = bank.total_rank(), in = bank.in(), out = bank.out();
    if (std::ssize(theta) < all * (in + out)) detail::expect_size("theta", theta.size(), bank.size());
    const LoraBank<S> alone({.in = in, .out = out, .rank = r});
    std::vector<S> own;
    const S* const a = theta.data() + bank.begin(e) * in;
    const S* const b = theta.data() + all * in + bank.begin(e) * out;
    own.insert(own.end(), a, a + r * in);
    own.insert(own.end(), b, b + r * out);
    const double s = scale == UpdateScale::scaled ? static_cast<double>(bank.scale(e)) : 1.0;
    const Eigen::MatrixXd core =
        s * detail::update_cores(alone, std::span<const S>(own), UpdateScale::unscaled).front();
    UpdateSize size{core.norm(), std::numeric_limits<double>::quiet_NaN()};
    if (std::isfinite(size.norm)) {
      const Eigen::VectorXd sigma = Eigen::BDCSVD<Eigen::MatrixXd>(core).singularValues();
      size.effective_rank = effective_rank({sigma.data(), static_cast<std::size_t>(sigma.size())});
    }
    sizes.push_back(size);
  }
  return sizes;
}
/// The same of vectors, whose update of x is diag(l_e - 1) x.
template <Scalar S>
std::vector<UpdateSize> update_sizes(const Ia3Bank<S>& bank, std::span<const S> theta) {
  if (std::ssize(theta) < bank.size()) detail::expect_size("theta", theta.size(), bank.size());
  std::vector<UpdateSize> sizes;
  for (Index e = 0; e < bank.experts(); ++e) {
    Eigen::VectorXd sigma(bank.in());
    for (Index i = 0; i < bank.in(); ++i) sigma[i] = std::abs(detail::vector_number(bank, theta, e, i) - 1);
    sizes.push_back({sigma.norm(), effective_rank({sigma.data(), static_cast<std::size_t>(sigma.size())})});
  }
  return sizes;
}

/// The same experts, each with an A of its own: for what is told of a LoraBank. Throws ShapeMismatch.
template <Scalar S>
std::pair<LoraBank<S>, std::vector<S>> with_own_a(const HydraBank<S>& bank, std::span<const S> theta) {
  detail::expect_size("theta", theta.size(), bank.size());
  const auto a = theta.first(static_cast<std::size_t>(bank.rank() * bank.in()));
  std::vector<S> own;
  for (Index e = 0; e < bank.experts(); ++e) own.insert(own.end(), a.begin(), a.end());
  own.insert(own.end(), theta.begin() + std::ssize(a), theta.end());
  const auto& c = bank.config();
  return {LoraBank<S>({.in = c.in,
                       .out = c.out,
                       .experts = c.experts,
                       .rank = c.rank,
                       .alpha = c.alpha,
                       .scaling = c.scaling}),
          std::move(own)};
}

/// Mean over the pairs of experts: MoLA's figure, one number per module. 0 for a single expert.
inline double mean_difference(const Matrix<double>& differences) {
  const Index n = differences.rows();
  double sum = 0;
  for (Index i = 0; i < n; ++i)
    for (Index j = 0; j < i; ++j) sum += differences(i, j);
  return n > 1 ? sum / (static_cast<double>(n) * static_cast<double>(n - 1) / 2) : 0;
}

/// How a module routes the tokens of each task. One object per module; `add` it every batch.
class RoutingStatistics {
 public:
  /// Throws ConfigRange.
  RoutingStatistics(Index tasks, Index experts) : tasks_(tasks), experts_(experts) {
    detail::expect_range(tasks >= 1, "tasks", static_cast<double>(tasks), "1 or more");
    detail::expect_range(experts >= 1, "experts", static_cast<double>(experts), "1 or more");
    const auto n = static_cast<std::size_t>(detail::checked_product("routing statistics", tasks, experts));
    probability_.resize(n);
    selected_.resize(n);
    entropy_.resize(static_cast<std::size_t>(tasks));
    rows_.resize(static_cast<std::size_t>(tasks));
  }

  /// Counts every row of a routing for its token's task; a task below 0 leaves the token out.
  /// Throws ShapeMismatch, and ConfigRange for a task out of range; then nothing is counted.
  template <Scalar S>
  void add(const Routing<S>& routing, std::span<const int> task_of_token) {
    detail::expect_size("task_of_token", task_of_token.size(), routing.tokens());
    if (routing.experts != experts_)
      fail(Code::shape_mismatch,
           "the routing has " + detail::text(routing.experts) + " experts, wanted " + detail::text(experts_));
    detail::expect_routing("the routing", routing, routing.rows, experts_, routing.rows_per_token);
    detail::expect_size("the routing's probs", routing.probs.size(), routing.size());
    for (const int task : task_of_token)
      if (task >= tasks_)
        detail::expect_range(false, "a token's task", task, "below " + detail::text(tasks_));
    for (Index row = 0; row < routing.rows; ++row) {
      const int task = task_of_token[static_cast<std::size_t>(row / routing.rows_per_token)];
      if (task < 0) continue;
      const S* const p = routing.probs.data() + row * experts_;
      for (Index e = 0; e < experts_; ++e) {
        const auto probability = static_cast<double>(p[e]);
        probability_[index(task, e)] += probability;
        if (probability > 0) entropy_[static_cast<std::size_t>(task)] -= probability * std::log(probability);
      }
      for (int j = 0; j < routing.count[static_cast<std::size_t>(row)]; ++j)
        selected_[index(task, routing.chosen_row(row)[j])] += 1;
      rows_[static_cast<std::size_t>(task)] += 1;
    }
  }

  Index tasks() const { return tasks_; }
  Index experts() const { return experts_; }
  double rows(Index task) const { return rows_[task_index(task)]; }
  /// Mean probability of an expert over a task's rows. Like all below, throws ConfigRange for one that is
  /// not.
  double mean_probability(Index task, Index expert) const {
    return mean(probability_[index(task, expert)], task);
  }
  /// Share of a task's rows that chose an expert.
  double share_selected(Index task, Index expert) const { return mean(selected_[index(task, expert)], task); }
  /// Mean entropy of a task's rows, in nats.
  double mean_entropy(Index task) const { return mean(entropy_[task_index(task)], task); }
  /// Experts that no row of any task chose.
  std::vector<Index> never_used() const {
    std::vector<Index> unused;
    for (Index e = 0; e < experts_; ++e) {
      double total = 0;
      for (Index task = 0; task < tasks_; ++task) total += selected_[index(task, e)];
      if (total == 0) unused.push_back(e);
    }
    return unused;
  }

 private:
  /// Throws ConfigRange.
  std::size_t task_index(Index task) const {
    detail::expect_range(task >= 0 && task < tasks_, "a task", static_cast<double>(task),
                         "0 to " + detail::text(tasks_ - 1));
    return static_cast<std::size_t>(task);
  }
  std::size_t index(Index task, Index expert) const {
    detail::expect_range(expert >= 0 && expert < experts_, "an expert", static_cast<double>(expert),
                         "0 to " + detail::text(experts_ - 1));
    task_index(task);
    return static_cast<std::size_t>(task * experts_ + expert);
  }
  double mean(double sum, Index task) const {
    const double n = rows_[static_cast<std::size_t>(task)];
    return n > 0 ? sum / n : 0;
  }

  Index tasks_, experts_;
  std::vector<double> probability_, selected_, entropy_, rows_;
};

}  // namespace moxie::inline MOXIE_ABI
