// The probes of doctor, by what they touch. Each appends its rows, whatever happens.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/doctor/doctor.hpp"

struct holdfast_bpf;

namespace holdfast::doctor {

// The real object, small maps, nothing pinned; empty if it could not be loaded.
struct ProbeObject {
  struct Destroy {
    void operator()(holdfast_bpf* skeleton) const;
  };
  std::unique_ptr<holdfast_bpf, Destroy> skeleton;
};

void probe_machine(std::vector<Finding>& findings);  // clocks, capabilities, membarrier, io_uring
void probe_pin_dir(const std::string& pin_dir, std::vector<Finding>& findings);
ProbeObject load_object(std::vector<Finding>& findings, std::vector<Program>& programs);
void probe_object(const ProbeObject& object, std::vector<Finding>& findings);
void probe_network(const ProbeObject& object, std::vector<Finding>& findings);
void probe_cgroups(std::vector<Finding>& findings);
void probe_lsm(std::vector<Finding>& findings);

// ---- for the probes ----

// Runs `probe` in a child process and takes over the rows it wrote. A child that dies or takes
// longer than ten seconds leaves `otherwise`, with the reason.
void in_child(std::vector<Finding>& findings, const Finding& otherwise,
              const std::function<void(std::vector<Finding>&)>& probe);

// A row for a call that failed: EPERM and EACCES without root are unknown, all else is `verdict`.
Finding failed(std::string feature, bool essential, int sys, const std::string& detail,
               Verdict verdict = Verdict::refused, std::string next_step = {});

// "what: strerror"
std::string with_errno(std::string_view what, int sys);

}  // namespace holdfast::doctor
