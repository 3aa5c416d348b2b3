// SPDX-License-Identifier: MIT
// The reader against the catalogue of bad files, line by line.
#include "support/catch.hpp"

#include "io/tensor_corpus.hpp"
#include "support/refusal.hpp"

#include <moxie/io/safetensors.hpp>
#include <moxie/io/safetensors_writer.hpp>

using namespace moxie;
using namespace moxie::io;
using test::refusal_of, test::with_dtype, test::with_name;

TEST_CASE("every line of the catalogue about the bytes of a tensor file is refused by its code", "[io]") {
  for (const test::BadFile& file : test::bad_files()) {
    INFO(file.line << ", " << file.what);
    const std::optional<Code> code = refusal_of(file.bytes);
    REQUIRE(code.has_value());
    CHECK(name(*code) == name(file.code));
  }
}

TEST_CASE("what the reference accepts is accepted", "[io]") {
  for (const test::GoodFile& file : test::good_files()) {
    INFO(file.what);
    CHECK_FALSE(refusal_of(file.bytes).has_value());
  }
}

TEST_CASE("a message names the file and the tensor, and shows other people's text harmlessly", "[io]") {
  test::refused([] { TensorFile::parse(with_dtype("\"\xf0\x9f\x90\xad\""), "dir/file.safetensors"); },
                Code::unknown_dtype,
                {"'dir/file.safetensors': tensor 't': dtype '\\xf0\\x9f\\x90\\xad', wanted one as F32"});
  test::refused([] { TensorFile::parse(with_name(std::string(5000, 'n'))); }, Code::name_too_long,
                {"5000 bytes, wanted at most 4096: '" + std::string(80, 'n') + "...'"});
}

TEST_CASE("loading converts exactly or refuses, and leaves the target alone when it refuses", "[io]") {
  TensorWriter writer;
  const std::vector<double> large{1, 1e300};
  writer.add<double>("large", {2}, large, Dtype::f64);
  const TensorFile file = TensorFile::parse(writer.bytes());
  std::vector<float> to{5, 6};
  CHECK_THROWS_AS(file.load<float>(*file.find("large"), to), Error);
  CHECK(to == std::vector<float>{5, 6});
  std::vector<double> wide(2);
  file.load<double>(*file.find("large"), wide);
  CHECK(wide == large);
  CHECK_THROWS_AS(file.load<double>(*file.find("large"), std::span<double>(wide).first(1)), Error);
}
