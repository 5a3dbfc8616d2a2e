#include "tests/unit/token/fake_token.hpp"

#include <algorithm>
#include <string_view>

#include <sodium.h>

namespace {

using holdfast::token::FakeToken;

FakeToken fake;
CK_OBJECT_CLASS wanted;
CK_ULONG given;

template <size_t Size>
void pad(unsigned char (&field)[Size], std::string_view text) {
  std::fill(std::begin(field), std::end(field), ' ');
  std::ranges::copy(text, std::begin(field));
}

CK_RV initialize(void*) {
  return fake.initialize;
}

CK_RV get_slot_list(unsigned char, CK_SLOT_ID* slots, CK_ULONG* count) {
  for (CK_ULONG i = 0; slots != nullptr && i < fake.tokens; ++i) slots[i] = i;
  *count = fake.tokens;
  return CKR_OK;
}

CK_RV get_token_info(CK_SLOT_ID slot, CK_TOKEN_INFO* info) {
  *info = {};
  pad(info->label, "ops");
  pad(info->manufacturerID, "fake");
  pad(info->model, "");
  pad(info->serialNumber, slot == 0 ? "0" : "1");
  info->flags = fake.flags;
  return CKR_OK;
}

CK_RV get_mechanism_info(CK_SLOT_ID, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO* info) {
  if (type != CKM_EDDSA || !fake.signs_ed25519) return CKR_MECHANISM_INVALID;
  *info = {255, 255, CKF_SIGN};
  return CKR_OK;
}

CK_RV open_session(CK_SLOT_ID, CK_FLAGS, void*, CK_NOTIFY, CK_SESSION_HANDLE* session) {
  *session = ++fake.sessions;
  return CKR_OK;
}

CK_RV close_session(CK_SESSION_HANDLE) {
  --fake.sessions;
  return CKR_OK;
}

CK_RV login(CK_SESSION_HANDLE, CK_USER_TYPE, unsigned char* pin, CK_ULONG size) {
  ++fake.logins;
  fake.pin = {};
  std::copy_n(pin, std::min<size_t>(size, fake.pin.size() - 1), fake.pin.begin());
  return fake.login;
}

CK_RV find_objects_init(CK_SESSION_HANDLE, CK_ATTRIBUTE* attributes, CK_ULONG count) {
  for (CK_ULONG i = 0; i < count; ++i)
    if (attributes[i].type == CKA_CLASS)
      wanted = *static_cast<const CK_OBJECT_CLASS*>(attributes[i].pValue);
  given = 0;
  return CKR_OK;
}

CK_RV find_objects(CK_SESSION_HANDLE, CK_OBJECT_HANDLE* objects, CK_ULONG max, CK_ULONG* count) {
  const CK_ULONG there = wanted == CKO_PRIVATE_KEY ? fake.private_keys : fake.public_keys;
  *count = 0;
  while (given < there && *count < max) objects[(*count)++] = ++given;
  return CKR_OK;
}

CK_RV find_objects_final(CK_SESSION_HANDLE) {
  return CKR_OK;
}

CK_RV get_attribute_value(CK_SESSION_HANDLE, CK_OBJECT_HANDLE, CK_ATTRIBUTE* attribute, CK_ULONG) {
  if (attribute->type == CKA_EC_POINT) {
    std::copy_n(fake.point.begin(), fake.point_size, static_cast<uint8_t*>(attribute->pValue));
    attribute->ulValueLen = fake.point_size;
    return CKR_OK;
  }
  const bool is_one = attribute->type != CKA_ALWAYS_AUTHENTICATE || fake.asks_each_time;
  *static_cast<uint8_t*>(attribute->pValue) = is_one ? 1 : 0;
  attribute->ulValueLen = 1;
  return CKR_OK;
}

CK_RV sign_init(CK_SESSION_HANDLE, CK_MECHANISM*, CK_OBJECT_HANDLE) {
  return CKR_OK;
}

CK_RV sign(CK_SESSION_HANDLE, unsigned char* data, CK_ULONG size, unsigned char* signature,
           CK_ULONG* signature_size) {
  if (fake.sign != CKR_OK) return fake.sign;
  crypto_sign_ed25519_detached(signature, nullptr, data, size, fake.secret.data());
  if (fake.wrong_signature) signature[5] ^= 1;
  *signature_size = 64;
  return CKR_OK;
}

CK_FUNCTION_LIST functions() {
  CK_FUNCTION_LIST list{};
  list.C_Initialize = initialize;
  list.C_GetSlotList = get_slot_list;
  list.C_GetTokenInfo = get_token_info;
  list.C_GetMechanismInfo = get_mechanism_info;
  list.C_OpenSession = open_session;
  list.C_CloseSession = close_session;
  list.C_Login = login;
  list.C_FindObjectsInit = find_objects_init;
  list.C_FindObjects = find_objects;
  list.C_FindObjectsFinal = find_objects_final;
  list.C_GetAttributeValue = get_attribute_value;
  list.C_SignInit = sign_init;
  list.C_Sign = sign;
  return list;
}

}  // namespace

extern "C" CK_RV C_GetFunctionList(CK_FUNCTION_LIST** list) {
  static CK_FUNCTION_LIST all = functions();
  *list = &all;
  return CKR_OK;
}

extern "C" FakeToken* fake_token() {
  return &fake;
}
