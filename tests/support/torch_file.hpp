// SPDX-License-Identifier: MIT
// Files as torch.save writes them, byte by byte, and with any fault in them.
#pragma once

#include <moxie/io/checksum.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace moxie::test {

/// The lowest `bytes` bytes of n, the lowest first.
inline std::string little(std::uint64_t n, std::size_t bytes) {
  std::string text;
  for (std::size_t i = 0; i < bytes; ++i) text += static_cast<char>(n >> 8 * i & 255u);
  return text;
}

/// An entry of a zip archive. What is set beside name and data is written in place of the right value.
struct ZipRecord {
  std::string name, data;
  std::uint16_t flags = 0x808, method = 0;  // a data descriptor follows; names are UTF-8
  std::optional<std::uint32_t> crc{}, local_crc{}, descriptor_crc{}, time{};
  std::optional<std::uint64_t> size{}, compressed{}, offset{}, descriptor_size{};
  std::optional<std::string> local_name{}, local_extra{}, extra{};
  std::optional<std::uint16_t> local_flags{}, local_method{}, disk{};
  std::string before{}, comment{};
  bool wide = false;  // 64-bit numbers, as above 4 GiB
};

struct ZipFaults {
  std::string comment{}, before_directory{}, behind_directory{}, behind{};
  std::optional<std::uint64_t> count{}, directory_size{}, directory_at{}, wide_count{}, wide_at{};
  bool wide_end = true;  // torch always writes it
  std::uint32_t disks = 1;
};

inline std::string zip(const std::vector<ZipRecord>& records, const ZipFaults& faults = {}) {
  std::string file, directory;
  for (const ZipRecord& r : records) {
    file += r.before;
    const std::uint64_t at = file.size(), size = r.data.size();
    const std::uint32_t crc = io::crc32(r.data);
    const bool described = r.flags & 8u;
    const std::string& local_name = r.local_name ? *r.local_name : r.name;
    // Where a descriptor follows, torch does not yet know the stored size in front of the data.
    const auto block = [&](std::uint64_t compressed) {
      return "\1" + little(0, 1) + little(24, 2) + little(r.size.value_or(size), 8) + little(compressed, 8) +
             little(r.offset.value_or(at), 8);
    };
    std::string extra = r.wide ? block(described ? 0 : size) : "";
    // Padding, so that the data begin at a multiple of 64.
    const std::size_t end = file.size() + 30 + local_name.size() + extra.size() + 4,
                      padding = (64 - end % 64) % 64;
    extra += "FB" + little(padding, 2) + std::string(padding, 'Z');
    if (r.local_extra) extra = *r.local_extra;
    const std::uint32_t time = 0;
    file += "PK\3\4" + little(0, 2) + little(r.local_flags.value_or(r.flags), 2) +
            little(r.local_method.value_or(r.method), 2) + little(time, 4) +
            little(r.local_crc.value_or(described ? 0 : crc), 4) + little(described ? 0 : size, 4) +
            little(described ? 0 : size, 4) + little(local_name.size(), 2) + little(extra.size(), 2) +
            local_name + extra + r.data;
    const std::size_t width = r.wide ? 8 : 4;
    if (described)
      file += "PK\7\10" + little(r.descriptor_crc.value_or(crc), 4) + little(size, width) +
              little(r.descriptor_size.value_or(size), width);
    const std::string central = r.extra ? *r.extra : r.wide ? block(r.compressed.value_or(size)) : "";
    directory += "PK\1\2" + little(0, 4) + little(r.flags, 2) + little(r.method, 2) +
                 little(r.time.value_or(time), 4) + little(r.crc.value_or(crc), 4) +
                 little(r.wide ? 0xffffffffu : r.compressed.value_or(size), 4) +
                 little(r.wide ? 0xffffffffu : r.size.value_or(size), 4) + little(r.name.size(), 2) +
                 little(central.size(), 2) + little(r.comment.size(), 2) + little(r.disk.value_or(0), 2) +
                 little(0, 6) + little(r.wide ? 0xffffffffu : r.offset.value_or(at), 4) + r.name + central +
                 r.comment;
  }
  file += faults.before_directory;
  const std::uint64_t count = faults.count.value_or(records.size()),
                      at = faults.directory_at.value_or(file.size()),
                      size = faults.directory_size.value_or(directory.size());
  file += directory + faults.behind_directory;
  const std::uint64_t wide_at = faults.wide_at.value_or(file.size()),
                      wide_count = faults.wide_count.value_or(count);
  if (faults.wide_end)
    file += "PK\6\6" + little(44, 8) + little(0x031e, 2) + little(45, 2) + little(0, 8) +
            little(wide_count, 8) + little(wide_count, 8) + little(size, 8) + little(at, 8) + "PK\6\7" +
            little(0, 4) + little(wide_at, 8) + little(faults.disks, 4);
  return file + "PK\5\6" + little(faults.disks - 1, 2) + little(0, 2) + little(count, 2) + little(count, 2) +
         little(size, 4) + little(at, 4) + little(faults.comment.size(), 2) + faults.comment + faults.behind;
}

/// Opcodes of pickle. Nothing is put into the memo unless it is said.
namespace pickle {

inline const std::string proto = "\x80\x02", stop = ".", mark = "(", dict = "}", empty_tuple = ")",
                         tuple = "t", set_item = "s", set_items = "u", persistent = "Q", reduce = "R",
                         build = "b", no = "\x89", yes = "\x88";
inline std::string text(const std::string& s) { return "X" + little(s.size(), 4) + s; }
inline std::string integer(std::int64_t n) {
  if (n >= 0 && n < 256) return "K" + little(static_cast<std::uint64_t>(n), 1);
  if (n >= INT32_MIN && n <= INT32_MAX) return "J" + little(static_cast<std::uint64_t>(n), 4);
  return "\x8a\x08" + little(static_cast<std::uint64_t>(n), 8);
}
inline std::string global(const std::string& module, const std::string& name) {
  return "c" + module + "\n" + name + "\n";
}
inline std::string put(std::uint32_t n) { return n < 256 ? "q" + little(n, 1) : "r" + little(n, 4); }
inline std::string get(std::uint32_t n) { return n < 256 ? "h" + little(n, 1) : "j" + little(n, 4); }
inline std::string integers(const std::vector<std::int64_t>& numbers) {
  std::string all = mark;
  for (const std::int64_t n : numbers) all += integer(n);
  return all + tuple;
}
inline std::string ordered_dict() { return global("collections", "OrderedDict") + empty_tuple + reduce; }
/// A storage such as ("FloatStorage", "0", 6).
inline std::string storage(const std::string& type, const std::string& key, std::int64_t count) {
  return mark + text("storage") + global("torch", type) + text(key) + text("cpu") + integer(count) + tuple +
         persistent;
}
inline std::string tensor(const std::string& storage, std::int64_t offset,
                          const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& strides) {
  return global("torch._utils", "_rebuild_tensor_v2") + mark + storage + integer(offset) + integers(shape) +
         integers(strides) + no + ordered_dict() + tuple + reduce;
}
inline std::string parameter(const std::string& tensor) {
  return global("torch._utils", "_rebuild_parameter") + mark + tensor + yes + ordered_dict() + tuple + reduce;
}

}  // namespace pickle

/// The bytes of data/0, data/1 ... beside a pickle.
inline std::vector<ZipRecord> torch_records(const std::string& pickle,
                                            const std::vector<std::string>& storages) {
  std::vector<ZipRecord> records{{.name = "archive/data.pkl", .data = pickle}};
  for (std::size_t i = 0; i < storages.size(); ++i)
    records.push_back({.name = "archive/data/" + std::to_string(i), .data = storages[i]});
  records.push_back({.name = "archive/version", .data = "3\n"});
  return records;
}
inline std::string torch_file(const std::string& pickle, const std::vector<std::string>& storages) {
  return zip(torch_records(pickle, storages));
}

}  // namespace moxie::test
