// SPDX-License-Identifier: MIT
// What the programs for adapters' files have in common: how they end, and how they read a folder.
#pragma once

#include <moxie/io/adapter_load.hpp>
#include <moxie/io/torch_adapter.hpp>

#include <CLI/CLI.hpp>

#include <cstdio>

namespace adapter_tool {

using moxie::Index;
namespace io = moxie::io;

/// One line on stderr, whatever the text holds.
inline int refuse(const std::string& text) {
  std::string line;
  for (const char c : text) line += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
  std::fprintf(stderr, "error: %s\n", line.c_str());
  return 2;
}

/// Reads the command line and runs the program. 0; or 2 after a line "error: Code: message", where Code is
/// moxie's, or Usage for a command line that is none.
template <class F>
int run(CLI::App& app, int argc, const char* const* argv, F&& body) {
  try {
    app.parse(argc, argv);
    body();
    if (std::fflush(stdout) != 0) moxie::fail(moxie::Code::io_write, "standard output cannot be written");
    return 0;
  } catch (const CLI::Success& asked) {  // --help
    return app.exit(asked);
  } catch (const CLI::ParseError& error) {
    return refuse(std::string("Usage: ") + error.what());
  } catch (const moxie::Error& error) {
    return refuse(error.what());
  } catch (const std::bad_alloc&) {
    return refuse("TooLarge: not enough memory");
  } catch (const std::length_error&) {
    return refuse("TooLarge: more than memory can hold");
  } catch (const std::exception& error) {  // of std::filesystem
    return refuse(std::string("IoOpen: ") + error.what());
  }
}

using io::detail::is_there;

/// The files of a folder; adapter_model.bin where that is allowed and there is no adapter_model.safetensors.
inline io::AdapterFiles read(const io::Path& dir, bool torch_bin, bool lenient) {
  const bool bin = torch_bin && !is_there(dir / io::tensors_name) && is_there(dir / io::torch_tensors_name);
  return bin ? io::read_torch_adapter(dir) : io::read_adapter(dir, {.lenient = lenient});
}

/// --lenient, and what it let pass as warnings on stderr.
inline void add_lenient(CLI::App& app, bool& lenient) {
  app.add_flag("--lenient", lenient,
               "leave modules out that are not whole, with a warning for each fault, in place of an error");
}
inline void warn(const io::Report& report) {
  for (const auto* faults : {&report.mismatched, &report.missing, &report.unexpected})
    for (const io::Report::Fault& fault : *faults)
      std::fprintf(stderr, "warning: %s: %s %s\n", std::string(moxie::name(fault.code)).c_str(),
                   io::detail::shown(fault.name).c_str(), fault.what.c_str());
}
/// What a load notes of the config, where a new one was made of it.
inline void tell(const io::Report& report, const io::TensorFile& tensors) {
  for (const io::Report::Remark& note : report.notes)
    if (tensors.find(note.name) == nullptr)
      std::fprintf(stderr, "note: %s %s\n", io::detail::shown(note.name).c_str(), note.what.c_str());
}

/// --top-k, for formats whose files do not say it.
inline void add_top_k(CLI::App& app, std::vector<Index>& top_k) {
  app.add_option("--top-k", top_k,
                 "chosen experts per token, one number or one a layer, where the format does not record it "
                 "(MoLA's; 2 otherwise)")
      ->delimiter(',')
      ->check(CLI::Range(Index{1}, Index{1} << 20));
}

/// Refuses a --top-k that the adapter has no use for, or that its own files contradict.
template <moxie::Scalar S>
void expect_top_k(const io::Loaded<S>& loaded, const std::vector<Index>& top_k) {
  if (top_k.empty()) return;
  nlohmann::json recorded = nlohmann::json::object();
  if (const auto found = loaded.info.config.find("top_k");
      found != loaded.info.config.end() && !found->is_null())
    recorded["top_k"] = *found;
  for (const auto& entry : loaded.set.entries()) {
    const bool chooses = std::visit(
        [](const auto& a) {
          return std::same_as<std::remove_cvref_t<decltype(a.router())>, moxie::TopKRouter<S>>;
        },
        entry.adapter);
    if (chooses && (!recorded.contains("top_k") || recorded["top_k"] == nlohmann::json(top_k) ||
                    (top_k.size() == 1 && recorded["top_k"] == top_k.front())))
      return;
  }
  moxie::fail(moxie::Code::config_mismatch,
              recorded.contains("top_k")
                  ? "--top-k is not the adapter's own top_k, " + recorded["top_k"].dump()
                  : std::string("--top-k is given, but no router of this adapter chooses among its experts"));
}

}  // namespace adapter_tool
