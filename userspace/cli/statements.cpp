#include "userspace/cli/statements.hpp"

#include <cerrno>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/random.h>
#include <unistd.h>

#include "userspace/base/clock.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/cli/bulk.hpp"
#include "userspace/cli/commands.hpp"
#include "userspace/cli/human.hpp"

namespace holdfast::cli {
namespace {

// As a daemon makes one, a frame of 64 KiB and what is around it, fits twice.
constexpr size_t notice_bytes_max = size_t{256} << 10;

}  // namespace

Result<std::string> read_node_name(const std::string& named) {
  if (named.starts_with("ni:")) return named;
  if (const auto thumbprint = from_hex<sizeof(token::Digest)>(named))
    return token::node_name_of(*thumbprint);
  const Result<token::SignerKey> key = read_signer_key(named);
  if (!key) return std::unexpected(Error(key.error()).in("--node"));
  return token::node_name(key->key);
}

Result<token::Challenge> drawn_challenge() {
  token::Challenge challenge{};
  if (::getrandom(challenge.data(), challenge.size(), 0) != static_cast<ssize_t>(challenge.size()))
    return fail_sys(errno, "random", "drawing a challenge");
  return challenge;
}

Result<std::string> audience_or_self(const std::string& named) {
  if (named.size() > token::audience_bytes_max)
    return usage("--for: a name of 1 to 256 bytes", "name who is told");
  return named.empty() ? fmt::format("uid:{}", ::getuid()) : named;
}

void Notices::expect(token::StatementFor target) {
  next_ = std::move(target);
  is_kept_ = false;
}

Status Notices::begin(const token::StatementFor& target) {
  if (!begun_.insert(target.challenge).second)
    return fail(ErrorKind::denied, "notice_repeated", "a stream that was there before begins again",
                "something was repeated or moved: what stands before this is good");
  if (is_kept_) next_ = target;
  return {};
}

Result<cbor::Value> Notices::open(std::span<const uint8_t> notice) {
  const Result<token::Statement> said =
      token::check_statement(token::Purpose::notice, notice, from_.node);
  if (!said) return std::unexpected(said.error());
  const token::StatementFor& target = said->target;
  if (from_.epoch != 0 && said->by.epoch != from_.epoch)
    return fail(
        ErrorKind::denied, "stale_epoch",
        fmt::format("a notice of epoch {}, and --epoch is {}", said->by.epoch, from_.epoch),
        "the key of an earlier epoch may have become known; holdfast status shows the node's");
  if (from_.audience && target.audience != *from_.audience)
    return fail(ErrorKind::denied, "wrong_audience",
                fmt::format("a notice for {}", printable(target.audience)),
                "somebody else's stands among these");
  if (target.sequence == 0)
    if (Status ok = begin(target); !ok) return pass_on(ok);
  if (target.challenge != next_.challenge || target.audience != next_.audience)
    return fail(ErrorKind::denied, "wrong_challenge",
                fmt::format("a notice of another stream: it answers the challenge {}",
                            hex(target.challenge)),
                "somebody else's stands among these, or the first of its stream is missing");
  if (target.sequence != next_.sequence)
    return fail(
        ErrorKind::denied, "notice_missing",
        fmt::format("notice {} comes where notice {} is due", target.sequence, next_.sequence),
        "something was left out, repeated or moved: watch anew");
  ++next_.sequence;
  Result<cbor::Value> frame = cbor::decode(said->content, {.bytes_max = notice_bytes_max});
  if (!frame || target.sequence != 0) return frame;
  frame->set("node", said->by.node);
  frame->set("epoch", said->by.epoch);
  frame->set("for", target.audience);
  frame->set("challenge", hex(target.challenge));
  frame->set("issued", rfc3339_utc(said->issued_s * ns_per_s));
  return frame;
}

Result<NoticeFile> NoticeFile::open(const std::string& path) {
  NoticeFile made;
  made.name_ = shown_name(path);
  made.fd_.reset(path == "-" ? ::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0)
                             : ::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!made.fd_)
    return std::unexpected(Error{errno == ENOENT ? ErrorKind::not_found : ErrorKind::internal,
                                 "file_missing", errno, path, "check the path"});
  return made;
}

// So that a whole notice is there, if the file has one.
Status NoticeFile::fill() {
  if (has_ended_ || buffer_.size() - at_ >= notice_bytes_max) return {};
  buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<ptrdiff_t>(at_));
  at_ = 0;
  size_t have = buffer_.size();
  buffer_.resize(4 * notice_bytes_max);
  while (have < buffer_.size()) {
    const ssize_t got = ::read(fd_.get(), buffer_.data() + have, buffer_.size() - have);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_sys(errno, "file_read", "reading " + name_);
    if (got == 0) break;
    have += static_cast<size_t>(got);
  }
  has_ended_ = have < buffer_.size();
  buffer_.resize(have);
  return {};
}

std::string NoticeFile::place() const {
  return fmt::format("{}: notice {}", name_, count_);
}

Result<std::span<const uint8_t>> NoticeFile::next() {
  if (Status ok = fill(); !ok) return pass_on(ok);
  const std::span<const uint8_t> rest = std::span(buffer_).subspan(at_);
  if (rest.empty()) return rest;
  ++count_;
  cbor::Reader in(rest, {.depth_max = 2, .bytes_max = rest.size()});
  const std::span<const uint8_t> notice = in.raw();
  if (!in.ok()) {
    Error error = in.error().in(place());
    error.next_step = "it is cut off or damaged here; what stands before this is good";
    return std::unexpected(std::move(error));
  }
  at_ += notice.size();
  return notice;
}

}  // namespace holdfast::cli
