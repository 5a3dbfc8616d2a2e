#include "userspace/wire/frame.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <set>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "userspace/base/check.hpp"
#include "userspace/base/write_all.hpp"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U  // Linux 6.3
#endif

namespace holdfast::wire {
namespace {

constexpr uint16_t flags_known = flag_more | flag_memfd;
constexpr int seals_required = F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL;
constexpr size_t verb_bytes_max = 64;
constexpr size_t buffer_bytes_kept = 64U << 10;
constexpr uint32_t retry_unavailable_ms = 1000;
constexpr std::string_view step_up = "step_up_required";

uint32_t load_u32(const uint8_t* at) {
  return uint32_t{at[0]} << 24 | uint32_t{at[1]} << 16 | uint32_t{at[2]} << 8 | at[3];
}

void store_u32(uint8_t* at, uint32_t value) {
  for (int i = 0; i < 4; ++i) at[i] = static_cast<uint8_t>(value >> (24 - 8 * i));
}

struct ClassName {
  ErrorKind kind;
  std::string_view name;
};
constexpr ClassName class_names[] = {
    {ErrorKind::invalid, "invalid"},         {ErrorKind::denied, "denied"},
    {ErrorKind::not_found, "not_found"},     {ErrorKind::conflict, "conflict"},
    {ErrorKind::exhausted, "exhausted"},     {ErrorKind::unavailable, "unavailable"},
    {ErrorKind::unsupported, "unsupported"}, {ErrorKind::internal, "internal"},
};

// Error::code has static storage, so codes from another process are kept for ever. A daemon has
// some hundred; a peer that invents more, or strange ones, gets none of them kept.
std::string_view keep_code(std::string_view code) {
  constexpr size_t codes_max = 1024;
  constexpr size_t code_bytes_max = 64;
  static std::mutex mutex;
  static std::set<std::string, std::less<>> codes;
  const bool plain = !code.empty() && code.size() <= code_bytes_max &&
                     std::all_of(code.begin(), code.end(), [](char c) {
                       return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
                     });
  if (!plain) return "unlisted";
  const std::lock_guard lock(mutex);
  const auto at = codes.find(code);
  if (at != codes.end()) return *at;
  if (codes.size() == codes_max) return "unlisted";
  return *codes.emplace(code).first;
}

std::unexpected<Error> malformed_error(std::string message) {
  return fail(ErrorKind::invalid, "malformed_error", std::move(message));
}

Result<Retry> decode_retry(const cbor::Value& value) {
  if (const std::string* word = value.as_text()) {
    if (*word == "never") return Retry{Retry::When::never, 0};
    if (*word == "after_event") return Retry{Retry::When::after_event, 0};
    return malformed_error(fmt::format("unknown retry \"{}\"", *word));
  }
  const cbor::Value::Map* entries = value.as_map();
  const auto after = value.get_u64("after_ms", 0, UINT32_MAX);
  if (entries == nullptr || entries->size() != 1 || !after) {
    return malformed_error("\"retry\" must be a word or {\"after_ms\": number}");
  }
  return Retry{Retry::When::after_ms, static_cast<uint32_t>(*after)};
}

}  // namespace

void append_frame_header(std::vector<uint8_t>& out, FrameType type, uint16_t flags,
                         uint32_t request_id, size_t length) {
  CHECK(length <= inline_body_bytes_max);
  CHECK((flags & ~flags_known) == 0);
  uint8_t header[frame_header_bytes];
  std::memcpy(header, frame_magic.data(), frame_magic.size());
  header[4] = protocol_version;
  header[5] = static_cast<uint8_t>(type);
  header[6] = static_cast<uint8_t>(flags >> 8);
  header[7] = static_cast<uint8_t>(flags);
  store_u32(header + 8, static_cast<uint32_t>(length));
  store_u32(header + 12, request_id);
  out.insert(out.end(), header, header + sizeof header);
}

void append_frame(std::vector<uint8_t>& out, FrameType type, uint16_t flags, uint32_t request_id,
                  std::span<const uint8_t> body) {
  append_frame_header(out, type, flags, request_id, body.size());
  out.insert(out.end(), body.begin(), body.end());
}

// ---- FrameReader ----

void FrameReader::feed(std::span<const uint8_t> bytes, std::vector<UniqueFd> fds) {
  if (consumed_ > 0) {
    buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<ptrdiff_t>(consumed_));
    stream_begin_ += consumed_;
    consumed_ = 0;
  }
  const uint64_t begin = stream_begin_ + buffer_.size();
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  for (UniqueFd& fd : fds) {
    if (fds_.size() == pending_fds_max) break;  // the rest closes with `fds`
    fds_.push_back(PendingFd{begin, begin + bytes.size(), std::move(fd)});
  }
}

uint32_t FrameReader::pending_request_id() const {
  if (buffer_.size() - consumed_ < frame_header_bytes) return 0;
  const uint8_t* at = buffer_.data() + consumed_;
  const bool ours = std::memcmp(at, frame_magic.data(), frame_magic.size()) == 0;
  return ours && at[4] == protocol_version ? load_u32(at + 12) : 0;
}

Result<std::optional<Frame>> FrameReader::next() {
  if (error_) return std::unexpected(*error_);
  Result<std::optional<Frame>> frame = cut();
  if (!frame) {
    error_ = frame.error();
    fds_.clear();
  } else if (!has_pending()) {
    // A descriptor comes with the first byte of its header; nothing is left that could declare
    // these.
    fds_.clear();
    stream_begin_ += consumed_;
    consumed_ = 0;
    buffer_.clear();
    // A connection that once sent a large frame does not keep its memory.
    if (buffer_.capacity() > buffer_bytes_kept) buffer_ = {};
  }
  return frame;
}

Result<std::optional<Frame>> FrameReader::cut() {
  const size_t left = buffer_.size() - consumed_;
  const uint8_t* at = buffer_.data() + consumed_;
  // The magic is checked as far as it is there: a peer that speaks something else is told at once.
  const size_t magic_bytes = std::min(left, frame_magic.size());
  if (magic_bytes > 0 && std::memcmp(at, frame_magic.data(), magic_bytes) != 0) {
    return fail(ErrorKind::invalid, "bad_magic", "the bytes are not a Holdfast frame",
                "speak the frame protocol of control.sock");
  }
  if (left < frame_header_bytes) return std::nullopt;

  const uint8_t version = at[4];
  const uint8_t type = at[5];
  const auto flags = static_cast<uint16_t>(at[6] << 8 | at[7]);
  const uint32_t length = load_u32(at + 8);
  if (version != protocol_version) {
    return fail(ErrorKind::unsupported, "unknown_version",
                fmt::format("frame version {} is not known, this side speaks {}", version,
                            protocol_version),
                "use the client and the daemon of one release");
  }
  const bool known = type >= static_cast<uint8_t>(FrameType::hello) &&
                     type <= static_cast<uint8_t>(FrameType::event);
  if (!known && type != static_cast<uint8_t>(FrameType::signed_request)) {
    return fail(ErrorKind::invalid, "unknown_type",
                fmt::format("frame type {} is not known", type));
  }
  if ((flags & ~flags_known) != 0) {
    return fail(ErrorKind::invalid, "unknown_flag",
                fmt::format("frame flags {:#06x} have unknown bits", flags));
  }
  if (length > inline_body_bytes_max) {
    return fail(
        ErrorKind::invalid, "frame_too_large",
        fmt::format("a body of {} bytes is over the limit of {}", length, inline_body_bytes_max),
        "pass it in a sealed memfd, or send fewer items at a time");
  }
  const bool memfd = (flags & flag_memfd) != 0;
  if (memfd && length != 0) {
    return fail(ErrorKind::invalid, "memfd_length",
                fmt::format("a frame with its body in a memfd has length 0, not {}", length));
  }
  const size_t size = frame_header_bytes + length;
  if (left < size) return std::nullopt;

  Frame frame{static_cast<FrameType>(type), flags, load_u32(at + 12), {}, {}};
  frame.body.assign(at + frame_header_bytes, at + size);
  const uint64_t begin = stream_begin_ + consumed_;
  const uint64_t end = begin + size;
  // What came with bytes before this frame belongs to nobody; close it.
  while (!fds_.empty() && fds_.front().end <= begin) fds_.pop_front();
  if (memfd) {
    if (fds_.empty() || fds_.front().begin >= end) {
      return fail(ErrorKind::invalid, "memfd_missing",
                  "the frame says its body is in a memfd, but none came with it",
                  "pass the memfd by SCM_RIGHTS in the sendmsg that carries the header");
    }
    frame.memfd = std::move(fds_.front().fd);
    fds_.pop_front();
  }
  consumed_ += size;
  return frame;
}

// ---- memfd bodies ----

Result<MappedBody> MappedBody::map(UniqueFd memfd) {
  const int seals = ::fcntl(memfd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & seals_required) != seals_required) {
    return fail(ErrorKind::invalid, "memfd_unsealed",
                seals < 0 ? "the descriptor passed as a body is not a memfd"
                          : fmt::format("the memfd's seals are {:#x}, {:#x} are needed", seals,
                                        seals_required),
                "seal it with F_SEAL_WRITE, F_SEAL_GROW, F_SEAL_SHRINK and F_SEAL_SEAL");
  }
  struct stat status{};
  if (::fstat(memfd.get(), &status) != 0)
    return fail_sys(errno, "memfd", "cannot stat the passed memfd");
  if (status.st_size <= 0) {
    return fail(ErrorKind::invalid, "memfd_empty", "the memfd passed as a body is empty");
  }
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size > memfd_body_bytes_max) {
    return fail(
        ErrorKind::invalid, "memfd_too_large",
        fmt::format("a memfd of {} bytes is over the limit of {}", size, memfd_body_bytes_max),
        "send fewer items at a time");
  }
  // Private, because kernels before 6.7 refuse a shared mapping of a write-sealed memfd.
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, memfd.get(), 0);
  if (address == MAP_FAILED) return fail_sys(errno, "memfd", "cannot map the passed memfd");
  MappedBody body;
  body.bytes_ = {static_cast<const uint8_t*>(address), size};
  return body;
}

MappedBody::~MappedBody() {
  if (bytes_.empty()) return;
  // munmap takes the address without const; nothing is written through it.
  ::munmap(const_cast<uint8_t*>(bytes_.data()), bytes_.size());
}

Result<UniqueFd> sealed_memfd(std::initializer_list<std::span<const uint8_t>> pieces) {
  constexpr unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  UniqueFd fd(::memfd_create("holdfast-request", flags | MFD_NOEXEC_SEAL));
  if (!fd && errno == EINVAL) fd.reset(::memfd_create("holdfast-request", flags));
  if (!fd) return fail_sys(errno, "memfd", "cannot create a memfd for the request");
  for (const auto& piece : pieces) {
    if (!write_all(fd.get(), piece))
      return fail_sys(errno, "memfd", "cannot fill the memfd of a request",
                      "free memory, or send fewer items at a time");
  }
  if (::fcntl(fd.get(), F_ADD_SEALS, seals_required) != 0) {
    return fail_sys(errno, "memfd", "cannot seal the memfd of the request");
  }
  return fd;
}

// ---- errors ----

Retry default_retry(const Error& error) {
  switch (error.kind) {
    case ErrorKind::unavailable: return {Retry::When::after_ms, retry_unavailable_ms};
    case ErrorKind::conflict:
    case ErrorKind::exhausted: return {Retry::When::after_event, 0};
    case ErrorKind::invalid:
    case ErrorKind::denied:
    case ErrorKind::not_found:
    case ErrorKind::unsupported:
    case ErrorKind::internal: break;
  }
  return {Retry::When::never, 0};
}

std::string_view class_name(const Error& error) {
  if (error.kind == ErrorKind::denied && error.code == step_up) return step_up;
  for (const ClassName& entry : class_names) {
    if (entry.kind == error.kind) return entry.name;
  }
  return "internal";
}

cbor::Value encode_error(const Error& error, const Retry& retry) {
  cbor::Value when;
  switch (retry.when) {
    case Retry::When::never: when = "never"; break;
    case Retry::When::after_event: when = "after_event"; break;
    case Retry::When::after_ms: when = cbor::Value::map({{"after_ms", retry.after_ms}}); break;
  }
  std::string detail = error.message;
  if (error.sys != 0) detail.append(": ").append(std::strerror(error.sys));
  return cbor::Value::map({{"code", error.code},
                           {"class", class_name(error)},
                           {"detail", std::move(detail)},
                           {"next_step", error.next_step},
                           {"retry", std::move(when)}});
}

Result<WireError> decode_error(std::span<const uint8_t> body) {
  Result<cbor::Value> value = cbor::decode(body);
  if (!value) return pass_on(value, "error frame");
  if (Status known = value->only_keys({"code", "class", "detail", "next_step", "retry"}); !known) {
    return malformed_error(known.error().message);
  }
  const auto code = value->get_text("code");
  const auto error_class = value->get_text("class");
  const auto detail = value->get_text("detail");
  const auto next_step = value->get_text("next_step");
  const cbor::Value* retry_value = value->find("retry");
  for (const auto* text : {&code, &error_class, &detail, &next_step}) {
    if (!*text) return malformed_error(text->error().message);
  }
  if (retry_value == nullptr) return malformed_error("\"retry\" is missing");
  Result<Retry> retry = decode_retry(*retry_value);
  if (!retry) return pass_on(retry);

  std::optional<ErrorKind> kind;
  if (*error_class == step_up && *code == step_up) kind = ErrorKind::denied;
  for (const ClassName& entry : class_names) {
    if (entry.name == *error_class) kind = entry.kind;
  }
  if (!kind) return malformed_error(fmt::format("unknown error class \"{}\"", *error_class));
  return WireError{Error{*kind, keep_code(*code), 0, std::string(*detail), std::string(*next_step)},
                   *retry};
}

// ---- requests ----

RequestParts encode_request(std::string_view verb, const cbor::Value& args,
                            std::optional<size_t> body_bytes) {
  CHECK(args.is_map());
  CHECK(!verb.empty() && verb.size() <= verb_bytes_max);
  RequestParts parts;
  std::vector<uint8_t>& out = parts.before;
  cbor::Writer writer(out);
  writer.map(body_bytes ? 3 : 2);
  writer.text("args");
  cbor::encode_into(writer, args);
  size_t split = out.size();
  if (body_bytes) {
    writer.text("body").bytes_head(*body_bytes);
    split = out.size();
  }
  writer.text("verb").text(verb).end();
  parts.after.assign(out.begin() + static_cast<ptrdiff_t>(split), out.end());
  out.resize(split);
  return parts;
}

Result<DecodedRequest> decode_request(std::span<const uint8_t> bytes) {
  cbor::Limits limits;
  limits.bytes_max = memfd_body_bytes_max;  // the frame layer has already bounded it
  cbor::Reader in(bytes, limits);
  DecodedRequest request;
  bool has_args = false;
  bool has_verb = false;
  for (in.map(); in.more();) {
    const std::string_view key = in.text();
    if (key == "args") {
      has_args = true;
      if (in.peek() != cbor::Type::map) in.refuse(cbor::Fault::wrong_type);
      request.args = cbor::read_value(in, limits.items_max);
    } else if (key == "body") {
      request.has_body = true;
      request.body = in.bytes();
    } else if (key == "verb") {
      has_verb = true;
      request.verb = in.text();
    } else if (in.ok()) {
      return fail(ErrorKind::invalid, "malformed_request",
                  fmt::format("\"{}\" is not a key of a request", key.substr(0, verb_bytes_max)));
    }
  }
  in.end();
  if (!in.finish()) return std::unexpected(in.error().in("request"));
  if (!has_args || !has_verb) {
    return fail(ErrorKind::invalid, "malformed_request",
                fmt::format("a request needs \"{}\"", has_args ? "verb" : "args"));
  }
  if (request.verb.empty() || request.verb.size() > verb_bytes_max) {
    return fail(
        ErrorKind::invalid, "malformed_request",
        fmt::format("a verb has 1 to {} bytes, not {}", verb_bytes_max, request.verb.size()));
  }
  return request;
}

}  // namespace holdfast::wire
