// JavaScript values to and from C++, as src/binding/index.ts declares them. TypeScript has validated; here it is
// asserted.
#pragma once

#include <napi.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/assert.h"

namespace extmem::binding {

/// An Error with `code`; the message is for people.
inline Napi::Error coded_error(Napi::Env env, const std::string& code, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, code));
  return error;
}

const char* errno_code(int error);

inline Napi::Error errno_error(Napi::Env env, int error, const std::string& what) {
  return coded_error(env, errno_code(error), what + ": " + std::strerror(error));
}

inline uint64_t to_u64(const Napi::Value& value) {
  EXTMEM_ASSERT(value.IsNumber());
  return static_cast<uint64_t>(value.As<Napi::Number>().Int64Value());
}
inline uint64_t u64_of(const Napi::Object& object, const char* key) { return to_u64(object.Get(key)); }
inline std::string string_of(const Napi::Object& object, const char* key) {
  return object.Get(key).As<Napi::String>().Utf8Value();
}
inline bool bool_of(const Napi::Object& object, const char* key) { return object.Get(key).ToBoolean().Value(); }

inline std::vector<uint8_t> to_bytes(const Napi::Value& value) {
  if (!value.IsTypedArray()) return {};
  auto array = value.As<Napi::Uint8Array>();
  return {array.Data(), array.Data() + array.ByteLength()};
}

inline Napi::Value from_bytes(Napi::Env env, const std::vector<uint8_t>& bytes) {
  return Napi::Buffer<uint8_t>::Copy(env, bytes.data(), bytes.size());
}
inline Napi::Number from_u64(Napi::Env env, uint64_t value) {
  return Napi::Number::New(env, static_cast<double>(value));
}

/// Nanoseconds since the epoch as [seconds, nanoseconds].
inline Napi::Array from_time(Napi::Env env, uint64_t ns) {
  Napi::Array time = Napi::Array::New(env, 2);
  time.Set(0u, from_u64(env, ns / 1'000'000'000));
  time.Set(1u, from_u64(env, ns % 1'000'000'000));
  return time;
}
inline uint64_t to_time(const Napi::Value& value) {
  auto time = value.As<Napi::Array>();
  return to_u64(time.Get(0u)) * 1'000'000'000 + to_u64(time.Get(1u));
}

/// The trace points marked since the last call.
Napi::Array from_trace(Napi::Env env);

/// "cache.hits" → object.cache.hits.
void set_dotted(Napi::Object object, const std::string& name, const Napi::Value& value);

}  // namespace extmem::binding
