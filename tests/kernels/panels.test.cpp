// SPDX-License-Identifier: MIT
// Every layout and form of the two products gives the bits of the plain one, which packet.test.cpp holds
// against loops.
#include "support/catch.hpp"

#include "support/naive.hpp"
#include "support/random.hpp"

#include <moxie/kernels/combine.hpp>
#include <moxie/kernels/dot.hpp>
#include <moxie/kernels/visits.hpp>

#include <cstring>

using namespace moxie;
using namespace moxie::test;
using kernels::Into, kernels::Panels;

namespace {

template <class S>
bool same(const Matrix<S>& a, const Matrix<S>& b) {
  return std::memcmp(a.data(), b.data(), naive::at(a.size()) * sizeof(S)) == 0;
}

template <class W, class S>
Buffer<W> packed(const Matrix<S>& m) {
  const kernels::MatrixShape shape{m.rows(), m.cols(), true};
  Buffer<W> to(naive::at(shape.packed_size()), W(7));
  for (Index p = 0; p < kernels::panels(m.cols()); ++p) kernels::pack_panel(In<S>(m), p, to.data());
  return to;
}
template <class W, class S>
Panels<W> of(const Buffer<W>& memory, const Matrix<S>& m) {
  return kernels::packed_panels(memory.data(), {m.rows(), m.cols(), true});
}

const std::vector<Index> widths{1, 15, 16, 63, 64, 65, 127, 128, 200, 321};

}  // namespace

TEMPLATE_TEST_CASE("packed and narrow weights give the bits of row-major ones", "[kernels]", float, double) {
  using S = TestType;
  Rng rng(1);
  bool same_bits = true;
  for (const Index d : widths)
    for (const Index n : {1, 3, 8, 17, 40}) {
      const Matrix<S> x = rng.matrix<S>(9, d), a = rng.matrix<S>(n, d), c = rng.matrix<S>(9, n);
      const auto check = [&]<class W>(W) {
        Matrix<S> rounded = a;
        if constexpr (!std::is_same_v<W, S>)
          for (Index i = 0; i < a.size(); ++i)
            rounded.data()[i] =
                static_cast<S>(static_cast<float>(static_cast<W>(static_cast<float>(a.data()[i]))));
        const Buffer<W> memory = packed<W>(a);
        Matrix<S> h(9, n), other_h(9, n), y(9, d), other_y(9, d);
        kernels::dot(In<S>(x), Panels<S>(In<S>(rounded)), Out<S>(h));
        kernels::dot(In<S>(x), of(memory, a), Out<S>(other_h));
        same_bits = same_bits && same(h, other_h);
        Buffer<W> spaced(naive::at(n * kernels::row_stride(d)), W(7));
        kernels::space_rows(In<S>(a), spaced.data());
        kernels::dot(In<S>(x), kernels::spaced_rows(spaced.data(), {n, d, false}), Out<S>(other_h));
        kernels::combine(Into::set, {c.data(), n, 1}, Panels<S>(In<S>(rounded)), Out<S>(y));
        kernels::combine(Into::set, {c.data(), n, 1}, of(memory, a), Out<S>(other_y));
        same_bits = same_bits && same(h, other_h) && same(y, other_y);
        if (d > 64) {  // panels and rows by themselves
          Matrix<S> part(9, d - 64);
          kernels::combine(Into::set, {c.data(), n, 1}, of(memory, a).middle_cols(64, d - 64), Out<S>(part));
          same_bits = same_bits && same<S>(part, y.rightCols(d - 64));
        }
        if (n > 3) {
          Matrix<S> part(9, n - 3);
          kernels::dot(In<S>(x), of(memory, a).middle_rows(3, n - 3), Out<S>(part));
          same_bits = same_bits && same<S>(part, h.rightCols(n - 3));
        }
      };
      check(S());
      check(Eigen::bfloat16());
      check(Eigen::half());
    }
  CHECK(same_bits);
}

TEMPLATE_TEST_CASE("listed rows and depths are those of the whole, the others left alone", "[kernels]", float,
                   double) {
  using S = TestType;
  Rng rng(2);
  const std::vector<int> list{0, 2, 3, 7, 8, 9, 12};
  bool same_bits = true;
  for (const Index d : widths) {
    const Matrix<S> x = rng.matrix<S>(13, d), a = rng.matrix<S>(11, d), c = rng.matrix<S>(6, 13);
    Matrix<S> whole(13, 11), h = Matrix<S>::Constant(13, 11, S(-5));
    kernels::dot(In<S>(x), Panels<S>(In<S>(a)), Out<S>(whole));
    kernels::dot(In<S>(x), std::span<const int>(list), Panels<S>(In<S>(a)), Out<S>(h));
    for (int t = 0; t < 13; ++t) {
      const bool listed = std::find(list.begin(), list.end(), t) != list.end();
      for (Index j = 0; j < 11; ++j) same_bits = same_bits && h(t, j) == (listed ? whole(t, j) : S(-5));
    }
    // A depth that is left out is one whose coefficient is 0.
    Matrix<S> zeroed = Matrix<S>::Zero(6, 13), y(6, d), other(6, d), each(6, d);
    for (const int k : list) zeroed.col(k) = c.col(k);
    kernels::combine(Into::set, {zeroed.data(), 13, 1}, Panels<S>(In<S>(x)), Out<S>(y));
    kernels::combine(Into::set, {c.data(), 13, 1}, std::span<const int>(list), Panels<S>(In<S>(x)),
                     Out<S>(other));
    // The same in two visits of the first and the other depths; rows 2 and 4 come for the first alone.
    const std::vector<int> all{0, 1, 2, 3, 4, 5}, some{0, 1, 3, 5};
    const std::vector<S> zeros(naive::at(d), S(0));
    Matrix<S> between(6, d);
    const auto visits = [&](bool last) {
      return [&, last](Index t) {
        const bool only = t == 2 || t == 4;
        return kernels::Visit<S>{.start = last ? between.row(t).data() : zeros.data(),
                                 .add = zeros.data(),
                                 .out = last || only ? each.row(t).data() : between.row(t).data()};
      };
    };
    const Panels<S> m{In<S>(x)};
    kernels::combine_visits(kernels::Coefficients<S>{c.data(), 13, 1}, std::span<const int>(all),
                            m.middle_rows(0, 5), visits(false));
    kernels::combine_visits(kernels::Coefficients<S>{c.data() + 5, 13, 1}, std::span<const int>(some),
                            m.middle_rows(5, 8), visits(true));
    Matrix<S> first(6, d), every(6, d);
    kernels::combine(Into::set, {c.data(), 13, 1}, m.middle_rows(0, 5), Out<S>(first));
    kernels::combine(Into::set, {c.data(), 13, 1}, m, Out<S>(every));
    for (const int t : {2, 4}) every.row(t) = first.row(t);
    same_bits = same_bits && same(y, other) && same(every, each);
  }
  CHECK(same_bits);
}

TEMPLATE_TEST_CASE("products of two matrices are those of their product stored", "[kernels]", float, double) {
  using S = TestType;
  Rng rng(3);
  bool same_bits = true;
  for (const Index d : widths) {
    const Matrix<S> x = rng.matrix<S>(9, d), z = rng.matrix<S>(9, d), a = rng.matrix<S>(5, d),
                    c = rng.matrix<S>(5, 9);
    const Matrix<S> stored = x.cwiseProduct(z);
    Matrix<S> h(9, 5), other_h(9, 5), y(5, d), other_y(5, d);
    kernels::dot(In<S>(stored), Panels<S>(In<S>(a)), Out<S>(h));
    kernels::dot(In<S>(x), In<S>(z), Panels<S>(In<S>(a)), Out<S>(other_h));
    kernels::combine(Into::set, {c.data(), 9, 1}, Panels<S>(In<S>(stored)), Out<S>(y));
    kernels::combine(Into::set, {c.data(), 9, 1}, In<S>(x), In<S>(z), Out<S>(other_y));
    same_bits = same_bits && same(h, other_h) && same(y, other_y);
  }
  CHECK(same_bits);
}

TEMPLATE_TEST_CASE("multiply and multiply_add scale another matrix by the sum, on its line from 1",
                   "[kernels]", float, double) {
  using S = TestType;
  Rng rng(4);
  bool same_bits = true;
  for (const Index d : widths)
    for (const double strength : {1.0, 0.5, -2.0}) {
      const Matrix<S> x = rng.matrix<S>(7, d), l = rng.matrix<S>(3, d), g = rng.matrix<S>(7, 3),
                      before = rng.matrix<S>(7, d);
      Matrix<S> s(7, d), y(7, d), added = before, in_place = x;
      const S k = static_cast<S>(strength);
      kernels::combine(Into::set, {g.data(), 3, 1}, Panels<S>(In<S>(l)), Out<S>(s));
      kernels::combine({Into::multiply, In<S>(x), k}, {g.data(), 3, 1}, Panels<S>(In<S>(l)), Out<S>(y));
      kernels::combine({Into::multiply, In<S>(in_place), k}, {g.data(), 3, 1}, Panels<S>(In<S>(l)),
                       Out<S>(in_place));
      kernels::combine({Into::multiply_add, In<S>(x), k}, {g.data(), 3, 1}, Panels<S>(In<S>(l)),
                       Out<S>(added));
      for (Index i = 0; i < s.size(); ++i) {
        const S scale = k == 1 ? s.data()[i] : madd(k, s.data()[i] - S(1), S(1));
        same_bits = same_bits && y.data()[i] == x.data()[i] * scale && in_place.data()[i] == y.data()[i] &&
                    added.data()[i] == madd(x.data()[i], scale, before.data()[i]);
      }
    }
  CHECK(same_bits);
}

TEST_CASE("where rows are a multiple of 4 KiB apart, a pass over a tile packs them", "[kernels]") {
  using kernels::worth_packing;
  CHECK(worth_packing<float>(64, {64, 4096, true}));
  CHECK(worth_packing<double>(64, {64, 512, true}));
  CHECK_FALSE(worth_packing<float>(63, {64, 4096, true}));
  CHECK_FALSE(worth_packing<float>(512, {64, 768, true}));
}
