// SPDX-License-Identifier: MIT
// What is in an adapter's files, as figures: what adapter_inspect prints and draws.
#pragma once

#include <moxie/analysis.hpp>

#include <functional>
#include <map>
#include <set>

#include "tool.hpp"

namespace adapter_tool {

using S = double;  // whatever is stored, so that nothing is rounded

struct ExpertSummary {
  Index rank = 0;  ///< 0: a vector
  double alpha = 0, scale = 1;
  moxie::UpdateSize update;
};

struct ModuleSummary {
  std::string name, kind, method, router;
  Index in = 0, out = 0, parameters = 0, top_k = 0;
  std::set<std::string> dtypes;
  std::vector<ExpertSummary> experts;
  double mean_difference = 0;  ///< of the experts' updates; NaN where it was not taken
};

struct Summary {
  std::string path, file, format, base_model;
  std::vector<ModuleSummary> modules;
  std::vector<std::string> warnings;
  Index tensors = 0, experts = 0, parameters = 0;
  std::uint64_t bytes = 0;
  std::map<std::string, Index> dtypes;  ///< tensors of each

  bool mixture() const { return experts > std::ssize(modules); }
};

/// The table of pairs of more experts than this is not made: nobody has them, and a file may say so.
inline constexpr Index most_compared = 2048;

template <class Bank, class T>
double mean_difference(const Bank& bank, std::span<const T> theta) {
  return bank.experts() <= most_compared ? moxie::mean_difference(moxie::expert_differences(bank, theta))
                                         : std::numeric_limits<double>::quiet_NaN();
}

template <class T>
void describe(const moxie::LoraBank<T>& bank, std::span<const T> theta, ModuleSummary& m, Summary& all) {
  const auto& c = bank.config();
  m.kind = "LoRA";
  m.mean_difference = mean_difference(bank, theta);
  const auto sizes = moxie::update_sizes(bank, theta);
  for (Index e = 0; e < bank.experts(); ++e) {
    const double scale = static_cast<double>(bank.scale(e)), rank = static_cast<double>(bank.rank(e));
    const double alpha = c.scaling == moxie::LoraScaling::fixed ? scale * rank : c.alpha;
    m.experts.push_back({bank.rank(e), alpha, scale, sizes[static_cast<std::size_t>(e)]});
    const auto b =
        theta.subspan(static_cast<std::size_t>(bank.total_rank() * bank.in() + bank.begin(e) * bank.out()),
                      static_cast<std::size_t>(bank.rank(e) * bank.out()));
    const std::string who = m.name + (bank.experts() > 1 ? ", expert " + std::to_string(e) : std::string());
    if (std::all_of(b.begin(), b.end(), [](T v) { return v == 0; }))
      all.warnings.push_back(who + ": B is all zeros, so it changes nothing (was it trained?)");
    else if (scale == 0)
      all.warnings.push_back(who + ": its scale is 0, so it changes nothing");
  }
}
template <class T>
void describe(const moxie::HydraBank<T>& bank, std::span<const T> theta, ModuleSummary& m, Summary& all) {
  const auto separate = moxie::with_own_a(bank, theta);
  describe(separate.first, std::span<const T>(separate.second), m, all);
  m.kind = "LoRA with one A";
}
template <class T>
void describe(const moxie::Ia3Bank<T>& bank, std::span<const T> theta, ModuleSummary& m, Summary& all) {
  m.kind = "IA3";
  m.mean_difference = mean_difference(bank, theta);
  for (const moxie::UpdateSize& size : moxie::update_sizes(bank, theta)) {
    if (size.norm == 0)
      all.warnings.push_back(
          m.name + (bank.experts() > 1 ? ", expert " + std::to_string(m.experts.size()) : std::string()) +
          ": its vector is all ones, so it changes nothing (was it trained?)");
    m.experts.push_back({0, 0, 1, size});
  }
}

template <class T>
std::string text_of(const moxie::UniformRouter<T>&, ModuleSummary&) {
  return "none";
}
template <class T>
std::string text_of(const moxie::GivenRouter<T>&, ModuleSummary&) {
  return "given";
}
template <class T>
std::string text_of(const moxie::SoftRouter<T>&, ModuleSummary&) {
  return "soft";
}
template <class T>
std::string text_of(const moxie::TopKRouter<T>& router, ModuleSummary& m) {
  m.top_k = router.config().k;
  return "top-" + std::to_string(m.top_k);
}

/// The module that a tensor's name belongs to: the longest that, behind the format's prefix, begins it.
inline const std::string* owner(const std::set<std::string>& modules, io::Format format, std::string tensor) {
  constexpr std::string_view prefix = "base_model.model.";
  if (tensor.starts_with(prefix))
    tensor.erase(0, prefix.size());
  else if (format == io::Format::moe_peft)  // "mola.layers..." is of "model.layers..."
    tensor = "model" + tensor.substr(std::min(tensor.find('.'), tensor.size()));
  for (std::size_t dot = tensor.rfind('.'); dot != std::string::npos && dot > 0;
       dot = tensor.rfind('.', dot - 1))
    if (const auto found = modules.find(tensor.substr(0, dot)); found != modules.end()) return &*found;
  return nullptr;
}

inline Summary summarise(const io::AdapterFiles& files, const std::string& path,
                         const std::vector<Index>& top_k, bool lenient) {
  const auto loaded = io::load<S>(files, {.lenient = lenient, .allow_non_finite = true, .top_k = top_k});
  warn(loaded.report);
  expect_top_k(loaded, top_k);
  Summary all;
  all.path = path;
  all.file = files.tensors.path().filename().string();
  all.format = io::name(loaded.info.format.value());
  const auto base = loaded.info.config.find("base_model_name_or_path");
  if (base != loaded.info.config.end() && base->is_string()) all.base_model = base->get<std::string>();
  for (const auto& note : loaded.report.notes)
    if (note.what.find("scale 0") == std::string::npos &&
        note.what.find("is assumed") == std::string::npos)  // said below
      all.warnings.push_back(
          io::detail::shown(note.name) + ": " + note.what +
          (note.what.ends_with("infinite") ? "; such an adapter is refused where it is to be used" : ""));

  std::map<std::string, std::set<std::string>> dtypes;
  std::set<std::string> names;
  for (const auto& entry : loaded.set.entries()) names.insert(entry.name);
  for (const io::TensorInfo& t : files.tensors.tensors()) {
    ++all.tensors;
    ++all.dtypes[std::string(io::name(t.dtype))];
    all.bytes += t.end - t.begin;
    if (const std::string* const module = owner(names, *loaded.info.format, t.name))
      dtypes[*module].insert(std::string(io::name(t.dtype)));
  }
  const bool assumed = top_k.empty() && !loaded.info.config.contains("top_k");
  for (const auto& entry : loaded.set.entries()) {
    ModuleSummary m;
    m.name = entry.name;
    m.method = moxie::name(entry.method);
    m.parameters = entry.size();
    m.dtypes = dtypes[entry.name];
    std::visit(
        [&](const auto& adapter) {
          const std::span<const S> theta = loaded.set.theta(loaded.set.find(entry.name));
          const std::span<const S> own = theta.first(static_cast<std::size_t>(adapter.experts().size()));
          m.in = adapter.in();
          m.out = adapter.out();
          describe(adapter.experts(), own, m, all);
          m.router = text_of(adapter.router(), m);
          if (assumed && m.top_k > 0) m.router += " (assumed)";
        },
        entry.adapter);
    all.experts += std::ssize(m.experts);
    all.parameters += m.parameters;
    all.modules.push_back(std::move(m));
  }
  return all;
}

/// The different values of a member of the modules, as "a, b".
template <class F>
std::string all_of_modules(const Summary& s, F&& member) {
  std::set<std::string> values;
  for (const ModuleSummary& m : s.modules) values.insert(std::invoke(member, m));
  std::string text;
  for (const std::string& value : values) text += (text.empty() ? "" : ", ") + value;
  return text;
}

inline nlohmann::ordered_json to_json(const Summary& s) {
  nlohmann::ordered_json json;
  json["path"] = s.path;
  json["file"] = s.file;
  json["format"] = s.format;
  json["kind"] = all_of_modules(s, &ModuleSummary::kind);
  json["method"] = all_of_modules(s, &ModuleSummary::method);
  json["base_model"] = s.base_model;
  json["modules"] = nlohmann::json::array();
  for (const ModuleSummary& m : s.modules) {
    nlohmann::ordered_json one = {{"name", m.name},    {"kind", m.kind},    {"method", m.method},
                                  {"in", m.in},        {"out", m.out},      {"parameters", m.parameters},
                                  {"dtype", m.dtypes}, {"router", m.router}};
    if (m.top_k > 0) one["top_k"] = m.top_k;
    for (const ExpertSummary& e : m.experts) {
      nlohmann::ordered_json expert;
      if (e.rank > 0) expert = {{"rank", e.rank}, {"alpha", e.alpha}, {"scale", e.scale}};
      expert["norm"] = e.update.norm;
      expert["effective_rank"] = e.update.effective_rank;
      one["experts"].push_back(std::move(expert));
    }
    if (m.experts.size() > 1) one["mean_difference"] = m.mean_difference;
    json["modules"].push_back(std::move(one));
  }
  json["warnings"] = s.warnings;
  json["totals"] = {{"modules", s.modules.size()}, {"experts", s.experts}, {"parameters", s.parameters},
                    {"tensors", s.tensors},        {"dtypes", s.dtypes},   {"bytes", s.bytes}};
  return json;
}

}  // namespace adapter_tool
