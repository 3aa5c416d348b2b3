// SPDX-License-Identifier: MIT
// Bytes for the reader of torch files, for libFuzzer. Mutated zip archives die at their checksums, so the
// first byte chooses what the others are: the file, its pickle (in a sound archive), changes to the bytes of
// a sound file, or faults in the making of one. What is accepted must be what it says. The mutator brings a
// sound file of each and knows the opcodes that are often needed together (a dictionary adds nothing to it);
// torch_bin.seeds.cpp has whole files of more kinds.
#include "support/torch_file.hpp"

#include <moxie/io/torch_bin.hpp>

#include <cstdlib>

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

using namespace moxie;
using namespace moxie::test::pickle;

namespace {

enum Mode : std::uint8_t { raw, pickled, patched, faulty, modes };

const std::string floats = storage("FloatStorage", "0", 6), halves = storage("HalfStorage", "1", 3);
const std::string view = tensor(floats, 1, {2, 2}, {1, 3}), whole = tensor(floats, 0, {2, 3}, {3, 1});
const std::string sound = proto + ordered_dict() + put(0) + mark + text("a") + whole + text("b") + view +
                          text("c") + parameter(tensor(halves, 0, {3}, {1})) + set_items + dict +
                          text("_metadata") + ordered_dict() + set_item + build + stop;
const std::vector<std::string> storages{std::string(24, '\1'), std::string(6, '\2')};

/// What the mutator inserts into pickles.
const std::string tokens[] = {text("t"),
                              floats,
                              halves,
                              view,
                              whole,
                              parameter(view),
                              ordered_dict(),
                              empty_tuple,
                              dict,
                              mark,
                              tuple,
                              set_item,
                              set_items,
                              persistent,
                              reduce,
                              build,
                              put(0),
                              get(0),
                              get(1),
                              "\x85",
                              "\x86",
                              "\x87",
                              no,
                              integer(-1),
                              integer(1),
                              integer(6),
                              integer(INT64_MAX),
                              integers({2, 3}),
                              integers({0, 0}),
                              text("_metadata"),
                              text("0"),
                              text("storage"),
                              stop,
                              global("torch._utils", "_rebuild_tensor_v2"),
                              global("torch", "BFloat16Storage"),
                              global("os", "system"),
                              dict + text("_metadata") + dict + set_item + build};

/// The bytes of the input, one number after another; zeros when it is used up.
struct Input {
  std::string_view bytes;
  std::uint64_t take(std::size_t n) {
    std::uint64_t number = 0;
    for (std::size_t i = 0; i < n && i < bytes.size(); ++i)
      number |= std::uint64_t{static_cast<unsigned char>(bytes[i])} << 8 * i;
    bytes.remove_prefix(std::min(n, bytes.size()));
    return number;
  }
};

/// A sound file's records with what the input changes in them, four bytes a change.
std::string with_faults(Input input) {
  std::vector<test::ZipRecord> records = test::torch_records(sound, storages);
  test::ZipFaults faults;
  for (int change = 0; change < 12 && !input.bytes.empty(); ++change) {
    test::ZipRecord& r = records[input.take(1) % records.size()];
    const std::uint64_t field = input.take(1), n = input.take(2), large = n << (n & 31u);
    const std::string text = n % 3 == 0   ? "FB" + test::little(n % 64, 2) + std::string(n % 61, 'Z')
                             : n % 3 == 1 ? "\1" + test::little(0, 1) + test::little(8 * (n % 5), 2) +
                                                std::string(8 * (n % 4), '\1')
                                          : std::string(n % 300, 'x');
    switch (field % 26) {
      case 0:
        r.flags = static_cast<std::uint16_t>(n & 0x809u);
        break;
      case 1:
        r.method = static_cast<std::uint16_t>(n % 2);
        break;
      case 2:
        r.crc = static_cast<std::uint32_t>(n);
        break;
      case 3:
        r.local_crc = static_cast<std::uint32_t>(n);
        break;
      case 4:
        r.descriptor_crc = static_cast<std::uint32_t>(n);
        break;
      case 5:
        r.time = static_cast<std::uint32_t>(n);
        break;
      case 6:
        r.size = large;
        break;
      case 7:
        r.compressed = large;
        break;
      case 8:
        r.size = r.compressed = large;
        break;
      case 9:
        r.offset = large;
        break;
      case 10:
        r.descriptor_size = large;
        break;
      case 11:
        r.local_name = r.name + text;
        break;
      case 12:
        r.name += text;
        break;
      case 13:
        r.local_extra = text;
        break;
      case 14:
        r.extra = text;
        break;
      case 15:
        r.local_flags = static_cast<std::uint16_t>(n);
        break;
      case 16:
        r.disk = static_cast<std::uint16_t>(n);
        break;
      case 17:
        r.before = text;
        break;
      case 18:
        r.comment = text;
        break;
      case 19:
        r.wide = n % 2;
        break;
      case 20:
        r.data = text;
        break;
      case 21:
        r.name = records[n % records.size()].name;
        break;
      case 22:
        faults.wide_end = n % 2;
        break;
      case 23:
        (n % 2 ? faults.count : faults.wide_count) = large;
        break;
      case 24:
        (n % 2 ? faults.directory_at : faults.directory_size) = large;
        break;
      default:
        faults.wide_at = large;
        break;
    }
    r.name.resize(std::min<std::size_t>(r.name.size(), 1000));
  }
  return test::zip(records, faults);
}

std::string file_of(std::string_view input) {
  const auto mode = static_cast<Mode>(static_cast<unsigned char>(input[0]) % modes);
  input.remove_prefix(1);
  if (mode == raw) return std::string(input);
  if (mode == faulty) return with_faults({input});
  if (mode == pickled) {
    std::vector<test::ZipRecord> records = test::torch_records(std::string(input), storages);
    for (test::ZipRecord& r : records) {  // as short as may be
      r.flags = 0;
      r.local_extra = "";
    }
    return test::zip(records, {.wide_end = false});
  }
  static const std::string unchanged = test::torch_file(sound, storages);
  std::string file = unchanged;
  for (Input changes{input}; !changes.bytes.empty();) {
    const std::uint64_t at = changes.take(2) % file.size();
    file[at] = static_cast<char>(changes.take(1));
  }
  return file;
}

void expect(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string bytes = file_of({reinterpret_cast<const char*>(data), size});
  std::optional<io::TensorFile> file;
  try {
    file = io::parse_torch_bin(bytes);
  } catch (const Error&) {
    return 0;
  }
  std::uint64_t all = 0;
  for (const io::TensorInfo& t : file->tensors()) {
    std::uint64_t n = facts(t.dtype).bits / 8;
    for (const Index extent : t.shape) {
      expect(extent >= 0);
      n *= static_cast<std::uint64_t>(extent);
    }
    expect(t.end >= t.begin && t.end - t.begin == n && file->bytes(t).size() == n);
    all += n;
    expect(file->find(t.name) == &t);
    if (!is_weight(t.dtype)) continue;
    std::vector<double> values(n / (facts(t.dtype).bits / 8));
    try {
      file->load<double>(t, values);
    } catch (const Error& error) {
      expect(error.code() == Code::non_finite);
    }
  }
  expect(all <= io::most_sharing * bytes.size());
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most,
                                               unsigned seed) {
  const auto put_back = [&](const std::string& input) {
    const std::size_t n = std::min(most, input.size());
    std::copy_n(input.begin(), n, data);
    return n;
  };
  const unsigned choice = seed % 16, number = seed / 16;
  if (size < 4 || choice == 0) {
    const std::string file = test::torch_file(sound, storages);
    const std::string seeds[] = {std::string(1, raw) + file, std::string(1, pickled) + sound,
                                 std::string(1, patched) + std::string(3, '\0'),
                                 std::string(1, faulty) + std::string(4, '\0')};
    return put_back(seeds[number % std::size(seeds)]);
  }
  if (choice < 6 && data[0] % modes == pickled) {
    std::string input(reinterpret_cast<const char*>(data), size);
    const std::string& token = tokens[number % std::size(tokens)];
    const std::size_t at = 1 + number / std::size(tokens) % size;
    // Insert it, or write it over what is there.
    input.replace(std::min(at, size), choice % 2 == 0 ? 0 : token.size(), token);
    return put_back(input);
  }
  return LLVMFuzzerMutate(data, size, most);
}
