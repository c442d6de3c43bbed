#include "binding/convert.h"

#include <errno.h>

#include "base/trace.h"

namespace extmem::binding {

const char* errno_code(int error) {
  const char* name = strerrorname_np(error);
  return name != nullptr ? name : "EIO";
}

Napi::Array from_trace(Napi::Env env) {
  auto entries = trace::take();
  Napi::Array list = Napi::Array::New(env, entries.size());
  for (uint32_t index = 0; index < entries.size(); ++index) {
    Napi::Object one = Napi::Object::New(env);
    one.Set("point", Napi::String::New(env, trace::kPointNames[static_cast<size_t>(entries[index].point)]));
    one.Set("unique", from_u64(env, entries[index].detail));
    one.Set("ns", from_u64(env, entries[index].ns));
    one.Set("thread", from_u64(env, entries[index].thread));
    list.Set(index, one);
  }
  return list;
}

void set_dotted(Napi::Object object, const std::string& name, const Napi::Value& value) {
  size_t dot = name.find('.');
  if (dot == std::string::npos) {
    object.Set(name, value);
    return;
  }
  std::string layer = name.substr(0, dot);
  if (!object.Has(layer)) object.Set(layer, Napi::Object::New(object.Env()));
  set_dotted(object.Get(layer).As<Napi::Object>(), name.substr(dot + 1), value);
}

}  // namespace extmem::binding
