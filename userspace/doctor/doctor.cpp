#include "userspace/doctor/doctor.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include "userspace/doctor/probes.hpp"

namespace holdfast::doctor {
namespace {

std::string names_of(const std::vector<Finding>& findings, Verdict verdict, bool essential) {
  std::string out;
  for (const Finding& finding : findings) {
    if (finding.verdict != verdict || (essential && !finding.essential)) continue;
    if (!out.empty()) out += ", ";
    out += finding.feature;
  }
  return out;
}

}  // namespace

std::string_view name_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::enforced: return "enforced";
    case Verdict::fallback: return "fallback";
    case Verdict::refused: return "refused";
    case Verdict::unknown: return "unknown";
  }
  return "unknown";
}

Report examine(const Options& options) {
  Report report;
  std::vector<Finding>& findings = report.findings;
  probe_machine(findings);
  probe_pin_dir(options.pin_dir, findings);
  // Loaded once; the probes of its maps and of the network try this very object.
  const ProbeObject object = load_object(findings, report.programs);
  probe_object(object, findings);
  probe_network(object, findings);
  probe_cgroups(findings);
  probe_lsm(findings);
  return report;
}

Summary summarize(const std::vector<Finding>& findings) {
  if (const std::string refused = names_of(findings, Verdict::refused, true); !refused.empty())
    return {Verdict::refused, "This machine cannot enforce leases: " + refused + "."};
  if (const std::string unknown = names_of(findings, Verdict::unknown, true); !unknown.empty()) {
    if (::geteuid() != 0)
      return {Verdict::unknown,
              "Not known yet: most probes need root. Run it again: sudo holdfast doctor"};
    return {Verdict::unknown, fmt::format("Not known yet: {} could not be tried.", unknown)};
  }
  const std::string lacks = names_of(findings, Verdict::refused, false);
  const std::string beyond =
      lacks.empty() ? "" : fmt::format(" Not here, and not needed for them: {}.", lacks);
  if (const std::string fallback = names_of(findings, Verdict::fallback, false);
      !fallback.empty()) {
    return {
        Verdict::fallback,
        fmt::format("This machine enforces leases, with a fallback for: {}.{}", fallback, beyond)};
  }
  return {Verdict::enforced, "This machine enforces leases." + beyond};
}

}  // namespace holdfast::doctor
