// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/workspace.hpp>

#include <array>
#include <cmath>

namespace moxie::inline MOXIE_ABI {

namespace detail {

/// Whether a part tells its matrices, so that they can be packed.
template <class Part>
concept Packable = requires(const Part& part) {
  part.matrices();
};

/// The matrices of a part, none where it does not tell them.
template <class Part>
constexpr auto matrices_of(const Part& part) {
  if constexpr (Packable<Part>)
    return part.matrices();
  else
    return std::array<kernels::MatrixShape, 0>{};
}
template <class W, class Part>
using Views = std::array<kernels::Panels<W>, decltype(matrices_of(std::declval<const Part&>())){}.size()>;

/// The scalars of a workspace that `pack` will use for a part.
template <Scalar S, class Part>
Index packed_size(const Part& part, Index tokens, bool forward) {
  Index size = 0;
  for (const kernels::MatrixShape& m : matrices_of(part))
    if (m.combined == forward && kernels::worth_packing<S>(tokens, m)) size += m.packed_size();
  return size;
}

/// A part's matrices as they lie in theta.
template <Scalar S, class Part>
Views<S, Part> unpacked_views(const Part& part, const S* theta) {
  Views<S, Part> views;
  std::size_t i = 0;
  for (const kernels::MatrixShape& m : matrices_of(part)) {
    views[i++] = kernels::row_major_panels(theta, m);
    theta += m.size();
  }
  return views;
}

/// A part's matrices as one pass over `tokens` reads them: where they lie in theta, or, where that pays,
/// packed to `space`, which is moved on.
template <Scalar S, class Part>
Views<S, Part> views(const Part& part, const S* theta, Index tokens, bool forward, int threads, S*& space) {
  Views<S, Part> views = unpacked_views(part, theta);
  std::size_t i = 0;
  for (const kernels::MatrixShape& m : matrices_of(part)) {
    if (m.combined == forward && kernels::worth_packing<S>(tokens, m)) {
      for_blocks(kernels::panels(m.cols), threads,
                 [&](Index p, int) { kernels::pack_panel(In<S>(theta, m.rows, m.cols), p, space); });
      views[i] = kernels::packed_panels(space, m);
      space += m.packed_size();
    }
    theta += m.size();
    ++i;
  }
  return views;
}

}  // namespace detail

/// The weights of one adapter as inference reads them: packed once, immutable, to be shared by any number of
/// threads and calls. W is their storage: S gives the bits of the theta that they were made from,
/// Eigen::bfloat16 and Eigen::half half the bytes (weights rounded to nearest; sums and softmax stay in S).
/// MoeAdapter::prepare makes one; what happens to theta afterwards does not reach it.
template <Scalar S, class W = S>
class Prepared {
 public:
  static_assert(std::is_same_v<W, S> || std::is_same_v<W, Eigen::bfloat16> || std::is_same_v<W, Eigen::half>,
                "moxie: weights are stored as the scalar itself, Eigen::bfloat16 or Eigen::half");

  /// `theta` holds the matrices of the parts one behind the other. Throws NonFinite where a finite weight is
  /// too large for W.
  template <class... Parts>
  explicit Prepared(std::span<const S> theta, const Parts&... parts) {
    const auto add = [this](const auto& matrices) {
      for (const kernels::MatrixShape& m : matrices)
        shapes_.push_back(m);  // insert: g++ 12 warns for nothing
    };
    (add(parts.matrices()), ...);
    if constexpr (!std::is_same_v<W, S>)
      for (const S weight : theta)
        if (std::isfinite(weight) &&
            !std::isfinite(static_cast<float>(static_cast<W>(static_cast<float>(weight)))))
          fail(Code::non_finite, detail::join("weight ", static_cast<double>(weight),
                                              ", wanted one in the range of its 16-bit storage"));
    Index size = 0;
    for (const kernels::MatrixShape& m : shapes_) size += size_of(m);
    packed_.resize(static_cast<std::size_t>(size));
    const S* from = theta.data();
    W* to = packed_.data();
    for (const kernels::MatrixShape& m : shapes_) {
      const In<S> matrix(from, m.rows, m.cols);
      if (!m.combined) kernels::space_rows(matrix, to);
      for (Index p = 0; m.combined && p < kernels::panels(m.cols); ++p) kernels::pack_panel(matrix, p, to);
      from += m.size();
      to += size_of(m);
    }
  }

  /// Throws ShapeMismatch where these are not the weights of such parts.
  template <class... Parts>
  void expect_of(const Parts&... parts) const {
    std::size_t i = 0;
    bool same = true;
    const auto check = [&](const auto& matrices) {
      for (const kernels::MatrixShape& m : matrices) same = same && i < shapes_.size() && shapes_[i++] == m;
    };
    (check(detail::matrices_of(parts)), ...);
    if (!same || i != shapes_.size())
      fail(Code::shape_mismatch, "the prepared weights are of an adapter of another shape");
  }

  std::size_t bytes() const { return packed_.size() * sizeof(W); }

  /// A part's matrices, which begin with number `first`.
  template <class Part>
  detail::Views<W, Part> views(const Part&, std::size_t first) const {
    detail::Views<W, Part> views;
    const W* at = packed_.data();
    for (std::size_t i = 0; i < first + views.size(); ++i) {
      const kernels::MatrixShape& m = shapes_[i];
      if (i >= first)
        views[i - first] = m.combined ? kernels::packed_panels(at, m) : kernels::spaced_rows(at, m);
      at += size_of(m);
    }
    return views;
  }

 private:
  static Index size_of(const kernels::MatrixShape& m) {
    return m.combined ? m.packed_size() : m.rows * kernels::row_stride(m.cols);
  }

  std::vector<kernels::MatrixShape> shapes_;
  Buffer<W> packed_;
};

}  // namespace moxie::inline MOXIE_ABI
