// SPDX-License-Identifier: MIT
// Tensor files made here, bad and good: for the tests, for the comparison with another reader, and for the
// fuzzer to start from.
#pragma once

#include "io/tensor_bytes.hpp"

#include <algorithm>
#include <utility>
#include <vector>

namespace moxie::test {

/// A file to refuse.
struct BadFile {
  int line;  ///< of the catalogue of bad inputs
  std::string what, bytes;
  Code code;
  bool stricter = false;  ///< the reference reader accepts it (by its source)
};
struct GoodFile {
  std::string what, bytes;
};

/// One tensor "t" of these fields.
inline std::string one(const std::string& fields, std::size_t data = 0) {
  return file("{\"t\":{" + fields + "}}", data);
}
inline const std::string good = "\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]";

inline std::string with_shape(const std::string& shape, std::size_t data = 8) {
  return one("\"dtype\":\"F32\",\"shape\":" + shape + ",\"data_offsets\":[0," + std::to_string(data) + "]",
             data);
}
inline std::string with_offsets(const std::string& offsets) {
  return one("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" + offsets, 8);
}
inline std::string with_dtype(const std::string& dtype) {
  return one("\"dtype\":" + dtype + ",\"shape\":[2],\"data_offsets\":[0,8]", 8);
}
inline std::string with_name(const std::string& name) { return file("{\"" + name + "\":{" + good + "}}", 8); }
inline std::string with_metadata(const std::string& metadata) {
  return file("{\"__metadata__\":" + metadata + ",\"t\":{" + good + "}}", 8);
}

inline std::vector<BadFile> bad_framing() {
  const std::string whole = one(good, 8);
  std::string big_endian = whole;
  std::reverse(big_endian.begin(), big_endian.begin() + 8);
  std::vector<BadFile> lines{
      {4, "empty", "", Code::header_too_small},
      {5, "one byte", "x", Code::header_too_small},
      {5, "seven bytes", "1234567", Code::header_too_small},
      {6, "only a length", little(60), Code::invalid_header_length},
      {7, "length 0", little(0), Code::header_not_object},
      {8, "length beyond the file", little(100) + "{}", Code::invalid_header_length},
      {9, "above the reference's limit", little(100'000'001) + "{}", Code::header_too_large},
      {10, "2^63", little(std::uint64_t{1} << 63) + "{}", Code::header_too_large},
      {10, "2^64 - 1", little(~std::uint64_t{0}) + "{}", Code::header_too_large},
      {10, "2^64 - 8", little(~std::uint64_t{7}) + "{}", Code::header_too_large},
      {11, "2^32 + 2, which is 2 in 32 bits", little((std::uint64_t{1} << 32) + 2) + "{}",
       Code::header_too_large},
      {12, "big-endian", big_endian, Code::header_too_large},
      {13, "length one too small", little(whole.size() - 17) + whole.substr(8), Code::json_syntax},
      {14, "length one too large", little(whole.size() - 15) + whole.substr(8), Code::json_trailing},
      {15, "one byte short", whole.substr(0, whole.size() - 1), Code::file_truncated},
      {15, "no data", whole.substr(0, whole.size() - 8), Code::file_truncated},
      {16, "bytes behind the last tensor", whole + "PK", Code::trailing_data},
      {17, "a hole first", file("{" + entry("a", 16, 32) + "}", 32), Code::offset_hole},
      {18, "a hole between", file("{" + entry("a", 0, 8) + "," + entry("b", 16, 24) + "}", 24),
       Code::offset_hole},
      {19, "an overlap", file("{" + entry("a", 0, 16) + "," + entry("b", 8, 24) + "}", 24),
       Code::offset_overlap},
      {19, "the same bytes twice", file("{" + entry("a", 0, 16) + "," + entry("b", 0, 16) + "}", 16),
       Code::offset_overlap},
      {23, "too many tensors", "", Code::too_many_tensors, true}};
  const std::pair<const char*, std::string> kinds[] = {
      {"zip", "PK\x03\x04 and more"}, {"pickle", "\x80\x02}q and more"},
      {"GGUF", "GGUF\x03 and more"},  {"NumPy", "\x93NUMPY and more"},
      {"HTML", "<!DOCTYPE html>"},    {"Git LFS", "version https://git-lfs.github.com/spec/v1\n"}};
  for (const auto& [kind, bytes] : kinds) lines.push_back({20, kind, bytes, Code::not_safetensors});
  lines.push_back(
      {21, "gzip", std::string("\x1f\x8b\x08\0\0\0\0\0\0\3", 10) + "more", Code::not_safetensors});
  lines.push_back({21, "zstd", "\x28\xb5\x2f\xfd and more", Code::not_safetensors});
  lines.push_back({22, "an index of shards", "{\"metadata\":{},\"weight_map\":{}}", Code::not_safetensors});
  for (BadFile& line : lines)
    if (line.line == 23) {
      std::string json = "{";
      for (std::size_t i = 0; i <= io::most_tensors; ++i)
        json += (i > 0 ? "," : "") + entry(std::to_string(i), 0, 0);
      line.bytes = file(json + "}");
    }
  return lines;
}

inline std::vector<BadFile> bad_json() {
  std::vector<BadFile> lines{
      {27, "no UTF-8", with_name("\xff"), Code::invalid_utf8},
      {28, "overlong", with_name("\xc0\xaf"), Code::invalid_utf8},
      {28, "overlong, three bytes", with_name("\xe0\x80\xaf"), Code::invalid_utf8},
      {29, "a surrogate", with_name("\xed\xa0\x80"), Code::invalid_utf8},
      {30, "beyond U+10FFFF", with_name("\xf4\x90\x80\x80"), Code::invalid_utf8},
      {31, "cut off", with_name("\xe2\x82"), Code::invalid_utf8},
      {32, "a byte-order mark", file("\xef\xbb\xbf{\"t\":{" + good + "}}", 8), Code::header_not_object},
      {33, "UTF-16", file(std::string("{\0}\0", 4)), Code::json_syntax},
      {33, "UTF-16 with its mark", file(std::string("\xff\xfe{\0}\0", 6)), Code::header_not_object},
      {35, "NUL padding", file(std::string("{}\0", 3)), Code::json_trailing},
      {37, "an open brace alone", file("{"), Code::json_syntax},
      {37, "an open string", file("{\"t"), Code::json_syntax},
      {37, "no colon", file("{\"t\" {}}"), Code::json_syntax},
      {37, "no comma", file("{\"a\":{} \"b\":{}}"), Code::missing_field},
      {38, "a comma at the end", file("{" + entry("a", 0, 8) + ",}", 8), Code::json_syntax},
      {38, "a comment", file("{/**/}"), Code::json_syntax},
      {38, "single quotes", file("{'t':{}}"), Code::json_syntax},
      {38, "no quotes", file("{t:{}}"), Code::json_syntax},
      {39, "text behind", file("{} x"), Code::json_trailing},
      {39, "a second object", file("{}{}"), Code::json_trailing},
      {42, "a control character", with_name("a\nb"), Code::json_syntax},
      {43, "\\x", with_name("\\x41"), Code::json_escape},
      {43, "\\u12", with_name("\\u12"), Code::json_escape},
      {43, "half a surrogate pair", with_name("\\ud800"), Code::json_escape},
      {43, "surrogates the wrong way round", with_name("\\udc00\\ud800"), Code::json_escape},
      {44, "a name twice", file("{" + entry("a", 0, 8) + "," + entry("a", 0, 8) + "}", 8),
       Code::duplicate_key, true},
      {45, "a name twice, as two types",
       file("{" + entry("a", 0, 8) + ",\"a\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8),
       Code::duplicate_key, true},
      {46, "a name twice by an escape",
       file("{" + entry("t", 0, 8) + "," + entry("\\u0074", 8, 16) + "}", 16), Code::duplicate_key},
      {47, "dtype twice", one("\"dtype\":\"F32\"," + good, 8), Code::duplicate_key},
      {48, "__metadata__ twice", file("{\"__metadata__\":{},\"__metadata__\":{}}"), Code::duplicate_key},
      {48, "a key of __metadata__ twice", with_metadata("{\"a\":\"1\",\"a\":\"1\"}"), Code::duplicate_key,
       true},
      {50, "an integer of 5,000 digits", with_shape("[" + std::string(5000, '1') + "]"), Code::integer_range},
      {51, "a name of 1 MB", with_name(std::string(1 << 20, 'n')), Code::name_too_long, true},
      {52, "an empty name", with_name(""), Code::empty_name, true},
      {53, "a NUL in a name", with_name("t\\u0000x"), Code::bad_name, true},
      {53, "an escape character in a name", with_name("\\u001b[31m"), Code::bad_name, true}};
  for (const char* top : {"[]", "\"a\"", "1", "null", "true"})
    lines.push_back({36, top, file(top), Code::header_not_object});
  for (const char* number : {"NaN", "Infinity", "0x10", "+1", "01", "1.", ".5", "1e"})
    lines.push_back({40, number, with_shape("[" + std::string(number) + "]"), Code::json_syntax});
  lines.push_back({41, "deep arrays", with_shape(std::string(100'000, '[')), Code::json_depth});
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  lines.push_back({41, "deep objects", file(objects), Code::json_depth});
  return lines;
}

inline std::vector<BadFile> bad_tensors() {
  std::vector<BadFile> lines{
      {56, "no dtype", one("\"shape\":[2],\"data_offsets\":[0,8]", 8), Code::missing_field},
      {56, "no shape", one("\"dtype\":\"F32\",\"data_offsets\":[0,8]", 8), Code::missing_field},
      {56, "no data_offsets", one("\"dtype\":\"F32\",\"shape\":[2]", 8), Code::missing_field},
      {57, "strides", one(good + ",\"strides\":[1]", 8), Code::unknown_field, true},
      {60, "half a byte", one("\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]", 2),
       Code::misaligned_size},
      {65, "a dimension of 2^64", with_shape("[18446744073709551616]"), Code::integer_range},
      {65, "a dimension of 2^63", with_shape("[9223372036854775808]"), Code::too_large},
      {66, "a product that overflows", with_shape("[2,9223372036854775807]"), Code::size_overflow},
      {67, "bytes that overflow", with_shape("[4611686018427387905]"), Code::size_overflow},
      {68, "zero times too much", with_shape("[0,9223372036854775807,9223372036854775807]", 0),
       Code::size_overflow, true},
      {70, "nine dimensions", with_shape("[1,1,1,1,1,1,1,1,2]"), Code::too_many_dims, true},
      {72, "backwards", with_offsets("[8,0]"), Code::bad_offsets},
      {73, "beyond the data", with_offsets("[0,16]"), Code::offset_range},
      {73, "up to 2^64 - 1", with_offsets("[0,18446744073709551615]"), Code::offset_range},
      {73, "around 2^64", with_offsets("[18446744073709551600,0]"), Code::bad_offsets},
      {74, "too few bytes for the shape", with_shape("[2]", 4), Code::size_mismatch},
      {75, "nothing, inside another",
       file("{" + entry("a", 0, 8) + ",\"z\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[4,4]}}", 8),
       Code::offset_overlap},
      {75, "nothing, beyond the file",
       file("{" + entry("a", 0, 8) + ",\"z\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[12,12]}}", 8),
       Code::offset_hole}};
  lines.push_back(
      {55, "a list of its values", file("{\"t\":[\"F32\",[2],[0,8]]}", 8), Code::bad_tensor_entry, true});
  lines.push_back({58, "a dtype as a key", with_dtype("{\"F32\":null}"), Code::unknown_dtype, true});
  for (const char* value : {"[1,2]", "null", "3", "\"text\"", "true"})
    lines.push_back({55, value, file("{\"t\":" + std::string(value) + "}"), Code::bad_tensor_entry});
  for (const char* dtype : {"\"F33\"", "\"f32\"", "\"\"", "32", "null", "\"F32\\u0000\"", "[\"F32\"]"})
    lines.push_back({58, dtype, with_dtype(dtype), Code::unknown_dtype});
  for (const char* shape : {"4", "[[2]]", "null", "[\"2\"]", "[true]", "{\"0\":2}"})
    lines.push_back({61, shape, with_shape(shape), Code::bad_shape});
  for (const char* shape : {"[2.0]", "[2e0]", "[-2]", "[-2,-1]", "[-0]"})
    lines.push_back({62, shape, with_shape(shape), Code::bad_shape});
  for (const char* offsets :
       {"[0]", "[0,8,8]", "[]", "null", "[0.0,8.0]", "[\"0\",\"8\"]", "[[0,8]]", "[-1,7]", "[-0,8]", "8"})
    lines.push_back({71, offsets, with_offsets(offsets), Code::bad_offsets});
  for (const char* metadata :
       {"[]", "\"x\"", "1", "null", "{\"a\":1}", "{\"a\":null}", "{\"a\":{}}", "{\"a\":[]}"})
    lines.push_back(
        {80, metadata, with_metadata(metadata), Code::bad_metadata, metadata == std::string("null")});
  lines.push_back({82, "2 MiB of metadata", with_metadata("{\"a\":\"" + std::string(2 << 20, 'm') + "\"}"),
                   Code::too_large, true});
  for (const char* version : {"", "x", "-1", "0", "1.0", "1 "})
    lines.push_back({84, "version '" + std::string(version) + "'",
                     with_metadata("{\"moxie.version\":\"" + std::string(version) + "\"}"),
                     Code::bad_metadata, true});
  lines.push_back({83, "version 2", with_metadata("{\"moxie.version\":\"2\"}"), Code::version_too_new, true});
  return lines;
}

/// What the reference accepts, and so do we.
inline std::vector<GoodFile> good_files() {
  return {{"nothing", file("{}")},
          {"one tensor", one(good, 8)},
          {"white space around the object", file("  {}  ")},
          {"white space of every kind", file("\n{\"t\":{" + good + "}}\t\r\n", 8)},
          {"fields in another order", one("\"data_offsets\":[0,8],\"shape\":[2],\"dtype\":\"F32\"", 8)},
          {"tensors out of the order of their data",
           file("{" + entry("b", 8, 16) + "," + entry("a", 0, 8) + "}", 16)},
          {"no numbers", with_shape("[0,3]", 0)},
          {"no numbers, between others",
           file("{" + entry("a", 0, 8) + "," + entry("none", 8, 8) + "," + entry("b", 8, 16) + "}", 16)},
          {"one number", one("\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]", 4)},
          {"eight dimensions", with_shape("[1,1,2,1,1,1,1,1]")},
          {"unaligned",
           file("{\"h\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,2]}," + entry("a", 2, 10) + "}",
                10)},
          {"a name like a path", with_name("../../etc/passwd")},
          {"a name with escapes", with_name("a\\\"\\\\\\/\\u00e9\\ud83d\\ude00")},
          {"a name in UTF-8", with_name("\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\xad")},
          {"names that are one after Unicode's normalisation",
           file("{" + entry("\xc3\xa9", 0, 8) + "," + entry("e\xcc\x81", 8, 16) + "}", 16)},
          {"metadata", with_metadata("{\"format\":\"pt\",\"\":\"\"}")},
          {"metadata behind the tensors",
           file("{" + entry("a", 0, 8) + ",\"__metadata__\":{\"format\":\"pt\"}}", 8)},
          {"metadata alone", file("{\"__metadata__\":{\"format\":\"pt\"}}")},
          {"8-bit floats", one("\"dtype\":\"F8_E4M3\",\"shape\":[3],\"data_offsets\":[0,3]", 3)},
          {"8-bit floats without a negative zero",
           one("\"dtype\":\"F8_E5M2FNUZ\",\"shape\":[3],\"data_offsets\":[0,3]", 3)},
          {"4-bit floats", one("\"dtype\":\"F4\",\"shape\":[4],\"data_offsets\":[0,2]", 2)},
          {"truth values", one("\"dtype\":\"BOOL\",\"shape\":[3],\"data_offsets\":[0,3]", 3)}};
}

inline std::vector<BadFile> bad_files() {
  std::vector<BadFile> all = bad_framing();
  for (const auto& more : {bad_json(), bad_tensors()}) all.insert(all.end(), more.begin(), more.end());
  return all;
}

}  // namespace moxie::test
