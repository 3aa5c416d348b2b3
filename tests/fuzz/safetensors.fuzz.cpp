// SPDX-License-Identifier: MIT
// Bytes as a safetensors file. No file does more than be refused by an Error. What is read lies inside the
// file and covers it, is found by its name, and written again is read as the same.
#include "fuzz/must.hpp"

#include <moxie/io/safetensors.hpp>
#include <moxie/io/safetensors_writer.hpp>

#include <random>

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace {

using namespace moxie;
using namespace moxie::io;

/// The file, or nothing where it is refused.
std::optional<TensorFile> read(std::string_view bytes) {
  try {
    return TensorFile::parse(bytes);
  } catch (const Error&) {
    return std::nullopt;
  }
}
std::optional<std::vector<double>> numbers(const TensorFile& file, const TensorInfo& t) {
  std::vector<double> all(is_weight(t.dtype) ? file.bytes(t).size() / (facts(t.dtype).bits / 8) : 0);
  try {
    file.load<double>(t, all);
  } catch (const Error& error) {
    MUST(error.code() == (is_weight(t.dtype) ? Code::non_finite : Code::unsupported_dtype));
    return std::nullopt;
  }
  return all;
}

void check(const TensorFile& file, std::uint64_t data_bytes) {
  std::uint64_t at = 0;
  for (const TensorInfo& t : file.tensors()) {
    MUST(t.begin == at && t.end >= t.begin && t.end <= data_bytes);
    at = t.end;
    std::uint64_t bits = facts(t.dtype).bits;
    for (const Index n : t.shape) bits *= static_cast<std::uint64_t>(n);
    MUST(bits == 8 * (t.end - t.begin));
    MUST(file.find(t.name) == &t);
  }
  MUST(at == data_bytes);
}

void check_round_trip(const TensorFile& file) {
  TensorWriter writer;
  std::size_t written = 0;
  for (const TensorInfo& t : file.tensors())
    if (const auto values = numbers(file, t)) {
      writer.add<double>(t.name, t.shape, *values, t.dtype);
      ++written;
    }
  for (const auto& [key, value] : file.metadata())
    if (key.rfind(own_keys, 0) != 0) writer.metadata[key] = value;
  const std::string bytes = writer.bytes();
  const std::optional<TensorFile> again = read(bytes);
  MUST(again.has_value() && again->checksummed() && again->tensors().size() == written);
  for (const TensorInfo& t : again->tensors()) {
    const TensorInfo* first = file.find(t.name);
    MUST(first != nullptr && first->shape == t.shape && first->dtype == t.dtype);
    MUST(numbers(file, *first) == numbers(*again, t));
  }
  for (const auto& [key, value] : writer.metadata) MUST(again->metadata().at(key) == value);
}

/// A file in its three parts, to be mutated each and put together in order.
struct Parts {
  std::string length, json, data;
};
Parts parts(std::string_view bytes) {
  const std::string_view length = bytes.substr(0, 8), rest = bytes.substr(length.size());
  const std::uint64_t n = length.size() < 8 ? 0 : io::detail::load_little<std::uint64_t>(length.data());
  const std::size_t cut = n < rest.size() ? static_cast<std::size_t>(n) : rest.size();
  return {std::string(length), std::string(rest.substr(0, cut)), std::string(rest.substr(cut))};
}

class Mutator {
 public:
  Mutator(unsigned seed, std::size_t most) : random_(seed), most_(most) {}

  std::string operator()(std::string_view bytes) {
    Parts p = parts(bytes);
    switch (below(8)) {
      case 0:
        return any(std::string(bytes));
      case 1:
        p.data = any(p.data);
        break;
      case 2:
        p.json = header(p.data);
        break;
      case 3:
        replace_number(p.json);
        break;
      default:
        p.json = any(p.json);
    }
    if (below(4) > 0) fit_data(p);
    if (below(2) > 0) sign(p);
    if (below(16) > 0) {
      p.length.assign(8, '\0');
      io::detail::store_little<std::uint64_t>(p.json.size(), p.length.data());
    }
    return p.length + p.json + p.data;
  }

 private:
  std::size_t below(std::size_t n) { return random_() % n; }
  std::string any(std::string text) {
    const std::size_t size = text.size();
    text.resize(std::max(most_, size));
    text.resize(LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(text.data()), size, most_));
    return text;
  }
  /// Tensors that lie one behind the other, mostly.
  std::string header(std::string& data) {
    const char* names[] = {"a", "b", "lora_A.weight", "\\u0061", "\xc3\xa9", "\\\"", "__metadata__"};
    std::string json = "{";
    std::uint64_t at = 0;
    for (std::size_t i = 0, n = below(5); i < n; ++i) {
      const auto& dtype = dtype_facts[below(4) > 0 ? below(4) : below(std::size(dtype_facts))];
      std::uint64_t bits = dtype.bits;
      std::string shape;
      for (std::size_t d = 0, dims = below(4); d < dims; ++d) {
        const std::uint64_t size = below(4);
        bits *= size;
        shape += (d > 0 ? "," : "") + std::to_string(size);
      }
      const std::uint64_t end = at + bits / 8;
      json += std::string(i > 0 ? "," : "") + "\"" + names[below(below(4) > 0 ? 3 : std::size(names))] +
              (below(2) > 0 ? std::to_string(i) : "") + "\":{\"dtype\":\"" + std::string(dtype.name) +
              "\",\"shape\":[" + shape + "],\"data_offsets\":[" + std::to_string(at) + "," +
              std::to_string(end) + "]}";
      at = end;
    }
    if (below(4) == 0)
      json += std::string(json.size() > 1 ? "," : "") + "\"__metadata__\":{\"format\":\"pt\"}";
    if (at < 1024) data.resize(static_cast<std::size_t>(at), '\x3f');
    return json + "}";
  }
  /// First and last place of a number in a text; nothing where there is none.
  std::optional<std::pair<std::size_t, std::size_t>> number(const std::string& json) {
    const std::size_t at = json.find_first_of("0123456789", json.empty() ? 0 : below(json.size()));
    if (at == std::string::npos) return std::nullopt;
    return std::pair(at, std::min(json.find_first_not_of("0123456789", at), json.size()));
  }
  void replace_number(std::string& json) {
    const char* values[] = {"0",
                            "1",
                            "2",
                            "4",
                            "8",
                            "16",
                            "4294967296",
                            "9223372036854775807",
                            "9223372036854775808",
                            "18446744073709551615",
                            "18446744073709551616",
                            "2305843009213693952",
                            "-1",
                            "-0",
                            "1.0",
                            "1e3",
                            "01",
                            "[]",
                            "null"};
    if (const auto place = number(json))
      json.replace(place->first, place->second - place->first, values[below(std::size(values))]);
  }
  /// As many bytes of data as the largest number that may be one.
  void fit_data(Parts& p) const {
    std::size_t largest = 0;
    for (std::size_t i = 0; i < p.json.size();) {
      std::size_t n = 0;
      for (; i < p.json.size() && p.json[i] >= '0' && p.json[i] <= '9'; ++i)
        n = std::min<std::size_t>(n * 10 + static_cast<std::size_t>(p.json[i] - '0'), most_);
      if (n + p.json.size() + 8 <= most_) largest = std::max(largest, n);
      ++i;
    }
    p.data.resize(largest, '\x3f');
  }
  /// The checksums of a header that has them, made right, so that what follows them is reached.
  static void sign(Parts& p) {
    const std::string key = "\"" + std::string(tensors_key) + "\":\"";
    if (const std::size_t sums = p.json.find(key); sums != std::string::npos) {
      try {
        const TensorHeader header = io::detail::read_header(p.json, p.data.size(), {"memory"});
        for (std::size_t i = 0; i < header.tensors.size(); ++i) {
          const TensorInfo& t = header.tensors[i];
          const std::size_t at = sums + key.size() + 8 * i;
          const std::string_view bytes = std::string_view(p.data).substr(t.begin, t.end - t.begin);
          if (at + 8 < p.json.size()) p.json.replace(at, 8, checksum_text(crc32c(bytes)));
        }
      } catch (const Error&) {
        return;
      }
    }
    const std::size_t digits = io::detail::header_digits(p.json);
    if (digits != std::string::npos) p.json.replace(digits, 8, io::detail::header_checksum(p.json, digits));
  }

  std::minstd_rand random_;
  std::size_t most_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  if (const std::optional<TensorFile> file = read(bytes)) {
    check(*file, size - 8 - io::detail::load_little<std::uint64_t>(bytes.data()));
    check_round_trip(*file);
  }
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most,
                                               unsigned seed) {
  const std::string mutated = Mutator(seed, most)({reinterpret_cast<const char*>(data), size});
  const std::size_t n = std::min(mutated.size(), most);
  std::copy_n(mutated.data(), n, reinterpret_cast<char*>(data));
  return n;
}
