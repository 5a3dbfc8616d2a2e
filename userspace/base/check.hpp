// CHECK: an invariant whose failure is a bug in Holdfast, never a bad input. It stays on in release
// builds and aborts, because a wrong enforcer is worse than a dead one: leases expire by
// themselves.
#pragma once

#include <cstdio>
#include <cstdlib>

#define CHECK(condition)                                                                    \
  do {                                                                                      \
    if (!(condition)) [[unlikely]] {                                                        \
      std::fprintf(stderr, "holdfast: bug at %s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                         \
    }                                                                                       \
  } while (0)
