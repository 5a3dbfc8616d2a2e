// doctor: probes this machine, without the daemon.
#include <fmt/format.h>
#include <sys/utsname.h>

#include "userspace/cli/commands.hpp"
#include "userspace/doctor/doctor.hpp"

namespace holdfast::cli {
namespace {

Colour colour_of(doctor::Verdict verdict) {
  switch (verdict) {
    case doctor::Verdict::enforced: return Colour::green;
    case doctor::Verdict::fallback:
    case doctor::Verdict::unknown: return Colour::yellow;
    case doctor::Verdict::refused: return Colour::red;
  }
  return Colour::none;
}

cbor::Value programs_of(const doctor::Report& report) {
  cbor::Value list = cbor::Value::array();
  for (const doctor::Program& program : report.programs) {
    list.push(cbor::Value::map({{"name", program.name},
                                {"insns", program.instructions},
                                {"stack_bytes", program.stack_bytes},
                                {"load_us", program.load_us}}));
  }
  return list;
}

}  // namespace

Outcome run_doctor(Session& session, const DoctorWords& words) {
  session.note("probing; nothing of it stays behind\n");
  const doctor::Report report = doctor::examine({.pin_dir = words.pin_dir});
  const doctor::Summary summary = doctor::summarize(report.findings);
  const ExitCode code = summary.verdict == doctor::Verdict::refused   ? ExitCode::unsupported
                        : summary.verdict == doctor::Verdict::unknown ? ExitCode::failed
                                                                      : ExitCode::done;
  if (session.json()) {
    cbor::Value list = cbor::Value::array();
    for (const doctor::Finding& finding : report.findings) {
      list.push(cbor::Value::map({{"feature", finding.feature},
                                  {"verdict", doctor::name_of(finding.verdict)},
                                  {"essential", finding.essential},
                                  {"detail", finding.detail},
                                  {"next_step", finding.next_step}}));
    }
    utsname machine{};
    ::uname(&machine);
    session.print_json(cbor::Value::map({{"kernel", std::string(machine.release)},
                                         {"verdict", doctor::name_of(summary.verdict)},
                                         {"text", summary.text},
                                         {"features", std::move(list)},
                                         {"programs", programs_of(report)}}));
    return code;
  }
  Table table({{"FEATURE"}, {"VERDICT"}, {"DETAIL"}});
  for (const doctor::Finding& finding : report.findings) {
    std::string detail = finding.detail;
    if (!finding.next_step.empty()) detail += "; " + finding.next_step;
    // What nothing depends on yet must not look alarming.
    const bool harmless = finding.verdict == doctor::Verdict::refused && !finding.essential;
    table.add({finding.feature,
               Cell(doctor::name_of(finding.verdict),
                    harmless ? Colour::yellow : colour_of(finding.verdict)),
               detail});
  }
  session.print(table.render(session.style()));
  session.print("\n" + session.style().paint(colour_of(summary.verdict), summary.text) + "\n");
  return code;
}

}  // namespace holdfast::cli
