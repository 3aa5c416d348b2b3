// SPDX-License-Identifier: MIT
// The reader of torch files against files with one fault each. tests/torch/bin_files.py has files of torch
// itself.
#include "support/catch.hpp"

#include "support/refusal.hpp"
#include "support/torch_file.hpp"

#include <moxie/io/safetensors_writer.hpp>
#include <moxie/io/torch_bin.hpp>

#include <fstream>

using namespace moxie;
using namespace moxie::io;
using namespace moxie::test;
using namespace moxie::test::pickle;

namespace {

/// The code that a file is refused with; nothing where it is accepted.
std::optional<Code> refused(const std::string& bytes) {
  try {
    parse_torch_bin(bytes, "test.bin");
  } catch (const Error& error) {
    INFO(error.what());
    CHECK(test::is_a_line(error.what()));
    return error.code();
  }
  return std::nullopt;
}

struct Line {
  std::string what, bytes;
  Code code;
};
void expect_refused(const std::vector<Line>& lines) {
  for (const Line& line : lines) {
    INFO(line.what);
    const std::optional<Code> code = refused(line.bytes);
    CHECK((code ? name(*code) : "accepted") == name(line.code));
  }
}

std::string floats(const std::vector<float>& numbers) {
  std::string bytes;
  for (const float x : numbers) bytes += little(std::bit_cast<std::uint32_t>(x), 4);
  return bytes;
}
const std::string six = floats({0, 1, 2, 3, 4, 5});
const std::string six_floats = storage("FloatStorage", "0", 6);
/// A dictionary of one tensor "t", and the file of it.
std::string one(const std::string& value) { return proto + dict + text("t") + value + set_item + stop; }
std::string file(const std::string& pickle) { return torch_file(pickle, {six}); }
const std::string good = one(tensor(six_floats, 0, {2, 3}, {3, 1}));

/// Tensors and parameters, of two storages, one of which two tensors share.
std::string example() {
  const std::string halves = little(0x3c00, 2) + little(0xc000, 2) + little(0x0001, 2);
  const std::string pickle = proto + ordered_dict() + put(0) + mark + text("a.weight") +
                             tensor(six_floats, 0, {2, 3}, {3, 1}) + text("a.transposed") +
                             tensor(six_floats, 1, {2, 2}, {1, 3}) + text("b") +
                             parameter(tensor(storage("HalfStorage", "1", 3), 0, {3}, {1})) + set_items +
                             dict + text("_metadata") + ordered_dict() + text("") + dict + text("version") +
                             integer(1) + set_item + set_item + set_item + build + stop;
  return torch_file(pickle, {six, halves});
}
std::vector<double> numbers(const TensorFile& file, const std::string& tensor) {
  const TensorInfo* const t = file.find(tensor);
  REQUIRE(t != nullptr);
  std::vector<double> values(file.bytes(*t).size() / (facts(t->dtype).bits / 8));
  file.load<double>(*t, values);
  return values;
}
using Numbers = std::vector<double>;

/// The 64-bit numbers of the second record, but for the first byte of their name.
std::string wide_block(std::uint64_t length, std::uint64_t size, const std::vector<ZipRecord>& records) {
  const std::string front = zip({records[0]}, {.wide_end = false});
  const std::uint64_t at = front.find("PK\1\2");
  return little(0, 1) + little(length, 2) + little(size, 8) + little(24, 8) + little(at, 8);
}

}  // namespace

TEST_CASE("a state_dict's tensors are read by name, views as what they show", "[io]") {
  const TensorFile file = parse_torch_bin(example());
  REQUIRE(file.tensors().size() == 3);
  CHECK(file.tensors()[0].name == "a.weight");
  CHECK(file.tensors()[1].shape == std::vector<Index>{2, 2});
  CHECK(file.tensors()[2].dtype == Dtype::f16);
  CHECK(numbers(file, "a.weight") == Numbers{0, 1, 2, 3, 4, 5});
  CHECK(numbers(file, "a.transposed") == Numbers{1, 4, 2, 5});
  CHECK(numbers(file, "b") == Numbers{1, -2, 0x1p-24});
}

TEST_CASE("every view inside its storage is read, whatever its strides", "[io]") {
  const auto read = [](std::int64_t offset, const std::vector<std::int64_t>& shape,
                       const std::vector<std::int64_t>& strides) {
    return numbers(parse_torch_bin(file(one(tensor(six_floats, offset, shape, strides)))), "t");
  };
  CHECK(read(0, {3, 2}, {1, 3}) == Numbers{0, 3, 1, 4, 2, 5});
  CHECK(read(1, {2}, {4}) == Numbers{1, 5});
  CHECK(read(5, {}, {}) == Numbers{5});
  CHECK(read(0, {2, 2}, {1, 1}) == Numbers{0, 1, 1, 2});
  CHECK(read(2, {2, 2}, {0, 1}) == Numbers{2, 3, 2, 3});
  CHECK(read(0, {2, 1, 3}, {3, INT64_MAX, 1}) == Numbers{0, 1, 2, 3, 4, 5});
  CHECK(read(0, {1, 3, 1, 2}, {INT64_MAX, 1, INT64_MAX, 3}) == Numbers{0, 3, 1, 4, 2, 5});
  CHECK(read(6, {0, 7}, {7, 1}).empty());
  CHECK(read(0, {2, 1, 1, 1, 1, 1, 1, 3}, {3, 9, 9, 9, 9, 9, 9, 1}) == Numbers{0, 1, 2, 3, 4, 5});
}

TEST_CASE("every type of number is listed, and the four of weights are loaded", "[io]") {
  const std::pair<const char*, Dtype> types[] = {
      {"FloatStorage", Dtype::f32},   {"HalfStorage", Dtype::f16}, {"BFloat16Storage", Dtype::bf16},
      {"DoubleStorage", Dtype::f64},  {"LongStorage", Dtype::i64}, {"IntStorage", Dtype::i32},
      {"ShortStorage", Dtype::i16},   {"CharStorage", Dtype::i8},  {"ByteStorage", Dtype::u8},
      {"BoolStorage", Dtype::boolean}};
  for (const auto& [type, dtype] : types) {
    INFO(type);
    const std::string bytes(facts(dtype).bits / 4, '\1');  // two numbers
    const TensorFile read =
        parse_torch_bin(torch_file(one(tensor(storage(type, "0", 2), 0, {2}, {1})), {bytes}));
    CHECK(read.tensors()[0].dtype == dtype);
    CHECK(read.bytes(read.tensors()[0]) == bytes);
    std::vector<double> values(2);
    if (is_weight(dtype))
      read.load<double>(read.tensors()[0], values);
    else
      test::refused([&] { read.load<double>(read.tensors()[0], values); }, Code::unsupported_dtype,
                    {name(dtype).data()});
  }
}

TEST_CASE("archives are accepted with and without what versions of torch add", "[io]") {
  std::vector<ZipRecord> records = torch_records(good, {six});
  const auto same = [](const std::string& bytes) {
    return numbers(parse_torch_bin(bytes), "t") == Numbers{0, 1, 2, 3, 4, 5};
  };
  CHECK(same(zip(records)));
  CHECK(same(zip(records, {.wide_end = false})));
  for (ZipRecord& r : records) r.wide = true;
  CHECK(same(zip(records)));
  for (ZipRecord& r : records) r.flags = 0;
  CHECK(same(zip(records)));
  for (ZipRecord& r : records) r.wide = false;
  CHECK(same(zip(records)));
  for (ZipRecord& r : records) r.local_extra = "";
  CHECK(same(zip(records)));
  records.push_back({.name = "archive/byteorder", .data = "little"});
  records.push_back({.name = "archive/.format_version", .data = "1"});
  records.push_back({.name = "archive/.storage_alignment", .data = "64"});
  records.push_back({.name = "archive/.data/serialization_id", .data = std::string(40, '7')});
  CHECK(same(zip(records)));
  for (ZipRecord& r : records) r.name = "adapter model \xc3\xa9" + r.name.substr(7);
  CHECK(same(zip(records)));
  CHECK(parse_torch_bin(torch_file(proto + dict + stop, {})).tensors().empty());
  // An empty storage, whose entry torch writes without a descriptor.
  records = torch_records(one(tensor(storage("FloatStorage", "0", 0), 0, {0, 4}, {4, 1})), {""});
  CHECK_FALSE(refused(zip(records)).has_value());
  records[1].flags = 0x800;
  CHECK_FALSE(refused(zip(records)).has_value());
}

TEST_CASE("files of other kinds are refused by name", "[io]") {
  const std::string old = "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
  std::string tar(600, '\0');
  tar.replace(257, 5, "ustar");
  TensorWriter writer;
  std::vector<ZipRecord> script = torch_records(good, {six});
  script.push_back({.name = "archive/code/__torch__.py", .data = "x", .method = 8});
  const std::pair<std::string, const char*> kinds[] = {
      {old, "old format"},
      {tar, "tar"},
      {writer.bytes(), "safetensors"},
      {zip(script), "TorchScript"},
      {zip({{.name = "archive/constants.pkl", .data = "x"}}), "TorchScript"},
      {"GGUF and more", "GGUF"},
      {"", "no zip"},
      {"PK", "no zip"},
      {zip({}), "no zip"},
      {"\x1f\x8b and", "gzip"},
      {"<html>", "HTML"},
      {"\x80\x04 and", "pickle"}};
  for (const auto& [bytes, kind] : kinds)
    test::refused([&, &b = bytes] { parse_torch_bin(b, "x.bin"); }, Code::not_torch_file, {"x.bin", kind});
}

TEST_CASE("a faulty archive is refused by its code", "[io]") {
  const auto with = [](auto&& change, const ZipFaults& faults = {}) {
    std::vector<ZipRecord> records = torch_records(good, {six});
    change(records);
    return zip(records, faults);
  };
  using R = std::vector<ZipRecord>;
  const auto plain = [](R&) {};
  const std::string padding = std::string("FB") + little(2, 2) + "ZZ";
  const std::uint64_t size = zip(torch_records(good, {six})).size();
  expect_refused(
      {{"a comment", with(plain, {.comment = "hello"}), Code::unsupported_archive},
       {"a comment cut off", with(plain, {.comment = "hello"}).substr(0, size + 2),
        Code::unsupported_archive},
       {"bytes behind", with(plain, {.behind = "x"}), Code::trailing_data},
       {"another archive behind", with(plain) + with(plain), Code::bad_archive},
       {"a comment's length without it", with(plain).replace(size - 2, 2, "\5"), Code::file_truncated},
       {"bytes in front", with([](R& r) { r[0].before = "PK\3\4"; }), Code::offset_hole},
       {"bytes between", with([](R& r) { r[1].before = "x"; }), Code::offset_hole},
       {"bytes before the directory", with(plain, {.before_directory = "x"}), Code::offset_hole},
       {"bytes behind the directory", with(plain, {.behind_directory = "x"}), Code::bad_archive},
       {"overlapping entries", with([](R& r) { r[1].offset = 0; }), Code::offset_overlap},
       {"one entry inside another", with([](R& r) { r[1].offset = 70; }), Code::offset_overlap},
       {"an entry beyond the file", with([](R& r) { r[1].offset = 1u << 30; }), Code::offset_hole},
       {"two entries of one name", with([](R& r) { r[1].name = r[0].name; }), Code::duplicate_key},
       {"an entry without a name", with([](R& r) { r[1].name = ""; }), Code::empty_name},
       {"a NUL in a name", with([](R& r) { r[1].name += '\0'; }), Code::bad_name},
       {"a backslash in a name", with([](R& r) { r[1].name += '\\'; }), Code::bad_name},
       {"a name of 5000 bytes", with([](R& r) { r[1].name += std::string(5000, 'n'); }), Code::name_too_long},
       {"another name in front of the data", with([](R& r) { r[1].local_name = "archive/data/1"; }),
        Code::bad_archive},
       {"other flags in front of the data", with([](R& r) { r[1].local_flags = 0x800; }), Code::bad_archive},
       {"another method in front of the data", with([](R& r) { r[1].local_method = 8; }), Code::bad_archive},
       {"another checksum in front of the data", with([](R& r) { r[1].local_crc = 7; }), Code::bad_archive},
       {"another checksum behind the data", with([](R& r) { r[1].descriptor_crc = 7; }), Code::bad_archive},
       {"another size behind the data", with([](R& r) { r[1].descriptor_size = 7; }), Code::bad_archive},
       {"another time", with([](R& r) { r[1].time = 7; }), Code::bad_archive},
       {"a wrong checksum", with([](R& r) { r[1].crc = r[1].descriptor_crc = 7; }), Code::checksum_mismatch},
       {"encrypted", with([](R& r) { r[1].flags |= 1; }), Code::unsupported_archive},
       {"patched", with([](R& r) { r[1].flags |= 1u << 5; }), Code::unsupported_archive},
       {"compressed", with([](R& r) { r[1].method = 8; }), Code::unsupported_archive},
       {"a bomb: 4 GB of 24 bytes", with([](R& r) {
          r[1].method = 8;
          r[1].size = 4'000'000'000;
        }),
        Code::unsupported_archive},
       {"stored in fewer bytes", with([](R& r) { r[1].compressed = 7; }), Code::bad_archive},
       {"larger than the file", with([](R& r) { r[1].size = r[1].compressed = 4'000'000'000; }),
        Code::offset_overlap},
       {"2^64 - 1 bytes", with([](R& r) {
          r[1].wide = true;
          r[1].size = r[1].compressed = ~0ull;
        }),
        Code::offset_overlap},
       {"an entry's comment", with([](R& r) { r[1].comment = "hello"; }), Code::unsupported_archive},
       {"an unknown extra field", with([](R& r) { r[1].extra = "UT" + little(1, 2) + "x"; }),
        Code::bad_archive},
       {"64-bit numbers that are not needed",
        with([](R& r) { r[1].extra = "\1" + little(0, 1) + little(8, 2) + little(24, 8); }),
        Code::bad_archive},
       {"64-bit numbers by another name", with([](R& r) {
          r[1].wide = true;
          r[1].extra = "\2" + wide_block(24, 24, r);
        }),
        Code::bad_archive},
       {"64-bit numbers of another length", with([](R& r) {
          r[1].wide = true;
          r[1].extra = "\1" + wide_block(23, 24, r);
        }),
        Code::bad_archive},
       {"64-bit numbers twice", with([](R& r) {
          r[1].wide = true;
          r[1].local_extra = "\1" + wide_block(24, 24, r) + "\1" + wide_block(24, 24, r);
        }),
        Code::bad_archive},
       {"a size of 64 bits that differs", with([](R& r) {
          r[1].wide = true;
          r[1].local_extra = "\1" + wide_block(24, 7, r);
        }),
        Code::bad_archive},
       {"a data descriptor that nobody announced", with([](R& r) {
          r[1].flags = 0x800;
          r[2].before = "PK\7\10" + little(crc32(six), 4) + little(24, 4) + little(24, 4);
        }),
        Code::offset_hole},
       {"no entries, but bytes in front", "PK\3\4" + zip({}), Code::bad_archive},
       {"no entries, but bytes before the directory", zip({}, {.before_directory = "PK\3\4"}),
        Code::offset_hole},
       {"storage without a key", with([](R& r) { r[1].name = "archive/data/"; }), Code::unknown_field},
       {"64-bit numbers cut off", with([](R& r) {
          r[1].wide = true;
          r[1].extra = "\1" + little(0, 1) + little(8, 2) + little(24, 8);
        }),
        Code::bad_archive},
       {"other 64-bit numbers in front of the data", with([](R& r) {
          r[1].wide = true;
          r[1].local_extra =
              "\1" + little(0, 1) + little(24, 2) + little(24, 8) + little(7, 8) + little(0, 8);
        }),
        Code::bad_archive},
       {"an unknown extra field in front of the data",
        with([](R& r) { r[1].local_extra = "UT" + little(1, 2) + "x"; }), Code::bad_archive},
       {"padding cut off", with([&](R& r) { r[1].local_extra = padding.substr(0, 5); }), Code::bad_archive},
       {"padding of three bytes", with([&](R& r) { r[1].local_extra = padding + "FB\1"; }),
        Code::bad_archive},
       {"on another disk", with([](R& r) { r[1].disk = 1; }), Code::unsupported_archive},
       {"of two disks", with(plain, {.disks = 2}), Code::unsupported_archive},
       {"one entry fewer than there are", with(plain, {.count = 2}), Code::bad_archive},
       {"one entry more than there are", with(plain, {.count = 4}), Code::bad_archive},
       {"65,535 entries", with(plain, {.count = 65535, .wide_end = false}), Code::bad_archive},
       {"2^64 - 1 entries", with(plain, {.count = 65535, .wide_count = ~0ull}), Code::too_large},
       {"two ends that differ", with(plain, {.wide_count = 4}), Code::bad_archive},
       {"a 64-bit end elsewhere", with(plain, {.wide_at = 0}), Code::bad_archive},
       {"a directory elsewhere", with(plain, {.directory_at = 0}), Code::bad_archive},
       {"a directory beyond the file", with(plain, {.directory_at = 1u << 30}), Code::bad_archive},
       {"a directory of another size", with(plain, {.directory_size = 7}), Code::bad_archive},
       {"no folder", with([](R& r) {
          for (ZipRecord& e : r) e.name = e.name.substr(8);
        }),
        Code::bad_name},
       {"a folder without a name", with([](R& r) {
          for (ZipRecord& e : r) e.name = e.name.substr(7);
        }),
        Code::bad_name},
       {"two folders", with([](R& r) { r[1].name = "archiv/data/0"; }), Code::bad_name},
       {"another entry", with([](R& r) { r.push_back({.name = "archive/run.py", .data = "x"}); }),
        Code::unknown_field},
       {"a folder's entry", with([](R& r) { r.push_back({.name = "archive/", .data = ""}); }),
        Code::unknown_field},
       {"no version", with([](R& r) { r.pop_back(); }), Code::missing_field},
       {"no pickle", with([](R& r) { r.erase(r.begin()); }), Code::missing_field},
       {"no storage", with([](R& r) { r.erase(r.begin() + 1); }), Code::missing_field},
       {"a storage that nobody uses",
        with([](R& r) { r.push_back({.name = "archive/data/1", .data = "x"}); }), Code::unknown_field},
       {"version 11", with([](R& r) { r.back().data = "11\n"; }), Code::version_too_new},
       {"version 0", with([](R& r) { r.back().data = "0\n"; }), Code::bad_metadata},
       {"no version's number", with([](R& r) { r.back().data = "three"; }), Code::bad_metadata},
       {"format version 2", with([](R& r) { r.push_back({.name = "archive/.format_version", .data = "2"}); }),
        Code::version_too_new},
       {"big-endian", with([](R& r) { r.push_back({.name = "archive/byteorder", .data = "big"}); }),
        Code::unsupported_archive},
       {"a storage of other size", with([](R& r) { r[1].data += "xxxx"; }), Code::size_mismatch},
       {"a storage of no whole number", with([](R& r) { r[1].data += "x"; }), Code::size_mismatch}});
}

TEST_CASE("a pickle that asks for anything but tensors is refused, and nothing of it is run", "[io]") {
  const std::string t = tensor(six_floats, 0, {2, 3}, {3, 1});
  const std::string system = global("os", "system") + mark + text("touch pickle_was_run") + tuple + reduce;
  std::vector<Line> lines{
      {"os.system", file(one(system)), Code::unsupported_pickle},
      {"os.system that is only named", file(one(global("os", "system"))), Code::unsupported_pickle},
      {"a module of ours with another name", file(one(global("torch", "load"))), Code::unsupported_pickle},
      {"one name in two parts", file(one(global("torch._utils._rebuild_tensor_v2", ""))),
       Code::unsupported_pickle},
      {"a name split elsewhere", file(one(global("torch", "_utils._rebuild_tensor_v2"))),
       Code::unsupported_pickle},
      {"a name in a name", file(one(global("collections", "OrderedDict.fromkeys"))),
       Code::unsupported_pickle},
      {"a sparse tensor", file(one(global("torch._utils", "_rebuild_sparse_tensor"))),
       Code::unsupported_pickle},
      {"a quantised tensor", file(one(global("torch._utils", "_rebuild_qtensor"))), Code::unsupported_pickle},
      {"a storage that is called", file(one(global("torch", "FloatStorage") + empty_tuple + reduce)),
       Code::unsupported_pickle},
      {"OrderedDict with arguments", file(one(global("collections", "OrderedDict") + dict + "\x85" + reduce)),
       Code::unsupported_pickle},
      {"a call of a text", file(one(text("os.system") + empty_tuple + reduce)), Code::bad_pickle},
      {"a call of a dictionary", file(one(dict + empty_tuple + reduce)), Code::bad_pickle},
      {"a call with a text", file(one(global("collections", "OrderedDict") + text("x") + reduce)),
       Code::bad_pickle},
      {"attributes of a dictionary",
       file(proto + dict + dict + text("_metadata") + dict + set_item + build + stop),
       Code::unsupported_pickle},
      {"attributes of a number",
       file(proto + ordered_dict() + dict + integer(1) + dict + set_item + build + stop),
       Code::unsupported_pickle},
      {"metadata that is a number",
       file(proto + ordered_dict() + dict + text("_metadata") + integer(1) + set_item + build + stop),
       Code::unsupported_pickle},
      {"other attributes",
       file(proto + ordered_dict() + dict + text("__class__") + dict + set_item + build + stop),
       Code::unsupported_pickle},
      {"two attributes",
       file(proto + ordered_dict() + dict + mark + text("_metadata") + dict + text("x") + dict + set_items +
            build + stop),
       Code::unsupported_pickle},
      {"attributes that are none", file(proto + ordered_dict() + text("_metadata") + build + stop),
       Code::bad_pickle},
      {"attributes of a tensor", file(one(t + dict + text("_metadata") + dict + set_item + build)),
       Code::unsupported_pickle},
      {"a conjugated tensor",
       file(one(global("torch._utils", "_rebuild_tensor_v2") + mark + six_floats + integer(0) +
                integers({6}) + integers({1}) + no + ordered_dict() + dict + tuple + reduce)),
       Code::unsupported_pickle},
      {"protocol 4", file("\x80\x04" + dict + stop), Code::unsupported_pickle},
      {"protocol 0", file("(dp0\n."), Code::unsupported_pickle},
      {"a number of protocol 0", file(one("I1\n")), Code::unsupported_pickle}};
  // Every opcode that is not on the list, among them those that make objects, import and call.
  const std::string allowed = "(KMJ\x8a\x88\x89Xc)\x85\x86\x87t}suqrhjQRb.";
  int others = 0;
  for (int op = 0; op < 256; ++op)
    if (allowed.find(static_cast<char>(op)) == std::string::npos) {
      ++others;
      lines.push_back({"opcode " + std::to_string(op),
                       file(one(std::string(1, static_cast<char>(op)) + "os\nsystem\n")),
                       Code::unsupported_pickle});
    }
  CHECK(others == 256 - 25);
  expect_refused(lines);
  CHECK_FALSE(std::filesystem::exists("pickle_was_run"));
}

TEST_CASE("a faulty pickle is refused by its code", "[io]") {
  const std::string t = tensor(six_floats, 0, {2, 3}, {3, 1});
  const auto rebuilt = [](const std::string& arguments) {
    return file(one(global("torch._utils", "_rebuild_tensor_v2") + mark + arguments + tuple + reduce));
  };
  const auto stored = [](const std::string& id) { return file(one(id + persistent)); };
  const std::string float_class = global("torch", "FloatStorage"), f = "FloatStorage";
  const auto parameter_of = [](const std::string& arguments) {
    return file(one(global("torch._utils", "_rebuild_parameter") + mark + arguments + tuple + reduce));
  };
  std::string deep, memos = dict;
  for (int i = 0; i < 100'000; ++i) deep += mark;
  for (std::uint32_t i = 0; i < 300; ++i) memos += put(i);
  expect_refused(
      {{"empty", file(""), Code::bad_pickle},
       {"a protocol alone", file(proto), Code::bad_pickle},
       {"no end", file(proto + dict), Code::bad_pickle},
       {"nothing at the end", file(proto + stop), Code::bad_pickle},
       {"two values at the end", file(proto + dict + dict + stop), Code::bad_pickle},
       {"an open mark at the end", file(proto + dict + mark + stop), Code::bad_pickle},
       {"bytes behind the end", file(good + "x"), Code::trailing_data},
       {"a second pickle", file(good + good), Code::trailing_data},
       {"a text longer than the pickle", file(proto + "X" + little(100, 4) + "x"), Code::bad_pickle},
       {"a text of 4 GiB", file(proto + "X" + little(~0u, 4)), Code::bad_pickle},
       {"an integer cut off", file(proto + "J" + little(0, 3)), Code::bad_pickle},
       {"a long integer cut off", file(proto + "\x8a\xff"), Code::bad_pickle},
       {"an integer of 9 bytes", file(one("\x8a\x09" + std::string(9, '\1'))), Code::integer_range},
       {"a name cut off", file(proto + "cos"), Code::bad_pickle},
       {"a name of 300 bytes", file(one(global(std::string(300, 'n'), "x"))), Code::bad_pickle},
       {"a memo of 2^32", file(proto + dict + "r" + little(~0u, 4) + stop), Code::bad_pickle},
       {"a memo left out", file(proto + dict + put(1) + stop), Code::bad_pickle},
       {"a memo written twice", file(proto + dict + put(0) + put(0) + stop), Code::bad_pickle},
       {"a memo of nothing", file(proto + put(0) + stop), Code::bad_pickle},
       {"a memo below a mark", file(proto + dict + mark + put(0) + stop), Code::bad_pickle},
       {"a memo that is not there", file(proto + get(0) + stop), Code::bad_pickle},
       {"many memos of one", file(proto + memos + get(300) + stop), Code::bad_pickle},
       {"deep marks", file(proto + deep), Code::too_large},
       {"many values", file(proto + std::string(100'000, '}')), Code::too_large},
       {"a tuple without a mark", file(proto + tuple + stop), Code::bad_pickle},
       {"a pair of one", file(proto + dict + "\x86" + stop), Code::bad_pickle},
       {"a pair across a mark", file(proto + dict + mark + dict + "\x86" + stop), Code::bad_pickle},
       {"entries without a dictionary", file(proto + mark + text("t") + t + set_items + stop),
        Code::bad_pickle},
       {"entries of a text", file(proto + text("d") + text("t") + t + set_item + stop), Code::bad_pickle},
       {"a key without a value", file(proto + dict + mark + text("t") + set_items + stop), Code::bad_pickle},
       {"an entry across a mark", file(proto + dict + mark + text("t") + t + set_item + stop),
        Code::bad_pickle},
       {"a call of nothing", file(proto + reduce), Code::bad_pickle},
       {"attributes of nothing", file(proto + dict + text("_metadata") + dict + set_item + build),
        Code::bad_pickle},

       {"a tensor alone", file(proto + t + stop), Code::not_state_dict},
       {"a text alone", torch_file(proto + text("x") + stop, {}), Code::not_state_dict},
       {"a tensor by a number", file(proto + dict + integer(1) + t + set_item + stop), Code::not_state_dict},
       {"a number by name", torch_file(one(integer(1)), {}), Code::not_state_dict},
       {"a dictionary in the dictionary", file(one(dict + text("u") + t + set_item)), Code::not_state_dict},
       {"a dictionary in itself",
        torch_file(proto + dict + put(0) + text("t") + get(0) + set_item + stop, {}), Code::not_state_dict},
       {"a storage by name", file(one(six_floats)), Code::not_state_dict},
       {"one name twice", file(proto + dict + mark + text("t") + t + text("t") + t + set_items + stop),
        Code::duplicate_key},
       {"no name", file(proto + dict + text("") + t + set_item + stop), Code::empty_name},
       {"a NUL in a name", file(proto + dict + text(std::string("t\0", 2)) + t + set_item + stop),
        Code::bad_name},
       {"a surrogate in a name", file(proto + dict + text("\xed\xa0\x80") + t + set_item + stop),
        Code::bad_name},
       {"a name of 5000 bytes", file(proto + dict + text(std::string(5000, 'n')) + t + set_item + stop),
        Code::name_too_long},

       {"a persistent id that is a text", stored(text("0")), Code::bad_pickle},
       {"a persistent id of nothing", stored(empty_tuple), Code::bad_tensor_entry},
       {"a module",
        stored(mark + text("module") + float_class + text("0") + text("cpu") + integer(6) + tuple),
        Code::bad_tensor_entry},
       {"a storage's class by name",
        stored(mark + text("storage") + text(f) + text("0") + text("cpu") + integer(6) + tuple),
        Code::bad_tensor_entry},
       {"a function for the class",
        stored(mark + text("storage") + global("collections", "OrderedDict") + text("0") + text("cpu") +
               integer(6) + tuple),
        Code::bad_tensor_entry},
       {"a storage by a number",
        stored(mark + text("storage") + float_class + integer(0) + text("cpu") + integer(6) + tuple),
        Code::bad_tensor_entry},
       {"a storage at a numbered place",
        stored(mark + text("storage") + float_class + text("0") + integer(0) + integer(6) + tuple),
        Code::bad_tensor_entry},
       {"a storage of a text of numbers",
        stored(mark + text("storage") + float_class + text("0") + text("cpu") + text("6") + tuple),
        Code::bad_tensor_entry},
       {"a storage of a numbered kind",
        stored(mark + integer(0) + float_class + text("0") + text("cpu") + integer(6) + tuple),
        Code::bad_tensor_entry},
       {"a storage with a view, as of old",
        stored(mark + text("storage") + float_class + text("0") + text("cpu") + integer(6) + dict + tuple),
        Code::bad_tensor_entry},
       {"a storage that is not there", file(one(storage(f, "1", 6))), Code::missing_field},
       {"a storage in another folder", file(one(storage(f, "../data/0", 6))), Code::missing_field},
       {"a storage of 300", file(one(storage(f, "0", 300))), Code::size_mismatch},
       {"a storage of 7", file(one(storage(f, "0", 7))), Code::size_mismatch},
       {"a storage of 5", file(one(storage(f, "0", 5))), Code::size_mismatch},
       {"a storage of -6", file(one(storage(f, "0", -6))), Code::size_mismatch},
       {"a storage of 2^62 + 6", file(one(storage(f, "0", (std::int64_t{1} << 62) + 6))),
        Code::size_mismatch},
       {"a storage of -1",
        file(one(mark + text("storage") + float_class + text("0") + text("cpu") + "\x8a\1\xff" + tuple +
                 persistent)),
        Code::size_mismatch},
       {"a storage of two types",
        torch_file(proto + dict + mark + text("a") + tensor(storage("HalfStorage", "0", 2), 0, {2}, {1}) +
                       text("b") + tensor(storage("BFloat16Storage", "0", 2), 0, {2}, {1}) + set_items + stop,
                   {"1234"}),
        Code::bad_tensor_entry},

       {"no arguments", rebuilt(""), Code::bad_tensor_entry},
       {"no hooks", rebuilt(six_floats + integer(0) + integers({6}) + integers({1}) + no),
        Code::bad_tensor_entry},
       {"hooks",
        rebuilt(six_floats + integer(0) + integers({6}) + integers({1}) + no + ordered_dict() + text("h") +
                integer(1) + set_item),
        Code::bad_tensor_entry},
       {"a tensor of a text",
        rebuilt(text("0") + integer(0) + integers({6}) + integers({1}) + no + ordered_dict()),
        Code::bad_tensor_entry},
       {"a tensor of a tensor", rebuilt(t + integer(0) + integers({6}) + integers({1}) + no + ordered_dict()),
        Code::bad_tensor_entry},
       {"an offset that is a text",
        rebuilt(six_floats + text("0") + integers({6}) + integers({1}) + no + ordered_dict()),
        Code::bad_tensor_entry},
       {"strides that are a number",
        rebuilt(six_floats + integer(0) + integers({6}) + integer(1) + no + ordered_dict()),
        Code::bad_tensor_entry},
       {"a gradient that is a number",
        rebuilt(six_floats + integer(0) + integers({6}) + integers({1}) + integer(0) + ordered_dict()),
        Code::bad_tensor_entry},
       {"hooks in a plain dictionary",
        rebuilt(six_floats + integer(0) + integers({6}) + integers({1}) + no + dict), Code::bad_tensor_entry},
       {"a parameter whose gradient is a number", parameter_of(t + integer(1) + ordered_dict()),
        Code::bad_tensor_entry},
       {"a size that is a number",
        rebuilt(six_floats + integer(0) + integer(6) + integers({1}) + no + ordered_dict()),
        Code::bad_tensor_entry},
       {"a size of texts",
        rebuilt(six_floats + integer(0) + text("6") + "\x85" + integers({1}) + no + ordered_dict()),
        Code::bad_shape},
       {"a parameter of a text", parameter_of(text("t") + yes + ordered_dict()), Code::bad_tensor_entry},
       {"a parameter with hooks", parameter_of(t + yes + ordered_dict() + text("h") + integer(1) + set_item),
        Code::bad_tensor_entry},
       {"a parameter of two", parameter_of(t + yes), Code::bad_tensor_entry},

       {"a size of -2", file(one(tensor(six_floats, 0, {-2, -3}, {3, 1}))), Code::bad_shape},
       {"a stride of -1", file(one(tensor(six_floats, 5, {6}, {-1}))), Code::bad_stride},
       {"fewer strides than sizes", file(one(tensor(six_floats, 0, {2, 3}, {1}))), Code::bad_stride},
       {"nine dimensions",
        file(one(tensor(six_floats, 0, std::vector<std::int64_t>(9, 1), std::vector<std::int64_t>(9, 1)))),
        Code::too_many_dims},
       {"an offset of -1", file(one(tensor(six_floats, -1, {2}, {1}))), Code::offset_range},
       {"one beyond its storage", file(one(tensor(six_floats, 1, {6}, {1}))), Code::offset_range},
       {"strides beyond its storage", file(one(tensor(six_floats, 0, {2, 3}, {4, 1}))), Code::offset_range},
       {"nothing, beyond its storage", file(one(tensor(six_floats, 7, {0}, {1}))), Code::offset_range},
       {"one number behind its storage", file(one(tensor(six_floats, 6, {}, {}))), Code::offset_range},
       {"an offset of 2^63 - 1", file(one(tensor(six_floats, INT64_MAX, {2}, {1}))), Code::offset_range},
       {"strides that overflow", file(one(tensor(six_floats, 0, {5}, {std::int64_t{1} << 62}))),
        Code::offset_range},
       {"strides that overflow together", file(one(tensor(six_floats, 0, {2, 2}, {INT64_MAX, INT64_MAX}))),
        Code::offset_range},
       {"sizes that overflow",
        file(one(tensor(six_floats, 0, {std::int64_t{1} << 32, std::int64_t{1} << 32}, {0, 0}))),
        Code::size_overflow},
       {"zero times too much", file(one(tensor(six_floats, 0, {0, INT64_MAX, INT64_MAX}, {1, 1, 1}))),
        Code::size_overflow},
       {"expanded to 100 GB", file(one(tensor(six_floats, 0, {25'000'000'000}, {0}))), Code::bad_stride},
       {"expanded by one", file(one(tensor(six_floats, 0, {7}, {0}))), Code::bad_stride}});
}

TEST_CASE("what a file claims is bounded by its size", "[io]") {
  // One storage of most of the file, and the same tensor by many names.
  const std::string large(100'000, '\0');
  const auto shared = [&](int names, const std::vector<std::int64_t>& shape,
                          const std::vector<std::int64_t>& strides) {
    std::string pickle = proto + dict + mark;
    for (int i = 0; i < names; ++i)
      pickle += text(std::to_string(i)) +
                (i == 0 ? tensor(storage("FloatStorage", "0", 25'000), 0, shape, strides) + put(0) : get(0));
    return torch_file(pickle + set_items + stop, {large});
  };
  CHECK_FALSE(refused(shared(16, {25'000}, {1})).has_value());
  CHECK(refused(shared(17, {25'000}, {1})) == Code::too_large);
  CHECK_FALSE(refused(shared(1, {250, 100}, {1, 250})).has_value());
  CHECK(refused(shared(2, {250, 100}, {1, 250})) == Code::too_large);

  // One tensor's arguments, and then many tensors of them.
  const std::string arguments = mark + storage("FloatStorage", "0", 0) + integer(0) + integers({0}) +
                                integers({1}) + no + ordered_dict() + tuple;
  const std::string start =
      proto + dict + global("torch._utils", "_rebuild_tensor_v2") + put(0) + arguments + put(1);
  const auto repeated = [](int n, const std::string& ops) {
    std::string all;
    for (int i = 0; i < n; ++i) all += ops;
    return all;
  };
  const std::string again = get(0) + get(1) + reduce;
  CHECK(refused(torch_file(start + repeated(70'000, again), {""})) == Code::too_large);  // all on the stack
  CHECK(refused(torch_file(start + repeated(1'001, mark + repeated(100, again) + tuple), {""})) ==
        Code::too_many_tensors);
  // Dictionaries and tuples, each kept inside the next.
  CHECK(refused(torch_file(proto + dict + put(0) + repeated(65'537, get(0)), {})) == Code::too_large);
  CHECK(refused(torch_file(proto + dict + put(0) + repeated(700'000, text("") + get(0) + set_item), {})) ==
        Code::too_large);
  CHECK(refused(torch_file(proto + dict + repeated(3'000'000, "\x85"), {})) == Code::too_large);
  CHECK(refused(torch_file(std::string(most_pickle_bytes + 1, '}'), {})) == Code::too_large);
}

TEST_CASE("every prefix is refused, and every flipped bit is found or changes nothing that is read", "[io]") {
  const std::string bytes = example();
  const TensorFile whole = parse_torch_bin(bytes);
  for (std::size_t n = 0; n < bytes.size(); ++n)
    if (!refused(bytes.substr(0, n))) FAIL("accepted " << n << " bytes");
  std::size_t harmless = 0;
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::string flipped = bytes;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ 1 << bit % 8);
    if (refused(flipped)) continue;
    ++harmless;
    const TensorFile read = parse_torch_bin(flipped);
    REQUIRE(read.tensors().size() == whole.tensors().size());
    for (std::size_t i = 0; i < read.tensors().size(); ++i) {
      const TensorInfo &a = read.tensors()[i], &b = whole.tensors()[i];
      if (a.name != b.name || a.dtype != b.dtype || a.shape != b.shape || read.bytes(a) != whole.bytes(b))
        FAIL("bit " << bit % 8 << " of byte " << bit / 8 << " changed " << b.name);
    }
  }
  // Padding; in each of four entries the versions and attributes; the versions in the 64-bit end.
  const auto padding = static_cast<std::size_t>(std::count(bytes.begin(), bytes.end(), 'Z'));
  CHECK(harmless == 8 * (padding + 4 * (2 + 4 + 6) + 4));
}

TEST_CASE("a file is read as its bytes are, and a message says where the fault lies", "[io]") {
  const std::filesystem::path path = std::filesystem::temp_directory_path() / "moxie_torch_bin.test";
  const auto write = [&](const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; };
  write(example());
  CHECK(numbers(read_torch_bin(path), "a.transposed") == Numbers{1, 4, 2, 5});
  write(file(one(global("os", "system"))));
  test::refused([&] { read_torch_bin(path); }, Code::unsupported_pickle,
                {"moxie_torch_bin.test", "data.pkl byte 9", "'os.system'", "OrderedDict"});
  write("");
  test::refused([&] { read_torch_bin(path); }, Code::not_torch_file, {"no zip archive"});
  std::filesystem::remove(path);
  test::refused([&] { read_torch_bin(path); }, Code::io_open, {"moxie_torch_bin.test"});
  test::refused([&] { read_torch_bin(std::filesystem::temp_directory_path()); }, Code::not_regular_file);
}
