#include "userspace/token/pkcs11.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <dlfcn.h>
#include <fmt/format.h>
#include <p11-kit/pkcs11.h>

#include "userspace/token/key_file.hpp"

namespace holdfast::token {
namespace {

std::string text_of(CK_RV code) {
  switch (code) {
    case CKR_DEVICE_ERROR: return "CKR_DEVICE_ERROR";
    case CKR_DEVICE_REMOVED: return "CKR_DEVICE_REMOVED";
    case CKR_FUNCTION_FAILED: return "CKR_FUNCTION_FAILED";
    case CKR_GENERAL_ERROR: return "CKR_GENERAL_ERROR";
    case CKR_HOST_MEMORY: return "CKR_HOST_MEMORY";
    case CKR_KEY_FUNCTION_NOT_PERMITTED: return "CKR_KEY_FUNCTION_NOT_PERMITTED";
    case CKR_SESSION_HANDLE_INVALID: return "CKR_SESSION_HANDLE_INVALID";
    case CKR_TOKEN_NOT_PRESENT: return "CKR_TOKEN_NOT_PRESENT";
    case CKR_USER_NOT_LOGGED_IN: return "CKR_USER_NOT_LOGGED_IN";
    default: return fmt::format("CKR 0x{:x}", code);
  }
}

std::unexpected<Error> failed(std::string_view call, std::string_view where, CK_RV code) {
  return fail(ErrorKind::unavailable, "pkcs11_failed",
              fmt::format("{}: {} failed with {}", where, call, text_of(code)),
              "see whether the token is there and works: pkcs11-tool --module MODULE -L");
}

// Of what the token says of itself, padded with blanks.
template <size_t Size>
std::string_view trimmed(const unsigned char (&field)[Size]) {
  const std::string_view all(reinterpret_cast<const char*>(field), Size);
  const size_t last = all.find_last_not_of(' ');
  return all.substr(0, last == std::string_view::npos ? 0 : last + 1);
}

CK_ATTRIBUTE attribute(CK_ATTRIBUTE_TYPE type, const void* value, size_t size) {
  return {type, const_cast<void*>(value), size};  // templates are read only
}

Result<CK_FUNCTION_LIST*> load(const std::string& path) {
  const auto refuse = [&](std::string why) {
    return fail(ErrorKind::unavailable, "pkcs11_module",
                fmt::format("the PKCS#11 module {} cannot be used: {}", path, why),
                "install the token's module, and name it by module-path");
  };
  void* module = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (module == nullptr) return refuse(::dlerror());
  const auto get = reinterpret_cast<CK_C_GetFunctionList>(::dlsym(module, "C_GetFunctionList"));
  if (get == nullptr) return refuse("it has no C_GetFunctionList");
  CK_FUNCTION_LIST* api = nullptr;
  if (const CK_RV code = get(&api); code != CKR_OK || api == nullptr)
    return refuse("C_GetFunctionList failed with " + text_of(code));
  CK_C_INITIALIZE_ARGS arguments{};
  arguments.flags = CKF_OS_LOCKING_OK;
  const CK_RV code = api->C_Initialize(&arguments);
  if (code != CKR_OK && code != CKR_CRYPTOKI_ALREADY_INITIALIZED)
    return refuse("C_Initialize failed with " + text_of(code));
  return api;
}

struct Token {
  CK_SLOT_ID slot = 0;
  CK_FLAGS flags = 0;
  std::string name;  // for people
};

bool is_meant(const CK_TOKEN_INFO& info, const Pkcs11Uri& uri) {
  const auto fits = [](std::string_view wanted, std::string_view there) {
    return wanted.empty() || wanted == there;
  };
  return (info.flags & CKF_TOKEN_INITIALIZED) != 0 && fits(uri.token, trimmed(info.label)) &&
         fits(uri.manufacturer, trimmed(info.manufacturerID)) &&
         fits(uri.model, trimmed(info.model)) && fits(uri.serial, trimmed(info.serialNumber));
}

Result<Token> find_token(CK_FUNCTION_LIST* api, const Pkcs11Uri& uri) {
  CK_ULONG count = 0;
  CK_RV code = api->C_GetSlotList(CK_TRUE, nullptr, &count);
  std::vector<CK_SLOT_ID> slots(count);
  if (code == CKR_OK && count != 0) code = api->C_GetSlotList(CK_TRUE, slots.data(), &count);
  if (code != CKR_OK) return failed("C_GetSlotList", uri.module_path, code);
  slots.resize(std::min<size_t>(count, slots.size()));
  std::optional<Token> found;
  for (const CK_SLOT_ID slot : slots) {
    CK_TOKEN_INFO info{};
    if (api->C_GetTokenInfo(slot, &info) != CKR_OK || !is_meant(info, uri)) continue;
    Token token{slot, info.flags,
                fmt::format("the token \"{}\" (serial {})", trimmed(info.label),
                            trimmed(info.serialNumber))};
    if (found)
      return fail(ErrorKind::invalid, "pkcs11_token_ambiguous",
                  fmt::format("{} and {} both fit the URI", found->name, token.name),
                  "add serial= to the URI");
    found = std::move(token);
  }
  if (!found)
    return fail(ErrorKind::not_found, "pkcs11_token_missing",
                fmt::format("no token that {} shows fits the URI{}", uri.module_path,
                            uri.token.empty() ? "" : ": token=" + uri.token),
                fmt::format("list them: pkcs11-tool --module {} -L", uri.module_path));
  return *found;
}

Status check_mechanism(CK_FUNCTION_LIST* api, const Token& token) {
  CK_MECHANISM_INFO info{};
  const CK_RV code = api->C_GetMechanismInfo(token.slot, CKM_EDDSA, &info);
  if (code == CKR_OK && (info.flags & CKF_SIGN) != 0) return {};
  if (code != CKR_OK && code != CKR_MECHANISM_INVALID)
    return failed("C_GetMechanismInfo", token.name, code);
  return fail(ErrorKind::unsupported, "pkcs11_mechanism",
              token.name + " does not sign with Ed25519 (CKM_EDDSA)",
              "use a token that does, or a key in a file or in ssh-agent");
}

class Session {
 public:
  static Result<Session> open(CK_FUNCTION_LIST* api, Token token) {
    CK_SESSION_HANDLE handle = 0;
    const CK_RV code =
        api->C_OpenSession(token.slot, CKF_SERIAL_SESSION, nullptr, nullptr, &handle);
    if (code != CKR_OK) return failed("C_OpenSession", token.name, code);
    return Session(api, std::move(token), handle);
  }
  Session(Session&& other) noexcept
      : api_(std::exchange(other.api_, nullptr)),
        token_(std::move(other.token_)),
        handle_(other.handle_) {}
  Session& operator=(Session&&) = delete;
  // With the last session of the process the token logs it out.
  ~Session() {
    if (api_ != nullptr) api_->C_CloseSession(handle_);
  }

  const std::string& token() const { return token_.name; }

  Status log_in(const std::string& pin_source) {
    if (pin_source.empty()) {
      if ((token_.flags & CKF_LOGIN_REQUIRED) == 0) return {};
      if ((token_.flags & CKF_PROTECTED_AUTHENTICATION_PATH) == 0)
        return fail(ErrorKind::invalid, "pkcs11_pin_missing", token_.name + " asks for a PIN",
                    "write it to a file of mode 0400, and add &pin-source=file:/PATH to the URI");
      return answer_of_login(api_->C_Login(handle_, CKU_USER, nullptr, 0));  // the token asks
    }
    const Result<Secret> file = read_key_file(pin_source, KeyFileMode::owner_only);
    if (!file) return std::unexpected(Error(file.error()).in("the PIN"));
    std::string_view pin = file->text();
    if (pin.ends_with('\n')) pin.remove_suffix(1);
    if (pin.empty())
      return fail(ErrorKind::invalid, "pkcs11_pin_missing",
                  "the first line of the PIN's file " + pin_source + " is empty",
                  "write the PIN to it");
    if ((token_.flags & CKF_USER_PIN_LOCKED) != 0) return locked();
    if ((token_.flags & CKF_USER_PIN_FINAL_TRY) != 0)
      return fail(ErrorKind::denied, "pkcs11_pin_locked",
                  token_.name + " takes one more PIN before it locks, so none was tried",
                  "log in with the right one by the token's own tool, then try again");
    std::vector<CK_UTF8CHAR> bytes(pin.begin(), pin.end());
    const CK_RV code = api_->C_Login(handle_, CKU_USER, bytes.data(), bytes.size());
    ::explicit_bzero(bytes.data(), bytes.size());
    return answer_of_login(code);
  }

  // At most two, since more make no difference.
  Result<std::vector<CK_OBJECT_HANDLE>> find(std::span<CK_ATTRIBUTE> wanted) const {
    CK_RV code = api_->C_FindObjectsInit(handle_, wanted.data(), wanted.size());
    if (code != CKR_OK) return failed("C_FindObjectsInit", token_.name, code);
    std::vector<CK_OBJECT_HANDLE> found(2);
    CK_ULONG count = 0;
    code = api_->C_FindObjects(handle_, found.data(), found.size(), &count);
    api_->C_FindObjectsFinal(handle_);
    if (code != CKR_OK) return failed("C_FindObjects", token_.name, code);
    found.resize(std::min<size_t>(count, found.size()));
    return found;
  }

  // Empty: the object has none.
  Result<std::vector<uint8_t>> attribute_of(CK_OBJECT_HANDLE object, CK_ATTRIBUTE_TYPE type) const {
    std::vector<uint8_t> value(attribute_bytes_max);
    CK_ATTRIBUTE asked = attribute(type, value.data(), value.size());
    const CK_RV code = api_->C_GetAttributeValue(handle_, object, &asked, 1);
    if (code == CKR_ATTRIBUTE_TYPE_INVALID) return std::vector<uint8_t>();
    if (code != CKR_OK || asked.ulValueLen > value.size())
      return failed("C_GetAttributeValue", token_.name, code);
    value.resize(asked.ulValueLen);
    return value;
  }

  Result<std::vector<uint8_t>> sign(CK_OBJECT_HANDLE key, std::span<const uint8_t> message) const {
    CK_MECHANISM mechanism{CKM_EDDSA, nullptr, 0};
    CK_RV code = api_->C_SignInit(handle_, &mechanism, key);
    if (code != CKR_OK) return failed("C_SignInit", token_.name, code);
    std::vector<uint8_t> bytes(message.begin(), message.end());  // the module's are not const
    std::vector<uint8_t> signature(sizeof(Signature));
    CK_ULONG size = signature.size();
    code = api_->C_Sign(handle_, bytes.data(), bytes.size(), signature.data(), &size);
    if (code != CKR_OK) return failed("C_Sign", token_.name, code);
    signature.resize(std::min<size_t>(size, signature.size()));
    return signature;
  }

 private:
  static constexpr size_t attribute_bytes_max = 1024;

  Session(CK_FUNCTION_LIST* api, Token token, CK_SESSION_HANDLE handle)
      : api_(api), token_(std::move(token)), handle_(handle) {}

  std::unexpected<Error> locked() const {
    return fail(ErrorKind::denied, "pkcs11_pin_locked", token_.name + " has locked its PIN",
                "its security officer sets a new one");
  }

  Status answer_of_login(CK_RV code) const {
    switch (code) {
      case CKR_OK:
      case CKR_USER_ALREADY_LOGGED_IN: return {};  // by another signer of this process
      case CKR_PIN_LOCKED: return locked();
      case CKR_PIN_INCORRECT:
      case CKR_PIN_INVALID:
      case CKR_PIN_LEN_RANGE:
        return fail(ErrorKind::denied, "pkcs11_pin_wrong", token_.name + " refused the PIN",
                    "put the right one into the file before trying again: tokens lock after a few");
      default: return failed("C_Login", token_.name, code);
    }
  }

  CK_FUNCTION_LIST* api_;
  Token token_;
  CK_SESSION_HANDLE handle_;
};

std::string name_of_key(const Pkcs11Uri& uri) {
  std::string name;
  if (!uri.object.empty()) name = fmt::format(" with the label \"{}\"", uri.object);
  if (!uri.id.empty())
    name += fmt::format(
        "{} the id {:02x}", name.empty() ? " with" : " and",
        fmt::join(std::span(reinterpret_cast<const uint8_t*>(uri.id.data()), uri.id.size()), ""));
  return name;
}

Result<CK_OBJECT_HANDLE> find_private(const Session& session, const Pkcs11Uri& uri) {
  const CK_OBJECT_CLASS kind = CKO_PRIVATE_KEY;
  const CK_KEY_TYPE type = CKK_EC_EDWARDS;
  std::vector<CK_ATTRIBUTE> wanted{attribute(CKA_CLASS, &kind, sizeof(kind)),
                                   attribute(CKA_KEY_TYPE, &type, sizeof(type))};
  if (!uri.object.empty())
    wanted.push_back(attribute(CKA_LABEL, uri.object.data(), uri.object.size()));
  if (!uri.id.empty()) wanted.push_back(attribute(CKA_ID, uri.id.data(), uri.id.size()));
  const Result<std::vector<CK_OBJECT_HANDLE>> found = session.find(wanted);
  if (!found) return std::unexpected(found.error());
  if (found->empty())
    return fail(
        ErrorKind::not_found, "pkcs11_key_missing",
        fmt::format("{} has no private Ed25519 key{}", session.token(), name_of_key(uri)),
        fmt::format("list what it has: pkcs11-tool --module {} --login -O", uri.module_path));
  if (found->size() > 1)
    return fail(ErrorKind::invalid, "pkcs11_key_ambiguous",
                fmt::format("{} has more than one private Ed25519 key{}", session.token(),
                            name_of_key(uri)),
                uri.id.empty() ? "add id= to the URI, such as id=%01" : "add object= to the URI");
  // Such keys are for people at a terminal; the PIN is not kept for them.
  const Result<std::vector<uint8_t>> asks =
      session.attribute_of(found->front(), CKA_ALWAYS_AUTHENTICATE);
  if (!asks) return std::unexpected(asks.error());
  if (std::ranges::any_of(*asks, [](uint8_t byte) { return byte != 0; }))
    return fail(ErrorKind::unsupported, "pkcs11_key_asks",
                fmt::format("{} wants its PIN for each signature by the key{}", session.token(),
                            name_of_key(uri)),
                "use a key without CKA_ALWAYS_AUTHENTICATE");
  return found->front();
}

// The public key is an object of its own, which has the private one's id, or where that has none
// its label.
Result<PublicKey> find_public(const Session& session, CK_OBJECT_HANDLE key, const Pkcs11Uri& uri) {
  CK_ATTRIBUTE_TYPE by = CKA_ID;
  Result<std::vector<uint8_t>> name = session.attribute_of(key, by);
  if (name && name->empty()) name = session.attribute_of(key, by = CKA_LABEL);
  if (!name) return pass_on(name);
  const CK_OBJECT_CLASS kind = CKO_PUBLIC_KEY;
  const CK_KEY_TYPE type = CKK_EC_EDWARDS;
  std::array<CK_ATTRIBUTE, 3> wanted{attribute(CKA_CLASS, &kind, sizeof(kind)),
                                     attribute(CKA_KEY_TYPE, &type, sizeof(type)),
                                     attribute(by, name->data(), name->size())};
  const Result<std::vector<CK_OBJECT_HANDLE>> found = session.find(wanted);
  if (!found) return std::unexpected(found.error());
  if (found->size() != 1)
    return fail(
        ErrorKind::not_found, "pkcs11_public_key_missing",
        fmt::format("{} has {} for the private key{}", session.token(),
                    found->empty() ? "no public key" : "several public keys", name_of_key(uri)),
        "the public key belongs on the token too, with the private key's id");
  const Result<std::vector<uint8_t>> point = session.attribute_of(found->front(), CKA_EC_POINT);
  if (!point) return std::unexpected(point.error());
  // As an OCTET STRING in DER (PKCS#11 3.0), or bare (3.1, and many a module).
  std::span<const uint8_t> bytes = *point;
  if (bytes.size() == 34 && bytes[0] == 0x04 && bytes[1] == 32) bytes = bytes.subspan(2);
  PublicKey out{};
  if (bytes.size() != out.size())
    return fail(ErrorKind::invalid, "pkcs11_public_key_missing",
                fmt::format("{}: the key{} is not on the curve of Ed25519", session.token(),
                            name_of_key(uri)),
                "make one: pkcs11-tool --keypairgen --key-type EC:edwards25519");
  std::ranges::copy(bytes, out.begin());
  return out;
}

class Pkcs11Signer : public Signer {
 public:
  Pkcs11Signer(Session session, CK_OBJECT_HANDLE key, const PublicKey& public_key)
      : session_(std::move(session)), key_(key), public_key_(public_key) {}

  const PublicKey& public_key() const override { return public_key_; }

  Result<std::vector<uint8_t>> sign(std::span<const uint8_t> message) const override {
    const std::lock_guard lock(one_at_a_time_);
    Result<std::vector<uint8_t>> signature = session_.sign(key_, message);
    if (!signature) return signature;
    if (signature->size() != sizeof(Signature) ||
        !verify_signature(public_key_, message, std::span(*signature).first<sizeof(Signature)>()))
      return fail(ErrorKind::invalid, "pkcs11_wrong_pair",
                  session_.token() + " made a signature that its public key does not verify",
                  "see that the public key on the token is the private key's");
    return signature;
  }

 private:
  Session session_;
  CK_OBJECT_HANDLE key_;
  PublicKey public_key_;
  mutable std::mutex one_at_a_time_;
};

}  // namespace

Result<std::unique_ptr<Signer>> open_pkcs11_signer(std::string_view text) {
  const Result<Pkcs11Uri> uri = parse_pkcs11_uri(text);
  if (!uri) return std::unexpected(uri.error());
  Result<CK_FUNCTION_LIST*> api = load(uri->module_path);
  if (!api) return pass_on(api);
  Result<Token> token = find_token(*api, *uri);
  if (!token) return pass_on(token);
  if (Status ok = check_mechanism(*api, *token); !ok) return pass_on(ok);
  Result<Session> session = Session::open(*api, std::move(*token));
  if (!session) return pass_on(session);
  if (Status ok = session->log_in(uri->pin_source); !ok) return pass_on(ok);
  const Result<CK_OBJECT_HANDLE> key = find_private(*session, *uri);
  if (!key) return std::unexpected(key.error());
  const Result<PublicKey> public_key = find_public(*session, *key, *uri);
  if (!public_key) return std::unexpected(public_key.error());
  return std::make_unique<Pkcs11Signer>(std::move(*session), *key, *public_key);
}

}  // namespace holdfast::token
