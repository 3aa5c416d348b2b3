// SPDX-License-Identifier: MIT
// Headers of the greatest length that is read, made to cost as much memory and time as they can: each is
// refused by its code, or lawful and read, with no more memory than the file's size and 64 MB. Allocations
// are counted, so the verdict depends on no machine; `hostile_headers --show` prints what each took.
#include <moxie/io/safetensors.hpp>

#include <malloc.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <new>
#include <optional>

namespace {

std::size_t live = 0, peak = 0;

void* counted(std::size_t n) {
  void* p = std::malloc(n == 0 ? 1 : n);
  if (p == nullptr) std::abort();
  live += malloc_usable_size(p);
  peak = std::max(peak, live);
  return p;
}
void counted_free(void* p) {
  live -= malloc_usable_size(p);
  std::free(p);
}

}  // namespace

void* operator new(std::size_t n) { return counted(n); }
void* operator new[](std::size_t n) { return counted(n); }
void operator delete(void* p) noexcept { counted_free(p); }
void operator delete[](void* p) noexcept { counted_free(p); }
void operator delete(void* p, std::size_t) noexcept { counted_free(p); }
void operator delete[](void* p, std::size_t) noexcept { counted_free(p); }

namespace {

using namespace moxie;
using namespace moxie::io;

constexpr std::size_t most_memory = 64'000'000;  // beside the file's own size

/// One kind of header: what it begins with, what is repeated to fill it, what it ends with.
struct Shape {
  std::string what;
  std::optional<Code> code;  // nothing: lawful
  std::function<std::string(std::size_t)> header;
};

std::string filled(std::string start, std::string_view unit, std::string_view end, std::size_t size) {
  start.reserve(size);
  while (start.size() + unit.size() + end.size() <= size) start += unit;
  start += end;
  return start;
}
std::function<std::string(std::size_t)> filled(std::string start, std::string unit, std::string end) {
  return [=](std::size_t size) { return filled(start, unit, end, size); };
}

std::string digits(std::size_t i, std::size_t width) {
  std::string text = std::to_string(i);
  return std::string(width - text.size(), '0') + text;
}
/// So many tensors without data; `name(i)`, and white space between them that fills the header.
std::function<std::string(std::size_t)> many(std::size_t tensors,
                                             const std::function<std::string(std::size_t)>& name,
                                             const std::string& shape = "0",
                                             const std::string& metadata = "") {
  return [=](std::size_t size) {
    std::string text = "{" + metadata;
    text.reserve(size);
    for (std::size_t i = 0; i < tensors; ++i) {
      text += (i > 0 ? ",\"" : "\"") + name(i) + "\":{\"dtype\":\"F32\",\"shape\":[" + shape +
              "],\"data_offsets\":[0,0]}";
      const std::size_t share = (size - 1) / tensors * (i + 1);
      if (text.size() < share) text.append(std::min<std::size_t>(share - text.size(), 10'000), ' ');
      if (text.size() + 2 * name(i).size() + 200 > size) break;
    }
    return text + "}";
  };
}
/// `n` texts of so many bytes each, key and value together.
std::string metadata(std::size_t n, std::size_t bytes) {
  std::string text = "\"__metadata__\":{";
  for (std::size_t i = 0; i < n; ++i)
    text += (i > 0 ? ",\"" : "\"") + digits(i, 8) + "\":\"" + std::string(bytes - 8, 'm') + "\"";
  return text + "},";
}

std::vector<Shape> shapes() {
  const auto plain = [](std::size_t i) { return digits(i, 8); };
  const auto wide = [](std::size_t i) { return std::string(150, 'n') + digits(i, 8); };
  const std::string t = "{\"t\":{\"dtype\":\"F32\",\"shape\":[", offsets = "],\"data_offsets\":[0,8]}}";
  std::string escaped = "\"";
  for (int i = 0; i < 4000; ++i) escaped += "\\u0061";
  std::vector<Shape> all{
      {"an open string", Code::too_large, filled("{\"", "a", "")},
      {"a name", Code::too_large, filled("{\"", "a", "\":{}}")},
      {"a name of two-byte characters", Code::too_large, filled("{\"", "\xc3\xa9", "\":{}}")},
      {"a name of NUL escapes", Code::too_large, filled("{\"", "\\u0000", "\":{}}")},
      {"a name of backslashes", Code::too_large, filled("{\"", "\\\\", "\":{}}")},
      {"a text of the metadata", Code::too_large, filled("{\"__metadata__\":{\"a\":\"", "a", "\"}}")},
      {"a dtype", Code::too_large, filled("{\"t\":{\"dtype\":\"", "a", "\"}}")},
      {"an integer", Code::integer_range, filled(t, "1", offsets)},
      {"a fraction", Code::integer_range, filled(t + "0.", "0", offsets)},
      {"a word", Code::json_syntax, filled("{", "x", "}")},
      {"white space alone", Code::header_not_object, filled("", " \n", "")},
      {"white space in front", std::nullopt, filled("", "\n", "{}")},
      {"white space inside", Code::too_large, filled("{", "\n", "}")},
      {"white space in an open object", Code::too_large, filled("{", "\n", "")},
      {"white space behind", std::nullopt, filled("{}", "\n", "")},
      {"white space in pieces", Code::json_syntax,
       [](std::size_t n) { return filled("{", std::string(1 << 20, '\n') + ",", "}", n); }},
      {"brackets", Code::header_not_object, filled("", "[", "")},
      {"braces", Code::json_depth, filled("", "{", "")},
      {"deep arrays", Code::json_depth, filled("{\"a\":", "[", "")},
      {"deep objects", Code::json_depth, filled("", "{\"a\":", "")},
      {"commas", Code::json_syntax, filled("{", ",", "}")},
      {"closing braces", Code::json_trailing, filled("{", "}", "")},
      {"NULs", Code::json_syntax, filled("{", std::string(1, '\0'), "")},
      {"no UTF-8 at the end", Code::invalid_utf8, filled("{\"a\":\"b\"", ",\"a\":\"b\"", "\xff}")},
      {"strings of 1 MB, two-byte characters", Code::name_too_long,
       [](std::size_t n) { return filled("{", "\"" + filled("", "\xc3\xa9", "", 1 << 20) + "\",", "}", n); }},
      {"strings of 1 MB, quotes", Code::name_too_long,
       [](std::size_t n) { return filled("{", "\"" + filled("", "\\\"", "", 1 << 20) + "\",", "}", n); }},
      {"a shape", Code::too_many_dims, filled(t + "0", ",0", offsets)},
      {"data_offsets", Code::bad_offsets, filled(t + "2],\"data_offsets\":[0,8", ",8", "]}}")},
      {"one tensor again and again", Code::duplicate_key,
       many(most_tensors, [](std::size_t) { return "t"; })},
      {"one field again and again", Code::duplicate_key,
       filled("{\"t\":{\"dtype\":\"F32\"", ",\"dtype\":\"F32\"", "}}")},
      {"one key of the metadata again and again", Code::duplicate_key,
       filled("{\"__metadata__\":{\"a\":\"\"", ",\"a\":\"\"", "}}")},
      {"too many texts", Code::too_large,
       [](std::size_t) { return "{" + metadata(most_metadata_texts + 1, 9) + "\"t\":{}}"; }},
      {"metadata of short texts", Code::too_large,
       [](std::size_t n) { return "{" + metadata(n / 110, 104) + "\"t\":{}}"; }},
      {"too many tensors", Code::too_many_tensors, many(most_tensors + 1, plain)},
      {"long names", Code::too_large,
       many(most_tensors, [](std::size_t i) { return std::string(4000, 'n') + digits(i, 8); })},
      {"names of escapes", std::nullopt,
       many(most_tensors, [=](std::size_t i) { return escaped.substr(1) + digits(i, 8); })},
      {"as much of everything as is allowed, and a hole", Code::offset_hole,
       [=](std::size_t n) {
         std::string text =
             many(most_tensors, wide, "0,0,0,0,0,0,0,0", metadata(most_metadata_texts, 104))(n);
         return text.replace(text.rfind("[0,0]}"), 6, "[8,8]}");
       }},
      {"as much of everything as is allowed", std::nullopt,
       many(most_tensors, wide, "0,0,0,0,0,0,0,0", metadata(most_metadata_texts, 104))}};
  return all;
}

/// True where the file is judged as the shape wants, in the memory that it may take.
bool judge(const Shape& shape, const Path& file, bool show) {
  {
    std::string bytes = shape.header(most_header_bytes);
    if (bytes.size() > most_header_bytes) std::abort();
    std::string length(8, '\0');
    io::detail::store_little<std::uint64_t>(bytes.size(), length.data());
    const std::span<const char> parts[] = {length, bytes};
    save_file(file, std::span<const std::span<const char>>(parts));
  }
  const std::size_t before = live, size = std::filesystem::file_size(file);
  peak = live;
  std::optional<Code> code;
  std::string message;
  const auto start = std::chrono::steady_clock::now();
  try {
    TensorFile::read(file);
  } catch (const Error& error) {
    code = error.code();
    message = error.what();
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const bool right = code == shape.code, small = peak - before <= size + most_memory;
  if (show || !right || !small)
    std::printf("%-50s %-18s %5.1f MB  %5.1f MB beside it  %5.2f s%s%s\n", shape.what.c_str(),
                code ? std::string(name(*code)).c_str() : "read", static_cast<double>(size) / 1e6,
                (static_cast<double>(peak - before) - static_cast<double>(size)) / 1e6, seconds,
                right ? "" : ("  WRONG: " + message.substr(0, 300)).c_str(),
                small ? "" : "  TOO MUCH MEMORY");
  return right && small;
}

}  // namespace

int main(int argc, char** argv) {
  const bool show = argc > 1 && std::string(argv[1]) == "--show";
  std::string folder = (std::filesystem::temp_directory_path() / "moxie-hostile-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) return 2;
  int failed = 0;
  for (const Shape& shape : shapes()) failed += !judge(shape, Path(folder) / "file", show);
  std::filesystem::remove_all(folder);
  return failed == 0 ? 0 : 1;
}
