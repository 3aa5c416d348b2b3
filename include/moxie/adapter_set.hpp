// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/optim/step.hpp>
#include <moxie/presets.hpp>

#include <map>

namespace moxie::inline MOXIE_ABI {

/// Handle of a module in its set; looking one up by name is for set-up, not for the hot path.
struct Module {
  Index index = -1;
};

/// The named modules of one model over one flat theta: what an engine or a trainer holds. Modules are added,
/// then `init` makes theta; a module can be switched off or scaled at any time between calls. Const calls may
/// run on many threads at once, each with its own cache and workspace. A handle of no module throws
/// UnknownName, the use of theta before `init` StateError. `Kinds` is the closed list of what it can hold; a
/// program with kinds of its own gives a longer one.
template <Scalar S, class Kinds = AnyAdapter<S>>
class AdapterSet {
 public:
  struct Entry {
    std::string name;
    Method method = Method::other;
    Kinds adapter;
    Index offset = 0;  ///< of its parameters in theta
    bool enabled = true;
    double scale = 1;
    double learning_rate_factor = 1;

    Index size() const {
      return std::visit([](const auto& a) { return a.size(); }, adapter);
    }
  };

  /// Throws NameTaken, and StateError after `init`.
  template <class Adapter>
  Module add(std::string name, Adapter adapter) {
    if (initialised_)
      fail(Code::state_error, "module " + name + " added after init(); add all modules first");
    if (by_name_.contains(name)) fail(Code::name_taken, "module " + name + " exists already");
    static_assert(
        std::is_constructible_v<Kinds, decltype(as_kind(std::move(adapter)))>,
        "moxie: this kind of adapter is not in the set's list of kinds; give AdapterSet a longer one");
    Method method = Method::other;
    if constexpr (requires { adapter.method; }) method = adapter.method;
    const Index offset = size();
    by_name_.emplace(name, modules());
    entries_.push_back({std::move(name), method, Kinds(as_kind(std::move(adapter))), offset});
    size_ = offset + entries_.back().size();
    return {std::ssize(entries_) - 1};
  }

  /// Makes theta and starts every module from its own stream of the seed. May be called again to start over.
  void init(std::uint64_t seed) {
    initialised_ = true;
    theta_.assign(static_cast<std::size_t>(size_), S(0));
    for (std::size_t i = 0; i < entries_.size(); ++i)
      std::visit(
          [&](const auto& a) {
            a.init(slice(std::span<S>(theta_), entries_[i]), random::key({seed, i}));
          },
          entries_[i].adapter);
  }

  /// In place of a start from a seed: weights that came from elsewhere. Throws ShapeMismatch.
  void init(Buffer<S> theta) {
    detail::expect_size("theta", theta.size(), size_);
    theta_ = std::move(theta);
    initialised_ = true;
  }

  Index size() const { return size_; }
  Index modules() const { return std::ssize(entries_); }
  std::span<S> theta() { return theta_; }
  std::span<const S> theta() const { return theta_; }
  std::span<S> theta(Module module) { return slice(std::span<S>(theta_), ready(module)); }
  std::span<const S> theta(Module module) const { return slice(std::span<const S>(theta_), ready(module)); }
  const std::vector<Entry>& entries() const { return entries_; }
  const Entry& entry(Module module) const { return at(module); }

  /// Throws UnknownName.
  Module find(std::string_view name) const {
    if (const auto found = by_name_.find(name); found != by_name_.end()) return {found->second};
    fail(Code::unknown_name, "no module " + std::string(name) + " in a set of " + detail::text(modules()));
  }

  /// One group per field, named "module.field", for an optimiser over the whole theta.
  std::vector<ParameterGroup> groups() const {
    std::vector<ParameterGroup> groups;
    for (const Entry& entry : entries_) {
      const auto fields = std::visit([](const auto& a) { return a.fields(); }, entry.adapter);
      for (ParameterGroup& group : parameter_groups(fields)) {
        group.name = entry.name + "." + group.name;
        group.offset += entry.offset;
        group.learning_rate_factor = entry.learning_rate_factor;
        groups.push_back(std::move(group));
      }
    }
    return groups;
  }

  /// An adapter that is off leaves exactly the base: y as it was (LoRA), or y = x (IA3).
  void enable(Module module, bool on) { at(module).enabled = on; }
  /// Strength of a module, multiplied with Run::scale; 0 is off. Throws ConfigRange where it is not finite.
  void set_scale(Module module, double scale) {
    detail::expect_range(std::isfinite(scale), "module scale", scale, "a finite number");
    at(module).scale = scale;
  }

  /// For the groups made from now on: a module's steps are this much longer. Throws ConfigRange where it is
  /// negative or not finite.
  void set_learning_rate_factor(Module module, double factor) {
    detail::expect_range(factor >= 0 && std::isfinite(factor), "learning-rate factor", factor,
                         "a finite number, 0 or more");
    at(module).learning_rate_factor = factor;
  }

  /// As MoeAdapter::forward, on the module's slice of theta.
  void forward(Module module, In<S> x, Out<S> y, Cache<S>& cache, Workspace<S>& workspace,
               const Run& run = {}, In<S> router_x = {}) const {
    const std::span<const S> weights = slice(theta(), ready(module));
    run_forward(module, weights, x, y, cache, workspace, run, router_x);
  }

  /// Packs all modules for inference, in their order (see Prepared). Later changes of theta do not reach
  /// them.
  template <class W = S>
  std::vector<Prepared<S, W>> prepare() const {
    if (!initialised_) fail(Code::state_error, "a set is used before init()");
    std::vector<Prepared<S, W>> prepared;
    for (const Entry& entry : entries_)
      std::visit([&](const auto& a) { prepared.push_back(a.template prepare<W>(slice(theta(), entry))); },
                 entry.adapter);
    return prepared;
  }
  /// As MoeAdapter::forward, on the module's weights of `prepare`. Throws ShapeMismatch where there are not
  /// as many as modules.
  template <class W>
  void forward(const std::vector<Prepared<S, W>>& prepared, Module module, In<S> x, Out<S> y, Cache<S>& cache,
               Workspace<S>& workspace, const Run& run = {}, In<S> router_x = {}) const {
    ready(module);
    detail::expect_size("prepared", prepared.size(), modules());
    run_forward(module, prepared[static_cast<std::size_t>(module.index)], x, y, cache, workspace, run,
                router_x);
  }

  /// As MoeAdapter::backward; dtheta is of the whole set, or empty.
  void backward(Module module, In<S> x, In<S> dy, const Cache<S>& cache, Workspace<S>& workspace,
                const Run& run, Out<S> dx, std::span<S> dtheta, const Routing<S>& drouting = {},
                In<S> router_x = {}, Out<S> drouter_x = {}) const {
    const Entry& entry = ready(module);
    if (!dtheta.empty()) detail::expect_size("dtheta", dtheta.size(), size_);
    std::visit(
        [&](const auto& adapter) {
          const Run own = run_of(entry, module, run);
          if (own.scale != 0) {
            const std::span<S> part = dtheta.empty() ? dtheta : slice(dtheta, entry);
            return adapter.backward(slice(theta(), entry), x, dy, cache, workspace, own, dx, part, drouting,
                                    router_x, drouter_x);
          }
          if (cache.tokens != x.rows || cache.run.scale != 0)
            fail(Code::state_error,
                 "backward of module " + entry.name + ", which is off, without its forward");
          detail::expect_shape("x", x, -1, adapter.in());
          detail::expect_shape("dy", dy, x.rows, adapter.out());
          if (dx.data != nullptr) detail::expect_shape("dx", dx, x.rows, adapter.in());
          detail::expect_apart("dx", dx, "x", x, "dy", dy);
          if (!adapter.multiplicative || dx.empty()) return;
          for (Index t = 0; t < x.rows; ++t)
            for (Index i = 0; i < x.cols; ++i) dx.row(t)[i] += dy.row(t)[i];
        },
        entry.adapter);
  }

 private:
  template <class Weights>
  void run_forward(Module module, const Weights& weights, In<S> x, Out<S> y, Cache<S>& cache,
                   Workspace<S>& workspace, const Run& run, In<S> router_x) const {
    const Entry& entry = at(module);
    std::visit(
        [&](const auto& adapter) {
          const Run own = run_of(entry, module, run);
          if (own.scale != 0) return adapter.forward(weights, x, y, cache, workspace, own, router_x);
          detail::expect_run<S>(run);
          detail::expect_shape("x", x, -1, adapter.in());
          detail::expect_shape("y", y, x.rows, adapter.out());
          detail::expect_apart("y", y, "theta", detail::as_view(theta()));
          if (adapter.multiplicative && !detail::same_place(y, x)) {
            detail::expect_apart("y", y, "x", x);
            for (Index t = 0; t < x.rows; ++t) std::copy_n(x.row(t), x.cols, y.row(t));
          }
          cache.tokens = x.rows;
          cache.in = adapter.in();
          cache.out = adapter.out();
          cache.in_place = false;
          cache.run = own;
          using Own = std::remove_cvref_t<decltype(adapter)>;
          if constexpr (!std::same_as<typename Own::Router, GivenRouter<S>>)  // that one's is the caller's
            cache.routing.resize(0, adapter.router().experts(), adapter.router().rows_per_token(), 0);
        },
        entry.adapter);
  }
  const Entry& ready(Module module) const {
    if (!initialised_) fail(Code::state_error, "a set is used before init()");
    return at(module);
  }
  /// The kind in the list that a preset or an adapter is.
  template <class A>
  static auto as_kind(A adapter) {
    if constexpr (requires { adapter.method; })
      return MoeAdapter<typename A::Experts, typename A::Router>(std::move(adapter));
    else
      return adapter;
  }
  template <class T>
  static std::span<T> slice(std::span<T> whole, const Entry& entry) {
    return whole.subspan(static_cast<std::size_t>(entry.offset), static_cast<std::size_t>(entry.size()));
  }
  static Run run_of(const Entry& entry, Module module, Run run) {
    run.module = static_cast<std::uint64_t>(module.index);
    run.scale = entry.enabled ? run.scale * entry.scale : 0;
    return run;
  }
  const Entry& at(Module module) const {
    if (module.index < 0 || module.index >= modules())
      fail(Code::unknown_name,
           "module number " + detail::text(module.index) + ", wanted one of " + detail::text(modules()));
    return entries_[static_cast<std::size_t>(module.index)];
  }
  Entry& at(Module module) { return const_cast<Entry&>(std::as_const(*this).at(module)); }

  std::vector<Entry> entries_;
  std::map<std::string, Index, std::less<>> by_name_;
  Buffer<S> theta_;
  Index size_ = 0;
  bool initialised_ = false;
};

}  // namespace moxie::inline MOXIE_ABI
