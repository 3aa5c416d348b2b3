// SPDX-License-Identifier: MIT
// A program of its own, because it replaces the allocator: after a call with at least as many tokens and the
// same thread count, neither forward nor backward allocates, for every adapter of the list, d up to 1024,
// ranks up to 16.
#include "support/case_list.hpp"

#include <moxie/adapter_set.hpp>
#include <moxie/linear.hpp>

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace {
std::atomic<long> allocations = 0;
std::atomic<bool> counting = false;
void count() {
  if (counting.load(std::memory_order_relaxed)) ++allocations;
}
}  // namespace

#if defined(__GLIBC__)
// Every way to the heap goes through these, operator new and Eigen's own allocations included.
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void* malloc(std::size_t n) { return count(), __libc_malloc(n); }
void* calloc(std::size_t n, std::size_t size) { return count(), __libc_calloc(n, size); }
void* realloc(void* p, std::size_t n) { return count(), __libc_realloc(p, n); }
void* memalign(std::size_t alignment, std::size_t n) { return count(), __libc_memalign(alignment, n); }
void* aligned_alloc(std::size_t alignment, std::size_t n) { return count(), __libc_memalign(alignment, n); }
int posix_memalign(void** p, std::size_t alignment, std::size_t n) {
  count();
  *p = __libc_memalign(alignment, n);
  return *p == nullptr ? 12 : 0;
}
}
#else
void* operator new(std::size_t n) {
  count();
  if (void* p = std::malloc(n > 0 ? n : 1)) return p;
  std::abort();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void* operator new(std::size_t n, std::align_val_t alignment) {
  count();
  const auto a = static_cast<std::size_t>(alignment);
  if (void* p = std::aligned_alloc(a, (n + a - 1) / a * a + a)) return p;
  std::abort();
}
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
#endif

namespace moxie::test {
namespace {

template <class S>
long check(const Sizes& sizes, Index few) {
  long failures = 0;
  for (const Case<S>& c : cases<S>(sizes))
    for (const bool training : {false, true})
      for (const int threads : {1, 2}) {
        if (training && !c.random()) continue;
        Run run = training ? training_run() : Run{};
        run.threads = threads;
        const Index tokens = threads == 1 ? few : std::max(few, team_tokens(c.adapter->size()));
        const Inputs<S> data = make_inputs(c, tokens, 1, false, true);
        Matrix<S> y = data.y, dx = Matrix<S>::Zero(tokens, c.adapter->in());
        Buffer<S> dtheta(data.theta.size(), S(0));
        Cache<S> cache;
        Workspace<S> workspace;
        const Routing<S> no_losses;
        const auto call = [&](Index n) {
          if (c.given())
            give_gates<S>(cache.routing, In<S>(data.gates).middle_rows(0, c.rows(n)), c.router.heads);
          c.adapter->forward(data.theta, data.x.topRows(n), y.topRows(n), cache, workspace, run, {});
          c.adapter->backward(data.theta, data.x.topRows(n), data.dy.topRows(n), cache, workspace, run,
                              dx.topRows(n), dtheta, n == tokens ? data.drouting : no_losses, {}, {});
        };
        call(tokens);
        allocations = 0;
        counting = true;
        for (const Index n : {tokens, tokens - 1, Index{1}, tokens}) call(n);
        counting = false;
        if (allocations > 0) {
          std::printf("%s, in %ld%s, %d threads: %ld allocations\n", c.name.c_str(),
                      static_cast<long>(c.adapter->in()), training ? ", training" : "", threads,
                      allocations.load());
          ++failures;
        }
      }
  return failures;
}

/// Calls f once to warm up, then counts.
template <class F>
long check_call(const char* name, int threads, F&& f) {
  f();
  allocations = 0;
  counting = true;
  f();
  counting = false;
  if (allocations > 0) std::printf("%s, %d threads: %ld allocations\n", name, threads, allocations.load());
  return allocations > 0 ? 1 : 0;
}

template <class S, class Adapter>
long check_linear(const char* name, const Adapter& adapter, Index in, Index out, Site site) {
  long failures = 0;
  const Index tokens = team_tokens(std::min(adapter.size(), in * out));
  const Matrix<S> weight = Rng(1).matrix<S>(out, in), x = Rng(2).matrix<S>(tokens, in),
                  dy = Rng(3).matrix<S>(tokens, out);
  const AdaptedLinear<Adapter> linear(adapter, weight, {}, site);
  const Buffer<S> theta = make_theta(adapter, 1);
  Buffer<S> dtheta(theta.size(), S(0));
  Matrix<S> y(tokens, out), dx = Matrix<S>::Zero(tokens, in);
  LinearCache<S> cache;
  Workspace<S> workspace;
  for (const int threads : {1, 2}) {
    const Run run{.training = true, .threads = threads};
    failures += check_call(name, threads, [&] {
      linear.forward(theta, x, y, cache, workspace, run);
      linear.backward(theta, x, dy, cache, workspace, run, dx, dtheta);
    });
  }
  return failures;
}

template <class S>
long check_set() {
  AdapterSet<S> set;
  const Module modules[] = {set.add("a", mola<S>({.in = 20, .out = 20, .experts = 4})),
                            set.add("b", mov<S>({.features = 20, .heads = 2})),
                            set.add("c", loramoe<S>({.in = 20, .out = 20}))};
  set.init(1);
  set.enable(modules[2], false);
  const Index tokens = team_tokens(std::ssize(std::as_const(set).theta(modules[1])));
  const Matrix<S> x = Rng(1).matrix<S>(tokens, 20), dy = Rng(2).matrix<S>(tokens, 20);
  Matrix<S> y = x, dx = x;
  Buffer<S> dtheta(naive::at(set.size()), S(0));
  Cache<S> caches[3];
  Workspace<S> workspace;
  long failures = 0;
  for (const int threads : {1, 2}) {
    const Run run{.training = true, .threads = threads};
    failures += check_call("a set", threads, [&] {
      for (std::size_t m = 0; m < 3; ++m) {
        set.forward(modules[m], x, y, caches[m], workspace, run);
        set.backward(modules[m], x, dy, caches[m], workspace, run, dx, dtheta);
      }
    });
  }
  return failures;
}

template <class S>
long check_layers() {
  return check_linear<S>("a layer with MoLoRA", molora<S>({.in = 33, .out = 20}), 33, 20, Site::output) +
         check_linear<S>("a layer with MoV at its output", mov<S>({.features = 20}), 33, 20, Site::output) +
         check_linear<S>("a layer with MoV at its input", mov<S>({.features = 33}), 33, 20, Site::input) +
         check_set<S>();
}

}  // namespace
}  // namespace moxie::test

int main() {
  using namespace moxie::test;
  using moxie::Index;
  // The counter must be able to count.
  counting = true;
  std::vector<double>* seen = new std::vector<double>(1000);
  moxie::Buffer<float> aligned(1000);
  counting = false;
  delete seen;
  if (allocations < 3) {
    std::printf("the allocator is not the counting one\n");
    return 1;
  }
  long failures = check_layers<float>() + check_layers<double>();
  for (const Sizes& sizes : {Sizes{}, Sizes{.in = 1024, .out = 1024, .head = 512, .heads = 2, .ranks = 4},
                             Sizes{.in = 257, .out = 130, .head = 37, .heads = 3, .experts = 9}}) {
    const Index tokens = sizes.in > 100 ? 3 : 70;
    failures += check<float>(sizes, tokens);
    failures += check<double>(sizes, tokens);
  }
  if (failures == 0) std::printf("no allocation in any call\n");
  return failures == 0 ? 0 : 1;
}
