// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/adapter_describe.hpp>
#include <moxie/io/adapter_plan.hpp>

/// Whether a module of a file is the module of a set that it is to be taken into.
namespace moxie::inline MOXIE_ABI::io::detail {

/// A number with all its digits, anything else as it is.
template <class T>
auto exact(T value) {
  if constexpr (std::is_floating_point_v<T>) {
    char text[32];
    return std::string(text, std::to_chars(text, text + sizeof text, value).ptr);
  } else {
    return value;
  }
}

/// The first difference between a module of a file and the one of a set, as a fault of the file's.
template <Scalar S>
std::optional<Report::Fault> difference(const PlannedModule<S>& module, const AnyAdapter<S>& adapter) {
  const Described file = describe<S>(module.shape.adapter), set = describe<S>(adapter);
  if (file.vectors != set.vectors || file.shared_a != set.shared_a || file.router.kind != set.router.kind)
    return Report::Fault{Code::adapter_kind, module.name, "is another kind of adapter than the set's"};
  std::optional<Report::Fault> found;
  const auto expect = [&](bool same, Code code, std::string_view what, auto got, auto wanted) {
    if (!same && !found)
      found = {code, module.name,
               join("has ", what, " ", exact(got), ", wanted ", exact(wanted), ", the set's")};
  };
  const auto same = [&](Code code, std::string_view what, auto got, auto wanted) {
    expect(got == wanted, code, what, got, wanted);
  };
  same(Code::shape_mismatch, file.vectors ? "features" : "in", file.in, set.in);
  same(Code::shape_mismatch, "out", file.out, set.out);
  same(Code::expert_index, "a number of experts of", file.experts, set.experts);
  same(Code::shape_mismatch, "heads", file.heads, set.heads);
  const auto yes = [](bool is) { return std::string_view(is ? "yes" : "no"); };
  same(file.bias ? Code::unexpected_tensor : Code::missing_tensor, "biases:", yes(file.bias), yes(set.bias));
  for (std::size_t e = 0; e < std::min(file.rank.size(), set.rank.size()); ++e) {
    same(Code::rank_mismatch, "the rank", file.rank[e], set.rank[e]);
    // A scale that was multiplied together elsewhere need not be the quotient of an alpha to the bit.
    const double near = 4 * static_cast<double>(std::numeric_limits<S>::epsilon()) * std::abs(set.scale[e]);
    expect(std::abs(file.scale[e] - set.scale[e]) <= near, Code::config_mismatch, "the scale", file.scale[e],
           set.scale[e]);
  }
  same(Code::config_mismatch, "a router temperature of", file.router.temperature, set.router.temperature);
  if (module.shape.top_k_said) same(Code::config_mismatch, "top_k", file.router.top_k, set.router.top_k);
  same(Code::config_mismatch, "router weights", word(file.router.weights), word(set.router.weights));
  const auto learned = [&](const Described& d) { return yes(d.router.noise == RouterNoise::learned); };
  same(Code::config_mismatch, "learned noise:", learned(file), learned(set));
  same(Code::shape_mismatch, "a number of parameters of", file.parameters, set.parameters);
  return found;
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
        report.unexpect(Code::unexpected_tensor, tensor->name, "is of a module that the set lacks");
      continue;
    }
    seen.insert(module.name);
    if (auto fault = difference(module, set.entry(set.find(module.name)).adapter))
      report.mismatched.push_back(std::move(*fault));
    else
      bound.push_back(std::move(module));
  }
  if (seen.empty() && !plan.modules.empty())
    source.refuse(Code::nothing_matched,
                  "its modules have none of the set's names: ", shown(plan.modules.front().name),
                  ", the set's begin with ", shown(set.entries().front().name));
  for (const auto& entry : set.entries())
    if (!seen.contains(entry.name)) report.miss(entry.name, "is a module of the set, but no tensor is its");
  plan.modules = std::move(bound);
}

}  // namespace moxie::inline MOXIE_ABI::io::detail
