// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "io/tensor_bytes.hpp"
#include "support/refusal.hpp"

#include <moxie/io/safetensors.hpp>
#include <moxie/io/safetensors_writer.hpp>

using namespace moxie;
using namespace moxie::io;
using test::refusal_of;

namespace {

TensorWriter example() {
  TensorWriter writer;
  writer.metadata["format"] = "pt";
  const std::vector<double> values{1.5, -2, 0.25, 3, 1e-3, -7};
  writer.add<double>("b", {2, 3}, values, Dtype::f32);
  writer.add<double>("a", {3, 2}, values, Dtype::bf16);
  writer.add<double>("c", {6}, values, Dtype::f64);
  writer.add<double>("none", {0, 4}, std::span<const double>(), Dtype::f32);
  writer.add<double>("one", {}, std::span<const double>(values).first(1), Dtype::f16);
  return writer;
}

}  // namespace

TEST_CASE("what is written is read again, in any order of adding the same bytes", "[io]") {
  const TensorWriter writer = example();
  const std::string bytes = writer.bytes();
  const TensorFile file = TensorFile::parse(bytes);
  CHECK(file.checksummed());
  CHECK(file.metadata().at("format") == "pt");
  CHECK(file.tensors().size() == 5);
  std::vector<std::string> names;
  for (const TensorInfo& t : file.tensors()) names.push_back(t.name);
  CHECK(names == std::vector<std::string>{"c", "b", "none", "a", "one"});  // by width, BF16 before F16
  for (const char* tensor : {"a", "b", "c"}) {
    std::vector<float> numbers(6);
    file.load<float>(*file.find(tensor), numbers);
    CHECK(numbers[1] == -2);
    CHECK(std::abs(numbers[4] - 1e-3f) < 4e-6f);
  }
  TensorWriter other;
  const std::vector<double> values{1.5, -2, 0.25, 3, 1e-3, -7};
  other.add<double>("one", {}, std::span<const double>(values).first(1), Dtype::f16);
  other.add<double>("c", {6}, values, Dtype::f64);
  other.add<double>("none", {0, 4}, std::span<const double>(), Dtype::f32);
  other.add<double>("a", {3, 2}, values, Dtype::bf16);
  other.metadata["format"] = "pt";
  other.add<double>("b", {2, 3}, values, Dtype::f32);
  CHECK(other.bytes() == bytes);
}

TEST_CASE("every prefix and every flipped bit of a file that we wrote is found", "[io]") {
  const std::string bytes = example().bytes();
  REQUIRE_FALSE(refusal_of(bytes).has_value());
  for (std::size_t n = 0; n < bytes.size(); ++n)
    if (!refusal_of(bytes.substr(0, n))) FAIL("accepted " << n << " bytes");
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::string flipped = bytes;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ 1 << bit % 8);
    if (!refusal_of(flipped)) FAIL("accepted bit " << bit % 8 << " of byte " << bit / 8);
  }
}

TEST_CASE("the writer refuses what the reader would", "[io]") {
  const std::vector<float> two{1, 2};
  const std::vector<float> nan{1, std::numeric_limits<float>::quiet_NaN()};
  const std::vector<double> large{1, 1e300};
  const auto code = [](auto&& add) -> std::optional<Code> {
    TensorWriter writer;
    try {
      add(writer);
    } catch (const Error& error) {
      return error.code();
    }
    return std::nullopt;
  };
  using W = TensorWriter;
  CHECK(code([&](W& w) { w.add<float>("", {2}, two, Dtype::f32); }) == Code::empty_name);
  CHECK(code([&](W& w) { w.add<float>("__metadata__", {2}, two, Dtype::f32); }) == Code::bad_name);
  CHECK(code([&](W& w) { w.add<float>("\xff", {2}, two, Dtype::f32); }) == Code::bad_name);
  CHECK(code([&](W& w) { w.add<float>(std::string(5000, 'n'), {2}, two, Dtype::f32); }) ==
        Code::name_too_long);
  CHECK(code([&](W& w) { w.add<float>("a\nb", {2}, two, Dtype::f32); }) == Code::bad_name);
  CHECK(code([&](W& w) { w.add<float>("t", {3}, two, Dtype::f32); }) == Code::shape_mismatch);
  CHECK(code([&](W& w) {
          w.add<float>("t", {1, 1, 1, 1, 1, 1, 1, 1, 2}, two, Dtype::f32);
        }) == Code::too_many_dims);
  CHECK(code([&](W& w) {
          w.add<float>("t", {0, Index{1} << 62}, std::span<const float>(), Dtype::f32);
        }) == Code::size_overflow);
  CHECK(code([&](W& w) { w.add<float>("t", {-1, -2}, two, Dtype::f32); }) == Code::size_overflow);
  CHECK(code([&](W& w) { w.add<float>("t", {2}, two, Dtype::i32); }) == Code::unsupported_dtype);
  CHECK(code([&](W& w) { w.add<float>("t", {2}, nan, Dtype::f32); }) == Code::non_finite);
  CHECK(code([&](W& w) { w.add<double>("t", {2}, large, Dtype::f32); }) == Code::value_range);
  CHECK(code([&](W& w) {
          w.add<float>("t", {2}, two, Dtype::f32);
          w.add<float>("t", {2}, two, Dtype::f32);
        }) == Code::name_taken);
  CHECK(code([&](W& w) {
          w.metadata["moxie.version"] = "7";
          w.bytes();
        }) == Code::bad_metadata);
  CHECK(code([&](W& w) {
          w.metadata["\xff"] = "7";
          w.bytes();
        }) == Code::bad_metadata);
}

TEST_CASE("what would make a header beyond its limits is not saved, what keeps to them is read again",
          "[io]") {
  const auto code = [](const TensorWriter& writer) -> std::optional<Code> {
    std::string bytes;
    try {
      bytes = writer.bytes();
    } catch (const Error& error) {
      return error.code();
    }
    REQUIRE_FALSE(refusal_of(bytes).has_value());
    return std::nullopt;
  };
  const std::size_t own = std::string(
                              "moxie.crc32c"
                              "moxie.header"
                              "moxie.version"
                              "00000000"
                              "1")
                              .size();
  SECTION("bytes of metadata") {
    TensorWriter writer;
    writer.metadata["a"] = std::string(most_metadata_bytes - own - 1, 'm');
    CHECK_FALSE(code(writer).has_value());
    writer.metadata["a"] += 'm';
    CHECK(code(writer) == Code::too_large);
    writer.metadata["a"] = std::string(200'000, '\x01');  // six times as long as JSON spells it
    CHECK(code(writer) == Code::too_large);
  }
  SECTION("texts of metadata") {
    TensorWriter writer;
    for (std::size_t i = 0; i + 3 < most_metadata_texts; ++i) writer.metadata[std::to_string(i)] = "";
    CHECK_FALSE(code(writer).has_value());
    writer.metadata["one more"] = "";
    CHECK(code(writer) == Code::too_large);
  }
  SECTION("tensors") {
    TensorWriter writer;
    const auto add = [&](std::size_t i) {
      writer.add<float>(std::to_string(i), {0}, std::span<const float>(), Dtype::f32);
    };
    for (std::size_t i = 0; i < most_tensors; ++i) add(i);
    CHECK_FALSE(code(writer).has_value());
    add(most_tensors);
    CHECK(code(writer) == Code::too_many_tensors);
  }
  SECTION("names together") {
    TensorWriter writer;
    for (std::size_t i = 0; i <= most_names_bytes / most_name_bytes; ++i) {
      std::string name(most_name_bytes, '"');  // twice as long in JSON
      name.replace(0, 6, std::to_string(100'000 + i));
      writer.add<float>(name, {0}, std::span<const float>(), Dtype::f32);
      if (i + 1 == most_names_bytes / most_name_bytes) CHECK_FALSE(code(writer).has_value());
    }
    CHECK(code(writer) == Code::too_large);
  }
}

TEST_CASE("a save that is refused leaves the file as it was and names it", "[io]") {
  const Path file = std::filesystem::temp_directory_path() / ("moxie-writer-" + std::to_string(getpid()));
  save_file(file, std::string("old"));
  TensorWriter writer;
  writer.metadata["a"] = std::string(most_metadata_bytes, 'm');
  test::refused([&] { writer.save(file); }, Code::too_large, {file.filename().string(), "1048576 bytes"});
  CHECK(std::string(read_file(file, 100).data(), 3) == "old");
  writer.metadata["a"] = "b";
  writer.save(file);
  CHECK(TensorFile::read(file).metadata().at("a") == "b");
  std::filesystem::remove(file);
}

TEST_CASE("checksums are one for each tensor", "[io]") {
  const auto with = [](const std::string& sums) {
    return test::file("{\"__metadata__\":{\"moxie.version\":\"1\",\"moxie.header\":\"00000000\"" + sums +
                          "}," + test::entry("t", 0, 8) + "}",
                      8);
  };
  // The header's own checksum, filled in as the writer does.
  const auto signed_header = [](std::string bytes) {
    const std::size_t at = bytes.find("00000000");
    return bytes.replace(at, 8, checksum_text(crc32c(std::string_view(bytes).substr(8, bytes.size() - 16))));
  };
  const std::string right = checksum_text(crc32c("xxxxxxxx"));
  CHECK_FALSE(refusal_of(signed_header(with(",\"moxie.crc32c\":\"" + right + "\""))).has_value());
  CHECK(refusal_of(signed_header(with(",\"moxie.crc32c\":\"00000001\""))) == Code::checksum_mismatch);
  CHECK(refusal_of(signed_header(with(",\"moxie.crc32c\":\"\""))) == Code::bad_metadata);
  CHECK(refusal_of(signed_header(with(",\"moxie.crc32c\":\"" + right + right + "\""))) == Code::bad_metadata);
  CHECK(refusal_of(signed_header(with(""))) == Code::bad_metadata);
  CHECK(refusal_of(with(",\"moxie.crc32c\":\"" + right + "\"")) == Code::checksum_mismatch);
}
