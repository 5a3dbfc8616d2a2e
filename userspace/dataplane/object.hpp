// KernelObject: the programs and maps of bpf/holdfast.bpf.c, loaded and pinned, or adopted from
// their pins.
//
// Everything lives under PIN_DIR/v<ABI>: maps/NAME, programs/NAME, links/NAME, and `digest`. Maps
// found there are reused, so live leases outlast the daemon. Programs are reused if they come from
// this very object, which `digest` says; else they are loaded anew and put in place by link update.
// Pins of another ABI version are refused, never reused (G12). Owned by the daemon's event loop.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/base/unique_fd.hpp"

struct bpf_program;
struct holdfast_bpf;

namespace holdfast {

struct KernelObjectOptions {
  std::string pin_dir = "/sys/fs/bpf/holdfast";
  uint32_t leases_max = 65536;  // size of slots and records when they are first made
};

// "PIN_DIR/v3": where this ABI's pins are.
std::string pin_root(std::string_view pin_dir);

// Is `pin_dir` on a bpffs that the whole machine shares? Says what to do if not.
Status check_pin_dir(const std::string& pin_dir);

// Pins `fd` at `path`, in the place of what may be pinned there, without a moment in which the name
// is missing.
Status pin_over(int fd, const std::string& path);

// If a pin_over() of `path` was killed before its end, ends it.
void finish_pin_over(const std::string& path);

class KernelObject {
 public:
  // Loads and pins. Needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (root has them). On failure
  // nothing new is attached; maps that were already pinned stay as they were.
  static Result<KernelObject> load(const KernelObjectOptions& options);

  KernelObject(KernelObject&&) noexcept;
  KernelObject& operator=(KernelObject&&) noexcept;
  ~KernelObject();

  holdfast_bpf* operator->() const { return skeleton_.get(); }
  // The loaded or adopted program: the skeleton's own fd is there only if it was loaded. Borrowed.
  int program_fd(const bpf_program* program) const;
  const std::string& root() const { return root_; }
  bool adopted() const { return adopted_; }  // the maps were there before

 private:
  struct Destroy {
    void operator()(holdfast_bpf* skeleton) const;
  };
  KernelObject() = default;
  Status set_sizes_and_pins(uint32_t leases_max);
  Status pin_programs() const;
  Status open_programs();

  std::unique_ptr<holdfast_bpf, Destroy> skeleton_;
  std::map<std::string, UniqueFd, std::less<>> programs_;  // by name
  UniqueFd lock_;                                          // one daemon per set of pins
  std::string root_;
  bool adopted_ = false;
};

// SHA-256 of the BPF object as shipped, hex (P13, H7).
std::string kernel_object_digest();

}  // namespace holdfast
