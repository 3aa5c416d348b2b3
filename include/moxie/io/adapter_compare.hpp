// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/adapter_set.hpp>
#include <moxie/io/adapter_plan.hpp>

/// Whether a module of a file is the module of a set that it is to be taken into.
namespace moxie::inline MOXIE_ABI::io::detail {

/// The first difference between two modules, as the fault of the one in the file.
class Difference {
 public:
  explicit Difference(const std::string& module) : module_(module) {}
  std::optional<Report::Fault> found;

  template <class T>
  bool same(Code code, std::string_view what, T got, T wanted) {
    if (got == wanted) return true;
    const auto text = [](T v) { return moxie::detail::text(v); };
    found = {code, module_,
             moxie::detail::join({"has ", what, " ", text(got), ", wanted ", text(wanted), ", the set's"})};
    return false;
  }

  /// A scale that was multiplied together elsewhere need not be the quotient of an alpha to the bit.
  template <class S>
  bool near(Code code, std::string_view what, S got, S wanted) {
    if (std::abs(got - wanted) <= 4 * std::numeric_limits<S>::epsilon() * std::abs(wanted)) return true;
    return same(code, what, got, wanted);
  }

 private:
  const std::string& module_;
};

template <class S>
bool same(Difference& d, const LoraBank<S>& file, const LoraBank<S>& set) {
  if (!d.same(Code::shape_mismatch, "in", file.in(), set.in()) ||
      !d.same(Code::shape_mismatch, "out", file.out(), set.out()) ||
      !d.same(Code::expert_index, "a number of experts of", file.experts(), set.experts()) ||
      !d.same(file.config().bias ? Code::unexpected_tensor : Code::missing_tensor, "biases",
              int{file.config().bias}, int{set.config().bias}))
    return false;
  for (Index e = 0; e < file.experts(); ++e)
    if (!d.same(Code::rank_mismatch, "the rank", file.rank(e), set.rank(e)) ||
        !d.near(Code::config_mismatch, "the scale", file.scale(e), set.scale(e)))
      return false;
  return true;
}
template <class S>
bool same(Difference& d, const HydraBank<S>& file, const HydraBank<S>& set) {
  return d.same(Code::shape_mismatch, "in", file.in(), set.in()) &&
         d.same(Code::shape_mismatch, "out", file.out(), set.out()) &&
         d.same(Code::expert_index, "a number of experts of", file.experts(), set.experts()) &&
         d.same(Code::rank_mismatch, "the rank", file.rank(), set.rank()) &&
         d.near(Code::config_mismatch, "the scale", file.scale(), set.scale());
}
template <class S>
bool same(Difference& d, const Ia3Bank<S>& file, const Ia3Bank<S>& set) {
  return d.same(Code::shape_mismatch, "features", file.in(), set.in()) &&
         d.same(Code::expert_index, "a number of experts of", file.experts(), set.experts()) &&
         (file.experts() == 1 ||
          d.same(Code::shape_mismatch, "heads", file.config().heads, set.config().heads));
}
template <class S>
bool same(Difference& d, const SoftRouter<S>& file, const SoftRouter<S>& set, bool) {
  return d.same(Code::config_mismatch, "a router temperature of", file.config().temperature,
                set.config().temperature);
}
template <class S>
bool same(Difference& d, const TopKRouter<S>& file, const TopKRouter<S>& set, bool k_said) {
  const auto &a = file.config(), &b = set.config();
  const auto number = [](auto v) { return static_cast<int>(v); };
  return d.same(Code::config_mismatch, "a router temperature of", a.temperature, b.temperature) &&
         (!k_said || d.same(Code::config_mismatch, "top_k", a.k, b.k)) &&
         d.same(Code::config_mismatch, "router weights of kind", number(a.weights), number(b.weights)) &&
         d.same(Code::config_mismatch, "learned noise", int{a.noise == RouterNoise::learned},
                int{b.noise == RouterNoise::learned});
}
template <class Router>
bool same(Difference&, const Router&, const Router&, bool) {
  return true;
}

/// The difference, if there is one.
template <Scalar S>
std::optional<Report::Fault> difference(const PlannedModule<S>& file, const AnyAdapter<S>& set) {
  return std::visit(
      [&](const auto& own) -> std::optional<Report::Fault> {
        const auto* const other = std::get_if<std::remove_cvref_t<decltype(own)>>(&set);
        if (other == nullptr)
          return Report::Fault{Code::adapter_kind, file.name, "is another kind of adapter than the set's"};
        Difference d(file.name);
        if (same(d, own.experts(), other->experts()))
          same(d, own.router(), other->router(), file.shape.top_k_said);
        return d.found;
      },
      file.shape.adapter);
}

/// Leaves those modules in the plan that the set has in the same form; the others, and those of the set that
/// the file lacks, go to the report. Throws NothingMatched.
template <Scalar S>
void bind(Plan<S>& plan, const AdapterSet<S>& set, const Source& source, Report& report) {
  std::set<std::string_view> have;
  for (const auto& entry : set.entries()) have.insert(entry.name);
  std::vector<PlannedModule<S>> bound;
  std::set<std::string> seen;
  for (PlannedModule<S>& module : plan.modules) {
    if (!have.contains(module.name)) {
      for (const auto& [piece, tensor] : module.pieces)
        report.unexpected.push_back(
            {Code::unexpected_tensor, tensor->name, "is of a module that the set lacks"});
      continue;
    }
    seen.insert(module.name);
    if (auto fault = difference(module, set.entry(set.find(module.name)).adapter))
      report.mismatched.push_back(std::move(*fault));
    else
      bound.push_back(std::move(module));
  }
  if (seen.empty() && !plan.modules.empty())
    source.refuse(
        Code::nothing_matched,
        moxie::detail::join({"its modules have none of the set's names: ", shown(plan.modules.front().name),
                             ", the set's begin with ", shown(set.entries().front().name)}));
  for (const auto& entry : set.entries())
    if (!seen.contains(entry.name))
      report.missing.push_back(
          {Code::missing_tensor, entry.name, "is a module of the set, but no tensor is its"});
  plan.modules = std::move(bound);
}

}  // namespace moxie::inline MOXIE_ABI::io::detail
