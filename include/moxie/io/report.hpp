// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/file.hpp>

namespace moxie::inline MOXIE_ABI::io {

/// What a load found, tensor by tensor; every line names a tensor, a module or a key of the config.
struct Report {
  struct Fault {
    Code code;
    std::string name, what;  ///< what was got, what was wanted
  };
  struct Remark {
    std::string name, what;
  };
  std::vector<std::string> matched;  ///< tensors whose numbers were taken
  std::vector<Fault> missing;        ///< wanted and not there
  std::vector<Fault> unexpected;     ///< there and not wanted
  std::vector<Fault> mismatched;     ///< there in another shape, rank, scale or kind than wanted
  std::vector<Remark> converted;     ///< stored in another type, or under an older name
  std::vector<Remark> notes;  ///< no faults: kept tensors, targets of other bases, null keys, a scale of 0

  std::size_t faults() const { return missing.size() + unexpected.size() + mismatched.size(); }
  bool clean() const { return faults() == 0; }

  /// A line each; `what` is texts and numbers.
  template <class... What>
  void miss(const std::string& name, const What&... what) {
    missing.push_back({Code::missing_tensor, name, detail::join(what...)});
  }
  template <class... What>
  void unexpect(Code code, const std::string& name, const What&... what) {
    unexpected.push_back({code, name, detail::join(what...)});
  }
  template <class... What>
  void mismatch(Code code, const std::string& name, const What&... what) {
    mismatched.push_back({code, name, detail::join(what...)});
  }
  template <class... What>
  void convert(const std::string& name, const What&... what) {
    converted.push_back({name, detail::join(what...)});
  }
  template <class... What>
  void note(const std::string& name, const What&... what) {
    notes.push_back({name, detail::join(what...)});
  }
  void append(const Report& other) {
    const auto add = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
    add(matched, other.matched);
    add(missing, other.missing);
    add(unexpected, other.unexpected);
    add(mismatched, other.mismatched);
    add(converted, other.converted);
    add(notes, other.notes);
  }
};

struct LoadOptions {
  /// Faults are reported, and the modules that have them left out (load) or as they are (load_into). Still
  /// refused: what is no adapter, options that are not built, NaN, and a load that would take nothing.
  bool lenient = false;
  bool narrow = false;            ///< allows F64 to be rounded to float
  bool allow_non_finite = false;  ///< takes NaN and infinities, which are noted: to look at, not to use
  /// Chosen experts per token where the file does not say: one number, or one per layer. Empty: MoLA's 2.
  std::vector<Index> top_k = {};
};

namespace detail {

/// Refuses a report with faults: all of the first fault's kind, up to 20 of them by name.
inline void expect_clean(const Report& report, const Path& tensors_path, const Path& config_path) {
  for (const std::vector<Report::Fault>* const faults :
       {&report.mismatched, &report.missing, &report.unexpected}) {
    if (faults->empty()) continue;
    constexpr std::size_t most = 20;
    const Code code = faults->front().code;
    std::string text;
    std::size_t listed = 0, all = 0;
    for (const Report::Fault& fault : *faults) {
      if (fault.code != code || ++all > most) continue;
      if (listed++ > 0) text += "; ";
      text.append(shown(fault.name)).append(" ").append(fault.what);
    }
    if (all > listed) text += join("; and ", all - listed, " more");
    const bool of_config = code == Code::unknown_config_key || code == Code::pattern_unused;
    refuse(code, of_config ? config_path : tensors_path, text + " (a lenient load reports it and goes on)");
  }
}

}  // namespace detail
}  // namespace moxie::inline MOXIE_ABI::io
