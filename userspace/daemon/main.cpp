// holdfastd: flags, signals, and the wiring of node, socket and watches to one event loop.
#include <algorithm>
#include <csignal>
#include <filesystem>
#include <limits>
#include <map>
#include <thread>

#include <CLI/CLI.hpp>
#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <malloc.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "policy/parse.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/base/log.hpp"
#include "userspace/daemon/bearers.hpp"
#include "userspace/daemon/detach.hpp"
#include "userspace/daemon/node.hpp"
#include "userspace/daemon/peers.hpp"
#include "userspace/daemon/state_file.hpp"
#include "userspace/daemon/tokens.hpp"
#include "userspace/daemon/verbs.hpp"
#include "userspace/verifier/server.hpp"
#include "userspace/wire/event_loop.hpp"
#include "userspace/wire/server.hpp"

namespace holdfast {
namespace {

constexpr int exit_refused = 1;
constexpr int exit_usage = 2;
constexpr int exit_unenforceable = 3;

// Hooks and interfaces are looked at this often, beside every notice of a change.
constexpr uint64_t drift_check_period_ns = 5 * ns_per_s;
// How long a start waits for another daemon to be gone.
constexpr uint64_t lock_patience_ns = 3 * ns_per_s;
// How often the wall time that has been is put on record.
constexpr uint64_t remember_time_period_ns = 300 * ns_per_s;
// Bursts of netlink notices are taken together.
constexpr uint64_t notice_delay_ns = 20 * ns_per_ms;

struct Options {
  NodeOptions node;
  std::string config_dir = "/etc/holdfast";
  std::string runtime_dir = "/run/holdfast";
  log::Format log_format = log::Format::text;
  log::Level log_level = log::Level::info;
  uint32_t verify_workers = std::max(1U, std::thread::hardware_concurrency());
  bool verify_uring = true;
  std::string node_key;  // a "pkcs11:" URI; empty: a file in the state directory
};

int parse_options(int argc, char** argv, Options& options) {
  CLI::App app{"holdfastd: leases on a node's network, enforced in the kernel"};
  app.set_version_flag("--version", HOLDFAST_VERSION);
  app.add_option("--config-dir", options.config_dir,
                 "where policy.yaml and anchors.yaml are, read at SIGHUP")
      ->capture_default_str();
  app.add_option("--runtime-dir", options.runtime_dir, "where control.sock is made")
      ->capture_default_str();
  app.add_option("--state-dir", options.node.state_dir,
                 "where the policy in force and the node's key are kept")
      ->capture_default_str();
  app.add_option("--node-key", options.node_key,
                 "the node's own key, on a PKCS#11 token: a pkcs11: URI with module-path and\n"
                 "pin-source; default: node.key in the state directory")
      ->type_name("URI");
  app.add_option("--pin-dir", options.node.plane.kernel.pin_dir,
                 "directory on a bpffs for our pins")
      ->capture_default_str();
  app.add_option("--table", options.node.plane.table, "name of our nftables table")
      ->capture_default_str();
  app.add_option("--leases-max", options.node.plane.kernel.leases_max,
                 "lease slots to make; 164 bytes of kernel memory each")
      ->check(CLI::Range(16U, static_cast<unsigned>(abi::HF_SLOTS_MAX)))
      ->capture_default_str();
  app.add_option("--tenant-hook", options.node.plane.tenant_hook,
                 "hook of tenant ports: auto, tcx, clsact")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, TenantHook>{{"auto", TenantHook::automatic},
                                            {"tcx", TenantHook::tcx},
                                            {"clsact", TenantHook::clsact}}));
  app.add_option("--uplink-hook", options.node.plane.uplink_hook, "hook of uplinks: auto, xdp, tc")
      ->transform(CLI::CheckedTransformer(std::map<std::string, UplinkHook>{
          {"auto", UplinkHook::automatic}, {"xdp", UplinkHook::xdp}, {"tc", UplinkHook::tc}}));
  app.add_option("--unenforced", options.node.plane.may_go_unenforced,
                 "start even if this cannot be enforced here: nftables, uplinks, suspend")
      ->delimiter(',')
      ->transform(
          CLI::CheckedTransformer(std::map<std::string, Layer>{{"nftables", Layer::nftables},
                                                               {"uplinks", Layer::uplinks},
                                                               {"suspend", Layer::suspend}}));
  app.add_option("--log-format", options.log_format, "text or json")
      ->transform(CLI::CheckedTransformer(std::map<std::string, log::Format>{
          {"text", log::Format::text}, {"json", log::Format::json}}));
  app.add_option("--log-level", options.log_level, "error, warning, notice, info or debug")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, log::Level>{{"error", log::Level::error},
                                            {"warning", log::Level::warning},
                                            {"notice", log::Level::notice},
                                            {"info", log::Level::info},
                                            {"debug", log::Level::debug}}));
  app.add_option("--verify-workers", options.verify_workers,
                 "threads that check tokens on verify.sock; default: one for each CPU")
      ->check(CLI::Range(1, 64));
  app.add_option("--verify-transport", options.verify_uring,
                 "how they wait for frames: auto (io_uring, else epoll) or epoll")
      ->transform(
          CLI::CheckedTransformer(std::map<std::string, bool>{{"auto", true}, {"epoll", false}}));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : exit_usage;
  }
  return -1;
}

int report(const Error& error) {
  log::error("refused", {{"code", error.code}, {"cause", error.text()}});
  return error.kind == ErrorKind::unsupported ? exit_unenforceable : exit_refused;
}

// BPF reads the clock of the machine; in a time namespace ours would be another (TRAPS).
Status check_time_namespace() {
  const Result<std::string> offsets = read_state_file("/proc/self/timens_offsets");
  if (!offsets) return {};  // a kernel without time namespaces
  // "monotonic 0 0" and "boottime 0 0" on the machine's own clock.
  if (offsets->find_first_of("123456789") == std::string::npos) return {};
  return fail(ErrorKind::unsupported, "time_namespace",
              "holdfastd runs in a time namespace: its clock is not the one that ends leases",
              "start it in the machine's own time namespace");
}

std::optional<gid_t> group_id(const char* name) {
  const group* found = ::getgrnam(name);
  if (found == nullptr) return std::nullopt;
  return found->gr_gid;
}

Status make_directory(const std::string& path, mode_t mode) {
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), error);
  if (::mkdir(path.c_str(), mode) != 0 && errno != EEXIST)
    return fail_sys(errno, "directory", "creating " + path);
  return {};
}

// Each client is a descriptor; a shell's limit of 1024 would end before connections_max does.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  const bool raised = ::setrlimit(RLIMIT_NOFILE, &limit) == 0;
  const rlim_t wanted = 2 * wire::ServerConfig().connections_max;  // maps, programs and verify.sock
  if (!raised || limit.rlim_cur < wanted)
    log::warning("few_descriptors", {{"limit", static_cast<uint64_t>(limit.rlim_cur)},
                                     {"wanted", static_cast<uint64_t>(wanted)},
                                     {"effect", "beyond it, clients wait to be accepted"}});
}

// One daemon per set of pins: the lock is on the state directory, before anything is touched.
Result<UniqueFd> lock_state(const std::string& state_dir) {
  const std::string path = state_dir + "/lock";
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd) return fail_sys(errno, "lock", "opening " + path);
  // A daemon that was killed a moment ago may still be on its way out.
  const uint64_t patience_ends = boot_now_ns() + lock_patience_ns;
  do {
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) == 0) return fd;
    ::usleep(50'000);
  } while (boot_now_ns() < patience_ends);
  return fail(ErrorKind::conflict, "already_running",
              fmt::format("another holdfastd holds {}", path),
              "stop it first, or give each its own --state-dir");
}

class Daemon {
 public:
  explicit Daemon(Options options) : options_(std::move(options)) {}

  Status run() {
    raise_descriptor_limit();
    if (Status ok = check_time_namespace(); !ok) return ok;
    if (Status ok = make_directory(options_.node.state_dir, 0700); !ok) return ok;
    if (Status ok = make_directory(options_.runtime_dir, 0755); !ok) return ok;
    Result<UniqueFd> lock = lock_state(options_.node.state_dir);
    if (!lock) return pass_on(lock);
    Result<std::unique_ptr<wire::EventLoop>> loop = wire::EventLoop::create();
    if (!loop) return pass_on(loop);
    loop_ = std::move(*loop);
    // Signals first: GraceWaiter's thread must inherit them blocked.
    Result<wire::SignalWatch> signals =
        loop_->on_signals({SIGTERM, SIGINT, SIGHUP}, [this](int signal) { on_signal(signal); });
    if (!signals) return pass_on(signals);
    signals_ = std::move(*signals);

    Result<std::unique_ptr<Tokens>> tokens =
        Tokens::open(options_.node.state_dir, options_.node_key);
    if (!tokens) return pass_on(tokens);
    tokens_ = std::move(*tokens);
    Result<Enrollment> enrollment = Enrollment::open(options_.node.state_dir, tokens_->key());
    if (!enrollment) return pass_on(enrollment);
    enrollment_.emplace(std::move(*enrollment));
    // What counts for nothing does not keep an enrolled node from starting.
    if (Status ok = tokens_->read_anchors(anchors_path()); !ok && !enrollment_->root()) return ok;
    Result<Bundles> bundles = Bundles::open(options_.node.state_dir);
    if (!bundles) return pass_on(bundles);
    bundles_.emplace(std::move(*bundles));
    Result<Bearers> bearers = Bearers::open(options_.node.state_dir);
    if (!bearers) return pass_on(bearers);
    bearers_.emplace(std::move(*bearers));
    Result<std::unique_ptr<Node>> node = Node::open(*loop_, options_.node);
    if (!node) return pass_on(node);
    node_ = std::move(*node);
    Result<std::unique_ptr<Peers>> peers = Peers::open(options_.node.state_dir, node_->journal());
    if (!peers) return pass_on(peers);
    peers_ = std::move(*peers);
    if (Status ok = enrollment_->settle(bundles_->of(node_->policy_digest()),
                                        node_->policy_digest(), wall_s());
        !ok)
      return ok;
    tokens_->believe_root(enrollment_->root());
    tokens_->use_bundle_anchors(enrollment_->anchors_of(*bundles_, node_->policy_digest()));
    if (Status ok = check_no_anchors(); !ok)
      log::warning("anchors_not_read", {{"cause", ok.error().text()}});
    verifier_state_.reset(new VerifierState{node_->plane().slots, node_->plane().tenants,
                                            node_->names(), tokens_->beliefs(), false});
    if (Status ok = watch_wall_clock(); !ok) return ok;
    if (Status ok = first_policy(); !ok) return ok;
    verbs_ = std::make_unique<Verbs>(*loop_, *node_, *tokens_, *bundles_, *bearers_, *peers_,
                                     *enrollment_, [this] { return detach(); });
    verbs_->end_orphans();
    if (Status ok = watch_kernel(); !ok) return ok;
    if (Status ok = serve(); !ok) return ok;
    ::malloc_trim(0);  // what compiling the policy took is not needed any more
    ::sd_notify(0, fmt::format("READY=1\nSTATUS={} leases, policy generation {}",
                               node_->lease_count(), node_->policy().generation)
                       .c_str());
    log::notice("ready", {{"version", HOLDFAST_VERSION},
                          {"leases", node_->lease_count()},
                          {"generation", node_->policy().generation},
                          {"socket", options_.runtime_dir + "/control.sock"}});
    const Status ended = loop_->run();
    // Serving ends here; enforcing does not: pins, tables and deadlines stay. A second SIGTERM
    // finds us on the way out and changes nothing.
    ::signal(SIGTERM, SIG_IGN);
    ::signal(SIGINT, SIG_IGN);
    ::sd_notify(0, "STOPPING=1");
    server_.reset();
    verifier_.reset();
    log::notice("stopped", {{"leases_left_in_force", detached_ ? 0 : node_->lease_count()}});
    return ended;
  }

 private:
  std::string policy_path() const { return options_.config_dir + "/policy.yaml"; }
  std::string anchors_path() const { return options_.config_dir + "/anchors.yaml"; }

  // The very first start: nothing is stored yet, and the operator has put a policy in place.
  Status first_policy() {
    if (node_->policy().generation != 0 || ::access(policy_path().c_str(), F_OK) != 0) return {};
    Status may = node_->may_widen("first policy");
    if (may) may = enrollment_->may_push();
    if (may && tokens_->takes_signed_bundles_only())
      may = fail(ErrorKind::denied, "signature_required", "this node takes signed bundles");
    if (!may) {
      // Refusing to start would be worse: the node enforces, and opens nothing.
      log::notice("policy_not_read", {{"file", policy_path()}, {"cause", may.error().text()}});
      return {};
    }
    return reload_policy();
  }

  // Each file by itself: a mistake in one does not keep the other from being read.
  Status reload() {
    Status anchors = tokens_->read_anchors(anchors_path(), !enrollment_->root());
    if (anchors) anchors = check_no_anchors();
    if (anchors) {
      tokens_->use_bundle_anchors(enrollment_->anchors_of(*bundles_, node_->policy_digest()));
      if (!enrollment_->root())
        node_->journal().record("trust.anchors", {{"file", anchors_path()}});
      verbs_->trust_changed();
    }
    // A node whose policy is pushed has no such file.
    const Status policy = ::access(policy_path().c_str(), F_OK) == 0 ? reload_policy() : Status();
    verbs_->end_orphans();  // an enrollment may have been left behind by it
    if (!anchors && !policy) log::error("reload_refused", {{"cause", policy.error().text()}});
    return anchors ? policy : anchors;
  }

  // Of an enrolled node the keys are those that its root names.
  Status check_no_anchors() const {
    if (!enrollment_->root() || ::access(anchors_path().c_str(), F_OK) != 0) return {};
    return fail(ErrorKind::conflict, "enrolled",
                anchors_path() + " counts for nothing: this node is enrolled",
                "remove it, and have its keys named in the bundle; or holdfast enroll end");
  }

  static uint64_t wall_s() { return wall_now_ns() / ns_per_s; }

  Status reload_policy() {
    if (Status ok = enrollment_->may_push(); !ok) return pass_on(ok, policy_path());
    if (tokens_->takes_signed_bundles_only())
      return fail(
          ErrorKind::denied, "signature_required",
          policy_path() + " is not read: this node " +
              (enrollment_->root() ? "is enrolled" : "takes signed bundles"),
          enrollment_->root() ? "remove it" : "remove it, or the anchor with the use \"bundle\"");
    const Result<std::string> text = read_state_file(policy_path());
    if (!text) return std::unexpected(text.error());
    Result<Policy> policy = parse_policy(*text, policy_path());
    if (!policy) return pass_on(policy);
    const Result<PushOutcome> done = node_->push_policy(std::move(*policy), false);
    if (!done) return std::unexpected(done.error());
    return {};
  }

  void on_signal(int signal) {
    if (signal == SIGHUP && detached_) return;
    if (signal != SIGHUP) return loop_->stop();  // a second one finds us stopping already
    ::sd_notify(0,
                fmt::format("RELOADING=1\nMONOTONIC_USEC={}", read_clock_ns(CLOCK_MONOTONIC) / 1000)
                    .c_str());
    const Status ok = reload();
    if (ok) {
      log::notice("reloaded",
                  {{"file", policy_path()}, {"generation", node_->policy().generation}});
    } else {
      log::error("reload_refused", {{"directory", options_.config_dir},
                                    {"cause", ok.error().text()},
                                    {"in_force", node_->policy().generation}});
    }
    ::sd_notify(0, "READY=1");
  }

  Status watch_kernel() {
    Result<NetworkWatch> network = NetworkWatch::open();
    if (!network) return pass_on(network);
    network_watch_.emplace(std::move(*network));
    Result<wire::FdWatch> links = loop_->watch(network_watch_->fd(), EPOLLIN, [this](uint32_t) {
      network_watch_->drain();
      if (!network_timer_.is_pending())
        network_timer_ = loop_->after(notice_delay_ns, [this] { node_->refresh_network(); });
    });
    if (!links) return pass_on(links);
    link_fd_watch_ = std::move(*links);

    if (const int fd = node_->plane().nft_watch.fd(); fd >= 0) {
      Result<wire::FdWatch> rules =
          loop_->watch(fd, EPOLLIN, [this](uint32_t) { on_foreign_nft_change(); });
      if (!rules) return pass_on(rules);
      nft_fd_watch_ = std::move(*rules);
    }
    drift_timer_ = loop_->every(drift_check_period_ns, [this] { node_->refresh_network(); });
    time_timer_ = loop_->every(remember_time_period_ns, [this] { tokens_->remember_time(); });
    return {};
  }

  void on_foreign_nft_change() {
    const Result<std::vector<nft::Event>> events = node_->plane().nft_watch.drain();
    if (!events) return log::error("nft_watch", {{"cause", events.error().text()}});
    for (const nft::Event& event : *events)
      log::error("nft_changed_by_another", {{"what", event.text()}});
    if (!events->empty() && !detached_ && !nft_timer_.is_pending())
      nft_timer_ = loop_->after(notice_delay_ns, [this] { node_->restore_nft(); });
  }

  Status serve() {
    if (Status ok = Verbs::attach_drop_events(*verbs_); !ok) return ok;
    wire::ServerConfig config;
    config.path = options_.runtime_dir + "/control.sock";
    const wire::RoleGroups groups{group_id("holdfast-operator"), group_id("holdfast")};
    config.operator_gid = groups.operators;
    config.reader_gid = groups.readers;
    Result<std::unique_ptr<wire::ControlServer>> server = wire::ControlServer::open(
        *loop_, std::move(config), *peers_,
        [this](const wire::Peer& peer) { return verbs_->hello(peer); },
        [this](wire::Peer& peer, std::span<const uint8_t> sealed) {
          return verbs_->unseal(peer, sealed);
        },
        [this](wire::Peer& peer, wire::Request request, wire::Responder responder) {
          verbs_->handle(peer, std::move(request), std::move(responder));
        });
    if (!server) return pass_on(server);
    server_ = std::move(*server);
    verbs_->set_server(server_.get());
    return serve_checks(groups);
  }

  Status serve_checks(const wire::RoleGroups& groups) {
    verifier::ServerOptions options;
    options.path = options_.runtime_dir + "/verify.sock";
    options.groups = groups;
    options.workers = options_.verify_workers;
    options.worker.uring = options_.verify_uring;
    Result<std::unique_ptr<verifier::Server>> server = verifier::Server::open(
        *loop_, *verifier_state_, std::move(options),
        [this](const wire::Peer& peer) { return verbs_->verify_hello(peer); });
    if (!server) return pass_on(server);
    verifier_ = std::move(*server);
    verbs_->set_verifier(verifier_.get());
    return {};
  }

  // Wakes whenever somebody sets the wall clock (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET).
  Status watch_wall_clock() {
    wall_clock_.reset(::timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC | TFD_NONBLOCK));
    if (!wall_clock_) return fail_sys(errno, "timerfd", "watching the wall clock");
    const auto arm = [this] {
      constexpr time_t never = std::numeric_limits<int32_t>::max();
      const itimerspec far{.it_interval = {}, .it_value = {.tv_sec = never, .tv_nsec = 0}};
      ::timerfd_settime(wall_clock_.get(), TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &far,
                        nullptr);
      verifier_state_->clock_in_doubt.store(tokens_->clock_in_doubt());
    };
    Result<wire::FdWatch> watch = loop_->watch(wall_clock_.get(), EPOLLIN, [this, arm](uint32_t) {
      uint64_t expirations = 0;
      [[maybe_unused]] const ssize_t got =
          ::read(wall_clock_.get(), &expirations, sizeof(expirations));
      arm();
      if (tokens_->clock_in_doubt())
        log::warning("wall_clock_in_doubt", {{"effect", "no token is taken or made"}});
    });
    if (!watch) return pass_on(watch);
    wall_clock_watch_ = std::move(*watch);
    arm();
    return {};
  }

  Result<std::vector<std::string>> detach() {
    // Nothing may put back what is being removed.
    detached_ = true;
    node_->stop_enforcing();
    link_fd_watch_.reset();
    nft_fd_watch_.reset();
    for (wire::Timer* timer : {&network_timer_, &nft_timer_, &drift_timer_}) timer->reset();
    Result<std::vector<std::string>> removed = detach_node(*node_, options_.node);
    tokens_->release();
    // The answer goes out first.
    loop_->defer(
        [this] { stop_timer_ = loop_->after(notice_delay_ns, [this] { loop_->stop(); }); });
    return removed;
  }

  Options options_;
  std::unique_ptr<wire::EventLoop> loop_;
  wire::SignalWatch signals_;
  std::unique_ptr<Tokens> tokens_;
  std::optional<Bundles> bundles_;
  std::optional<Bearers> bearers_;
  std::optional<Enrollment> enrollment_;
  std::unique_ptr<Node> node_;
  std::unique_ptr<Peers> peers_;
  std::unique_ptr<Verbs> verbs_;
  std::unique_ptr<wire::ControlServer> server_;
  std::unique_ptr<VerifierState> verifier_state_;
  std::unique_ptr<verifier::Server> verifier_;
  UniqueFd wall_clock_;
  wire::FdWatch wall_clock_watch_;
  std::optional<NetworkWatch> network_watch_;
  wire::FdWatch link_fd_watch_, nft_fd_watch_;
  wire::Timer network_timer_, nft_timer_, drift_timer_, time_timer_, stop_timer_;
  bool detached_ = false;
};

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) {
  using namespace holdfast;
  Options options;
  if (const int code = parse_options(argc, argv, options); code >= 0) return code;
  log::configure(options.log_format, options.log_level);
  const Status ok = Daemon(std::move(options)).run();
  return ok ? 0 : report(ok.error());
}
