#pragma once

namespace holdfast {

// libbpf's options, zero but for their size. (Its own LIBBPF_OPTS is C, not C++.)
template <typename T>
T sized() {
  T options{};
  options.sz = sizeof(T);
  return options;
}

}  // namespace holdfast
