// Probes in a child process: a namespace, a cgroup or a denied system call of its own.
#include <cerrno>
#include <csignal>
#include <cstring>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include "userspace/base/unique_fd.hpp"
#include "userspace/doctor/probes.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::doctor {
namespace {

constexpr unsigned child_seconds_max = 60;

std::vector<uint8_t> encode(const std::vector<Finding>& findings) {
  cbor::Value list = cbor::Value::array();
  for (const Finding& finding : findings) {
    list.push(cbor::Value::map({{"feature", finding.feature},
                                {"verdict", static_cast<uint64_t>(finding.verdict)},
                                {"detail", finding.detail},
                                {"next_step", finding.next_step},
                                {"essential", finding.essential}}));
  }
  return cbor::encode(list);
}

// False if the bytes are not what encode() makes.
bool decode(const std::vector<uint8_t>& bytes, std::vector<Finding>& findings) {
  const Result<cbor::Value> list = cbor::decode(bytes);
  if (!list || list->as_array() == nullptr) return false;
  for (const cbor::Value& item : *list->as_array()) {
    const Result<std::string_view> feature = item.get_text("feature");
    const Result<uint64_t> verdict =
        item.get_u64("verdict", 0, static_cast<uint64_t>(Verdict::unknown));
    const Result<std::string_view> detail = item.get_text("detail");
    const Result<std::string_view> next_step = item.get_text("next_step");
    const Result<bool> essential = item.get_bool("essential");
    if (!feature || !verdict || !detail || !next_step || !essential) return false;
    findings.push_back({std::string(*feature), static_cast<Verdict>(*verdict), std::string(*detail),
                        std::string(*next_step), *essential});
  }
  return true;
}

}  // namespace

std::string with_errno(std::string_view what, int sys) {
  return fmt::format("{}: {}", what, std::strerror(sys < 0 ? -sys : sys));
}

Finding failed(std::string feature, bool essential, int sys, const std::string& detail,
               Verdict verdict, std::string next_step) {
  sys = sys < 0 ? -sys : sys;
  Finding finding{std::move(feature), verdict, with_errno(detail, sys), std::move(next_step),
                  essential};
  if ((sys == EPERM || sys == EACCES) && ::geteuid() != 0) {
    finding.verdict = Verdict::unknown;
    finding.next_step = "try as root";
  }
  return finding;
}

void in_child(std::vector<Finding>& findings, const Finding& otherwise,
              const std::function<void(std::vector<Finding>&)>& probe) {
  const auto give_up = [&](std::string why) {
    Finding finding = otherwise;
    finding.detail = std::move(why);
    findings.push_back(std::move(finding));
  };
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return give_up(with_errno("no pipe", errno));
  UniqueFd in(ends[0]);
  UniqueFd out(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) return give_up(with_errno("no child process", errno));
  if (child == 0) {
    in.reset();
    ::alarm(child_seconds_max);
    std::vector<Finding> found;
    probe(found);
    const std::vector<uint8_t> bytes = encode(found);
    // Less than a pipe holds, so one write takes it whole.
    const ssize_t written = ::write(out.get(), bytes.data(), bytes.size());
    ::_exit(written == static_cast<ssize_t>(bytes.size()) ? 0 : 1);
  }
  out.reset();
  std::vector<uint8_t> bytes(size_t{1} << 16);
  size_t have = 0;
  for (ssize_t got = 1; got != 0 && have < bytes.size();) {
    got = ::read(in.get(), bytes.data() + have, bytes.size() - have);
    if (got < 0 && errno != EINTR) break;
    if (got > 0) have += static_cast<size_t>(got);
  }
  bytes.resize(have);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  const size_t before = findings.size();
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && decode(bytes, findings)) return;
  findings.resize(before);
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
    return give_up(fmt::format("the probe did not end within {} seconds", child_seconds_max));
  give_up(WIFSIGNALED(status) ? fmt::format("the probe died of signal {}", WTERMSIG(status))
                              : "the probe failed");
}

}  // namespace holdfast::doctor
