// SPDX-License-Identifier: MIT
// What is in an adapter's folder: methods, shapes, how much every expert changes, what looks wrong, and a
// picture of layers by projections.

#include <moxie/plot/svg.hpp>

#include "adapter/summary.hpp"
#include "progress.hpp"

namespace {

using namespace adapter_tool;

std::string grouped(Index n) {
  std::string digits = std::to_string(n);
  for (Index at = std::ssize(digits) - 3; at > 0; at -= 3) digits.insert(static_cast<std::size_t>(at), ",");
  return digits;
}
std::string counted(Index n, const char* what) { return grouped(n) + " " + what + (n == 1 ? "" : "s"); }
/// Text of others, without what would move the cursor.
std::string printable(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return text;
}
/// Six significant digits, the same in every locale.
std::string figure(double value) { return moxie::detail::text(value); }
/// With four decimals where these show it.
std::string norm_text(double value) {
  return value >= 0.01 && value < 1e6 ? examples::fixed(value, 4) : figure(value);
}

std::string shape_text(const io::TensorInfo& t) {
  std::string text;
  for (const Index n : t.shape) text += (text.empty() ? "" : ", ") + std::to_string(n);
  return "[" + text + "]";
}

void print(const Summary& s) {
  std::string dtypes;
  for (const auto& [dtype, count] : s.dtypes)
    dtypes += (dtypes.empty() ? "" : ", ") + grouped(count) + " " + dtype;
  std::printf("%-11s %s\n", "path", s.path.c_str());
  std::printf("%-11s %s\n", "format", s.format.c_str());
  std::printf("%-11s %s\n", "kind", all_of_modules(s, &ModuleSummary::kind).c_str());
  std::printf("%-11s %s\n", "method", all_of_modules(s, &ModuleSummary::method).c_str());
  if (s.mixture()) std::printf("%-11s %s\n", "router", all_of_modules(s, &ModuleSummary::router).c_str());
  std::printf("%-11s %s\n", "base model",
              s.base_model.empty() ? "not said" : printable(s.base_model).c_str());
  std::printf("%-11s %s, %s, %s\n", "total", counted(std::ssize(s.modules), "module").c_str(),
              counted(s.experts, "expert").c_str(), counted(s.parameters, "parameter").c_str());
  std::printf("%-11s %s: %s tensors, %s bytes\n\n", "file", s.file.c_str(), dtypes.c_str(),
              grouped(static_cast<Index>(s.bytes)).c_str());

  examples::Table table{
      {"module", "in", "out", "dtype", "experts", "rank", "alpha", "scale", "norm", "effective rank"}};
  for (const ModuleSummary& m : s.modules) {
    std::string types;
    for (const std::string& dtype : m.dtypes) types += (types.empty() ? "" : " ") + dtype;
    std::vector<std::string> row{m.name, std::to_string(m.in), std::to_string(m.out), types,
                                 std::to_string(m.experts.size())};
    for (std::size_t e = 0; e < m.experts.size(); ++e) {
      const ExpertSummary& x = m.experts[e];
      if (e > 0) row = {"", "", "", "", ""};
      const bool vector = x.rank == 0;
      row.push_back(vector ? "-" : std::to_string(x.rank));
      row.push_back(vector ? "-" : figure(x.alpha));
      row.push_back(vector ? "-" : figure(x.scale));
      row.push_back(norm_text(x.update.norm));
      row.push_back(examples::fixed(x.update.effective_rank, 2));
      table.rows.push_back(row);
    }
  }
  std::printf("%s", table.text().c_str());
  std::printf(
      "norm: Frobenius norm of an expert's update, its scale included; effective rank: exp of the entropy\n"
      "of the update's singular values as shares of their sum\n");
  constexpr std::size_t most = 20;
  if (!s.warnings.empty()) std::printf("\n");
  for (std::size_t i = 0; i < std::min(most, s.warnings.size()); ++i)
    std::printf("warning: %s\n", s.warnings[i].c_str());
  if (s.warnings.size() > most) std::printf("and %zu more (--json has all)\n", s.warnings.size() - most);
}

/// The tensors of a file that is no adapter, or none that can be used.
void list(const io::TensorFile& file, bool json) {
  if (json) {
    nlohmann::ordered_json all = {{"path", file.path().native()}, {"adapter", false}};
    all["tensors"] = nlohmann::json::array();
    for (const io::TensorInfo& t : file.tensors())
      all["tensors"].push_back({{"name", t.name}, {"dtype", io::name(t.dtype)}, {"shape", t.shape}});
    std::printf("%s\n", all.dump(2, ' ', true, nlohmann::json::error_handler_t::replace).c_str());
    return;
  }
  examples::Table table{{"tensor", "dtype", "shape"}};
  for (const io::TensorInfo& t : file.tensors())
    table.rows.push_back({t.name, std::string(io::name(t.dtype)), shape_text(t)});
  std::printf("%s", table.text().c_str());
}

/// Layers by projections: the mean difference of a module's experts, or without mixtures the norm of what the
/// module changes.
std::string picture(const Summary& s) {
  struct Place {
    std::string group, row, column;
  };
  // "model.layers.3.self_attn.q_proj": the first number is the layer's.
  const auto place = [](const std::string& name) -> Place {
    for (std::size_t begin = 0; begin < name.size();) {
      const std::size_t end = std::min(name.find('.', begin), name.size());
      const std::string part = name.substr(begin, end - begin);
      if (begin > 0 && end < name.size() && !part.empty() &&
          part.find_first_not_of("0123456789") == std::string::npos)
        return {name.substr(0, begin - 1), part, name.substr(end + 1)};
      begin = end + 1;
    }
    return {"", "", name};
  };
  std::vector<std::string> columns;
  std::vector<std::pair<std::string, std::string>> rows;
  std::map<std::pair<std::pair<std::string, std::string>, std::string>, double> values;
  std::map<std::string, std::set<std::string>> by_last;
  for (const ModuleSummary& m : s.modules) {
    const Place p = place(m.name);
    const std::pair row{p.group, p.row};
    if (std::find(rows.begin(), rows.end(), row) == rows.end()) rows.push_back(row);
    if (std::find(columns.begin(), columns.end(), p.column) == columns.end()) columns.push_back(p.column);
    by_last[p.column.substr(p.column.rfind('.') + 1)].insert(p.column);
    double value = s.mixture() ? m.mean_difference : m.experts.front().update.norm;
    if (std::isfinite(value) && (!s.mixture() || m.experts.size() > 1)) values[{row, p.column}] = value;
  }
  // A transformer's projections in their usual order, then all others.
  const auto usual = [](const std::string& column) {
    constexpr std::string_view order[] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                          "gate_proj", "up_proj", "down_proj"};
    const std::string last = column.substr(column.rfind('.') + 1);
    return std::find(std::begin(order), std::end(order), last) - std::begin(order);
  };
  std::stable_sort(columns.begin(), columns.end(),
                   [&](const auto& a, const auto& b) { return usual(a) < usual(b); });
  moxie::plot::HeatMap map;
  map.title = s.mixture() ? "How far the experts of each module differ" : "How much each module changes";
  map.subtitle = s.mixture()
                     ? "mean over pairs of experts of the Frobenius norm of the difference of their updates"
                     : "Frobenius norm of the update";
  if (values.size() < rows.size() * columns.size())
    map.subtitle += "; crossed out: none there, or no finite number";
  map.column.label = "projection";
  map.row.label = "layer";
  map.value.label = s.mixture() ? "mean difference" : "norm";
  moxie::plot::Panel panel;
  constexpr std::size_t most_of_name = 60, most_cells = 20'000;
  if (rows.size() * columns.size() > most_cells)
    moxie::fail(moxie::Code::too_large, std::to_string(rows.size()) + " layers by " +
                                            std::to_string(columns.size()) +
                                            " projections are too many for a picture, wanted at most " +
                                            std::to_string(most_cells) + " cells");
  panel.title = all_of_modules(s, &ModuleSummary::method);
  if (const std::string base = printable(s.base_model); !base.empty())
    panel.title +=
        " of " + (base.size() > most_of_name ? "..." + base.substr(base.size() - most_of_name) : base);
  for (const std::string& column : columns) {
    const std::string last = column.substr(column.rfind('.') + 1);
    panel.columns.push_back(by_last[last].size() == 1 ? last : column);
  }
  double high = 0;
  std::map<std::string, std::size_t> group_of;
  for (const auto& [group, row] : rows)  // the rows of a group together
    if (group_of.try_emplace(group, map.rows.size()).second) map.rows.push_back({.name = group});
  for (auto& group : map.rows)
    for (const auto& row : rows) {
      if (row.first != group.name) continue;
      group.rows.push_back(row.second.empty() ? "-" : row.second);
      for (const std::string& column : columns) {
        const auto found = values.find({row, column});
        panel.values.push_back(found == values.end() ? std::numeric_limits<double>::quiet_NaN()
                                                     : found->second);
        if (found != values.end()) high = std::max(high, found->second);
      }
    }
  map.panels = {panel};
  map.panels_across = 1;
  map.low = 0;
  if (high == 0) map.high = 1;  // of an adapter that changes nothing yet
  map.decimals = high >= 100 ? 0 : high >= 10 ? 1 : high >= 1 ? 2 : 3;
  return svg(map);
}

struct Options {
  std::string path, svg;
  bool json = false, lenient = false;
  std::vector<Index> top_k;
};

void inspect(const Options& o) {
  const io::Path path = o.path;
  const bool json = o.json;
  std::error_code error;
  std::optional<io::AdapterFiles> files;
  if (std::filesystem::is_directory(path, error)) {
    files = adapter_tool::read(path, true, o.lenient);
  } else if (path.filename() == io::tensors_name && is_there(path.parent_path() / io::config_name)) {
    files = io::read_adapter(path.has_parent_path() ? path.parent_path() : ".", {.lenient = o.lenient});
  } else {
    // A file by itself; with the config beside it, an adapter.
    const bool bin = path.extension() == ".bin" || path.extension() == ".pt" || path.extension() == ".pth";
    files = io::AdapterFiles{bin ? io::read_torch_bin(path) : io::TensorFile::read(path),
                             {},
                             path.parent_path() / io::config_name};
    if (!is_there(files->config_path)) {
      list(files->tensors, json);
      moxie::fail(moxie::Code::nothing_matched, io::detail::shown(path.native()) + ": is no adapter: no " +
                                                    std::string(io::config_name) + " lies beside it; its " +
                                                    std::to_string(files->tensors.tensors().size()) +
                                                    " tensors are listed");
    }
    files->config = io::read_file(files->config_path, io::most_config_bytes);
  }
  Summary summary;
  try {
    summary = summarise(*files, path.native(), o.top_k, o.lenient);
  } catch (const moxie::Error&) {
    list(files->tensors, json);
    throw;
  }
  if (!o.svg.empty()) io::save_file(o.svg, picture(summary));
  if (json)
    std::printf("%s\n",
                to_json(summary).dump(2, ' ', true, nlohmann::json::error_handler_t::replace).c_str());
  else
    print(summary);
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app(
      "Shows what is in an adapter's folder, or in a tensor file with its adapter_config.json beside it.\n"
      "Of a file that is no adapter the tensors are listed, and the program ends with 2.");
  app.add_option("path", o.path, "folder, or .safetensors or .bin file")->required();
  app.add_flag("--json", o.json, "print JSON");
  app.add_option("--svg", o.svg,
                 "draw layers by projections: how far experts differ, or how much modules change");
  adapter_tool::add_top_k(app, o.top_k);
  adapter_tool::add_lenient(app, o.lenient);
  return adapter_tool::run(app, argc, argv, [&] { inspect(o); });
}
