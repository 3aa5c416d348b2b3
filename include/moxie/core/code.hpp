// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/version.hpp>

#include <cstddef>
#include <iterator>
#include <string_view>

namespace moxie::inline MOXIE_ABI {

/// Stable reason of a refusal; `name(code)` is its spelling in messages.
enum class Code {
  shape_mismatch,  ///< sizes of arguments do not fit each other or the part
  config_range,    ///< a setting lies outside its range
  state_error,     ///< called in the wrong order, or with another call's cache
  aliased,         ///< an output overlaps an input where it must not
  null_pointer,    ///< a view of positive size without memory
  bad_stride,      ///< rows closer together than they are long
  not_mergeable,   ///< the update depends on the token, so no single matrix equals it
  router_output,   ///< a routing made elsewhere is not a routing
  non_finite,      ///< NaN or infinity where a number is needed
  name_taken,      ///< a module of that name exists
  unknown_name,    ///< no module of that name
  too_large,       ///< a size would overflow
  // Files (moxie::io).
  io_open,
  io_read,
  io_write,
  io_no_space,
  io_changed,  ///< another size at the end of reading than at its start
  not_regular_file,
  not_safetensors,  ///< a file of another kind
  header_too_small,
  header_too_large,
  invalid_header_length,
  header_not_object,
  invalid_utf8,
  json_syntax,
  json_trailing,
  json_depth,
  json_escape,
  duplicate_key,
  integer_range,
  empty_name,
  bad_name,
  name_too_long,
  too_many_tensors,
  bad_tensor_entry,
  missing_field,
  unknown_field,
  unknown_dtype,
  unsupported_dtype,
  misaligned_size,
  bad_shape,
  too_many_dims,
  size_overflow,
  size_mismatch,
  bad_offsets,
  offset_range,
  offset_hole,
  offset_overlap,
  file_truncated,
  trailing_data,
  bad_metadata,
  version_too_new,
  checksum_mismatch,
  value_range,  ///< a number too large for the type it is wanted in
  // Files of torch.save.
  not_torch_file,  ///< a file of another kind
  bad_archive,
  unsupported_archive,
  bad_pickle,
  unsupported_pickle,  ///< it asks for more than tensors need; nothing of it is run
  not_state_dict,
  // Folders of adapters.
  missing_tensor,
  unexpected_tensor,
  nothing_matched,
  rank_mismatch,
  dtype_mismatch,
  expert_index,  ///< experts that are not numbered 0 to E - 1, or not as many as is said
  config_type,
  config_mismatch,  ///< two places say different things
  unknown_config_key,
  unsupported_option,  ///< known, changes the result, and is not built
  pattern_syntax,
  pattern_unused,
  adapter_kind,   ///< an adapter of another kind
  pair_mismatch,  ///< a folder's two files are not from one save
};

inline std::string_view name(Code code) {
  constexpr std::string_view names[] = {"ShapeMismatch",
                                        "ConfigRange",
                                        "StateError",
                                        "Aliased",
                                        "NullPointer",
                                        "BadStride",
                                        "NotMergeable",
                                        "RouterOutput",
                                        "NonFinite",
                                        "NameTaken",
                                        "UnknownName",
                                        "TooLarge",
                                        "IoOpen",
                                        "IoRead",
                                        "IoWrite",
                                        "IoNoSpace",
                                        "IoChanged",
                                        "NotRegularFile",
                                        "NotSafetensors",
                                        "HeaderTooSmall",
                                        "HeaderTooLarge",
                                        "InvalidHeaderLength",
                                        "HeaderNotObject",
                                        "InvalidUtf8",
                                        "JsonSyntax",
                                        "JsonTrailing",
                                        "JsonDepth",
                                        "JsonEscape",
                                        "DuplicateKey",
                                        "IntegerRange",
                                        "EmptyName",
                                        "BadName",
                                        "NameTooLong",
                                        "TooManyTensors",
                                        "BadTensorEntry",
                                        "MissingField",
                                        "UnknownField",
                                        "UnknownDtype",
                                        "UnsupportedDtype",
                                        "MisalignedSize",
                                        "BadShape",
                                        "TooManyDims",
                                        "SizeOverflow",
                                        "SizeMismatch",
                                        "BadOffsets",
                                        "OffsetRange",
                                        "OffsetHole",
                                        "OffsetOverlap",
                                        "FileTruncated",
                                        "TrailingData",
                                        "BadMetadata",
                                        "VersionTooNew",
                                        "ChecksumMismatch",
                                        "ValueRange",
                                        "NotTorchFile",
                                        "BadArchive",
                                        "UnsupportedArchive",
                                        "BadPickle",
                                        "UnsupportedPickle",
                                        "NotStateDict",
                                        "MissingTensor",
                                        "UnexpectedTensor",
                                        "NothingMatched",
                                        "RankMismatch",
                                        "DtypeMismatch",
                                        "ExpertIndex",
                                        "ConfigType",
                                        "ConfigMismatch",
                                        "UnknownConfigKey",
                                        "UnsupportedOption",
                                        "PatternSyntax",
                                        "PatternUnused",
                                        "AdapterKind",
                                        "PairMismatch"};
  static_assert(std::size(names) == static_cast<std::size_t>(Code::pair_mismatch) + 1);
  return names[static_cast<std::size_t>(code)];
}

}  // namespace moxie::inline MOXIE_ABI
