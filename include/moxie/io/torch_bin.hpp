// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/pickle.hpp>
#include <moxie/io/safetensors.hpp>
#include <moxie/io/torch_archive.hpp>

/// The files of torch.save, since 1.6: a zip archive of a pickle and of the storages that its tensors are
/// views of (pytorch, torch/serialization.py and caffe2/serialize/inline_container.h). Read is a flat
/// dictionary of text to dense tensors or parameters, as a state_dict is; nothing of the pickle is ever run.
namespace moxie::inline MOXIE_ABI::io {

/// The limits of such a file, beside those of every TensorHeader: the bytes of its pickle, and how many times
/// the file's size its tensors may have together, since they may share storages.
inline constexpr std::uint64_t most_pickle_bytes = 16 << 20, most_sharing = 16;

namespace detail {

/// Refuses what does not begin as a zip archive, and says what it is.
inline void expect_torch_zip(std::string_view head, const Path& path) {
  if (head.substr(0, 4) == "PK\3\4") return;
  std::string_view kind = other_kind(head);
  if (head.substr(0, 14) == "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19")
    kind = "torch.save's old format without zip (save it again with torch 1.6 or later)";
  else if (head.size() > 262 && head.substr(257, 5) == "ustar")
    kind = "a tar archive, as torch 0.1 wrote";
  else if (head.size() > 8 && head[8] == '{')
    kind = "safetensors";
  else if (kind.empty())
    kind = "no zip archive";
  refuse(Code::not_torch_file, path, "is ", kind, ", wanted what torch.save writes since 1.6");
}

/// Makes a TensorHeader of a file's bytes.
class TorchReader {
 public:
  using Value = PickleValue;
  using Kind = PickleValue::Kind;
  using Reader = PickleReader<TorchReader>;

  TorchReader(std::string_view bytes, const Path& path) : bytes_(bytes), path_(path), archive_(bytes, path) {}

  /// Every tensor, at its bytes in the file followed by `take_copies()`.
  TensorHeader read() {
    const std::string_view pickle = archive_.pickle();
    if (pickle.size() > most_pickle_bytes)
      refuse(Code::too_large, "a pickle of ", pickle.size(), " bytes, wanted at most ", most_pickle_bytes);
    Reader reader(pickle, path_, *this);
    const Value root = reader.read();
    for (const TorchArchive::Storage& s : archive_.storages)
      if (!s.used) refuse(Code::unknown_field, "no tensor uses storage " + shown(s.key));
    return list(reader.values(), root);
  }
  /// The tensors whose numbers do not lie row-major in the file, copied so that they do.
  Bytes take_copies() { return std::move(copies_); }

  /// A storage of a persistent id: 'storage', its class, its key, where it was, how many numbers.
  std::uint64_t storage(const Reader& reader, std::span<const Value> id) {
    const PickleStore& values = reader.values();
    const bool sound = id.size() == 5 && id[0].kind == Kind::text && values.text(id[0]) == "storage" &&
                       id[1].kind == Kind::global && id[2].kind == Kind::text && id[3].kind == Kind::text &&
                       id[4].kind == Kind::integer;
    if (!sound || pickle_globals[id[1].at].what != PickleName::storage)
      reader.refuse(Code::bad_tensor_entry, "a persistent id other than of a storage");
    const std::string_view key = values.text(id[2]);
    TorchArchive::Storage* const s = archive_.find(key);
    if (s == nullptr) reader.refuse(Code::missing_field, "no entry in the archive for storage " + shown(key));
    const Dtype dtype = pickle_globals[id[1].at].dtype;
    if (s->used && s->dtype != dtype)
      reader.refuse(Code::bad_tensor_entry, "storage ", shown(key), " is of ", name(dtype), " and of ",
                    name(s->dtype));
    const std::int64_t count = values.integer(id[4]);
    const std::uint64_t bytes = s->end - s->begin, size = facts(dtype).bits / 8;
    if (count < 0 || static_cast<std::uint64_t>(count) != bytes / size || bytes % size != 0)
      reader.refuse(Code::size_mismatch, "storage ", shown(key), " of ", count, " ", name(dtype), " has ",
                    bytes, " bytes");
    s->dtype = dtype;
    s->used = true;
    return static_cast<std::uint64_t>(s - archive_.storages.data());
  }

  /// A tensor of the arguments of _rebuild_tensor_v2: storage, offset, size, strides, requires_grad, hooks.
  std::uint64_t tensor(const Reader& reader, std::span<const Value> a) {
    if (a.size() == 7)
      reader.refuse(Code::unsupported_pickle, "a tensor with metadata, such as a conjugated or negated one");
    const bool sound = a.size() == 6 && a[0].kind == Kind::storage && a[1].kind == Kind::integer &&
                       a[2].kind == Kind::tuple && a[3].kind == Kind::tuple && a[4].kind == Kind::boolean &&
                       reader.values().is_empty_ordered_dict(a[5]);
    if (!sound)
      reader.refuse(Code::bad_tensor_entry,
                    "a tensor of other than storage, offset, size, strides, a truth value and no hooks");
    if (tensors_.size() == most_tensors)
      reader.refuse(Code::too_many_tensors, "more than ", most_tensors, " tensors");
    View v{.storage = &archive_.storages[static_cast<std::size_t>(a[0].at)], .info = {}, .strides = {}};
    v.info.dtype = v.storage->dtype;
    v.info.shape = whole_numbers(reader, reader.values().items(a[2]), Code::bad_shape, "sizes");
    v.strides = whole_numbers(reader, reader.values().items(a[3]), Code::bad_stride, "strides");
    place(reader, v, reader.values().integer(a[1]));
    tensors_.push_back(std::move(v));
    return tensors_.size() - 1;
  }

 private:
  struct View {
    const TorchArchive::Storage* storage;
    TensorInfo info;  // begin: its first number; end: behind as many bytes as it has
    std::vector<Index> strides;
  };

  template <class... What>
  [[noreturn]] void refuse(Code code, const What&... what) const {
    detail::refuse(code, path_, what...);
  }
  static std::uint64_t item_size(const View& v) { return facts(v.info.dtype).bits / 8; }

  static std::vector<Index> whole_numbers(const Reader& reader, std::span<const Value> items, Code code,
                                          std::string_view what) {
    if (items.size() > most_dims) reader.refuse(Code::too_many_dims, "more than ", most_dims, " dimensions");
    std::vector<Index> numbers;
    for (const Value& v : items) {
      if (v.kind != Kind::integer || reader.values().integer(v) < 0)
        reader.refuse(code, "a tensor's ", what, ", wanted whole numbers from 0 on");
      numbers.push_back(reader.values().integer(v));
    }
    return numbers;
  }
  /// Where the view lies; all of it inside its storage.
  void place(const Reader& reader, View& v, std::int64_t offset) const {
    if (v.info.shape.size() != v.strides.size())
      reader.refuse(Code::bad_stride, v.strides.size(), " strides, wanted one for each of ",
                    v.info.shape.size(), " dimensions");
    const std::uint64_t stored = v.storage->end - v.storage->begin,
                        bytes = tensor_bytes(
                            v.info, [&](Code code, const auto&... what) { reader.refuse(code, what...); });
    // The number behind the last one.
    std::uint64_t last = static_cast<std::uint64_t>(offset), step = 0;
    bool fits = offset >= 0;
    for (std::size_t i = 0; i < v.strides.size() && bytes > 0; ++i)
      fits = fits &&
             !__builtin_mul_overflow(static_cast<std::uint64_t>(v.info.shape[i] - 1),
                                     static_cast<std::uint64_t>(v.strides[i]), &step) &&
             !__builtin_add_overflow(last, step, &last);
    if (!fits || last > stored / item_size(v) || (bytes > 0 && last == stored / item_size(v)))
      reader.refuse(Code::offset_range, "a tensor that reaches beyond the ", stored / item_size(v),
                    " numbers of its storage");
    if (bytes > stored)
      reader.refuse(Code::bad_stride, "an expanded tensor, ", bytes, " bytes of a storage of ", stored);
    v.info.begin = v.storage->begin + static_cast<std::uint64_t>(offset) * item_size(v);
    v.info.end = v.info.begin + bytes;
  }

  /// The tensors by name, in the order of the dictionary.
  TensorHeader list(const PickleStore& values, const Value& root) {
    if (root.kind != Kind::dict)
      refuse(Code::not_state_dict, "it holds ", name(root.kind), ", wanted a dictionary of tensors by name");
    TensorHeader header;
    header.tensors.reserve(
        static_cast<std::size_t>(std::min<std::uint64_t>(values.size(root), most_tensors)));
    std::uint64_t all = 0;
    values.for_entries(root, [&](const Value& key, const Value& value) {
      if (key.kind != Kind::text)
        refuse(Code::not_state_dict, "a key is ", name(key.kind), ", wanted tensors by name");
      const std::string_view named = values.text(key);
      check_tensor_name(named, [this](Code code, const auto&... what) { refuse(code, what...); });
      if (value.kind != Kind::tensor)
        refuse(Code::not_state_dict, shown(named), " is ", name(value.kind), ", wanted a tensor");
      const View& v = tensors_[static_cast<std::size_t>(value.at)];
      all += v.info.end - v.info.begin;
      if (all > most_sharing * bytes_.size())
        refuse(Code::too_large, "tensors that share storages, together more than ", most_sharing,
               " times the file's size");
      header.tensors.push_back(v.info);
      TensorInfo& info = header.tensors.back();
      info.name = named;
      if (!is_row_major(v)) copy_row_major(v, info);
    });
    if (const std::string* const twice = header.sort_names())
      refuse(Code::duplicate_key, "a tensor twice: " + shown(*twice));
    return header;
  }
  static bool is_row_major(const View& v) {
    Index step = 1;
    for (std::size_t i = v.strides.size(); i-- > 0;) {
      if (v.info.shape[i] == 0) return true;
      if (v.info.shape[i] > 1 && v.strides[i] != step) return false;
      step *= v.info.shape[i];
    }
    return true;
  }
  void copy_row_major(const View& v, TensorInfo& info) {
    const std::size_t size = static_cast<std::size_t>(item_size(v)),
                      n = static_cast<std::size_t>(info.end - info.begin);
    if (n > bytes_.size() - std::min(bytes_.size(), copies_.size()))
      refuse(Code::too_large, "tensors that are not row-major, together more than the file's size");
    info.begin = bytes_.size() + copies_.size();
    info.end = info.begin + n;
    const char* from = bytes_.data() + v.info.begin;
    std::array<Index, most_dims> at{};
    for (std::size_t done = 0; done < n; done += size) {
      copies_.append(from, size);
      // On to the next position, the last dimension first.
      for (std::size_t i = v.strides.size(); i-- > 0;) {
        if (v.info.shape[i] == 1) continue;  // whatever its stride is
        const auto step = static_cast<std::ptrdiff_t>(v.strides[i]) * static_cast<std::ptrdiff_t>(size);
        if (++at[i] < v.info.shape[i]) {
          from += step;
          break;
        }
        from -= step * (v.info.shape[i] - 1);
        at[i] = 0;
      }
    }
  }

  std::string_view bytes_;
  const Path& path_;
  TorchArchive archive_;
  std::vector<View> tensors_;
  Bytes copies_;
};

inline TensorFile torch_tensors(Bytes bytes, const Path& path) {
  TensorHeader header;
  Bytes copies;
  {
    TorchReader reader(bytes, path);
    header = reader.read();
    copies = reader.take_copies();
  }
  bytes += copies;
  return TensorFile(path, std::move(header), std::move(bytes));
}

}  // namespace detail

/// The tensors of a file of torch.save. Takes memory for the file; for up to four times as much while it
/// copies tensors that are not row-major. Throws what tests/io/README.md lists.
inline TensorFile read_torch_bin(const Path& path) {
  const FileReader file(path);
  const Bytes head = file.read(0, std::min<std::uint64_t>(file.size(), 512));
  detail::expect_torch_zip(head, path);
  Bytes bytes = file.read(0, file.size());
  file.expect_unchanged();
  return detail::torch_tensors(std::move(bytes), path);
}
/// The same from bytes in memory; `name` stands for the path in messages.
inline TensorFile parse_torch_bin(std::string_view bytes, const Path& name = "memory") {
  detail::expect_torch_zip(bytes.substr(0, 512), name);
  return detail::torch_tensors(Bytes(bytes), name);
}

}  // namespace moxie::inline MOXIE_ABI::io
