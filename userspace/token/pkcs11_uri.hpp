// "pkcs11:" URIs (RFC 7512): which key, on which token, behind which module. Strict: an attribute
// that would be overlooked is refused. Pure.
//
//   pkcs11:token=ops;object=root?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/hsm/pin
#pragma once

#include <string>
#include <string_view>

#include "userspace/base/result.hpp"

namespace holdfast::token {

struct Pkcs11Uri {
  // Of the token; what is empty does not matter.
  std::string token, manufacturer, model, serial;
  // Of the key: its label, its CKA_ID, or both.
  std::string object, id;
  std::string module_path;  // absolute
  std::string pin_source;   // a file, absolute; empty: no PIN is given

  bool operator==(const Pkcs11Uri&) const = default;
};

bool is_pkcs11_uri(std::string_view text);

// Errors: invalid / pkcs11_uri. None repeats a PIN.
Result<Pkcs11Uri> parse_pkcs11_uri(std::string_view text);

}  // namespace holdfast::token
