// SPDX-License-Identifier: MIT
// torch_bin.seeds FOLDER: whole files that the fuzzer's mutator does not make by itself: every type of
// number, what versions of torch add, and files of other kinds.
#include "support/torch_file.hpp"

#include <moxie/io/torch_bin.hpp>

int main(int argc, char** argv) {
  using namespace moxie::test;
  if (argc != 2) return 2;
  constexpr std::pair<const char*, std::size_t> types[] = {
      {"DoubleStorage", 8}, {"FloatStorage", 4}, {"HalfStorage", 2},  {"BFloat16Storage", 2},
      {"LongStorage", 8},   {"IntStorage", 4},   {"ShortStorage", 2}, {"CharStorage", 1},
      {"ByteStorage", 1},   {"BoolStorage", 1}};
  std::string all = pickle::proto + pickle::dict + pickle::mark;
  std::vector<std::string> storages;
  for (const auto& [type, size] : types) {
    const std::string key = std::to_string(storages.size());
    all += pickle::text(key) + pickle::tensor(pickle::storage(type, key, 1), 0, {1}, {1});
    storages.emplace_back(size, '\1');
  }
  all += pickle::set_items + pickle::stop;

  std::vector<ZipRecord> records = torch_records(all, storages);
  std::vector<std::string> files{zip(records), zip(records, {.wide_end = false})};
  for (ZipRecord& r : records) r.wide = true;
  files.push_back(zip(records));
  for (ZipRecord& r : records) r.flags = 0;
  files.push_back(zip(records));

  records = torch_records(pickle::proto + pickle::dict + pickle::stop, {});
  for (const auto& [name, data] :
       {std::pair{"byteorder", "little"}, std::pair{".format_version", "1"},
        std::pair{".storage_alignment", "64"}, std::pair{".data/serialization_id", "0123456789"}})
    records.push_back({.name = std::string("archive/") + name, .data = data});
  for (const char* version : {"3\n", "", "x", "0", "11"}) {
    records[1].data = version;
    files.push_back(zip(records));
  }
  for (const char* name : {"archive/constants.pkl", "archive/code/a.py", "archive/what", "elsewhere/what"}) {
    records.back().name = name;
    files.push_back(zip(records));
  }
  files.push_back(std::string(257, '\0') + "ustar" + std::string(300, '\0'));
  files.push_back("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.");
  for (std::size_t i = 0; i < files.size(); ++i)
    moxie::io::save_file(moxie::io::Path(argv[1]) / std::to_string(i), '\0' + files[i]);
}
