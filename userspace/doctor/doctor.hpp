// doctor: what this machine can enforce, from probes that really try and never from version
// numbers. Each probe uses the programs, the nftables code and the system calls that holdfastd
// itself uses, where they harm nobody: nothing is pinned for longer than the probe, interfaces are
// made in a network namespace of a child process that ends with it, and the cgroup it makes is
// removed.
//
// Needs no daemon, and may run beside one. Without root it says which probes need it. One thread;
// forks, so call it before any other thread exists. Takes about a second.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace holdfast::doctor {

enum class Verdict {
  enforced,  // works
  fallback,  // does not, and another way that does the same is used instead
  refused,   // does not
  unknown,   // could not be tried; next_step says what it takes
};
std::string_view name_of(Verdict verdict);

struct Finding {
  std::string feature;
  Verdict verdict = Verdict::unknown;
  std::string detail;
  std::string next_step;   // how to mend it; empty where there is nothing to mend
  bool essential = false;  // without it holdfastd enforces nothing, and says so
};

// What this kernel's verifier said of one of our programs when it took it.
struct Program {
  std::string name;
  uint64_t instructions = 0;  // those it followed, on every path; it gives up at a million
  uint64_t stack_bytes = 0;   // its own and its functions'; no call chain may have more than 512
  uint64_t load_us = 0;       // what verifying took
};

struct Options {
  std::string pin_dir = "/sys/fs/bpf/holdfast";  // where holdfastd would pin
};

struct Report {
  std::vector<Finding> findings;
  std::vector<Program> programs;  // empty if they did not load
};
Report examine(const Options& options);

// The worst of what is essential decides: refused before unknown before fallback.
struct Summary {
  Verdict verdict = Verdict::enforced;
  std::string text;  // one line
};
Summary summarize(const std::vector<Finding>& findings);

}  // namespace holdfast::doctor
