// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/safetensors_header.hpp>
#include <moxie/io/zip.hpp>

#include <charconv>
#include <map>

namespace moxie::inline MOXIE_ABI::io::detail {

/// The entries of a torch file by what they are: its pickle, the storages, and a few settings. All lie in one
/// folder, named after the file or "archive", and there are no others.
class TorchArchive {
 public:
  struct Storage {
    std::string_view key;
    std::uint64_t begin = 0, end = 0;  ///< in the file
    Dtype dtype = Dtype::f32;
    bool used = false;
  };
  std::vector<Storage> storages;  ///< by key

  /// Everything checked, down to every byte's checksum. Throws what ZipArchive throws, NotTorchFile,
  /// UnknownField, MissingField, BadMetadata, VersionTooNew.
  TorchArchive(std::string_view bytes, const Path& path) : path_(path), zip_(bytes, path, most_tensors + 8) {
    sort_entries();
    zip_.check_entries();
    check_settings();
    for (const auto& [key, e] : keys_) storages.push_back({.key = key, .begin = e->begin, .end = e->end});
  }
  std::string_view pickle() const { return setting("data.pkl"); }
  Storage* find(std::string_view key) {
    const auto found = std::lower_bound(storages.begin(), storages.end(), key,
                                        [](const Storage& s, std::string_view k) { return s.key < k; });
    return found == storages.end() || found->key != key ? nullptr : &*found;
  }

 private:
  template <class... What>
  [[noreturn]] void refuse(Code code, const What&... what) const {
    detail::refuse(code, path_, what...);
  }

  void sort_entries() {
    std::string_view folder;  // with its slash
    if (!zip_.entries().empty())
      folder = zip_.entries()[0].name.substr(0, zip_.entries()[0].name.find('/') + 1);
    for (const ZipEntry& e : zip_.entries()) {
      if (folder.size() < 2 || e.name.substr(0, folder.size()) != folder)
        refuse(Code::bad_name, "entry ", shown(e.name), ", wanted all in one folder");
      const std::string_view what = e.name.substr(folder.size());
      if (what.substr(0, 5) == "code/" || what == "constants.pkl")
        refuse(Code::not_torch_file,
               "is a TorchScript archive, a program with its weights, wanted weights alone");
      constexpr std::string_view known[] = {"data.pkl",           "version",
                                            "byteorder",          ".format_version",
                                            ".storage_alignment", ".data/serialization_id"};
      if (std::find(std::begin(known), std::end(known), what) != std::end(known))
        settings_[what] = &e;
      else if (what.substr(0, 5) == "data/" && what.size() > 5)
        keys_[what.substr(5)] = &e;
      else
        refuse(Code::unknown_field, "entry ", shown(e.name), ", which torch.save does not write");
    }
  }
  std::string_view setting(std::string_view what) const {
    const auto found = settings_.find(what);
    if (found == settings_.end())
      refuse(Code::missing_field, "no entry ", what, " in the archive, which torch.save writes");
    return zip_.data(*found->second);
  }
  void check_settings() const {
    check_version("version", 10);
    if (settings_.contains(".format_version")) check_version(".format_version", 1);
    if (settings_.contains("byteorder") && setting("byteorder") != "little")
      refuse(Code::unsupported_archive, "byteorder is ", shown(setting("byteorder")), ", wanted 'little'");
  }
  void check_version(std::string_view what, int most) const {
    std::string_view text = setting(what);
    const std::string_view all = text;
    if (!text.empty() && text.back() == '\n') text.remove_suffix(1);
    int version = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), version);
    if (text.empty() || end != text.data() + text.size() || error != std::errc() || version < 1)
      refuse(Code::bad_metadata, what, " is ", shown(all), ", wanted a number from 1 on");
    if (version > most)
      refuse(Code::version_too_new, what, " is ", text, ", this library reads up to ", most);
  }

  const Path& path_;
  ZipArchive zip_;
  std::map<std::string_view, const ZipEntry*> settings_, keys_;
};

}  // namespace moxie::inline MOXIE_ABI::io::detail
