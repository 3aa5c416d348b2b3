// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/naive.hpp"
#include "support/random.hpp"

#include <moxie/kernels/combine.hpp>
#include <moxie/kernels/dot.hpp>

#include <cstring>

using namespace moxie;
using namespace moxie::test;
using kernels::Into;

namespace {

/// Around every packet and block size that a target has, and well beyond.
const std::vector<Index> lengths{1,  2,  3,  4,  5,  7,  8,   9,   15,  16, 17,
                                 31, 32, 33, 63, 64, 65, 127, 128, 129, 300};
const std::vector<Index> counts{1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 17};

/// Rows of `stride` scalars that start `shift` scalars behind an aligned address, with guards between them.
template <class S>
struct Rows {
  Buffer<S> memory;
  Index rows, cols, stride, shift;
  Rows(Index r, Index c, Index gap = 0, Index first = 0)
      : memory(naive::at(first + r * (c + gap) + 16), S(-77)),
        rows(r),
        cols(c),
        stride(c + gap),
        shift(first) {}
  S* data() { return memory.data() + shift; }
  const S* data() const { return memory.data() + shift; }
  S& at(Index r, Index c) { return data()[r * stride + c]; }
  const S& at(Index r, Index c) const { return data()[r * stride + c]; }
  In<S> in() const { return {data(), rows, cols, stride}; }
  Out<S> out() { return {data(), rows, cols, stride}; }
  void fill(Rng& rng) {
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < cols; ++c) at(r, c) = static_cast<S>(rng.uniform(-1, 1));
  }
  template <class R>
  std::vector<R> values() const {
    std::vector<R> v;
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < cols; ++c) v.push_back(R(at(r, c)));
    return v;
  }
  /// Nothing was written before, between or behind the rows.
  bool guarded() const {
    for (Index i = 0; i < std::ssize(memory); ++i) {
      const Index in = i - shift;
      const bool inside = in >= 0 && in < rows * stride && in % stride < cols;
      if (!inside && memory[naive::at(i)] != S(-77)) return false;
    }
    return true;
  }
};

template <class S>
bool same(const Rows<S>& a, Index a_row, const Rows<S>& b, Index b_row) {
  return std::memcmp(&a.at(a_row, 0), &b.at(b_row, 0), naive::at(a.cols) * sizeof(S)) == 0;
}

template <class S>
void dot(const Rows<S>& x, const Rows<S>& a, Rows<S>& h) {
  kernels::dot(x.in(), kernels::Panels<S>(a.in()), h.out());
}
template <class S>
void combine(Into into, const Rows<S>& c, const Rows<S>& m, Rows<S>& out) {
  kernels::combine(into, {c.data(), c.stride, 1}, kernels::Panels<S>(m.in()), out.out());
}

}  // namespace

TEMPLATE_TEST_CASE("dot equals plain loops for every shape, stride and address", "[kernels]", float, double) {
  using S = TestType;
  Rng rng(1);
  Worst worst;
  for (const Index d : lengths)
    for (const Index n : counts)
      for (const Index tokens : {1, 2, 4, 5, 9}) {
        const Index gap = rng.integer(0, 3), shift = rng.integer(0, 7);
        Rows<S> x(tokens, d, gap, shift), a(n, d, rng.integer(0, 2), rng.integer(0, 7)),
            h(tokens, n, gap, shift);
        x.fill(rng);
        a.fill(rng);
        dot(x, a, h);
        const auto wanted =
            naive::dot(x.template values<Bounded>(), tokens, a.template values<Bounded>(), n, d);
        const auto got = h.template values<S>();
        for (std::size_t i = 0; i < wanted.size(); ++i) worst.see(got[i], wanted[i]);
        REQUIRE(h.guarded());
      }
  INFO("worst " << worst.ratio() << " of what is allowed");
  CHECK(worst.trusted());
  CHECK(worst.ratio() <= 1);
  CHECK(worst.ratio() > 0.001);
}

TEMPLATE_TEST_CASE("combine equals plain loops for every shape, stride and address", "[kernels]", float,
                   double) {
  using S = TestType;
  Rng rng(2);
  Worst worst;
  for (const Index cols : lengths)
    for (const Index rows : counts)
      for (const Index depth : {0, 1, 2, 7, 33})
        for (const Into into : {Into::set, Into::chain, Into::add}) {
          const Index gap = rng.integer(0, 3), shift = rng.integer(0, 7);
          Rows<S> c(rows, depth, 1, shift), m(depth, cols, gap, rng.integer(0, 7)),
              out(rows, cols, gap, shift);
          c.fill(rng);
          m.fill(rng);
          out.fill(rng);
          const auto before = out.template values<Bounded>();
          combine(into, c, m, out);
          auto wanted =
              naive::combine(c.template values<Bounded>(), rows, depth, m.template values<Bounded>(), cols);
          const auto got = out.template values<S>();
          for (std::size_t i = 0; i < wanted.size(); ++i) {
            if (into != Into::set) wanted[i] += before[i];
            if (depth > 0) worst.see(got[i], wanted[i]);
            if (depth == 0)
              REQUIRE(static_cast<long double>(got[i]) == (into == Into::set ? 0 : before[i].value));
          }
          REQUIRE(out.guarded());
        }
  INFO("worst " << worst.ratio() << " of what is allowed");
  CHECK(worst.trusted());
  CHECK(worst.ratio() <= 1);
  CHECK(worst.ratio() > 0.001);
}

TEMPLATE_TEST_CASE("combine reads its weights through any two strides", "[kernels]", float, double) {
  // As a weight gradient does: the depth runs over tokens, a stride apart.
  using S = TestType;
  Rng rng(3);
  for (const Index rows : counts) {
    Rows<S> c(rows, 19), m(19, 37), transposed(19, rows, 2), out(rows, 37), other(rows, 37);
    c.fill(rng);
    m.fill(rng);
    for (Index r = 0; r < rows; ++r)
      for (Index k = 0; k < 19; ++k) transposed.at(k, r) = c.at(r, k);
    combine(Into::set, c, m, out);
    kernels::combine(Into::set, {transposed.data(), 1, transposed.stride}, kernels::Panels<S>(m.in()),
                     other.out());
    for (Index r = 0; r < rows; ++r) CHECK(same(out, r, other, r));
  }
}

TEMPLATE_TEST_CASE("products of small integers are exact", "[kernels]", float, double) {
  using S = TestType;
  Rng rng(4);
  bool exact = true;
  for (const Index d : lengths) {
    Rows<S> x(9, d), a(11, d), h(9, 11), out(9, d);
    for (Rows<S>* rows : {&x, &a})
      for (Index r = 0; r < rows->rows; ++r)
        for (Index i = 0; i < d; ++i) rows->at(r, i) = static_cast<S>(rng.integer(-9, 9));
    dot(x, a, h);
    combine(Into::set, h, a, out);
    for (Index t = 0; t < 9; ++t) {
      std::vector<long long> updates(naive::at(d), 0);
      for (Index j = 0; j < 11; ++j) {
        long long sum = 0;
        for (Index i = 0; i < d; ++i)
          sum += static_cast<long long>(x.at(t, i)) * static_cast<long long>(a.at(j, i));
        exact = exact && static_cast<long long>(h.at(t, j)) == sum;
        for (Index i = 0; i < d; ++i) updates[naive::at(i)] += sum * static_cast<long long>(a.at(j, i));
      }
      for (Index i = 0; i < d; ++i)
        exact = exact && static_cast<long long>(out.at(t, i)) == updates[naive::at(i)];
    }
  }
  CHECK(exact);
}

TEMPLATE_TEST_CASE("a row has the same bits alone and among any number of others", "[kernels]", float,
                   double) {
  using S = TestType;
  Rng rng(5);
  bool same_dot = true, same_combine = true;
  for (const Index d : lengths)
    for (const Index n : {1, 2, 3, 4, 7, 8, 9, 12, 17}) {
      Rows<S> x(97, d), a(n, d), h(97, n), c(97, n), out(97, d);
      x.fill(rng);
      a.fill(rng);
      c.fill(rng);
      dot(x, a, h);
      combine(Into::set, c, a, out);
      for (const Index first : {0, 1, 2, 3, 50, 95, 96})
        for (const Index rows : {1, 2, 3, 5, 6, 7}) {
          if (first + rows > 97) continue;
          // At other addresses, with other strides.
          Rows<S> part_x(rows, d, rng.integer(0, 3), rng.integer(0, 7)), moved_a(n, d, 1, 3),
              part_h(rows, n, 2, 1), part_c(rows, n, 1, 2), part_out(rows, d, 3, 5);
          for (Index r = 0; r < n; ++r) std::copy_n(&a.at(r, 0), d, &moved_a.at(r, 0));
          for (Index r = 0; r < rows; ++r) {
            std::copy_n(&x.at(first + r, 0), d, &part_x.at(r, 0));
            std::copy_n(&c.at(first + r, 0), n, &part_c.at(r, 0));
          }
          dot(part_x, moved_a, part_h);
          combine(Into::set, part_c, moved_a, part_out);
          for (Index r = 0; r < rows; ++r) {
            same_dot = same_dot && same(part_h, r, h, first + r);
            same_combine = same_combine && same(part_out, r, out, first + r);
          }
        }
    }
  CHECK(same_dot);
  CHECK(same_combine);
}

TEMPLATE_TEST_CASE("columns computed by themselves have the same bits", "[kernels]", float, double) {
  // Weight gradients are computed in blocks of columns; dot in any group of rows.
  using S = TestType;
  Rng rng(6);
  Rows<S> c(7, 23), m(23, 200), whole(7, 200), x(5, 77), a(19, 77), h(5, 19);
  for (Rows<S>* rows : {&c, &m, &x, &a}) rows->fill(rng);
  combine(Into::set, c, m, whole);
  dot(x, a, h);
  bool same_columns = true;
  for (const auto& [first, width] : {std::pair<Index, Index>{0, 64}, {64, 64}, {128, 72}, {3, 1}, {70, 17}}) {
    Rows<S> part(7, width);
    kernels::combine(Into::set, {c.data(), c.stride, 1},
                     kernels::Panels<S>(m.data() + first, 23, width, m.stride), part.out());
    for (Index r = 0; r < 7; ++r)
      for (Index i = 0; i < width; ++i)
        same_columns = same_columns && part.at(r, i) == whole.at(r, first + i);
  }
  for (const auto& [first, n] : {std::pair<Index, Index>{0, 8}, {8, 11}, {5, 1}, {3, 9}}) {
    Rows<S> part(5, n);
    kernels::dot(x.in(), kernels::Panels<S>(a.in()).middle_rows(first, n), part.out());
    for (Index t = 0; t < 5; ++t)
      for (Index j = 0; j < n; ++j) same_columns = same_columns && part.at(t, j) == h.at(t, first + j);
  }
  CHECK(same_columns);
}

TEMPLATE_TEST_CASE("a chain that is continued equals one go, and add adds a finished sum once", "[kernels]",
                   float, double) {
  using S = TestType;
  Rng rng(7);
  bool continued = true, once = true;
  for (const Index cols : lengths) {
    Rows<S> c(7, 30), m(30, cols), whole(7, cols), parts(7, cols), added(7, cols), before(7, cols);
    for (Rows<S>* rows : {&c, &m, &before}) rows->fill(rng);
    combine(Into::set, c, m, whole);
    for (Index r = 0; r < 7; ++r) std::fill_n(&parts.at(r, 0), cols, S(0));
    for (const auto& [first, depth] : {std::pair<Index, Index>{0, 1}, {1, 12}, {13, 17}})
      kernels::combine(Into::chain, {c.data() + first, c.stride, 1},
                       kernels::Panels<S>(m.in()).middle_rows(first, depth), parts.out());
    for (Index r = 0; r < 7; ++r) std::copy_n(&before.at(r, 0), cols, &added.at(r, 0));
    combine(Into::add, c, m, added);
    for (Index r = 0; r < 7; ++r) {
      continued = continued && same(parts, r, whole, r);
      for (Index i = 0; i < cols; ++i) once = once && added.at(r, i) == before.at(r, i) + whole.at(r, i);
    }
  }
  CHECK(continued);
  CHECK(once);
}

TEMPLATE_TEST_CASE("NaN and infinity stay in their row", "[kernels]", float, double) {
  using S = TestType;
  Rng rng(8);
  for (const S poison : {std::numeric_limits<S>::quiet_NaN(), std::numeric_limits<S>::infinity()})
    for (const Index d : {5, 16, 37}) {
      Rows<S> x(13, d), a(9, d), clean(13, 9), h(13, 9), c(13, 9), clean_out(13, d), out(13, d);
      for (Rows<S>* rows : {&x, &a, &c}) rows->fill(rng);
      dot(x, a, clean);
      combine(Into::set, c, a, clean_out);
      x.at(5, d - 1) = poison;
      c.at(5, 8) = poison;
      dot(x, a, h);
      combine(Into::set, c, a, out);
      for (Index t = 0; t < 13; ++t) {
        if (t == 5) {
          CHECK(!std::isfinite(h.at(t, 0)));
          CHECK(!std::isfinite(out.at(t, 0)));
        } else {
          CHECK(same(h, t, clean, t));
          CHECK(same(out, t, clean_out, t));
        }
      }
    }
}

TEMPLATE_TEST_CASE("tails are not read beyond their end", "[kernels]", float, double) {
  using S = TestType;
  Rng rng(9);
  for (const Index d : lengths) {
    Rows<S> x(3, d, 1), a(5, d, 1), h(3, 5);
    x.fill(rng);
    a.fill(rng);
    // NaN behind every row: one that is read would show.
    for (Index t = 0; t < 3; ++t) x.data()[t * x.stride + d] = std::numeric_limits<S>::quiet_NaN();
    for (Index j = 0; j < 5; ++j) a.data()[j * a.stride + d] = std::numeric_limits<S>::quiet_NaN();
    dot(x, a, h);
    for (Index t = 0; t < 3; ++t)
      for (Index j = 0; j < 5; ++j) REQUIRE(std::isfinite(h.at(t, j)));
  }
}
